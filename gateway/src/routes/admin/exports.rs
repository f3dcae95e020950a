//! Revenue on its way to Stripe.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use billing::{DeliveryKind, DeliveryRow, closed_until_ms};
use platform::units::now_ms;
use serde_json::{Value, json};

use super::super::reply::{self, StrictObject, dollars};
use super::super::webhooks::state;
use super::Operator;
use crate::error::ApiError;
use crate::state::Platform;

/// Deliveries that are listed, and that one request can take up again.
const ROWS: u32 = 1000;

/// The newest events; those that Stripe has not accepted yet come first.
pub async fn list(platform: web::Data<Platform>, _: Operator) -> Result<HttpResponse, ApiError> {
    let rows = platform.outside.outbox.of_kind(DeliveryKind::Stripe, ROWS).await?;
    Ok(reply::list(rows.iter().map(shown)))
}

fn shown(row: &DeliveryRow) -> Value {
    let event: Value = serde_json::from_str(&row.body).unwrap_or_default();
    let amount = event["value"].as_i64().unwrap_or(0);
    let mut shown = state(row);
    shown["object"] = "export".into();
    shown["account"] = row.account.as_str().into();
    shown["stripe_customer"] = row.target.as_str().into();
    for field in ["identifier", "revision", "timestamp"] {
        shown[field] = event[field].clone();
    }
    shown["amount"] = dollars(amount);
    shown["amount_nano_usd"] = amount.into();
    shown
}

/// Closes the hours up to `until` now, a running one included, and takes up again what was given up.
pub async fn export(platform: web::Data<Platform>, _: Operator, body: StrictObject) -> Result<HttpResponse, ApiError> {
    if platform.outside.stripe.is_none() {
        let message = "this server does not export; start it with --stripe-key and --stripe-meter";
        return Err(ApiError::new(StatusCode::CONFLICT, message));
    }
    let fields = body.fields(&["until", "retry"])?;
    let until = fields.integer("until", 0..=i64::from(u32::MAX))?;
    let until_ms = until.map_or_else(|| closed_until_ms(now_ms()), |seconds| seconds * 1000);
    let retried = retry(&platform, fields.get("retry")).await?;
    let exported = platform.outside.exports.close(until_ms).await?;
    Ok(HttpResponse::Ok().json(json!({
        "object": "export.started", "until": until_ms / 1000, "exported": exported, "retried": retried,
    })))
}

async fn retry(platform: &Platform, which: Option<&Value>) -> Result<u64, ApiError> {
    let wrong = || {
        ApiError::param("retry", format!("retry must be true, for all that failed for certain, or up to {ROWS} ids"))
    };
    let outbox = &platform.outside.outbox;
    match which {
        None | Some(Value::Bool(false)) => Ok(0),
        Some(Value::Bool(true)) => Ok(outbox.retry(DeliveryKind::Stripe, None).await?),
        Some(Value::Array(ids)) if ids.len() <= ROWS as usize => {
            let ids: Vec<&str> = ids.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(wrong)?;
            Ok(outbox.retry(DeliveryKind::Stripe, Some(&ids)).await?)
        }
        Some(_) => Err(wrong()),
    }
}
