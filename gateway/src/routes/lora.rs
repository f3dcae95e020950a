//! vLLM's two endpoints for adapters, as thin names for push and delete. The folder is on the server's own disk, so only the
//! account that runs the server may name one.

use std::path::PathBuf;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use platform::AdapterName;
use serde_json::{Map, Value};

use super::adapters::deleted;
use super::reply::JsonObject;
use crate::accounts::Caller;
use crate::error::ApiError;
use crate::state::Platform;
use crate::upload::{self, Push};
use crate::wire::Fields;

/// Longest path, in bytes.
const PATH_BYTES: usize = 4096;

pub async fn load(
    platform: web::Data<Platform>,
    caller: Caller,
    JsonObject(json): JsonObject,
) -> Result<HttpResponse, ApiError> {
    let name = operators_name(&platform, &caller, &json)?;
    let path = text(&json, "lora_path")?.ok_or_else(|| ApiError::param("lora_path", "lora_path is missing"))?;
    let folder = PathBuf::from(path);
    let read = tokio::task::spawn_blocking(move || adapter_store::folder::files(&folder)).await;
    let files = read.map_err(ApiError::internal)?.map_err(|error| ApiError::param("lora_path", error.to_string()))?;
    let base = text(&json, "base_model_name")?.map(str::to_owned);
    let account = caller.account.clone();
    let push = Push { account, name: name.clone(), base, alias: None, files, by: Some(caller) };
    upload::push(&platform, push).await?;
    Ok(HttpResponse::Ok().body(format!("Success: LoRA adapter '{name}' added successfully.")))
}

pub async fn unload(
    platform: web::Data<Platform>,
    caller: Caller,
    JsonObject(json): JsonObject,
) -> Result<HttpResponse, ApiError> {
    let name = operators_name(&platform, &caller, &json)?;
    deleted(&platform, &caller, &name).await?;
    Ok(HttpResponse::Ok().body(format!("Success: LoRA adapter '{name}' removed successfully.")))
}

fn operators_name(platform: &Platform, caller: &Caller, json: &Map<String, Value>) -> Result<AdapterName, ApiError> {
    if caller.account != platform.operator {
        let message =
            "only the account that runs this server can load from its disk; use PUT /v1/adapters/{account}/{name}";
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    let name = text(json, "lora_name")?.ok_or_else(|| ApiError::param("lora_name", "lora_name is missing"))?;
    name.parse().map_err(|error: platform::ids::IdError| ApiError::param("lora_name", error.to_string()))
}

fn text<'a>(json: &'a Map<String, Value>, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let text = Fields::new(json).text(name)?;
    match text {
        Some(text) if text.len() > PATH_BYTES => {
            Err(ApiError::param(name, format!("{name} is over {PATH_BYTES} bytes")))
        }
        text => Ok(text),
    }
}
