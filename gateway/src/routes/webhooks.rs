//! Where an account wants to be told that an alert was reached, and what became of it.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use billing::{DeliveryRow, Webhook};
use serde_json::{Value, json};

use super::reply::{self, StrictObject};
use crate::accounts::Caller;
use crate::audit::change;
use crate::error::ApiError;
use crate::outbox::{checked_url, fresh_secret, message_id};
use crate::state::Platform;

/// Deliveries that are listed.
const DELIVERIES: u32 = 50;

pub async fn list(platform: web::Data<Platform>, caller: Caller) -> Result<HttpResponse, ApiError> {
    let webhooks = platform.outside.webhooks.of(&caller.account).await?;
    Ok(reply::list(webhooks.iter().map(shown)))
}

fn shown(webhook: &Webhook) -> Value {
    json!({
        "id": webhook.id,
        "object": "account.webhook",
        "url": webhook.url,
        "created_at": webhook.created_ms / 1000,
    })
}

/// Makes a webhook. Its secret is shown in this answer and not again.
pub async fn add(platform: web::Data<Platform>, caller: Caller, body: StrictObject) -> Result<HttpResponse, ApiError> {
    let url = body
        .fields(&["url"])?
        .text("url")?
        .map(str::to_owned)
        .ok_or_else(|| ApiError::param("url", "url is missing"))?;
    let url =
        checked_url(&url, platform.outside.private_webhooks()).map_err(|reason| ApiError::param("url", reason))?;
    // The host only: what follows it may be the receiver's secret.
    let detail = json!({ "host": url.host_str() });
    let note = |webhook: &Webhook| change(&caller, &caller.account, "webhook.added", &webhook.id, detail.clone());
    let webhook = platform.outside.webhooks.add(&caller.account, url.as_str(), &fresh_secret(), &note).await?;
    let mut body = shown(&webhook);
    body["secret"] = webhook.secret.into();
    Ok(HttpResponse::build(StatusCode::CREATED).json(body))
}

pub async fn remove(
    platform: web::Data<Platform>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let change = change(&caller, &caller.account, "webhook.removed", &id, json!({}));
    if !platform.outside.webhooks.remove(&caller.account, &id, &change).await? {
        return Err(missing());
    }
    Ok(HttpResponse::Ok().json(json!({ "id": *id, "object": "account.webhook", "removed": true })))
}

fn missing() -> ApiError {
    ApiError::not_found("this account has no such webhook")
}

/// The newest deliveries to a webhook.
pub async fn deliveries(
    platform: web::Data<Platform>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let known = platform.outside.webhooks.get(&id).await?;
    if known.is_none_or(|webhook| webhook.account != caller.account) {
        return Err(missing());
    }
    let rows = platform.outside.outbox.to_target(&id, DELIVERIES).await?;
    Ok(reply::list(rows.iter().map(delivery)))
}

/// The message itself is shown as it was sent.
fn delivery(row: &DeliveryRow) -> Value {
    let mut shown = state(row);
    shown["id"] = message_id(&row.id).into();
    shown["object"] = "account.webhook.delivery".into();
    shown["message"] = serde_json::from_str(&row.body).unwrap_or_default();
    shown
}

/// Where a delivery stands. Times are Unix seconds.
pub fn state(row: &DeliveryRow) -> Value {
    let seconds = |ms: Option<i64>| ms.map(|ms| ms / 1000);
    json!({
        "id": row.id,
        "object": "delivery",
        "status": row.state.name(),
        "attempts": row.attempts,
        "failure": row.failure,
        "created_at": row.created_ms / 1000,
        "next_at": seconds(row.next_ms),
        "delivered_at": seconds(row.delivered_ms),
    })
}
