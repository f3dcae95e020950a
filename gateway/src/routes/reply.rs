//! What both endpoints' responses share: JSON bodies, usage, event streams, headers.

use std::collections::HashMap;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use actix_web::{FromRequest, HttpRequest, HttpResponse, HttpResponseBuilder};
use billing::NewRequest;
use futures::future::LocalBoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use platform::units::now_ms;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use serving_engine::Usage;

use super::JSON_BYTES;
use crate::body;
use crate::error::{ApiError, nul_text};
use crate::life::{Piece, Pieces, Run};
use crate::resolve::Target;
use crate::wire::Fields;

/// An idle stream gets a comment so often, so that nobody in between takes it for dead.
const PING_EVERY: Duration = Duration::from_secs(15);

/// Everything that was asked for, in the shape of the API's lists.
pub fn list(data: impl IntoIterator<Item = Value>) -> HttpResponse {
    shown_list(data.into_iter().collect(), false)
}

/// A page of a list. `rows` are up to one more than its `limit`, which says that there are more.
pub fn page<T>(rows: &[T], limit: u32, shown: impl FnMut(&T) -> Value) -> HttpResponse {
    let limit = limit as usize;
    shown_list(rows.iter().take(limit).map(shown).collect(), rows.len() > limit)
}

fn shown_list(data: Vec<Value>, has_more: bool) -> HttpResponse {
    HttpResponse::Ok().json(json!({ "object": "list", "data": data, "has_more": has_more }))
}

/// A body that must be a JSON object. Its size is bounded by the router's `JSON_BYTES`, its depth by the parser.
pub struct JsonObject(pub Map<String, Value>);

impl FromRequest for JsonObject {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = Bytes::from_request(request, payload);
        async move { object(&body.await.map_err(|error| unread(&error))?).map(Self) }.boxed_local()
    }
}

/// A body of the account's and the operator's endpoints: an object that says its fields, with its numbers as they were written.
pub struct StrictObject {
    json: Map<String, Value>,
    numbers: HashMap<String, String>,
}

impl StrictObject {
    /// Its fields; one that is not `known` is refused.
    pub fn fields(&self, known: &[&'static str]) -> Result<Fields<'_>, ApiError> {
        Fields::only(&self.json, &self.numbers, known)
    }
}

impl FromRequest for StrictObject {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = Bytes::from_request(request, payload);
        async move {
            let body = body.await.map_err(|error| unread(&error))?;
            let json = object(&body)?;
            if json.iter().any(|(name, value)| name.contains('\0') || has_nul(value)) {
                return Err(nul_text());
            }
            let texts: HashMap<String, &RawValue> = serde_json::from_slice(&body).map_err(ApiError::internal)?;
            let is_number = |name: &String| json.get(name).is_some_and(Value::is_number);
            let numbers =
                texts.into_iter().filter(|(name, _)| is_number(name)).map(|(name, text)| (name, text.get().to_owned()));
            Ok(Self { numbers: numbers.collect(), json })
        }
        .boxed_local()
    }
}

/// A body that did not arrive whole, as an error of the same shape as all others.
pub fn unread(error: &actix_web::Error) -> ApiError {
    if let Some(late) = error.as_error().and_then(body::late) {
        return late;
    }
    match error.as_response_error().status_code() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is over {JSON_BYTES} bytes"))
        }
        status => ApiError::new(status, format!("the body could not be read: {error}")),
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, "the body must be a JSON object")),
        Err(error) => Err(ApiError::new(StatusCode::BAD_REQUEST, format!("the body is not valid JSON: {error}"))),
    }
}

/// Nano-dollars as the number of dollars that people read; the exact integer is always beside it.
pub fn dollars(nano_usd: i64) -> Value {
    match nano_usd {
        0 => 0.into(),
        nano => (nano as f64 / 1e9).into(),
    }
}

/// Usage as clients read it, with what it costs.
pub fn usage(usage: Usage, cost_nano_usd: i64) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": { "cached_tokens": usage.cached },
        // Guesses that were not drawn are no part of the answer and are not charged.
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted,
            "rejected_prediction_tokens": usage.guessed - usage.accepted,
        },
        "cost": dollars(cost_nano_usd),
        "cost_nano_usd": cost_nano_usd,
    })
}

/// What all parts of one response carry.
pub struct Frame {
    pub id: String,
    pub object: &'static str,
    pub created: i64,
    pub model: String,
    pub fingerprint: String,
}

impl Frame {
    /// Of a request's reply, which begins now.
    pub fn new(row: &NewRequest, target: &Target<'_>, object: &'static str) -> Self {
        Self {
            id: row.id.to_string(),
            object,
            created: now_ms() / 1000,
            model: row.model.clone(),
            fingerprint: target.model.fingerprint.clone(),
        }
    }

    pub fn with(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// Headers of a response that the engine works on.
pub fn head(response: &mut HttpResponseBuilder, run: &Run, started: std::time::Instant) {
    let ms = |duration: Duration| format!("{:.3}", duration.as_secs_f64() * 1e3);
    response
        .insert_header(("x-request-id", run.id.as_str()))
        .insert_header(("openai-processing-ms", ms(started.elapsed())))
        .insert_header(("x-myriad-overhead-ms", ms(run.overhead)));
}

/// An endpoint's way of writing pieces as events.
pub trait Events: 'static {
    /// Before the first piece.
    fn opening(&mut self) -> Vec<Value>;
    fn piece(&mut self, piece: Piece) -> Vec<Value>;
}

/// A response that sends pieces as server-sent events as they come.
pub fn stream(run: Run, mut response: HttpResponseBuilder, mut events: impl Events) -> HttpResponse {
    let opening = events.opening().iter().map(frame).collect::<String>();
    let first = futures::stream::once(std::future::ready(Ok::<_, ApiError>(Bytes::from(opening))));
    response
        .content_type("text/event-stream; charset=utf-8")
        .insert_header(("cache-control", "no-cache"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(first.chain(frames(run.pieces, events)))
}

fn frames(pieces: Pieces, events: impl Events) -> impl Stream<Item = Result<Bytes, ApiError>> {
    futures::stream::unfold(Some((pieces, events)), |state| async move {
        let (mut pieces, mut events) = state?;
        let piece = match tokio::time::timeout(PING_EVERY, pieces.next()).await {
            Err(_) => return Some((Ok(Bytes::from_static(b": ping\n\n")), Some((pieces, events)))),
            Ok(None) => return None,
            Ok(Some(piece)) => piece,
        };
        let (text, next) = match piece {
            Piece::Failed(error) => (frame(&error.body()), None),
            done @ Piece::Done { .. } => {
                let last: String = events.piece(done).iter().map(frame).collect();
                (last + "data: [DONE]\n\n", None)
            }
            piece => (events.piece(piece).iter().map(frame).collect(), Some((pieces, events))),
        };
        Some((Ok(Bytes::from(text)), next))
    })
}

fn frame(event: &Value) -> String {
    format!("data: {event}\n\n")
}

/// Waits for the whole answer.
pub async fn collect(mut pieces: Pieces) -> Result<Vec<Piece>, ApiError> {
    let mut all = Vec::new();
    while let Some(piece) = pieces.gather().await {
        match piece {
            Piece::Failed(error) => return Err(error),
            piece => all.push(piece),
        }
    }
    Ok(all)
}
