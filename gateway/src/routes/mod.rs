//! The router: a table of contents, grouped by who calls.

mod account;
mod adapters;
mod admin;
mod audit;
mod chat;
mod completions;
mod limits;
mod lora;
mod models;
mod ops;
mod organization;
mod reply;
mod statements;
mod webhooks;

pub use limits::shown as shown_limit;
pub use reply::{dollars, unread};

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::middleware::{Next, from_fn};
use actix_web::{Error, HttpResponse, guard, web};

use crate::error::{ApiError, nul_text};
use crate::idempotency;

/// Largest JSON body, in bytes.
pub const JSON_BYTES: usize = 16 << 20;

/// What clients of the OpenAI API call, and what is Myriad's own beside it.
pub fn api(config: &mut web::ServiceConfig) {
    config
        .configure(bounds)
        // Inference
        .service(once("/v1/chat/completions").to(chat::create))
        .service(once("/v1/completions").to(completions::create))
        .route("/v1/models", web::get().to(models::list))
        .route("/v1/models/{id:.*}", web::get().to(models::show))
        // Adapters
        .route("/v1/adapters", web::get().to(adapters::list))
        .route("/v1/adapters", web::post().to(adapters::create))
        .route("/v1/adapters/{account}/{name}", web::put().to(adapters::put))
        .route("/v1/adapters/{account}/{name}", web::get().to(adapters::show))
        .route("/v1/adapters/{account}/{name}", web::delete().to(adapters::delete))
        .route("/v1/adapters/{account}/{name}/versions", web::get().to(adapters::versions))
        .route("/v1/adapters/{account}/{name}/versions/{version}", web::delete().to(adapters::delete_version))
        .route("/v1/adapters/{account}/{name}/aliases/{alias}", web::put().to(adapters::set_alias))
        .route("/v1/adapters/{account}/{name}/aliases/{alias}", web::delete().to(adapters::remove_alias))
        .route("/v1/adapters/{account}/{name}/download", web::get().to(adapters::download))
        // vLLM's names for them, for who runs the server
        .route("/v1/load_lora_adapter", web::post().to(lora::load))
        .route("/v1/unload_lora_adapter", web::post().to(lora::unload))
        // The account
        .route("/v1/account", web::get().to(account::show))
        .route("/v1/account/requests", web::get().to(account::requests))
        .route("/v1/account/usage", web::get().to(account::usage))
        .route("/v1/account/prices", web::get().to(account::prices))
        .route("/v1/account/ledger", web::get().to(account::ledger))
        .route("/v1/account/statements", web::get().to(statements::list))
        .route("/v1/account/statements/{month}", web::get().to(statements::show))
        .route("/v1/account/keys", web::get().to(account::keys))
        .route("/v1/account/keys", web::post().to(account::create_key))
        .route("/v1/account/keys/{id}", web::delete().to(account::revoke_key))
        .route("/v1/account/limits", web::get().to(limits::list))
        .route("/v1/account/limits", web::post().to(limits::add))
        .route("/v1/account/limits/{id}", web::delete().to(limits::remove))
        .route("/v1/account/webhooks", web::get().to(webhooks::list))
        .route("/v1/account/webhooks", web::post().to(webhooks::add))
        .route("/v1/account/webhooks/{id}", web::delete().to(webhooks::remove))
        .route("/v1/account/webhooks/{id}/deliveries", web::get().to(webhooks::deliveries))
        .route("/v1/account/members", web::get().to(account::members))
        .route("/v1/account/members/{name}", web::put().to(account::set_member))
        .route("/v1/account/members/{name}", web::delete().to(account::remove_member))
        .route("/v1/account/audit", web::get().to(audit::own))
        // The same, as the OpenAI API shows it
        .route("/v1/organization/usage/completions", web::get().to(organization::completions))
        .route("/v1/organization/costs", web::get().to(organization::costs))
        // Whoever watches
        .configure(health)
        .route("/", web::get().to(ops::front_page))
        .default_service(web::to(nothing_here));
}

/// Wraps every route: refuses paths and queries with a character that no name has.
pub async fn readable(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if request.uri().to_string().contains("%00") {
        return Err(nul_text().into());
    }
    next.call(request).await
}

/// A POST that honours `Idempotency-Key`.
fn once(
    path: &str,
) -> actix_web::Resource<
    impl ServiceFactory<ServiceRequest, Config = (), Response = ServiceResponse, Error = Error, InitError = ()>,
> {
    web::resource(path).guard(guard::Post()).wrap(from_fn(idempotency::once))
}

/// Bounds of bodies, and errors of paths and queries in the API's own shape.
fn bounds(config: &mut web::ServiceConfig) {
    config
        .app_data(web::PayloadConfig::new(JSON_BYTES))
        .app_data(web::PathConfig::default().error_handler(|error, _| ApiError::not_found(error.to_string()).into()))
        .app_data(web::QueryConfig::default().error_handler(|error, _| {
            ApiError::new(StatusCode::BAD_REQUEST, format!("the query cannot be read: {error}")).into()
        }));
}

/// The operators' listener.
pub fn ops(config: &mut web::ServiceConfig) {
    config
        .configure(bounds)
        .configure(health)
        .route("/metrics", web::get().to(ops::metrics))
        .configure(admin::routes)
        .default_service(web::to(nothing_here));
}

fn health(config: &mut web::ServiceConfig) {
    config
        .route("/healthz", web::get().to(ops::alive))
        .route("/health", web::get().to(ops::ready))
        .route("/readyz", web::get().to(ops::ready))
        .route("/version", web::get().to(ops::version));
}

async fn nothing_here(request: actix_web::HttpRequest) -> Result<HttpResponse, ApiError> {
    const LATER: [&str; 3] = ["/v1/responses", "/v1/embeddings", "/v1/batches"];
    let path = request.path();
    Err(ApiError::not_found(match LATER.iter().find(|later| path.starts_with(**later)) {
        Some(later) => format!("{later} is not there yet; /v1/chat/completions and /v1/completions are"),
        None => format!("there is nothing at {} {}", request.method(), path.chars().take(200).collect::<String>()),
    }))
}
