//! The operator's endpoints, on the operators' listener and for keys of the account that runs the server only.

mod accounts;
mod audit;
mod books;
mod exports;
mod prices;
mod reconciliation;

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::{FromRequest, HttpRequest, web};
use platform::AccountName;

use crate::accounts::Caller;
use crate::auth;
use crate::error::ApiError;
use crate::state::Platform;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/admin/v1/accounts", web::get().to(accounts::list))
        .route("/admin/v1/accounts", web::post().to(accounts::create))
        .route("/admin/v1/accounts/{account}", web::get().to(accounts::show))
        .route("/admin/v1/accounts/{account}", web::patch().to(accounts::change))
        .route("/admin/v1/accounts/{account}/keys", web::get().to(accounts::keys))
        .route("/admin/v1/accounts/{account}/keys", web::post().to(accounts::create_key))
        .route("/admin/v1/accounts/{account}/keys/{id}", web::delete().to(accounts::revoke_key))
        .route("/admin/v1/accounts/{account}/limits", web::get().to(accounts::limits))
        .route("/admin/v1/accounts/{account}/limits", web::post().to(accounts::add_limit))
        .route("/admin/v1/accounts/{account}/limits/{id}", web::delete().to(accounts::remove_limit))
        .route("/admin/v1/accounts/{account}/requests", web::get().to(books::requests))
        .route("/admin/v1/accounts/{account}/usage", web::get().to(books::usage))
        .route("/admin/v1/accounts/{account}/ledger", web::get().to(books::ledger))
        .route("/admin/v1/accounts/{account}/statements", web::get().to(books::statements))
        .route("/admin/v1/accounts/{account}/statements/{month}", web::get().to(books::statement))
        .route("/admin/v1/reconciliation", web::get().to(reconciliation::show))
        .route("/admin/v1/audit", web::get().to(audit::list))
        .route("/admin/v1/export", web::get().to(exports::list))
        .route("/admin/v1/export", web::post().to(exports::export))
        .route("/admin/v1/credits", web::post().to(accounts::credit))
        .route("/admin/v1/prices", web::get().to(prices::list))
        .route("/admin/v1/prices", web::post().to(prices::add))
        .route("/admin/v1/prices/rerate", web::post().to(prices::rerate));
}

/// A caller who runs the server; everybody else is refused.
pub struct Operator(pub Caller);

impl FromRequest for Operator {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(operator(request))
    }
}

fn operator(request: &HttpRequest) -> Result<Operator, ApiError> {
    let caller = auth::caller(request)?;
    let platform = request.app_data::<web::Data<Platform>>();
    match platform.is_some_and(|platform| caller.account == platform.operator) {
        true => Ok(Operator(caller)),
        false => Err(ApiError::new(StatusCode::FORBIDDEN, "this needs a key of the account that runs the server")),
    }
}

/// The account that a path names.
async fn account_at(platform: &Platform, name: &str) -> Result<AccountName, ApiError> {
    let missing = || ApiError::not_found(format!("there is no account {name}"));
    let account: AccountName = name.parse().map_err(|_| missing())?;
    if platform.accounts.exists(&account).await? { Ok(account) } else { Err(missing()) }
}

/// The account that the field `account` names.
async fn account_in_field(platform: &Platform, name: &str) -> Result<AccountName, ApiError> {
    account_at(platform, name).await.map_err(|error| match error.status {
        StatusCode::NOT_FOUND => ApiError::param("account", error.message),
        _ => error,
    })
}
