//! The caller's account: requests and keys.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use billing::RequestRow;
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::JsonObject;
use crate::accounts::{Caller, KeyRow};
use crate::error::ApiError;
use crate::state::Platform;
use crate::wire::Fields;

/// Rows of one page, and the most.
const PAGE: u32 = 20;
const LARGEST_PAGE: u32 = 1000;
/// Longest name of a key, in characters.
const NAME_CHARS: usize = 100;

pub async fn show(platform: web::Data<Platform>, caller: Caller) -> Result<HttpResponse, ApiError> {
    // Self-hosted default: unlimited credit, metered. Balances come with the ledger.
    Ok(HttpResponse::Ok().json(json!({
        "id": caller.account,
        "object": "account",
        "credit": "unlimited",
        "base_models": platform.models.iter().map(|model| &*model.id).collect::<Vec<_>>(),
    })))
}

#[derive(Deserialize)]
pub struct Page {
    limit: Option<u32>,
    after: Option<String>,
}

pub async fn requests(
    platform: web::Data<Platform>,
    caller: Caller,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        return Err(ApiError::param("limit", format!("limit must be from 1 to {LARGEST_PAGE}")));
    }
    let mut rows = platform.journal.list(&caller.account, page.after.as_deref(), limit + 1).await?;
    let has_more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let data: Vec<Value> = rows.iter().map(row).collect();
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": data, "has_more": has_more })))
}

fn row(row: &RequestRow) -> Value {
    json!({
        "request_id": row.id,
        "object": "account.request",
        "created_ms": row.started_ms,
        "finished_ms": row.finished_ms,
        "key": row.key_id,
        "endpoint": row.endpoint,
        "model": row.model,
        "base": row.base,
        "adapter": row.adapter,
        "adapter_version": row.adapter_version,
        "prompt_tokens": row.quantities.prompt_tokens,
        "cached_tokens": row.quantities.cached_tokens,
        "completion_tokens": row.quantities.completion_tokens,
        "price_version": null,
        "cost": 0,
        "cost_nano_usd": 0,
        "finish": row.finish,
    })
}

pub async fn keys(platform: web::Data<Platform>, caller: Caller) -> Result<HttpResponse, ApiError> {
    let keys = platform.accounts.keys(&caller.account).await?;
    let data: Vec<Value> = keys.iter().map(key).collect();
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": data, "has_more": false })))
}

fn key(key: &KeyRow) -> Value {
    json!({
        "id": key.id,
        "object": "account.key",
        "name": key.name,
        "hint": key.hint,
        "created_at": key.created_ms / 1000,
        "revoked_at": key.revoked_ms.map(|ms| ms / 1000),
    })
}

pub async fn create_key(
    platform: web::Data<Platform>,
    caller: Caller,
    JsonObject(json): JsonObject,
) -> Result<HttpResponse, ApiError> {
    let name = Fields::new(&json).text("name")?.unwrap_or("key");
    if name.is_empty() || name.chars().count() > NAME_CHARS || name.chars().any(char::is_control) {
        return Err(ApiError::param("name", format!("name must have 1 to {NAME_CHARS} printable characters")));
    }
    let (id, secret) = platform.accounts.create_key(&caller.account, name).await?;
    Ok(HttpResponse::build(StatusCode::CREATED)
        .json(json!({ "id": id, "object": "account.key", "name": name, "key": secret })))
}

pub async fn revoke_key(
    platform: web::Data<Platform>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    if platform.accounts.revoke(&caller.account, &id).await? {
        Ok(HttpResponse::Ok().json(json!({ "id": *id, "object": "account.key", "revoked": true })))
    } else {
        Err(ApiError::not_found("this account has no such key"))
    }
}
