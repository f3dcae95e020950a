//! The router: a table of contents, grouped by who calls.

mod account;
mod adapters;
mod chat;
mod completions;
mod models;
mod ops;
mod reply;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};

use crate::error::ApiError;

/// Largest JSON body, in bytes.
pub const JSON_BYTES: usize = 16 << 20;

/// What clients of the OpenAI API call, and what is Myriad's own beside it.
pub fn api(config: &mut web::ServiceConfig) {
    config
        .configure(limits)
        // Inference
        .route("/v1/chat/completions", web::post().to(chat::create))
        .route("/v1/completions", web::post().to(completions::create))
        .route("/v1/models", web::get().to(models::list))
        .route("/v1/models/{id:.*}", web::get().to(models::show))
        // Adapters
        .route("/v1/adapters", web::get().to(adapters::list))
        .route("/v1/adapters", web::post().to(adapters::create))
        .route("/v1/adapters/{account}/{name}", web::put().to(adapters::put))
        .route("/v1/adapters/{account}/{name}", web::get().to(adapters::show))
        .route("/v1/adapters/{account}/{name}", web::delete().to(adapters::delete))
        .route("/v1/adapters/{account}/{name}/versions", web::get().to(adapters::versions))
        .route("/v1/adapters/{account}/{name}/versions/{version}", web::delete().to(adapters::delete_version))
        .route("/v1/adapters/{account}/{name}/aliases/{alias}", web::put().to(adapters::set_alias))
        .route("/v1/adapters/{account}/{name}/aliases/{alias}", web::delete().to(adapters::remove_alias))
        .route("/v1/adapters/{account}/{name}/download", web::get().to(adapters::download))
        // The account
        .route("/v1/account", web::get().to(account::show))
        .route("/v1/account/requests", web::get().to(account::requests))
        .route("/v1/account/keys", web::get().to(account::keys))
        .route("/v1/account/keys", web::post().to(account::create_key))
        .route("/v1/account/keys/{id}", web::delete().to(account::revoke_key))
        // Whoever watches
        .configure(health)
        .route("/", web::get().to(ops::front_page))
        .default_service(web::to(nothing_here));
}

/// Bounds of bodies, and errors of paths and queries in the API's own shape.
fn limits(config: &mut web::ServiceConfig) {
    config
        .app_data(web::PayloadConfig::new(JSON_BYTES))
        .app_data(web::PathConfig::default().error_handler(|error, _| ApiError::not_found(error.to_string()).into()))
        .app_data(web::QueryConfig::default().error_handler(|error, _| {
            ApiError::new(StatusCode::BAD_REQUEST, format!("the query cannot be read: {error}")).into()
        }));
}

/// The operators' listener.
pub fn ops(config: &mut web::ServiceConfig) {
    config.configure(health).route("/metrics", web::get().to(ops::metrics)).default_service(web::to(nothing_here));
}

fn health(config: &mut web::ServiceConfig) {
    config
        .route("/healthz", web::get().to(ops::alive))
        .route("/health", web::get().to(ops::ready))
        .route("/readyz", web::get().to(ops::ready))
        .route("/version", web::get().to(ops::version));
}

async fn nothing_here(request: actix_web::HttpRequest) -> Result<HttpResponse, ApiError> {
    const LATER: [&str; 3] = ["/v1/responses", "/v1/embeddings", "/v1/batches"];
    let path = request.path();
    Err(ApiError::not_found(match LATER.iter().find(|later| path.starts_with(**later)) {
        Some(later) => format!("{later} is not there yet; /v1/chat/completions and /v1/completions are"),
        None => format!("there is nothing at {} {}", request.method(), path.chars().take(200).collect::<String>()),
    }))
}
