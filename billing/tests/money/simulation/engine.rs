//! What stands for the engine: it yields tokens as far as it is allowed, and ends as it was told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, channel};

/// What the engine is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// The answer's length.
    pub length: u64,
    pub fails_after: Option<u64>,
    pub time_per_token: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Complete,
    Allowance,
    Cancelled,
    Failed,
}

pub enum Event {
    Token,
    Finished(End),
}

pub struct Controls {
    allowed: AtomicU64,
    no_more: AtomicBool,
    cancelled: AtomicBool,
    changed: Notify,
}

impl Controls {
    pub fn allow(&self, tokens: u64) {
        self.allowed.store(tokens, Ordering::SeqCst);
        self.changed.notify_one();
    }

    pub fn allow_no_more(&self) {
        self.no_more.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }
}

/// Begins an answer. Dropping the events ends it.
pub fn submit(ask: Ask, allowance: Option<u64>) -> (Receiver<Event>, Arc<Controls>) {
    let (sender, events) = channel(1);
    let controls = Arc::new(Controls {
        allowed: AtomicU64::new(allowance.unwrap_or(u64::MAX)),
        no_more: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
        changed: Notify::new(),
    });
    let held = controls.clone();
    tokio::spawn(async move {
        let mut made = 0;
        while let Ok(()) = may_go_on(&held, &ask, made).await {
            made += 1;
            pass(ask.time_per_token).await;
            if sender.send(Event::Token).await.is_err() {
                return;
            }
        }
        let end = may_go_on(&held, &ask, made).await.expect_err("what ended stays ended");
        let _ = sender.send(Event::Finished(end)).await;
    });
    (events, controls)
}

/// A timer would round nothing up to a millisecond.
async fn pass(time: Duration) {
    if time.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(time).await;
    }
}

/// Waits for an allowance where it has run out.
async fn may_go_on(controls: &Controls, ask: &Ask, made: u64) -> Result<(), End> {
    loop {
        if controls.cancelled.load(Ordering::SeqCst) {
            return Err(End::Cancelled);
        }
        if ask.fails_after == Some(made) {
            return Err(End::Failed);
        }
        if made == ask.length {
            return Err(End::Complete);
        }
        if made < controls.allowed.load(Ordering::SeqCst) {
            return Ok(());
        }
        if controls.no_more.load(Ordering::SeqCst) {
            return Err(End::Allowance);
        }
        controls.changed.notified().await;
    }
}
