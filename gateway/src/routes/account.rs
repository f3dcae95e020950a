//! The caller's account: requests and keys.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use billing::{GroupBy, Price, Prices, RequestRow};
use platform::units::{DAY_MS, day_of, days_since_epoch, now_ms};
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{JsonObject, dollars};
use crate::accounts::{Caller, KeyRow};
use crate::error::ApiError;
use crate::state::Platform;
use crate::wire::Fields;

/// Rows of one page, and the most.
const PAGE: u32 = 20;
const LARGEST_PAGE: u32 = 1000;
/// Days of usage that are summed where none were named.
const USAGE_DAYS: i64 = 30;
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
    let data: Vec<Value> = rows.iter().map(|known| row(&platform.prices, known)).collect();
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": data, "has_more": has_more })))
}

fn row(prices: &Prices, row: &RequestRow) -> Value {
    let rates = row.price_version.and_then(|version| prices.rates(version));
    // What still runs has no cost yet.
    let cost = rates.filter(|_| row.finished_ms.is_some()).map_or(0, |rates| rates.cost(&row.quantities, &row.finish));
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
        "price_version": row.price_version,
        "cost": dollars(cost),
        "cost_nano_usd": cost,
        "finish": row.finish,
    })
}

#[derive(Deserialize)]
pub struct UsageQuery {
    group_by: Option<String>,
    from: Option<String>,
    to: Option<String>,
}

/// Sums over the account's requests: by default of the last 30 days, grouped as `group_by` says, days in UTC.
pub async fn usage(
    platform: web::Data<Platform>,
    caller: Caller,
    query: web::Query<UsageQuery>,
) -> Result<HttpResponse, ApiError> {
    let names = query.group_by.as_deref().unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut by = Vec::new();
    for name in names {
        let known = GroupBy::ALL.into_iter().find(|group| group.name() == name).ok_or_else(|| {
            let all = GroupBy::ALL.map(GroupBy::name).join(", ");
            ApiError::param("group_by", format!("usage can be grouped by {all}, not {:.40}", name))
        })?;
        if !by.contains(&known) {
            by.push(known);
        }
    }
    let day = |name: &'static str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => days_since_epoch(text)
            .map(Some)
            .ok_or_else(|| ApiError::param(name, format!("{name} must be a day such as 2026-11-30"))),
    };
    let to = day("to", &query.to)?.unwrap_or(now_ms().div_euclid(DAY_MS));
    let from = day("from", &query.from)?.unwrap_or(to - (USAGE_DAYS - 1));
    let rows = platform.journal.usage(&caller.account, &by, from * DAY_MS, (to + 1) * DAY_MS).await?;
    let data: Vec<Value> = rows
        .iter()
        .map(|row| {
            let mut shown = json!({
                "object": "account.usage",
                "requests": row.requests,
                "prompt_tokens": row.quantities.prompt_tokens,
                "cached_tokens": row.quantities.cached_tokens,
                "completion_tokens": row.quantities.completion_tokens,
                "cost": dollars(row.cost_nano_usd),
                "cost_nano_usd": row.cost_nano_usd,
            });
            for (group, value) in by.iter().zip(&row.group) {
                let value = match group {
                    GroupBy::Day => value.as_deref().and_then(|days| days.parse().ok()).map(day_of),
                    _ => value.clone(),
                };
                shown[group.name()] = value.into();
            }
            shown
        })
        .collect();
    Ok(HttpResponse::Ok().json(json!({
        "object": "list", "from": day_of(from), "to": day_of(to), "data": data, "has_more": false,
    })))
}

/// The prices that concern the caller: everyone's and its own.
pub async fn prices(platform: web::Data<Platform>, caller: Caller) -> HttpResponse {
    let concerns = |price: &Price| price.account.as_deref().is_none_or(|account| account == caller.account.as_str());
    let all = platform.prices.all();
    let data: Vec<Value> = all.iter().filter(|price| concerns(price)).map(price).collect();
    HttpResponse::Ok().json(json!({ "object": "list", "data": data, "has_more": false }))
}

/// Nano-dollars and dollars per million tokens.
pub fn price(price: &Price) -> Value {
    let rates = price.rates;
    json!({
        "object": "price",
        "version": price.version,
        "account": price.account,
        "model": price.model,
        "input": dollars(rates.input),
        "cached_input": dollars(rates.cached_input),
        "output": dollars(rates.output),
        "nano_usd": { "input": rates.input, "cached_input": rates.cached_input, "output": rates.output },
        "starts_ms": price.starts_ms,
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
