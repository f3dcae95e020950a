//! Delivers what is in the outbox: alerts to accounts' webhooks, revenue to Stripe.
//!
//! Each server runs one loop. It claims what is due and delivers it without a transaction; `billing::Outbox` says what happens
//! where a delivery fails or a server dies.

mod addresses;
mod stripe;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use billing::{Attempt, Claimed, DeliveryKind, Exports, Outbox, Webhooks, closed_until_ms};
use platform::Db;
use platform::units::now_ms;
use tokio::sync::{Notify, Semaphore};

pub use stripe::{Stripe, StripeError};
pub use webhook::{checked_url, fresh_secret, message_id};

use crate::error::ApiError;
use crate::state::Platform;

/// How often the outbox is looked into; at once where something was delivered, since more may wait for the same receiver.
const EVERY: Duration = Duration::from_millis(500);
/// Deliveries of one server at the same time.
const AT_ONCE: usize = 16;
/// How often hours are looked for that have closed.
const CLOSE_EVERY: Duration = Duration::from_secs(60);
/// How long a connection may take to be made, and a whole attempt; a claim is longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const TIMEOUT: Duration = Duration::from_secs(10);

/// What this server delivers, and with what.
pub struct Outside {
    pub outbox: Outbox,
    pub webhooks: Webhooks,
    pub exports: Exports,
    pub stripe: Option<Stripe>,
    sender: webhook::Sender,
}

impl Outside {
    /// `private_webhooks`: plain HTTP and addresses of private networks are delivered to as well.
    pub fn new(db: Db, private_webhooks: bool, stripe: Option<Stripe>) -> Self {
        Self {
            outbox: Outbox::new(db.clone()),
            webhooks: Webhooks::new(db.clone()),
            exports: Exports::new(db),
            stripe,
            sender: webhook::Sender::new(private_webhooks),
        }
    }

    pub fn private_webhooks(&self) -> bool {
        self.sender.private
    }

    /// What is for Stripe waits for a server that was started with its key.
    fn kinds(&self) -> &'static [DeliveryKind] {
        match self.stripe {
            Some(_) => &[DeliveryKind::Webhook, DeliveryKind::Stripe],
            None => &[DeliveryKind::Webhook],
        }
    }

    async fn attempt(&self, claimed: &Claimed) -> Result<Attempt, ApiError> {
        Ok(match (claimed.kind, &self.stripe) {
            (DeliveryKind::Webhook, _) => match self.webhooks.get(&claimed.target).await? {
                Some(webhook) => self.sender.send(&webhook, claimed).await,
                None => Attempt::Hopeless("the webhook was removed".into()),
            },
            (DeliveryKind::Stripe, Some(stripe)) => stripe.send(claimed).await,
            (DeliveryKind::Stripe, None) => Attempt::Failed("this server was started without --stripe-key".into()),
        })
    }

    /// Whether it arrived.
    async fn deliver(&self, claimed: &Claimed) -> Result<bool, ApiError> {
        let attempt = self.attempt(claimed).await?;
        match &attempt {
            Attempt::Delivered => tracing::debug!(id = claimed.id, "delivered"),
            Attempt::Failed(reason) | Attempt::Unclear(reason) | Attempt::Hopeless(reason) => {
                tracing::warn!(id = claimed.id, reason, "not delivered");
            }
        }
        self.outbox.note(claimed, &attempt).await?;
        Ok(attempt == Attempt::Delivered)
    }
}

/// Delivers and closes hours as long as the platform lives.
pub fn run(platform: &Arc<Platform>) {
    tokio::spawn(deliver(Arc::downgrade(platform)));
    if platform.outside.stripe.is_some() {
        tokio::spawn(close_hours(Arc::downgrade(platform)));
    }
}

async fn deliver(platform: std::sync::Weak<Platform>) {
    let (slots, delivered) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Notify::new()));
    while let Some(platform) = platform.upgrade() {
        let outside = &platform.outside;
        let claimed = match slots.available_permits() {
            0 => Ok(Vec::new()),
            free => outside.outbox.claim(platform.journal.instance(), outside.kinds(), free).await,
        };
        if let Err(error) = &claimed {
            tracing::warn!(%error, "the outbox could not be read");
        }
        for claimed in claimed.unwrap_or_default() {
            let (platform, slots, delivered) = (platform.clone(), slots.clone(), delivered.clone());
            tokio::spawn(async move {
                let Ok(slot) = slots.acquire_owned().await else { return };
                let arrived = platform.outside.deliver(&claimed).await;
                drop(slot);
                match arrived {
                    Ok(true) => delivered.notify_one(),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%error, id = claimed.id, "it could not be written down how a delivery ended");
                    }
                }
            });
        }
        drop(platform);
        let _ = tokio::time::timeout(EVERY, delivered.notified()).await;
    }
}

async fn close_hours(platform: std::sync::Weak<Platform>) {
    while let Some(platform) = platform.upgrade() {
        if let Err(error) = platform.outside.exports.close(closed_until_ms(now_ms())).await {
            tracing::warn!(%error, "closed hours could not be put into the outbox");
        }
        drop(platform);
        tokio::time::sleep(CLOSE_EVERY).await;
    }
}

/// The beginning of every client: nobody redirects what is delivered, and nobody holds it up for long.
fn http() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("myriad/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
}

/// What an attempt without an answer was worth. Without a connection nothing can have arrived.
fn without_answer(error: reqwest::Error) -> Attempt {
    let (connect, timeout) = (error.is_connect() || error.is_builder(), error.is_timeout());
    let reason = innermost(&error.without_url());
    match (connect, timeout) {
        (true, _) => Attempt::Failed(format!("no connection: {reason}")),
        (false, true) => Attempt::Unclear(format!("no answer within {} s", TIMEOUT.as_secs())),
        (false, false) => Attempt::Unclear(format!("no answer: {reason}")),
    }
}

/// What the others only wrap.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
