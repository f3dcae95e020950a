//! What the reconciler found last, or finds now.

use actix_web::{HttpResponse, web};
use billing::Reconciliation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Operator;
use crate::error::ApiError;
use crate::state::Platform;

#[derive(Deserialize)]
pub struct Query {
    /// Look now, and at so many days, in place of what was found last.
    days: Option<u16>,
}

pub async fn show(
    platform: web::Data<Platform>,
    _: Operator,
    query: web::Query<Query>,
) -> Result<HttpResponse, ApiError> {
    let found = match query.days {
        Some(days) => platform.reconciler.look(&platform, i64::from(days)).await?,
        None => match platform.reconciler.last() {
            Some(found) => found,
            None => platform.reconciler.look(&platform, 1).await?,
        },
    };
    Ok(HttpResponse::Ok().json(shown(&found)))
}

fn shown(found: &Reconciliation) -> Value {
    let differences: Vec<Value> = found
        .listed
        .iter()
        .map(|one| json!({ "check": one.check, "subject": one.subject, "left": one.left, "right": one.right }))
        .collect();
    json!({
        "object": "reconciliation",
        "at_ms": found.at_ms,
        "compared": found.compared,
        "differences": found.differences,
        "data": differences,
    })
}
