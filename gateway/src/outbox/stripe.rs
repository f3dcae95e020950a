//! Revenue to Stripe, as events of a billing meter (<https://docs.stripe.com/api/billing/meter-event/create>).
//!
//! Stripe knows a repeat by its `identifier`, for at least 24 hours, and answers it with 400 and "An event already exists with
//! identifier": that is a delivery. It takes whole numbers only, so the value is nano-dollars.

use std::sync::OnceLock;
use std::time::Duration;

use billing::{Attempt, Claimed};
use reqwest::{Client, Response, StatusCode, Url};
use serde_json::Value;

use super::{http, innermost, without_answer};

/// How long after an attempt of unknown outcome a repeat is safe: less than Stripe remembers identifiers.
const REPEAT_WITHIN: Duration = Duration::from_secs(23 * 3600);
/// So much of an answer is read, in bytes.
const ANSWER_BYTES: usize = 16 << 10;
/// Longest name of a meter's event at Stripe, in characters.
const METER_CHARS: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum StripeError {
    #[error(
        "--stripe-key needs --stripe-meter NAME: the event name of the meter at Stripe, up to {METER_CHARS} characters"
    )]
    Meter,
    #[error("--stripe-meter needs --stripe-key (or MYRIAD_STRIPE_KEY): the secret key of the account at Stripe")]
    NoKey,
    #[error("--stripe-key must be printable characters without spaces, as Stripe shows it: sk_live_... or rk_live_...")]
    Key,
    #[error("--stripe-url must be the address of Stripe's API, such as https://api.stripe.com")]
    Url,
}

/// The operator's account at Stripe. Has no `Debug`: the key is never logged.
pub struct Stripe {
    endpoint: Url,
    key: String,
    meter: String,
    client: OnceLock<Client>,
}

impl Stripe {
    /// From the server's settings; nothing where Stripe is not used.
    pub fn new(url: &str, key: Option<&str>, meter: Option<&str>) -> Result<Option<Self>, StripeError> {
        let (key, meter) = match (key, meter) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(StripeError::Meter),
            (None, Some(_)) => return Err(StripeError::NoKey),
            (Some(key), Some(meter)) => (key.trim(), meter),
        };
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(StripeError::Key);
        }
        if meter.is_empty() || meter.chars().count() > METER_CHARS {
            return Err(StripeError::Meter);
        }
        let endpoint = format!("{}/v1/billing/meter_events", url.trim_end_matches('/'));
        let endpoint = Url::parse(&endpoint).map_err(|_| StripeError::Url)?;
        if !matches!(endpoint.scheme(), "http" | "https") {
            return Err(StripeError::Url);
        }
        Ok(Some(Self { endpoint, key: key.to_owned(), meter: meter.to_owned(), client: OnceLock::new() }))
    }

    /// As with webhooks: made when it is first needed.
    fn client(&self) -> Result<&Client, String> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = http().build().map_err(|error| innermost(&error))?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Sends one event to the customer that the delivery names.
    pub async fn send(&self, claimed: &Claimed) -> Attempt {
        let event: Value = match serde_json::from_str(&claimed.body) {
            Ok(event) => event,
            Err(error) => return Attempt::Hopeless(format!("the stored event cannot be read: {error}")),
        };
        let identifier = event["identifier"].as_str().unwrap_or_default();
        if let Some(reason) = too_late(claimed, identifier) {
            return Attempt::Hopeless(reason);
        }
        let form = [
            ("event_name", self.meter.clone()),
            ("identifier", identifier.to_owned()),
            ("timestamp", event["timestamp"].to_string()),
            ("payload[stripe_customer_id]", claimed.target.clone()),
            ("payload[value]", event["value"].to_string()),
        ];
        let request = match self.client() {
            Ok(client) => client.post(self.endpoint.clone()).bearer_auth(&self.key).form(&form),
            Err(reason) => return Attempt::Failed(reason),
        };
        match request.send().await {
            Ok(answer) => {
                let status = answer.status();
                verdict(status, &text(answer).await)
            }
            Err(error) => without_answer(error),
        }
    }
}

/// Why it may not be sent again: an earlier attempt may have arrived, and Stripe would count a repeat as a second event.
fn too_late(claimed: &Claimed, identifier: &str) -> Option<String> {
    let ago = Duration::from_millis(claimed.unclear_for_ms?.unsigned_abs());
    (ago > REPEAT_WITHIN).then(|| {
        format!(
            "an attempt {} hours ago may have arrived, and Stripe no longer knows a repeat: look there for {identifier}, and only \
             if it is missing send POST /admin/v1/export {{\"retry\": [{:?}]}}",
            ago.as_secs() / 3600,
            claimed.id
        )
    })
}

/// The beginning of an answer. One that breaks off is as good as an empty one.
async fn text(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_BYTES
        && let Ok(Some(chunk)) = answer.chunk().await
    {
        bytes.extend_from_slice(&chunk);
    }
    bytes.truncate(ANSWER_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn verdict(status: StatusCode, text: &str) -> Attempt {
    let error = serde_json::from_str::<Value>(text).unwrap_or_default()["error"].take();
    let message = error["message"].as_str().unwrap_or_default();
    let repeated = status == StatusCode::CONFLICT
        || (status.is_client_error()
            && (message.contains("already exists with identifier") || error["code"] == "duplicate_meter_event"));
    if status.is_success() || repeated {
        return Attempt::Delivered;
    }
    let reason = match message {
        "" => format!("Stripe answered {status}"),
        message => format!("Stripe answered {status}: {message}"),
    };
    // Whether Stripe kept what it then failed on is not known.
    if status.is_server_error() { Attempt::Unclear(reason) } else { Attempt::Failed(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_answers() {
        let error =
            |message: &str| format!(r#"{{"error": {{"message": "{message}", "type": "invalid_request_error"}}}}"#);
        let cases = [
            (200, "{}".to_owned(), "delivered"),
            (400, error("An event already exists with identifier myriad-acme-1-1."), "delivered"),
            (409, String::new(), "delivered"),
            (400, error("No such meter"), "failed"),
            (401, "not JSON".to_owned(), "failed"),
            (302, String::new(), "failed"),
            (429, String::new(), "failed"),
            (500, String::new(), "unclear"),
        ];
        for (status, text, expected) in cases {
            let found = match verdict(StatusCode::from_u16(status).unwrap(), &text) {
                Attempt::Delivered => "delivered",
                Attempt::Failed(_) => "failed",
                Attempt::Unclear(_) => "unclear",
                Attempt::Hopeless(_) => "hopeless",
            };
            assert_eq!(found, expected, "{status} {text}");
        }
    }

    #[test]
    fn settings_that_belong_together_come_together() {
        let url = "https://api.stripe.com";
        assert!(Stripe::new(url, None, None).unwrap().is_none());
        assert!(Stripe::new(url, Some("sk_test_1"), Some("spent")).unwrap().is_some());
        for (url, key, meter, named) in [
            (url, Some("sk_test_1"), None, "--stripe-key needs --stripe-meter"),
            (url, None, Some("spent"), "--stripe-meter needs --stripe-key"),
            (url, Some("sk test"), Some("spent"), "--stripe-key must be"),
            ("stripe", Some("sk_test_1"), Some("spent"), "--stripe-url"),
        ] {
            let error = Stripe::new(url, key, meter).err().unwrap().to_string();
            assert!(error.contains(named) && !error.contains("sk_test_1"), "{error}");
        }
    }
}
