//! Prices, as the operator sets them.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use adapter_store::{AdapterRef, Selector};
use billing::{NewPrice, Price, Rates, RerateOutcome, Rerated, Rerating};
use platform::AccountName;
use platform::audit::Note;
use serde_json::{Value, json};

use super::super::account;
use super::super::reply::{self, StrictObject, dollars};
use super::{Operator, account_in_field};
use crate::audit::change;
use crate::error::ApiError;
use crate::state::Platform;
use crate::wire::Fields;

/// Highest rate in dollars per million tokens or GB-month.
const HIGHEST_USD: i64 = billing::HIGHEST / 1_000_000_000;
const PRICE_FIELDS: [&str; 8] =
    ["input", "cached_input", "output", "training", "storage", "model", "account", "starts_at"];
/// Longest name of a model, in bytes.
const MODEL_BYTES: usize = 256;

pub async fn list(platform: web::Data<Platform>, _: Operator) -> Result<HttpResponse, ApiError> {
    Ok(reply::list(platform.prices.all().iter().map(account::price)))
}

/// Adds a price version: dollars per million tokens (storage: per GB-month), for everyone or one account, for everything or one
/// model or adapter.
pub async fn add(
    platform: web::Data<Platform>,
    Operator(caller): Operator,
    body: StrictObject,
) -> Result<HttpResponse, ApiError> {
    let fields = body.fields(&PRICE_FIELDS)?;
    let rate = |name: &'static str| -> Result<Option<i64>, ApiError> {
        let nano = fields.dollars(name)?;
        if nano.is_some_and(|nano| !(0..=billing::HIGHEST).contains(&nano)) {
            let unit = if name == "storage" { "GB-month" } else { "million tokens" };
            return Err(ApiError::param(name, format!("{name} must be dollars per {unit}, from 0 to {HIGHEST_USD}")));
        }
        Ok(nano)
    };
    let missing = |name: &'static str| ApiError::param(name, format!("{name} is missing: dollars per million tokens"));
    let input = rate("input")?.ok_or_else(|| missing("input"))?;
    let output = rate("output")?.ok_or_else(|| missing("output"))?;
    // Without a price of their own, cached tokens cost what others do.
    let cached_input = rate("cached_input")?.unwrap_or(input);
    let account = match fields.text("account")? {
        None => None,
        Some(name) => Some(account_in_field(&platform, name).await?),
    };
    let model = model_in_field(&fields)?;
    let starts_ms = fields.integer("starts_at", 0..=i64::from(u32::MAX))?.map(|seconds| seconds * 1000);
    let rates = Rates { input, cached_input, output, training: rate("training")?, storage: rate("storage")? };
    let warnings = match &model {
        None => Vec::new(),
        Some(model) => warnings(&platform, model).await?,
    };
    // A price for everyone is the operator's affair.
    let concerns = account.clone().unwrap_or_else(|| caller.account.clone());
    let note =
        |price: &Price| change(&caller, &concerns, "price.added", &price.version.to_string(), account::price(price));
    let price = platform.prices.add(NewPrice { account, model, rates, starts_ms }, &note).await?;
    tracing::info!(version = price.version, account = ?price.account, model = ?price.model, "a price was added");
    let mut shown = account::price(&price);
    shown["warnings"] = warnings.into();
    Ok(HttpResponse::build(StatusCode::CREATED).json(shown))
}

/// A price can be set before its model is there, and a name that is misspelt looks like that.
async fn warnings(platform: &Platform, model: &str) -> Result<Vec<String>, ApiError> {
    if platform.model(model).is_some() {
        return Ok(Vec::new());
    }
    let named = AdapterRef::parse(model).and_then(|reference| Some((reference.account?, reference.name)));
    if let Some((account, name)) = &named
        && platform.store.resolve(account, name, &Selector::Default).await?.is_some()
    {
        return Ok(Vec::new());
    }
    let form = if named.is_none() { "; an adapter's price names it as account/name" } else { "" };
    Ok(vec![format!(
        "{model:?} is no base model that is loaded here and no adapter{form}: this price holds once there is one"
    )])
}

/// A base model's id or an adapter's `account/name`.
fn model_in_field(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    match fields.text("model")? {
        Some(model) if model.is_empty() || model.len() > MODEL_BYTES || model.contains('@') => {
            let message = "model must be a base model's id or an adapter's account/name, without a version: prices hold for all of them";
            Err(ApiError::param("model", message))
        }
        model => Ok(model.map(str::to_owned)),
    }
}

/// What finished requests would have cost at another version, by account; with `apply` the difference is posted. Accounts of which
/// nothing differs are left out.
pub async fn rerate(
    platform: web::Data<Platform>,
    Operator(caller): Operator,
    body: StrictObject,
) -> Result<HttpResponse, ApiError> {
    let fields = body.fields(&["version", "from", "to", "instead_of", "account", "model", "apply"])?;
    let missing = |name: &'static str| ApiError::param(name, format!("{name} is missing"));
    let seconds = |name: &'static str| fields.integer(name, 0..=i64::from(u32::MAX))?.ok_or_else(|| missing(name));
    let asked = Rerating {
        version: fields.integer("version", 1..=i64::MAX)?.ok_or_else(|| missing("version"))?,
        from_ms: seconds("from")? * 1000,
        to_ms: seconds("to")? * 1000,
        model: model_in_field(&fields)?,
        instead_of: fields.integer("instead_of", 1..=i64::MAX)?,
    };
    if asked.to_ms <= asked.from_ms {
        return Err(ApiError::param("to", "to must be after from"));
    }
    let accounts = match fields.text("account")? {
        Some(name) => vec![account_in_field(&platform, name).await?],
        None => platform.accounts.names().await?,
    };
    let apply = fields.flag("apply")?;
    let mut data = Vec::new();
    for account in accounts {
        if apply {
            // What this server has set aside and does not need can pay for it.
            platform.wallets.give_back(&account).await?;
        }
        let note = |posted: &Rerated| {
            let detail = rerated_row(&account, posted);
            change(&caller, &account, "price.rerated", &asked.version.to_string(), detail)
        };
        let apply = apply.then_some(&note as &Note<'_, Rerated>);
        let rerated = platform.ledger.rerate(&platform.prices, &account, &asked, apply).await?;
        if rerated.outcome != RerateOutcome::Unchanged {
            data.push(rerated_row(&account, &rerated));
        }
    }
    Ok(HttpResponse::Ok().json(json!({
        "object": "list", "version": asked.version, "applied": apply, "data": data, "has_more": false,
    })))
}

fn rerated_row(account: &AccountName, rerated: &Rerated) -> Value {
    let Rerated { requests, before, after, posted, outcome } = *rerated;
    json!({
        "object": "price.rerating",
        "account": account,
        "requests": requests,
        "before_nano_usd": before,
        "after_nano_usd": after,
        "difference": dollars(after - before),
        "difference_nano_usd": after - before,
        "posted_nano_usd": posted,
        "outcome": outcome.name(),
    })
}
