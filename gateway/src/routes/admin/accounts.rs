//! Accounts as their operator sees them: made, credited, and given keys.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use billing::{Command, Credit, Credited, Nano, OLDEST_EXPORT_MS, Outcome};
use platform::audit::Change;
use platform::units::now_ms;
use platform::{AccountName, RequestId};
use serde_json::{Value, json};

use super::super::account::{balance, created_key, expiring, key, key_fields};
use super::super::reply::{self, StrictObject, dollars};
use super::super::statements::exact_dollars;
use super::{Operator, account_at, account_in_field};
use crate::audit;
use crate::error::ApiError;
use crate::state::Platform;
use crate::wire::Fields;

/// Longest id of a command and longest memo, in bytes.
const ID_BYTES: usize = 128;
const MEMO_BYTES: usize = 512;
/// Longest id of a customer at Stripe, in bytes.
const CUSTOMER_BYTES: usize = 255;

pub async fn list(platform: web::Data<Platform>, _: Operator) -> Result<HttpResponse, ApiError> {
    let mut data = Vec::new();
    for name in platform.accounts.names().await? {
        data.push(shown(&platform, &name).await?);
    }
    Ok(reply::list(data))
}

async fn shown(platform: &Platform, name: &AccountName) -> Result<Value, ApiError> {
    let mut shown = json!({ "id": name, "object": "account" });
    let known = balance(&platform.ledger.balance(name).await?);
    for (field, value) in known {
        shown[field] = value;
    }
    shown["expiring"] = expiring(&platform.ledger.expiring(name).await?);
    let customer = platform.outside.exports.customer(name).await?;
    shown["suspended_at"] = platform.accounts.suspended_ms(name).await?.map(|ms| ms / 1000).into();
    shown["stripe_since"] = customer.as_ref().map(|customer| customer.since_ms / 1000).into();
    shown["stripe_customer"] = customer.map(|customer| customer.id).into();
    Ok(shown)
}

pub async fn show(
    platform: web::Data<Platform>,
    _: Operator,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let name = account_at(&platform, &name).await?;
    Ok(HttpResponse::Ok().json(shown(&platform, &name).await?))
}

/// Makes an account with its first key, which is shown once.
pub async fn create(
    platform: web::Data<Platform>,
    Operator(caller): Operator,
    body: StrictObject,
) -> Result<HttpResponse, ApiError> {
    let fields = body.fields(&["id", "credit"])?;
    let name = fields.text("id")?.ok_or_else(|| ApiError::param("id", "id is missing: the new account's name"))?;
    let name: AccountName =
        name.parse().map_err(|error: platform::ids::IdError| ApiError::param("id", error.to_string()))?;
    let organisation = |id: &str| id.split_once('/').is_some_and(|(organisation, _)| organisation == name.as_str());
    if platform.models.iter().any(|model| organisation(&model.id)) {
        let message = format!(
            "base models of an organisation {name} are loaded, and the account's adapters would look like them"
        );
        return Err(ApiError::param("id", message));
    }
    let credit = credit_kind(&fields)?.unwrap_or(Credit::Unlimited);
    let Some(secret) = platform.accounts.create(&name, credit, Some(&caller)).await? else {
        return Err(ApiError::new(StatusCode::CONFLICT, format!("there is an account {name} already")));
    };
    tracing::info!(account = %name, credit = credit.name(), "an account was made");
    let mut body = shown(&platform, &name).await?;
    body["key"] = secret.into();
    Ok(HttpResponse::build(StatusCode::CREATED).json(body))
}

fn credit_kind(fields: &Fields<'_>) -> Result<Option<Credit>, ApiError> {
    let Some(name) = fields.text("credit")? else { return Ok(None) };
    let credit = Credit::named(name).ok_or_else(|| ApiError::param("credit", "credit must be unlimited or prepaid"))?;
    Ok(Some(credit))
}

pub async fn change(
    platform: web::Data<Platform>,
    Operator(caller): Operator,
    name: web::Path<String>,
    body: StrictObject,
) -> Result<HttpResponse, ApiError> {
    let name = account_at(&platform, &name).await?;
    let fields = body.fields(&["credit", "suspended", "stripe_customer", "stripe_since"])?;
    let suspended = fields.truth("suspended")?;
    if suspended == Some(true) && name == platform.operator {
        let message = "this account runs the server: suspended, it could not resume itself";
        return Err(ApiError::param("suspended", message));
    }
    if let Some(credit) = credit_kind(&fields)? {
        // What this server has set aside is not owed.
        platform.wallets.give_back(&name).await?;
        let detail = json!({ "credit": credit.name() });
        let change = audit::change(&caller, &name, "account.credit_kind", name.as_str(), detail);
        if platform.ledger.set_credit(&name, credit, &change).await? {
            tracing::info!(account = %name, credit = credit.name(), "an account's credit was changed");
        }
    }
    if let Some(suspended) = suspended
        && platform.accounts.set_suspended(&name, suspended, Some(&caller)).await?
    {
        tracing::info!(account = %name, suspended, "an account was suspended or resumed");
    }
    if fields.get("stripe_since").is_some() && fields.given("stripe_customer").is_none_or(Value::is_null) {
        let message = "stripe_since says from when on a customer is billed: it goes with stripe_customer";
        return Err(ApiError::param("stripe_since", message));
    }
    if let Some(customer) = fields.given("stripe_customer") {
        let detail = json!({ "stripe_customer": customer, "stripe_since": fields.get("stripe_since") });
        let change = audit::change(&caller, &name, "account.stripe_customer", name.as_str(), detail);
        tie(&platform, &name, customer, &fields, &change).await?;
    }
    Ok(HttpResponse::Ok().json(shown(&platform, &name).await?))
}

/// Says where an account's revenue goes. Without `stripe_since` it goes there from the running hour on, so that nobody is billed
/// by surprise for what was used before.
async fn tie(
    platform: &Platform,
    name: &AccountName,
    customer: &Value,
    fields: &Fields<'_>,
    change: &Change,
) -> Result<(), ApiError> {
    let exports = &platform.outside.exports;
    let wrong =
        || ApiError::param("stripe_customer", "stripe_customer must be a customer's id, cus_..., or null for none");
    if customer.is_null() {
        if exports.untie(name, change).await? {
            tracing::info!(account = %name, "an account was untied from its customer at Stripe");
        }
        return Ok(());
    }
    let customer = customer.as_str().ok_or_else(wrong)?;
    let printable = customer.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !customer.starts_with("cus_") || !printable || customer.len() > CUSTOMER_BYTES {
        return Err(wrong());
    }
    let (now, oldest) = (now_ms() / 1000, (now_ms() - OLDEST_EXPORT_MS) / 1000);
    let since = fields.integer("stripe_since", 0..=i64::from(u32::MAX))?;
    if since.is_some_and(|since| !(oldest..=now).contains(&since)) {
        let message = format!(
            "stripe_since must be from {oldest} to {now}: Stripe takes events of the last 34 days, and none of the future"
        );
        return Err(ApiError::param("stripe_since", message));
    }
    let known = exports.customer(name).await?;
    if since.is_none() && known.is_some_and(|known| known.id == customer) {
        return Ok(());
    }
    exports.tie(name, customer, since.map_or_else(now_ms, |seconds| seconds * 1000), change).await?;
    tracing::info!(account = %name, customer, "an account was tied to a customer at Stripe");
    Ok(())
}

/// Grants, tops up, refunds, expires or corrects an account's credit. With an `id` of the caller's choice a repeat changes nothing. A
/// grant can have a time, `expires_at` in Unix seconds, at which what is left of it expires.
pub async fn credit(
    platform: web::Data<Platform>,
    Operator(caller): Operator,
    body: StrictObject,
) -> Result<HttpResponse, ApiError> {
    let fields = body.fields(&["account", "amount", "amount_nano_usd", "kind", "id", "memo", "expires_at"])?;
    let name = fields.text("account")?.ok_or_else(|| ApiError::param("account", "account is missing"))?;
    let name = account_in_field(&platform, name).await?;
    let amount = fields.nano_usd()?;
    let kind = fields.text("kind")?.unwrap_or("grant");
    let command = match kind {
        "grant" => Command::Grant { amount },
        "top_up" => Command::TopUp { amount },
        "refund" => Command::Refund { amount },
        "expire" => Command::Expire { amount },
        "adjust" => Command::Adjust { amount },
        _ => return Err(ApiError::param("kind", "kind must be grant, top_up, refund, expire or adjust")),
    };
    let text = |field: &'static str, most: usize| match fields.text(field)? {
        Some(text) if text.is_empty() || text.len() > most || text.chars().any(char::is_control) => {
            Err(ApiError::param(field, format!("{field} must have 1 to {most} bytes, all printable")))
        }
        text => Ok(text),
    };
    // A space is in no id of a caller's choice, so that none can take one of the server's own.
    let id = match text("id", ID_BYTES)? {
        Some(id) if id.contains(' ') => return Err(ApiError::param("id", "id must not contain spaces")),
        Some(id) => id.to_owned(),
        None => RequestId::fresh("credit").to_string(),
    };
    let memo = text("memo", MEMO_BYTES)?;
    let expires_at = fields.integer("expires_at", 0..=i64::from(u32::MAX))?;
    let note = |outcome: &Outcome| {
        let said = outcome.as_ref().map_or_else(|refusal| refusal.name(), |()| "done");
        let mut detail = json!({ "kind": kind, "amount_nano_usd": amount, "memo": memo, "outcome": said });
        if let Some(seconds) = expires_at {
            detail["expires_at"] = seconds.into();
        }
        audit::change(&caller, &name, "account.credit", &id, detail)
    };
    platform.wallets.give_back(&name).await?;
    let Credited { outcome, first } = match expires_at {
        None => platform.ledger.credit(&id, &name, &command, memo, &note).await?,
        Some(_) if kind != "grant" => return Err(ApiError::param("expires_at", "only a grant expires")),
        // Its repeat is answered as it was, also when its time has come.
        Some(seconds) if seconds * 1000 <= now_ms() && !platform.ledger.has(&name, &id).await? => {
            return Err(ApiError::param("expires_at", "expires_at must be in the future, in Unix seconds"));
        }
        Some(seconds) => platform.ledger.grant_until(&id, &name, (amount, seconds * 1000), memo, &note).await?,
    };
    let is_repeat = first.is_some();
    // What the first one said is what stands in the ledger.
    let memo = first.map_or_else(|| memo.map(str::to_owned), |first| first.memo);
    if !is_repeat {
        tracing::info!(account = %name, kind, amount, id, done = outcome.is_ok(), "an account's credit was to be changed");
    }
    if let Err(refusal) = outcome {
        let error =
            ApiError::new(StatusCode::CONFLICT, format!("{kind} {}: {refusal}; nothing was changed", usd(amount)));
        return Err(error.with_code(refusal.name()));
    }
    let mut body = shown(&platform, &name).await?;
    body["transaction"] = json!({
        "id": id, "object": "ledger.transaction", "kind": kind, "amount": dollars(amount), "amount_nano_usd": amount, "memo": memo,
        "expires_at": expires_at, "repeated": is_repeat,
    });
    Ok(HttpResponse::Ok().json(body))
}

fn usd(amount: Nano) -> String {
    format!("{} USD", exact_dollars(amount))
}

pub async fn keys(
    platform: web::Data<Platform>,
    _: Operator,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let name = account_at(&platform, &name).await?;
    Ok(reply::list(platform.accounts.keys(&name).await?.iter().map(key)))
}

/// A new key for an account, for one that has lost its own.
pub async fn create_key(
    platform: web::Data<Platform>,
    Operator(caller): Operator,
    name: web::Path<String>,
    body: StrictObject,
) -> Result<HttpResponse, ApiError> {
    let name = account_at(&platform, &name).await?;
    let new = key_fields(&body)?;
    let made = platform.accounts.create_key(&name, &new, Some(&caller)).await?;
    tracing::info!(account = %name, key = made.id, "the operator has made a key");
    Ok(created_key(&made))
}

pub async fn revoke_key(
    platform: web::Data<Platform>,
    Operator(caller): Operator,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, ApiError> {
    let (name, id) = path.into_inner();
    let name = account_at(&platform, &name).await?;
    match platform.accounts.revoke(&name, &id, Some(&caller)).await? {
        true => Ok(HttpResponse::Ok().json(json!({ "id": id, "object": "account.key", "revoked": true }))),
        false => Err(ApiError::not_found("this account has no such key")),
    }
}

pub async fn limits(
    platform: web::Data<Platform>,
    _: Operator,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let name = account_at(&platform, &name).await?;
    super::super::limits::listed(&platform, &name).await
}

pub async fn add_limit(
    platform: web::Data<Platform>,
    Operator(caller): Operator,
    name: web::Path<String>,
    body: StrictObject,
) -> Result<HttpResponse, ApiError> {
    let name = account_at(&platform, &name).await?;
    super::super::limits::added(&platform, &caller, &name, &body, true).await
}

pub async fn remove_limit(
    platform: web::Data<Platform>,
    Operator(caller): Operator,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, ApiError> {
    let (name, id) = path.into_inner();
    let name = account_at(&platform, &name).await?;
    super::super::limits::removed(&platform, &caller, &name, &id, true).await
}
