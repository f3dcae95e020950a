//! `Idempotency-Key`: a request that is sent again is answered again, and neither computed nor counted a second time.
//!
//! Whole answers are kept, for 24 hours and up to 4 MB, and only for those who send the header. What failed, broke off or was left by its
//! client is not kept, so that it can be tried again under the same key.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::body::{BodyStream, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::middleware::Next;
use actix_web::web::{self, Bytes};
use actix_web::{Error, HttpResponse};
use platform::units::now_ms;
use platform::{AccountName, Db, Digest};
use sqlx::Row;

use crate::auth;
use crate::error::ApiError;
use crate::routes::unread;
use crate::state::Platform;

const HEADER: &str = "idempotency-key";
/// Longest key, in bytes.
const KEY_BYTES: usize = 255;
/// So long a reply is kept, in milliseconds.
const KEPT_MS: i64 = 24 * 60 * 60 * 1000;
/// Largest reply that is kept, in bytes; a larger one is computed again.
const REPLY_BYTES: usize = 4 << 20;
/// How long to wait before asking again for a reply that is still being made.
const RETRY_MS: u64 = 1_000;

/// Replies by account and key.
#[derive(Clone)]
pub struct Replies {
    db: Db,
    /// What is being answered now, with the digest of the request.
    running: Arc<Mutex<HashMap<Slot, Digest>>>,
}

/// An account and the digest of its key.
type Slot = (AccountName, Digest);

struct Kept {
    request: String,
    request_id: String,
    content_type: String,
    body: String,
}

impl Replies {
    pub fn new(db: Db) -> Self {
        Self { db, running: Arc::default() }
    }

    /// Takes the slot for this request. None: another one has it.
    fn begin(&self, slot: Slot, request: Digest) -> Result<Running, ApiError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.get(&slot) {
            Some(&other) if other == request => Err(ApiError {
                retry_after_ms: Some(RETRY_MS),
                ..ApiError::new(StatusCode::CONFLICT, "the first request with this Idempotency-Key is still running")
            }),
            Some(_) => Err(other_body()),
            None => {
                running.insert(slot.clone(), request);
                Ok(Running { replies: self.clone(), slot })
            }
        }
    }

    async fn find(&self, slot: &Slot) -> Result<Option<Kept>, ApiError> {
        let query = "SELECT request_hash, request_id, content_type, body FROM idempotent_replies
                     WHERE account = $1 AND key_hash = $2 AND created_ms > $3";
        let row = sqlx::query(query).bind(slot.0.as_str()).bind(slot.1.to_string()).bind(now_ms() - KEPT_MS);
        let Some(row) = row.fetch_optional(self.db.pool()).await? else { return Ok(None) };
        Ok(Some(Kept {
            request: row.try_get("request_hash")?,
            request_id: row.try_get("request_id")?,
            content_type: row.try_get("content_type")?,
            body: row.try_get("body")?,
        }))
    }

    async fn keep(&self, slot: &Slot, kept: &Kept) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM idempotent_replies WHERE created_ms <= $1")
            .bind(now_ms() - KEPT_MS)
            .execute(self.db.pool())
            .await?;
        let query = "INSERT INTO idempotent_replies
                     (account, key_hash, request_hash, request_id, content_type, body, created_ms)
                     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
        sqlx::query(query)
            .bind(slot.0.as_str())
            .bind(slot.1.to_string())
            .bind(&kept.request)
            .bind(&kept.request_id)
            .bind(&kept.content_type)
            .bind(&kept.body)
            .bind(now_ms())
            .execute(self.db.pool())
            .await?;
        Ok(())
    }
}

/// A request that has its slot; the slot is free again when this is dropped.
struct Running {
    replies: Replies,
    slot: Slot,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.replies.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.slot);
    }
}

fn other_body() -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "this Idempotency-Key was used for another request; use a new one")
}

/// What a request with a key is.
enum Admission {
    /// One that runs, its digest and its body.
    New(Running, Digest, Bytes),
    Repeat(Kept),
}

/// Wraps the routes that cost tokens.
pub async fn once(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(key) = request.headers().get(HEADER).cloned() else {
        return Ok(next.call(request).await?.map_into_boxed_body());
    };
    let (running, asked, body) = match admit(&mut request, key.as_bytes()).await {
        Ok(Admission::New(running, asked, body)) => (running, asked, body),
        Ok(Admission::Repeat(kept)) => {
            let response = HttpResponse::Ok()
                .insert_header((CONTENT_TYPE, kept.content_type))
                .insert_header(("x-request-id", kept.request_id))
                .insert_header(("idempotent-replayed", "true"))
                .body(kept.body);
            return Ok(request.into_response(response));
        }
        // A response, not an error: whatever wraps this adds its headers to responses.
        Err(error) => return Ok(request.error_response(error)),
    };
    request.set_payload(Payload::from(body));
    let response = next.call(request).await?;
    if response.status() != StatusCode::OK {
        return Ok(response.map_into_boxed_body());
    }
    let header =
        |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let kept = Kept {
        request: asked.to_string(),
        request_id: header("x-request-id"),
        content_type: header(CONTENT_TYPE.as_str()),
        body: String::new(),
    };
    Ok(response.map_body(|_, body| BoxBody::new(recorded(body, running, kept))))
}

async fn admit(request: &mut ServiceRequest, key: &[u8]) -> Result<Admission, ApiError> {
    let caller = auth::caller(request.request())?;
    let platform = request.app_data::<web::Data<Platform>>();
    let replies = platform.ok_or_else(|| ApiError::internal("the platform is not there"))?.replies.clone();
    if key.is_empty() || key.len() > KEY_BYTES {
        return Err(ApiError::param(HEADER, format!("an Idempotency-Key has 1 to {KEY_BYTES} bytes")));
    }
    let body = request.extract::<Bytes>().await.map_err(|error| unread(&error))?;
    let asked = Digest::of(&[request.path().as_bytes(), b"\0", &body].concat());
    let running = replies.begin((caller.account, Digest::of(key)), asked)?;
    match replies.find(&running.slot).await? {
        None => Ok(Admission::New(running, asked, body)),
        Some(kept) if kept.request == asked.to_string() => Ok(Admission::Repeat(kept)),
        Some(_) => Err(other_body()),
    }
}

/// The same body; its end is only sent once all of it is kept.
fn recorded(body: impl MessageBody + 'static, running: Running, kept: Kept) -> impl MessageBody + 'static {
    let whole_at_once = kept.content_type.starts_with("application/json");
    // Without `kept` the reply has become too large.
    let state = (Box::pin(body), running, Some(kept));
    BodyStream::new(futures::stream::unfold(Some(state), move |state| async move {
        let (mut body, running, kept) = state?;
        let mut kept = kept.filter(|kept| kept.body.len() <= REPLY_BYTES);
        let chunk = match poll_fn(|context| Pin::new(&mut body).poll_next(context)).await? {
            Ok(chunk) => chunk,
            Err(error) => return Some((Err(error.into()), None)),
        };
        if let Some(kept) = &mut kept {
            kept.body.push_str(&String::from_utf8_lossy(&chunk));
            let whole = whole_at_once || kept.body.ends_with("data: [DONE]\n\n");
            if whole && let Err(error) = running.replies.keep(&running.slot, kept).await {
                tracing::error!(%error, "a reply could not be kept for its Idempotency-Key");
            }
        }
        Some((Ok::<_, Box<dyn std::error::Error>>(chunk), Some((body, running, kept))))
    }))
}
