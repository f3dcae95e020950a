//! An account's requests, sums, ledger and statements, as the operator reads them: what the account itself sees.

use actix_web::{HttpResponse, web};

use super::super::account::{self, Page, UsageQuery};
use super::super::statements::{self, Form};
use super::{Operator, account_at};
use crate::error::ApiError;
use crate::state::Platform;

pub async fn requests(
    platform: web::Data<Platform>,
    _: Operator,
    name: web::Path<String>,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    account::requests_of(&platform, &account_at(&platform, &name).await?, &page).await
}

pub async fn usage(
    platform: web::Data<Platform>,
    _: Operator,
    name: web::Path<String>,
    query: web::Query<UsageQuery>,
) -> Result<HttpResponse, ApiError> {
    account::usage_of(&platform, &account_at(&platform, &name).await?, &query).await
}

pub async fn ledger(
    platform: web::Data<Platform>,
    _: Operator,
    name: web::Path<String>,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    account::ledger_of(&platform, &account_at(&platform, &name).await?, &page).await
}

pub async fn statements(
    platform: web::Data<Platform>,
    _: Operator,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let name = account_at(&platform, &name).await?;
    statements::list_of(&platform, &name, &format!("/admin/v1/accounts/{name}")).await
}

pub async fn statement(
    platform: web::Data<Platform>,
    _: Operator,
    path: web::Path<(String, String)>,
    form: web::Query<Form>,
) -> Result<HttpResponse, ApiError> {
    let (name, month) = path.into_inner();
    statements::show_of(&platform, &account_at(&platform, &name).await?, &month, &form).await
}
