//! The whole audit log.

use actix_web::{HttpResponse, web};

use super::super::audit::{self, Page};
use super::operator;
use crate::accounts::Caller;
use crate::error::ApiError;
use crate::state::Platform;

pub async fn list(
    platform: web::Data<Platform>,
    caller: Caller,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    operator(&platform, &caller)?;
    audit::all(&platform, &page).await
}
