//! What load balancers, dashboards and the curious ask.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde_json::json;

use crate::error::ApiError;
use crate::state::Platform;

/// The process lives.
pub async fn alive() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok" }))
}

/// A request would be served.
pub async fn ready(platform: web::Data<Platform>) -> Result<HttpResponse, ApiError> {
    if platform.is_ready() {
        return Ok(HttpResponse::Ok().json(json!({ "status": "ready" })));
    }
    let why = match (platform.engine.is_draining(), platform.journal.is_taken()) {
        (true, _) => "the server is shutting down",
        (false, false) => "the database does not answer",
        (false, true) => "the server is starting",
    };
    Err(ApiError { retry_after_ms: Some(1_000), ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why) })
}

pub async fn version(platform: web::Data<Platform>) -> HttpResponse {
    let models: Vec<_> = platform
        .models
        .iter()
        .map(|model| json!({ "id": &*model.id, "system_fingerprint": model.fingerprint }))
        .collect();
    HttpResponse::Ok().json(json!({ "version": platform.version, "models": models }))
}

pub async fn metrics(platform: web::Data<Platform>) -> HttpResponse {
    let text = platform.metrics.text(
        &platform.engine.stats(),
        &platform.reconciler.found(),
        platform.reconciler.engine.unbilled_tokens(),
    );
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text)
}

/// For a person who opens the address in a browser.
pub async fn front_page(platform: web::Data<Platform>) -> HttpResponse {
    let text = format!(
        "Myriad {}\n\nThis is an OpenAI-compatible API: point a client at /v1 of this address, with your key.\n\
         In a terminal: myriad chat\n",
        platform.version
    );
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(text)
}
