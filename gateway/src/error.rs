//! Every error as HTTP: the one place that knows which status a failure has.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use adapter_store::StoreError;
use billing::BillingError;
use serde_json::{Value, json};
use serving_engine::{GRAMMAR_FAILED, NOT_NUMBERS, Refused};
use text::TextError;

/// The code of a request that its adapter makes fail.
const OVERFLOW: &str = "logits_overflow";

/// An error as clients see it: OpenAI's shape, and headers that tell a client library what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub param: Option<String>,
    pub code: Option<&'static str>,
    pub retry_after_ms: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after_ms: None }
    }

    /// 400 that names the parameter.
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The engine gave a request up. What is wrong with the adapter itself is as wrong the next time; everything else (a drain, an
    /// adapter's files that cannot be read, a device) is worth a retry.
    pub fn gave_up(reason: &str) -> Self {
        if reason.starts_with(GRAMMAR_FAILED) {
            return Self::new(StatusCode::UNPROCESSABLE_ENTITY, reason).with_code("grammar_limit");
        }
        if reason != NOT_NUMBERS {
            return overloaded(reason, 1_000);
        }
        let message = "the model's logits overflow on this prompt: the adapter's weights, or its scale (lora_alpha), are too large";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).with_code(OVERFLOW)
    }

    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// What went wrong inside; the cause is logged here, once, and not shown.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed inside");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed; the cause is in its log")
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::PAYMENT_REQUIRED => "insufficient_quota",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub fn body(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code } })
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(ms) = self.retry_after_ms {
            response.insert_header(("retry-after-ms", ms.to_string()));
            response.insert_header(("retry-after", ms.div_ceil(1000).to_string()));
        } else if matches!(self.status, StatusCode::CONFLICT | StatusCode::PAYMENT_REQUIRED)
            || self.code == Some(OVERFLOW)
        {
            // Clients retry 409 and 500 by themselves; here the same request fails the same way, as it does without credit.
            response.insert_header(("x-should-retry", "false"));
        }
        if self.status == StatusCode::REQUEST_TIMEOUT {
            // The rest of the body may still come; it is no next request.
            response.force_close();
        }
        response.json(self.body())
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let message = refused.to_string();
        match refused {
            Refused::Full { retry_after_ms } => overloaded(message, retry_after_ms),
            Refused::LaneFull { retry_after_ms, .. } => Self {
                retry_after_ms: Some(retry_after_ms),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("rate_limit_exceeded")
            },
            Refused::Draining => overloaded("the server is shutting down", 1_000),
            Refused::UnknownBase(_) => Self::not_found(message).with_code("model_not_found"),
            Refused::TooLong { .. } => Self::param("messages", message).with_code("context_length_exceeded"),
            Refused::EmptyPrompt | Refused::UnknownToken(_) => Self::param("prompt", message),
            Refused::TooManyChoices { .. } => Self::param("n", message),
        }
    }
}

/// Worth a retry, after so long.
pub fn overloaded(message: impl Into<String>, retry_after_ms: u64) -> ApiError {
    ApiError { retry_after_ms: Some(retry_after_ms), ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message) }
}

/// The database is away, or takes too long.
fn unanswered(cause: impl std::fmt::Display) -> ApiError {
    tracing::error!(%cause, "the database does not answer");
    overloaded("the database does not answer; try again later", 1_000)
}

/// No name has this character, and PostgreSQL stores no text with it.
pub fn nul_text() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "a text has the character U+0000, which no name has; leave it out")
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Refused(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, message),
            StoreError::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, message),
            StoreError::Alias(_) => Self::param("alias", message),
            StoreError::Missing { .. } | StoreError::MissingVersion { .. } | StoreError::MissingAlias { .. } => {
                Self::not_found(message)
            }
            StoreError::InUse { .. } | StoreError::OnlyVersion { .. } | StoreError::OtherBase { .. } => {
                Self::new(StatusCode::CONFLICT, message)
            }
            StoreError::Gone(_) => Self::not_found(message).with_code("model_not_found"),
            StoreError::Db(error) => error.into(),
            StoreError::Blob(_) | StoreError::Unreadable(..) => Self::internal(message),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::File { .. } => Self::internal(error),
            _ => Self::param("messages", error.to_string()),
        }
    }
}

impl From<BillingError> for ApiError {
    fn from(error: BillingError) -> Self {
        match error {
            BillingError::PriceInThePast => Self::param("starts_at", error.to_string()),
            BillingError::PriceRange => Self::new(StatusCode::BAD_REQUEST, error.to_string()),
            BillingError::LimitAmount => Self::param("amount", error.to_string()),
            BillingError::TooManyLimits | BillingError::TooManyWebhooks => {
                Self::new(StatusCode::CONFLICT, error.to_string())
            }
            BillingError::StatementTooLong { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
            BillingError::NoPrice(_) => Self::param("version", error.to_string()),
            BillingError::NoAccount(_) => Self::not_found(error.to_string()),
            BillingError::Owes(..) | BillingError::IdReused(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            BillingError::Db(error) => error.into(),
            BillingError::Conflict(_) | BillingError::Slow => unanswered(error),
            BillingError::ReservationClosed(_) => {
                overloaded("the other servers took this one for dead; it begins anew, send the request again", 1_000)
            }
            BillingError::Missing(_) | BillingError::OverReserved(_) | BillingError::Closed => Self::internal(error),
        }
    }
}

impl From<platform::DbError> for ApiError {
    fn from(error: platform::DbError) -> Self {
        match error {
            error if error.is_passing() => unanswered(error),
            error if error.is_nul_text() => nul_text(),
            error => Self::internal(error),
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        platform::DbError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_server_is_503_and_an_account_with_too_much_of_it_429_and_both_say_when() {
        let cases = [
            (Refused::Full { retry_after_ms: 2_100 }, 503, "overloaded_error"),
            (Refused::LaneFull { most: 7, retry_after_ms: 2_100 }, 429, "rate_limit_error"),
        ];
        for (refused, status, kind) in cases {
            let error = ApiError::from(refused);
            let response = error.error_response();
            assert_eq!((response.status().as_u16(), error.kind()), (status, kind));
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            assert_eq!((header("retry-after"), header("retry-after-ms")), (Some("3"), Some("2100")));
        }
    }
}
