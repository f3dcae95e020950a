//! What the caller can name as `model`: base models, then the account's own adapters of these.

use actix_web::{HttpResponse, web};
use adapter_store::Version;
use serde_json::{Value, json};

use crate::accounts::Caller;
use crate::error::ApiError;
use crate::resolve::resolve;
use crate::state::{Platform, ServedModel};

/// Most adapters in one listing.
const LISTED: u32 = 10_000;

pub async fn list(platform: web::Data<Platform>, caller: Caller) -> Result<HttpResponse, ApiError> {
    let own = platform.store.list(&caller.account, "", LISTED).await?;
    let bases = platform.models.iter().map(base);
    // The others are stored, but nothing here can run them.
    let usable = own.iter().filter(|version| platform.model(&version.base).is_some());
    let adapters = usable.map(|version| adapter(version, version.name.as_str()));
    let data: Vec<Value> = bases.chain(adapters).collect();
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": data })))
}

/// The path's rest is the id: with a slash as it is, or as `%2F`.
pub async fn show(
    platform: web::Data<Platform>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner().replace("%2F", "/").replace("%2f", "/").replace("%40", "@");
    let target = resolve(&platform, &caller.account, &id).await?;
    Ok(HttpResponse::Ok().json(match &target.adapter {
        Some(version) => adapter(version, &id),
        None => base(target.model),
    }))
}

fn base(model: &ServedModel) -> Value {
    json!({
        "id": &*model.id,
        "object": "model",
        "created": model.loaded_s,
        "owned_by": "myriad",
        "root": &*model.id,
        "parent": null,
        "max_model_len": model.context,
    })
}

fn adapter(version: &Version, id: &str) -> Value {
    json!({
        "id": id,
        "object": "model",
        "created": version.created_ms / 1000,
        "owned_by": version.account,
        "root": format!("{}/{}@{}", version.account, version.name, version.version),
        "parent": version.base,
    })
}
