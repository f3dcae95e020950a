//! Who calls: the key of the `Authorization` header.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpRequest, web};

use crate::access::Scope;
use crate::accounts::{Caller, KeyRefusal};
use crate::error::ApiError;
use crate::state::Platform;

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(caller(request))
    }
}

/// The owner of the key that the request carries, if the key opens this part of the API.
pub fn caller(request: &HttpRequest) -> Result<Caller, ApiError> {
    let refused = |message: &str| ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key");
    let header = request.headers().get(AUTHORIZATION);
    let header = header.ok_or_else(|| refused("no API key: send Authorization: Bearer sk-myriad-..."))?;
    let key = header
        .to_str()
        .ok()
        .and_then(|header| header.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let (_, key) = key.ok_or_else(|| refused("the Authorization header must be: Bearer sk-myriad-..."))?;
    let platform = request.app_data::<web::Data<Platform>>();
    let platform = platform.ok_or_else(|| ApiError::internal("the platform is not there"))?;
    let caller = platform.accounts.verify(key.trim()).map_err(|refusal| match refusal {
        KeyRefusal::Unknown => refused("this API key is not valid; it is wrong, or it was revoked"),
        KeyRefusal::Expired => refused("this API key has expired"),
        KeyRefusal::Suspended => {
            let message = "this account is suspended: whoever runs the server can resume it";
            ApiError::new(StatusCode::FORBIDDEN, message).with_code("account_suspended")
        }
    })?;
    match Scope::of_path(request.path(), request.method().is_safe()) {
        Some(scope) if !caller.scopes.has(scope) => {
            let message = format!("this API key may not do this: it has no scope {:?}", scope.name());
            Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("missing_scope"))
        }
        _ => Ok(caller),
    }
}
