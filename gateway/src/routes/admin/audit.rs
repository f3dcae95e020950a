//! The whole audit log.

use actix_web::{HttpResponse, web};

use super::super::audit::{self, Page};
use super::{Operator, account_in_field};
use crate::error::ApiError;
use crate::state::Platform;

pub async fn list(
    platform: web::Data<Platform>,
    _: Operator,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    let account = match &page.account {
        Some(name) => Some(account_in_field(&platform, name).await?),
        None => None,
    };
    audit::list(&platform, account.as_ref(), &page).await
}
