//! The caller's account: its money, requests, keys and members.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use billing::{Balance, ExpiringCredit, GroupBy, LedgerRow, Price, Prices, RequestRow};
use platform::AccountName;
use platform::units::{DAY_MS, day_of, days_since_epoch, now_ms};
use serde::Deserialize;
use serde_json::{Value, json};

use super::limits;
use super::reply::{self, StrictObject, dollars};
use crate::access::{Role, Scope, Scopes};
use crate::accounts::{Caller, KeyRow, MadeKey, NewKey};
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
    let mut shown = json!({
        "id": caller.account,
        "object": "account",
        "base_models": platform.models.iter().map(|model| &*model.id).collect::<Vec<_>>(),
        "scopes": caller.scopes.names(),
    });
    if caller.scopes.has(Scope::Billing) {
        for (field, value) in balance(&platform.ledger.balance(&caller.account).await?) {
            shown[field] = value;
        }
        shown["expiring"] = expiring(&platform.ledger.expiring(&caller.account).await?);
        shown["limits"] = limits::all(&platform, &caller.account).await?.into();
    }
    Ok(HttpResponse::Ok().json(shown))
}

/// What an account has, in dollars and to the nano-dollar: reserved or not, and what running requests can still reserve.
pub fn balance(balance: &Balance) -> [(&'static str, Value); 4] {
    [
        ("credit", balance.credit.name().into()),
        ("balance", dollars(balance.posted())),
        ("balance_nano_usd", balance.posted().into()),
        ("reserved_nano_usd", balance.held.into()),
    ]
}

/// What is left of grants that expire, those first that expire first.
pub fn expiring(credit: &[ExpiringCredit]) -> Value {
    let one = |one: &ExpiringCredit| {
        json!({
            "id": one.id,
            "amount": dollars(one.unspent),
            "amount_nano_usd": one.unspent,
            "expires_at": one.expires_ms / 1000,
        })
    };
    credit.iter().map(one).collect()
}

/// The account's ledger, newest first: every transaction with its entries, which sum to zero.
pub async fn ledger(
    platform: web::Data<Platform>,
    caller: Caller,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    ledger_of(&platform, &caller.account, &page).await
}

pub async fn ledger_of(platform: &Platform, account: &AccountName, page: &Page) -> Result<HttpResponse, ApiError> {
    let limit = page.limit()?;
    if let Some(after) = &page.after
        && !platform.ledger.has(account, after).await?
    {
        return Err(unknown_after("transaction"));
    }
    let rows = platform.ledger.list(account, page.after.as_deref(), limit + 1).await?;
    Ok(reply::page(&rows, limit, transaction))
}

fn transaction(row: &LedgerRow) -> Value {
    json!({
        "id": row.id,
        "object": "ledger.transaction",
        "kind": row.kind,
        "amount_nano_usd": row.amount,
        "amount": dollars(row.amount),
        "outcome": row.outcome,
        "reservation": row.reservation,
        "memo": row.memo,
        "created_ms": row.created_ms,
        "entries_nano_usd": row.entries,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    limit: Option<u32>,
    after: Option<String>,
}

impl Page {
    fn limit(&self) -> Result<u32, ApiError> {
        page_limit(self.limit)
    }
}

/// Rows of a page, where so many are asked for.
pub fn page_limit(asked: Option<u32>) -> Result<u32, ApiError> {
    let limit = asked.unwrap_or(PAGE);
    match (1..=LARGEST_PAGE).contains(&limit) {
        true => Ok(limit),
        false => Err(ApiError::param("limit", format!("limit must be from 1 to {LARGEST_PAGE}"))),
    }
}

/// An empty page would say that there is no more.
pub fn unknown_after(what: &str) -> ApiError {
    ApiError::param(
        "after",
        format!("after names no {what} that is listed here; it is the id of the last one of the page before"),
    )
}

pub async fn requests(
    platform: web::Data<Platform>,
    caller: Caller,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    requests_of(&platform, &caller.account, &page).await
}

pub async fn requests_of(platform: &Platform, account: &AccountName, page: &Page) -> Result<HttpResponse, ApiError> {
    let limit = page.limit()?;
    if let Some(after) = &page.after
        && !platform.journal.has(account, after).await?
    {
        return Err(unknown_after("request"));
    }
    let rows = platform.journal.list(account, page.after.as_deref(), limit + 1).await?;
    Ok(reply::page(&rows, limit, |known| row(&platform.prices, known)))
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
        "tag": row.tag,
        "cost": dollars(cost),
        "cost_nano_usd": cost,
        "finish": row.finish,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageQuery {
    group_by: Option<String>,
    from: Option<String>,
    to: Option<String>,
}

/// Sums over the account's requests and storage: by default of the last 30 days, grouped as `group_by` says, days in UTC.
pub async fn usage(
    platform: web::Data<Platform>,
    caller: Caller,
    query: web::Query<UsageQuery>,
) -> Result<HttpResponse, ApiError> {
    usage_of(&platform, &caller.account, &query).await
}

pub async fn usage_of(
    platform: &Platform,
    account: &AccountName,
    query: &UsageQuery,
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
    if from > to {
        let message = format!("from, {}, is after to, {}", day_of(from), day_of(to));
        return Err(ApiError::param("from", message));
    }
    let rows = platform.journal.usage(account, &by, from * DAY_MS, (to + 1) * DAY_MS).await?;
    let data: Vec<Value> = rows
        .iter()
        .map(|row| {
            let mut shown = json!({
                "object": "account.usage",
                "requests": row.requests,
                "prompt_tokens": row.quantities.prompt_tokens,
                "cached_tokens": row.quantities.cached_tokens,
                "completion_tokens": row.quantities.completion_tokens,
                "storage_byte_hours": row.storage.byte_hours,
                "storage_cost": dollars(row.storage.cost_nano_usd),
                "storage_cost_nano_usd": row.storage.cost_nano_usd,
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

/// The prices that concern the caller: its own, and everyone's but for those of other accounts' adapters. What names neither a base
/// model that is loaded nor an adapter of the caller's may be another's, whose names nobody else sees.
pub async fn prices(platform: web::Data<Platform>, caller: Caller) -> HttpResponse {
    let own = |model: &str| model.split_once('/').is_some_and(|(account, _)| account == caller.account.as_str());
    let concerns = |price: &Price| match (price.account.as_deref(), price.model.as_deref()) {
        (Some(account), _) => account == caller.account.as_str(),
        (None, None) => true,
        (None, Some(model)) => platform.model(model).is_some() || own(model),
    };
    let all = platform.prices.all();
    reply::list(all.iter().filter(|price| concerns(price)).map(price))
}

/// Nano-dollars and dollars per million tokens; storage per GB-month.
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
        "training": rates.training.map(dollars),
        "storage": rates.storage.map(dollars),
        "nano_usd": {
            "input": rates.input,
            "cached_input": rates.cached_input,
            "output": rates.output,
            "training": rates.training,
            "storage": rates.storage,
        },
        "starts_ms": price.starts_ms,
    })
}

pub async fn keys(platform: web::Data<Platform>, caller: Caller) -> Result<HttpResponse, ApiError> {
    let keys = platform.accounts.keys(&caller.account).await?;
    Ok(reply::list(keys.iter().map(key)))
}

pub fn key(key: &KeyRow) -> Value {
    let seconds = |ms: Option<i64>| ms.map(|ms| ms / 1000);
    json!({
        "id": key.id,
        "object": "account.key",
        "name": key.name,
        "hint": key.hint,
        "scopes": key.scopes.names(),
        "member": key.member,
        "created_at": key.created_ms / 1000,
        "expires_at": seconds(key.expires_ms),
        "last_used_at": seconds(key.last_used_ms),
        "revoked_at": seconds(key.revoked_ms),
    })
}

pub async fn create_key(
    platform: web::Data<Platform>,
    caller: Caller,
    body: StrictObject,
) -> Result<HttpResponse, ApiError> {
    let new = key_fields(&body)?;
    let made = platform.accounts.create_key(&caller.account, &new, Some(&caller)).await?;
    Ok(created_key(&made))
}

/// What a new key is to be: `name`, `scopes`, `expires_at`, `member`; what is absent is as its maker's.
pub fn key_fields(body: &StrictObject) -> Result<NewKey, ApiError> {
    let fields = body.fields(&["name", "scopes", "expires_at", "member"])?;
    let scopes = match fields.array("scopes")? {
        None => None,
        Some(names) => {
            let all = Scopes::ALL.names().join(", ");
            let wrong = || ApiError::param("scopes", format!("scopes must be a list of some of {all}"));
            let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
            let names = names.filter(|names| !names.is_empty()).ok_or_else(wrong)?;
            Some(Scopes::parse(names).map_err(|_| wrong())?)
        }
    };
    let expires_ms = fields.integer("expires_at", 0..=i64::from(u32::MAX))?.map(|seconds| seconds * 1000);
    if expires_ms.is_some_and(|expires| expires <= now_ms()) {
        return Err(ApiError::param("expires_at", "expires_at must be in the future, in Unix seconds"));
    }
    Ok(NewKey {
        name: name_of(&fields, "name")?.unwrap_or("key").to_owned(),
        scopes,
        expires_ms,
        member: name_of(&fields, "member")?.map(str::to_owned),
    })
}

fn name_of<'a>(fields: &Fields<'a>, field: &'static str) -> Result<Option<&'a str>, ApiError> {
    let name = fields.text(field)?;
    name.map(|name| checked_name(field, name)).transpose()
}

fn checked_name<'a>(field: &'static str, name: &'a str) -> Result<&'a str, ApiError> {
    if name.is_empty() || name.chars().count() > NAME_CHARS || name.chars().any(char::is_control) {
        return Err(ApiError::param(field, format!("{field} must have 1 to {NAME_CHARS} printable characters")));
    }
    Ok(name)
}

/// The only answer that ever shows a key.
pub fn created_key(made: &MadeKey) -> HttpResponse {
    let key = &made.key;
    HttpResponse::build(StatusCode::CREATED).json(json!({
        "id": made.id,
        "object": "account.key",
        "name": key.name,
        "scopes": key.scopes.names(),
        "member": key.member,
        "role": key.role.map(Role::name),
        "expires_at": key.expires_ms.map(|ms| ms / 1000),
        "key": made.secret,
    }))
}

pub async fn revoke_key(
    platform: web::Data<Platform>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    if platform.accounts.revoke(&caller.account, &id, Some(&caller)).await? {
        Ok(HttpResponse::Ok().json(json!({ "id": *id, "object": "account.key", "revoked": true })))
    } else {
        Err(ApiError::not_found("this account has no such key"))
    }
}

pub async fn members(platform: web::Data<Platform>, caller: Caller) -> Result<HttpResponse, ApiError> {
    let members = platform.accounts.members(&caller.account).await?;
    Ok(reply::list(members.iter().map(|known| member(&known.name, known.role))))
}

fn member(name: &str, role: Role) -> Value {
    json!({ "name": name, "object": "account.member", "role": role.name(), "scopes": role.scopes().names() })
}

pub async fn set_member(
    platform: web::Data<Platform>,
    caller: Caller,
    name: web::Path<String>,
    body: StrictObject,
) -> Result<HttpResponse, ApiError> {
    let name = checked_name("name", &name)?;
    let role = body.fields(&["role"])?.text("role")?.and_then(Role::named).ok_or_else(|| {
        let all = Role::ALL.map(Role::name).join(", ");
        ApiError::param("role", format!("role must be one of {all}"))
    })?;
    platform.accounts.set_member(&caller.account, name, role, Some(&caller)).await?;
    Ok(HttpResponse::Ok().json(member(name, role)))
}

/// Removes a member; its keys open nothing from then on.
pub async fn remove_member(
    platform: web::Data<Platform>,
    caller: Caller,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    match platform.accounts.remove_member(&caller.account, &name, Some(&caller)).await? {
        true => Ok(HttpResponse::Ok().json(json!({ "name": *name, "object": "account.member", "removed": true }))),
        false => Err(ApiError::not_found("this account has no such member")),
    }
}
