//! Caps and alerts: set by the account for itself, or by the operator for it.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use adapter_store::{AdapterRef, Selector};
use billing::{Limit, LimitKind, LimitScope, Nano, Period};
use platform::AccountName;
use serde_json::{Value, json};

use super::reply::{self, StrictObject, dollars};
use crate::accounts::Caller;
use crate::audit::change;
use crate::error::ApiError;
use crate::state::Platform;
use crate::wire::Fields;

/// Longest subject, in bytes.
const SUBJECT_BYTES: usize = 256;

pub async fn list(platform: web::Data<Platform>, caller: Caller) -> Result<HttpResponse, ApiError> {
    listed(&platform, &caller.account).await
}

/// An account's limits, each with what was spent in the period that now runs.
pub async fn listed(platform: &Platform, account: &AccountName) -> Result<HttpResponse, ApiError> {
    Ok(reply::list(all(platform, account).await?))
}

pub async fn all(platform: &Platform, account: &AccountName) -> Result<Vec<Value>, ApiError> {
    let mut data = Vec::new();
    for limit in platform.limits.of(account) {
        let spent = platform.limits.spent_now(account, &limit).await?;
        data.push(shown(&limit, Some(spent)));
    }
    Ok(data)
}

/// A limit, and where it is known, what was spent in its period.
pub fn shown(limit: &Limit, spent: Option<Nano>) -> Value {
    let mut shown = json!({
        "id": limit.id,
        "object": "account.limit",
        "kind": limit.kind.name(),
        "scope": limit.scope.name(),
        "subject": (!limit.subject.is_empty()).then_some(&limit.subject),
        "period": limit.period.name(),
        "amount": dollars(limit.amount),
        "amount_nano_usd": limit.amount,
        "set_by": if limit.operators { "operator" } else { "account" },
    });
    if let Some(spent) = spent {
        shown["spent"] = dollars(spent);
        shown["spent_nano_usd"] = spent.into();
        shown["reached"] = (spent >= limit.amount).into();
    }
    shown
}

pub async fn add(platform: web::Data<Platform>, caller: Caller, body: StrictObject) -> Result<HttpResponse, ApiError> {
    added(&platform, &caller, &caller.account, &body, false).await
}

pub async fn added(
    platform: &Platform,
    by: &Caller,
    account: &AccountName,
    body: &StrictObject,
    operators: bool,
) -> Result<HttpResponse, ApiError> {
    let fields = body.fields(&["kind", "scope", "subject", "period", "amount", "amount_nano_usd"])?;
    let scope = choice(&fields, "scope", LimitScope::named, LimitScope::NAMES)?.unwrap_or(LimitScope::Account);
    let subject = fields.text("subject")?.unwrap_or_default();
    if subject.is_empty() != (scope == LimitScope::Account) || subject.len() > SUBJECT_BYTES {
        let message = "subject must be a key's id or an adapter's account/name, and absent for the account";
        return Err(ApiError::param("subject", message));
    }
    if scope == LimitScope::Key && !platform.accounts.keys(account).await?.iter().any(|key| key.id == subject) {
        return Err(ApiError::param("subject", "this account has no such key; `myriad keys list` shows their ids"));
    }
    let subject = match scope {
        LimitScope::Adapter => adapter_in_subject(platform, account, subject).await?,
        _ => subject.to_owned(),
    };
    let limit = Limit {
        id: String::new(),
        kind: choice(&fields, "kind", LimitKind::named, LimitKind::NAMES)?.unwrap_or(LimitKind::Cap),
        scope,
        subject,
        period: choice(&fields, "period", Period::named, Period::NAMES)?
            .ok_or_else(|| ApiError::param("period", format!("period is missing: one of {}", Period::NAMES)))?,
        amount: fields.nano_usd()?,
        operators,
    };
    let note = |limit: &Limit| change(by, account, "limit.set", &limit.id, shown(limit, None));
    let limit = platform.limits.set(account, limit, &note).await?;
    platform.wallets.limits_changed().await?;
    Ok(HttpResponse::build(StatusCode::CREATED).json(shown(&limit, None)))
}

/// An adapter of the account that is there, as `account/name`: a limit of anything else would never be reached.
async fn adapter_in_subject(platform: &Platform, account: &AccountName, subject: &str) -> Result<String, ApiError> {
    if let Some((adapter, _)) = subject.split_once('@') {
        let message = format!("a limit holds for all versions of an adapter; leave out the @: {adapter}");
        return Err(ApiError::param("subject", message));
    }
    let named = AdapterRef::parse(subject);
    if let Some(AdapterRef { account: of, name, .. }) = named
        && of.as_ref().is_none_or(|of| of == account)
        && platform.store.resolve(account, &name, &Selector::Default).await?.is_some()
    {
        return Ok(format!("{account}/{name}"));
    }
    // The same for another account's adapter, whose names nobody else sees.
    Err(ApiError::param("subject", "this account has no such adapter; `myriad models` shows them"))
}

fn choice<T>(
    fields: &Fields<'_>,
    field: &'static str,
    named: impl Fn(&str) -> Option<T>,
    names: &str,
) -> Result<Option<T>, ApiError> {
    let Some(name) = fields.text(field)? else { return Ok(None) };
    named(name).map(Some).ok_or_else(|| ApiError::param(field, format!("{field} must be one of {names}")))
}

pub async fn remove(
    platform: web::Data<Platform>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    removed(&platform, &caller, &caller.account, &id, false).await
}

pub async fn removed(
    platform: &Platform,
    by: &Caller,
    account: &AccountName,
    id: &str,
    operator: bool,
) -> Result<HttpResponse, ApiError> {
    let change = change(by, account, "limit.removed", id, json!({}));
    if !platform.limits.remove(account, id, operator, &change).await? {
        return Err(ApiError::not_found("this account has no such limit, or only the operator may remove it"));
    }
    Ok(HttpResponse::Ok().json(json!({ "id": id, "object": "account.limit", "removed": true })))
}
