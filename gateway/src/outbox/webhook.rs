//! Signed messages to accounts' webhooks, as the Standard Webhooks specification has them
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>): the headers `webhook-id`,
//! `webhook-timestamp` (Unix seconds of the attempt) and `webhook-signature`, which is `v1,` and the base64 of the HMAC-SHA256 over
//! `id.timestamp.body`. The key is what stands in base64 after `whsec_` in the secret.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use billing::{Attempt, Claimed, Webhook};
use hmac::{Hmac, KeyInit, Mac};
use platform::units::now_ms;
use reqwest::{Client, StatusCode, Url};
use sha2::Sha256;

use super::addresses::{PublicOnly, REFUSED, is_public};
use super::{http, innermost, without_answer};

const SECRET_PREFIX: &str = "whsec_";
/// The specification has 24 to 64.
const SECRET_BYTES: usize = 24;
/// Longest URL, in bytes.
const URL_BYTES: usize = 2048;

/// A new webhook's secret.
pub fn fresh_secret() -> String {
    let mut bytes = [0u8; SECRET_BYTES];
    getrandom::fill(&mut bytes).expect("the operating system has no randomness to give");
    format!("{SECRET_PREFIX}{}", BASE64_STANDARD.encode(bytes))
}

/// The id under which receivers know a delivery and its repeats.
pub fn message_id(id: &str) -> String {
    id.replace(' ', "_")
}

/// A URL that messages can be sent to, or what is wrong with it. What its name resolves to is looked at when something is sent.
pub fn checked_url(text: &str, private: bool) -> Result<Url, String> {
    if text.len() > URL_BYTES {
        return Err(format!("url is over {URL_BYTES} bytes"));
    }
    let url = Url::parse(text).map_err(|error| format!("url is not one: {error}"))?;
    match url.scheme() {
        "https" => {}
        "http" if private => {}
        _ => return Err("url must begin with https://".into()),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("url must not hold a name or a password: messages are signed instead".into());
    }
    Ok(url)
}

/// Sends to webhooks.
pub struct Sender {
    /// Plain HTTP and private addresses as well.
    pub private: bool,
    client: OnceLock<Client>,
}

impl Sender {
    pub const fn new(private: bool) -> Self {
        Self { private, client: OnceLock::new() }
    }

    /// Made when it is first needed: it reads the system's certificates, and a server without any can still serve.
    fn client(&self) -> Result<&Client, String> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // Not through a proxy, which would resolve names itself; and no connection outlives the check of its address.
        let mut builder = http().no_proxy().pool_max_idle_per_host(0);
        if !self.private {
            builder = builder.dns_resolver(Arc::new(PublicOnly));
        }
        let client = builder.build().map_err(|error| innermost(&error))?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Sends one message. Of the answer only the status is read.
    pub async fn send(&self, webhook: &Webhook, claimed: &Claimed) -> Attempt {
        let message = self.client().and_then(|client| {
            let url = self.allowed(&webhook.url)?;
            let id = message_id(&claimed.id);
            let timestamp = now_ms() / 1000;
            let signature = signature(&webhook.secret, &id, timestamp, &claimed.body)?;
            Ok(client
                .post(url)
                .header("content-type", "application/json")
                .header("webhook-id", id)
                .header("webhook-timestamp", timestamp)
                .header("webhook-signature", signature)
                .body(claimed.body.clone()))
        });
        match message {
            Err(reason) => Attempt::Failed(reason),
            Ok(message) => match message.send().await {
                Ok(answer) => verdict(answer.status()),
                Err(error) => without_answer(error),
            },
        }
    }

    /// The resolver sees names only, so addresses are looked at here.
    fn allowed(&self, url: &str) -> Result<Url, String> {
        let url = checked_url(url, self.private)?;
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        match host.parse::<IpAddr>() {
            Ok(address) if !self.private && !is_public(address) => Err(format!("{address} {REFUSED}")),
            _ => Ok(url),
        }
    }
}

fn verdict(status: StatusCode) -> Attempt {
    match status {
        status if status.is_success() => Attempt::Delivered,
        // The specification's word for: never again.
        StatusCode::GONE => Attempt::Hopeless("the receiver answered 410 Gone".into()),
        status if status.is_redirection() => {
            Attempt::Failed(format!("the receiver answered {status}; redirects are not followed"))
        }
        status => Attempt::Failed(format!("the receiver answered {status}")),
    }
}

fn signature(secret: &str, id: &str, timestamp: i64, body: &str) -> Result<String, String> {
    let odd = || "the webhook's secret is not whsec_ and base64; make the webhook anew".to_owned();
    let key = secret.strip_prefix(SECRET_PREFIX).and_then(|secret| BASE64_STANDARD.decode(secret).ok());
    let mut hmac = Hmac::<Sha256>::new_from_slice(&key.ok_or_else(odd)?).map_err(|_| odd())?;
    hmac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    Ok(format!("v1,{}", BASE64_STANDARD.encode(hmac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn a_signature_is_the_specifications() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let signed = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(signature("whsec_?", "a", 1, "").unwrap_err().contains("make the webhook anew"));
    }

    #[test]
    fn a_secret_is_random_and_of_the_specifications_length() {
        let (one, other) = (fresh_secret(), fresh_secret());
        assert_ne!(one, other);
        assert_eq!(BASE64_STANDARD.decode(one.strip_prefix("whsec_").unwrap()).unwrap().len(), 24);
    }

    #[test]
    fn table_of_urls() {
        let open = Sender::new(true);
        let closed = Sender::new(false);
        for (url, in_private, in_public) in [
            ("https://example.com/hook?a=b", true, true),
            ("http://example.com/hook", true, false),
            ("https://127.0.0.1/", true, false),
            ("https://[::1]:9/", true, false),
            ("https://0x7f.1/", true, false),
            ("https://2130706433/", true, false),
            ("https://1.1.1.1/", true, true),
            ("https://user:word@example.com/", false, false),
            ("ftp://example.com/", false, false),
            ("example.com", false, false),
            ("", false, false),
        ] {
            assert_eq!((open.allowed(url).is_ok(), closed.allowed(url).is_ok()), (in_private, in_public), "{url}");
        }
    }
}
