//! What the reconciler found last, or finds now.

use actix_web::{HttpResponse, web};
use billing::Reconciliation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Operator;
use crate::error::ApiError;
use crate::state::Platform;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Look now, at everything that began in so many days, in place of what was found last.
    days: Option<u16>,
}

pub async fn show(
    platform: web::Data<Platform>,
    _: Operator,
    query: web::Query<Query>,
) -> Result<HttpResponse, ApiError> {
    let days = query.days.or_else(|| platform.reconciler.found().last.is_none().then_some(1));
    if let Some(days) = days {
        platform.reconciler.look(&platform, days).await?;
    }
    let found = platform.reconciler.found();
    let mut answer = found.last.as_ref().map(shown).unwrap_or_default();
    answer["object"] = json!("reconciliation");
    answer["whole"] = found.whole.as_ref().map(shown).unwrap_or_default();
    Ok(HttpResponse::Ok().json(answer))
}

fn shown(found: &Reconciliation) -> Value {
    let differences: Vec<Value> = found
        .listed
        .iter()
        .map(|one| json!({ "check": one.check, "subject": one.subject, "left": one.left, "right": one.right }))
        .collect();
    json!({
        "at_ms": found.at_ms,
        "compared": found.compared,
        "differences": found.differences,
        "data": differences,
    })
}
