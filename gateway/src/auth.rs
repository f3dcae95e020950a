//! Who calls: the key of the `Authorization` header.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpRequest, web};

use crate::accounts::Caller;
use crate::error::ApiError;
use crate::state::Platform;

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(caller(request))
    }
}

/// The owner of the key that the request carries.
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
    platform
        .accounts
        .verify(key.trim())
        .ok_or_else(|| refused("this API key is not valid; it is wrong, or it was revoked"))
}
