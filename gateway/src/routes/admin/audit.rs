//! The whole audit log.

use actix_web::{HttpResponse, web};

use super::super::audit::{self, Page};
use super::Operator;
use crate::error::ApiError;
use crate::state::Platform;

pub async fn list(
    platform: web::Data<Platform>,
    _: Operator,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    audit::all(&platform, &page).await
}
