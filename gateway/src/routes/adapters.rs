//! Adapters: upload, list, versions, aliases, download, delete.

use actix_multipart::{Multipart, MultipartError};
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{FromRequest, HttpRequest, HttpResponse, web};
use adapter_store::{AdapterRef, FILES, Selector, StoreError, UPLOAD_BYTES, UploadFile, Version};
use futures::{StreamExt, TryStreamExt};
use platform::{AccountName, AdapterName};
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{self, JsonObject};
use crate::accounts::Caller;
use crate::audit::change;
use crate::body;
use crate::error::ApiError;
use crate::state::Platform;
use crate::upload::{self, Push};
use crate::wire::Fields;

/// Longest text part of an upload, in bytes.
const TEXT_BYTES: usize = 1024;
const PAGE: u32 = 100;
const LARGEST_PAGE: u32 = 1000;

#[derive(Deserialize)]
pub struct Path {
    account: String,
    name: String,
}

impl Path {
    /// The adapter, which must be the caller's own: another's is as absent as one that never was.
    fn own(&self, caller: &Caller) -> Result<(AccountName, AdapterName), ApiError> {
        let name =
            self.name.parse().map_err(|error: platform::ids::IdError| ApiError::param("name", error.to_string()))?;
        match self.account.parse::<AccountName>() {
            Ok(account) if account == caller.account => Ok((account, name)),
            _ => Err(ApiError::not_found(format!("adapter {}/{} does not exist", shortened(&self.account), self.name))),
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

pub async fn put(
    platform: web::Data<Platform>,
    caller: Caller,
    path: web::Path<Path>,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    if path.account != caller.account.as_str() {
        let message =
            format!("this key is of account {}; it cannot write to {}", caller.account, shortened(&path.account));
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    let (_, name) = path.own(&caller)?;
    let parts = Parts::read(&request, body).await?;
    receive(&platform, caller, name, parts).await
}

pub async fn create(
    platform: web::Data<Platform>,
    caller: Caller,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let parts = Parts::read(&request, body).await?;
    let named = parts.name.clone().ok_or_else(|| ApiError::param("name", "the part name is missing"))?;
    let wrong = || {
        ApiError::param("name", format!("{:?} is not an adapter's name: write name or account/name", shortened(&named)))
    };
    let reference = AdapterRef::parse(&named).filter(|r| r.selector == Selector::Default).ok_or_else(wrong)?;
    if let Some(account) = reference.account.filter(|account| *account != caller.account) {
        let message = format!("this key is of account {}; it cannot write to {account}", caller.account);
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    receive(&platform, caller, reference.name, parts).await
}

async fn receive(
    platform: &web::Data<Platform>,
    caller: Caller,
    name: AdapterName,
    parts: Parts,
) -> Result<HttpResponse, ApiError> {
    let (account, by) = (caller.account.clone(), Some(caller));
    let push = Push { account, name, base: parts.base, alias: parts.alias, files: parts.files, by };
    let version = upload::push(platform, push).await?;
    Ok(HttpResponse::build(StatusCode::CREATED).json(shown(&version)))
}

/// The parts of an upload, in any order.
#[derive(Default)]
struct Parts {
    name: Option<String>,
    base: Option<String>,
    alias: Option<String>,
    files: Vec<UploadFile>,
    bytes: usize,
}

impl Parts {
    async fn read(request: &HttpRequest, body: web::Payload) -> Result<Self, ApiError> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.starts_with("application/json") {
            return Err(ApiError::param(
                "source",
                "importing from a source is not supported yet; send the adapter's files as multipart",
            ));
        }
        let mut body = body.into_inner();
        let multipart = Multipart::from_request(request, &mut body).await;
        let mut multipart = multipart
            .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the upload cannot be read: {error}")))?;
        let mut parts = Self::default();
        while let Some(field) =
            multipart.try_next().await.map_err(|error| unread("the upload cannot be read", &error))?
        {
            parts.take(field).await?;
        }
        Ok(parts)
    }

    async fn take(&mut self, mut field: actix_multipart::Field) -> Result<(), ApiError> {
        let name = field.name().unwrap_or_default().to_owned();
        let file = field.content_disposition().and_then(|disposition| disposition.get_filename().map(str::to_owned));
        let limit = if file.is_some() { UPLOAD_BYTES.saturating_sub(self.bytes) } else { TEXT_BYTES };
        let mut bytes = Vec::new();
        while let Some(chunk) = field.next().await {
            let chunk = chunk.map_err(|error| unread("the upload broke off", &error))?;
            if bytes.len() + chunk.len() > limit || self.files.len() > FILES {
                return Err(StoreError::TooLarge(format!(
                    "an adapter has at most {FILES} files and {UPLOAD_BYTES} bytes."
                ))
                .into());
            }
            bytes.extend_from_slice(&chunk);
        }
        self.bytes += bytes.len();
        if let Some(file) = file {
            self.files.push(UploadFile { name: file, bytes: bytes.into() });
            return Ok(());
        }
        let text =
            String::from_utf8(bytes).map_err(|_| ApiError::param(name.clone(), format!("{name} is not text")))?;
        match name.as_str() {
            "name" => self.name = Some(text),
            "base" => self.base = Some(text),
            "alias" => self.alias = Some(text),
            "files" | "file" => return Err(ApiError::param(name, "a part with files needs a file name")),
            _ => {}
        }
        Ok(())
    }
}

/// An upload that did not arrive whole.
fn unread(what: &str, error: &MultipartError) -> ApiError {
    let late = match error {
        MultipartError::Payload(error) => body::late(error),
        _ => None,
    };
    late.unwrap_or_else(|| ApiError::new(StatusCode::BAD_REQUEST, format!("{what}: {error}")))
}

fn shown(version: &Version) -> Value {
    json!({
        "object": "adapter.version",
        "id": format!("{}/{}@{}", version.account, version.name, version.version),
        "account": version.account,
        "name": version.name,
        "version": version.version,
        "base": version.base,
        "digest": version.digest,
        "rank": version.report.rank,
        "tensors": version.report.tensors,
        "bytes": version.report.bytes,
        "warnings": version.report.warnings,
        "canary": version.report.canary,
        "created_at": version.created_ms / 1000,
    })
}

#[derive(Deserialize)]
pub struct Page {
    limit: Option<u32>,
    after: Option<String>,
}

pub async fn list(
    platform: web::Data<Platform>,
    caller: Caller,
    page: web::Query<Page>,
) -> Result<HttpResponse, ApiError> {
    let limit = page.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let after = page.after.as_deref().unwrap_or_default();
    let own = platform.store.list(&caller.account, after, limit + 1).await?;
    Ok(reply::page(&own, limit, shown))
}

pub async fn show(
    platform: web::Data<Platform>,
    caller: Caller,
    path: web::Path<Path>,
) -> Result<HttpResponse, ApiError> {
    let (account, name) = path.own(&caller)?;
    let versions = platform.store.versions(&account, &name).await?;
    let aliases: Vec<Value> = (platform.store.aliases(&account, &name).await?.into_iter())
        .map(|alias| json!({ "alias": alias.alias, "version": alias.version, "pinned": alias.pinned }))
        .collect();
    let default = platform.store.resolve(&account, &name, &Selector::Default).await?;
    let mut body = default.or_else(|| versions.first().cloned()).as_ref().map(shown).unwrap_or_default();
    body["object"] = "adapter".into();
    body["aliases"] = aliases.into();
    body["versions"] = versions.iter().map(|version| Value::from(version.version)).collect();
    Ok(HttpResponse::Ok().json(body))
}

pub async fn versions(
    platform: web::Data<Platform>,
    caller: Caller,
    path: web::Path<Path>,
) -> Result<HttpResponse, ApiError> {
    let (account, name) = path.own(&caller)?;
    Ok(reply::list(platform.store.versions(&account, &name).await?.iter().map(shown)))
}

pub async fn set_alias(
    platform: web::Data<Platform>,
    caller: Caller,
    path: web::Path<(String, String, String)>,
    JsonObject(json): JsonObject,
) -> Result<HttpResponse, ApiError> {
    let (account, name, alias) = path.into_inner();
    let (account, name) = Path { account, name }.own(&caller)?;
    let version = Fields::new(&json).integer("version", 1..=i64::from(u32::MAX))?;
    let version = version.ok_or_else(|| ApiError::param("version", "version is missing"))? as u32;
    let id = format!("{account}/{name}@{alias}");
    let change = change(&caller, &account, "adapter.alias_set", &id, json!({ "version": version }));
    let moved = platform.store.set_alias(&account, &name, &alias, version, &change).await?;
    Ok(HttpResponse::Ok()
        .json(json!({ "object": "adapter.alias", "alias": alias, "version": moved.version, "id": id })))
}

/// Takes an alias away; `default` follows the newest version again.
pub async fn remove_alias(
    platform: web::Data<Platform>,
    caller: Caller,
    path: web::Path<(String, String, String)>,
) -> Result<HttpResponse, ApiError> {
    let (account, name, alias) = path.into_inner();
    let (account, name) = Path { account, name }.own(&caller)?;
    let id = format!("{account}/{name}@{alias}");
    let change = change(&caller, &account, "adapter.alias_removed", &id, json!({}));
    platform.store.remove_alias(&account, &name, &alias, &change).await?;
    Ok(HttpResponse::Ok().json(json!({ "object": "adapter.alias", "alias": alias, "id": id, "deleted": true })))
}

pub async fn delete(
    platform: web::Data<Platform>,
    caller: Caller,
    path: web::Path<Path>,
) -> Result<HttpResponse, ApiError> {
    let (_, name) = path.own(&caller)?;
    let id = deleted(&platform, &caller, &name).await?;
    Ok(HttpResponse::Ok().json(json!({ "object": "adapter", "id": id, "deleted": true })))
}

/// Deletes an adapter of the caller's. Returns its id.
pub async fn deleted(platform: &Platform, caller: &Caller, name: &AdapterName) -> Result<String, ApiError> {
    let id = format!("{}/{name}", caller.account);
    let change = change(caller, &caller.account, "adapter.deleted", &id, json!({}));
    let gone = platform.store.delete(&caller.account, name, &change).await?;
    gone.into_iter().for_each(|digest| platform.engine.forget(digest));
    Ok(id)
}

pub async fn delete_version(
    platform: web::Data<Platform>,
    caller: Caller,
    path: web::Path<(String, String, u32)>,
) -> Result<HttpResponse, ApiError> {
    let (account, name, version) = path.into_inner();
    let (account, name) = Path { account, name }.own(&caller)?;
    let id = format!("{account}/{name}@{version}");
    let change = change(&caller, &account, "adapter.version_deleted", &id, json!({}));
    let gone = platform.store.delete_version(&account, &name, version, &change).await?;
    gone.into_iter().for_each(|digest| platform.engine.forget(digest));
    Ok(HttpResponse::Ok().json(json!({ "object": "adapter.version", "id": id, "deleted": true })))
}

#[derive(Deserialize)]
pub struct Which {
    version: Option<u32>,
}

/// The files as they were uploaded, as a tar archive.
pub async fn download(
    platform: web::Data<Platform>,
    caller: Caller,
    path: web::Path<Path>,
    which: web::Query<Which>,
) -> Result<HttpResponse, ApiError> {
    let (account, name) = path.own(&caller)?;
    let selector = which.version.map_or(Selector::Default, Selector::Version);
    let version = platform.store.resolve(&account, &name, &selector).await?;
    let version = version.ok_or_else(|| ApiError::not_found(format!("adapter {account}/{name} does not exist")))?;
    let files = platform.store.files(&version).await?;
    let archive = web::block(move || archive(files)).await.map_err(ApiError::internal)?.map_err(ApiError::internal)?;
    let file = format!("attachment; filename=\"{}-{}.tar\"", version.name, version.version);
    Ok(HttpResponse::Ok().content_type("application/x-tar").insert_header(("content-disposition", file)).body(archive))
}

fn archive(files: Vec<UploadFile>) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(file.bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, &file.name, file.bytes.as_ref())?;
    }
    builder.into_inner()
}
