//! Marks of a running request: how far its row says that it has come. What a killed server leaves behind is charged at the last one,
//! so the answer never runs far ahead of it.

use std::time::{Duration, Instant};

use platform::RequestId;
use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;

use crate::{Journal, Quantities};

/// A mark is made after so many tokens or so much time, whichever comes first.
const TOKENS: u64 = 32;
const EVERY: Duration = Duration::from_millis(250);
/// Tokens that may be sent beyond the last mark that is durable; over it the answer waits for the next one.
pub const AHEAD: u64 = 2 * TOKENS;

#[derive(Debug)]
pub struct Marks {
    /// Completion tokens of the last mark that is durable.
    durable: u64,
    /// The mark that is being written.
    handed_in: Option<(u64, Receiver<bool>)>,
    last: Instant,
}

impl Default for Marks {
    fn default() -> Self {
        Self { durable: 0, handed_in: None, last: Instant::now() }
    }
}

impl Marks {
    /// Completion tokens of the last mark that is known to be durable.
    pub const fn durable(&self) -> u64 {
        self.durable
    }

    /// Marks where it is time; returns when the answer may go on. False: it may not, since a mark has found the row closed.
    pub async fn keep_up(&mut self, journal: &Journal, id: &RequestId, quantities: Quantities) -> bool {
        let tokens = quantities.completion_tokens;
        if !self.look(tokens >= self.durable + AHEAD).await {
            return false;
        }
        if self.handed_in.is_some() || (tokens < self.durable + TOKENS && self.last.elapsed() < EVERY) {
            return true;
        }
        self.last = Instant::now();
        match journal.mark(id, quantities) {
            Ok(written) => self.handed_in = Some((tokens, written)),
            Err(error) => tracing::warn!(request = %id, %error, "a request's row could not be marked"),
        }
        true
    }

    /// Looks whether the mark that was handed in is durable; waits until it is where it must be. False: the row was closed.
    async fn look(&mut self, must_be: bool) -> bool {
        let Some((tokens, written)) = &mut self.handed_in else { return true };
        // A writer that is gone knows nothing of the row.
        let open = if must_be {
            written.await.unwrap_or(true)
        } else {
            match written.try_recv() {
                Err(TryRecvError::Empty) => return true,
                answered => answered.unwrap_or(true),
            }
        };
        if open {
            self.durable = *tokens;
        }
        self.handed_in = None;
        open
    }
}
