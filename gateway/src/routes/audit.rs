//! Who changed what: an account's own log, and all of it for the operator.

use actix_web::{HttpResponse, web};
use platform::AccountName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::{page_limit, unknown_after};
use super::reply;
use crate::accounts::Caller;
use crate::audit::AuditRow;
use crate::error::ApiError;
use crate::state::Platform;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    limit: Option<u32>,
    after: Option<String>,
    /// For the operator.
    pub account: Option<String>,
}

/// Changes that concern the caller's account, newest first.
pub async fn own(
    platform: web::Data<Platform>,
    caller: Caller,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    list(&platform, Some(&caller.account), &page).await
}

/// Changes of one account, or of all.
pub async fn list(platform: &Platform, account: Option<&AccountName>, page: &Page) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(page.limit)?;
    let account = account.map(AccountName::as_str);
    if let Some(after) = &page.after
        && !platform.audit.has(account, after).await?
    {
        return Err(unknown_after("change"));
    }
    let rows = platform.audit.list(account, page.after.as_deref(), limit + 1).await?;
    Ok(reply::page(&rows, limit, row))
}

fn row(row: &AuditRow) -> Value {
    json!({
        "id": row.id,
        "object": "audit.change",
        "account": row.account,
        "actor": { "account": row.actor_account, "key": row.actor_key },
        "action": row.action,
        "subject": row.subject,
        "detail": row.detail,
        "created_ms": row.created_ms,
    })
}
