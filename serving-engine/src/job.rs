//! A request on its way: where its events go, and its count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::mpsc::Sender;

use crate::request::{Event, FinishReason, Finished, Request, Token, Usage};

/// What the outside may change of a request while it runs.
pub struct Reins {
    pub cancelled: AtomicBool,
    /// Tokens that all choices together may draw.
    pub allowed: AtomicU64,
    /// No more will be allowed: what has used it up ends.
    pub no_more: AtomicBool,
}

impl Reins {
    pub fn new(allowance: Option<u64>) -> Self {
        Self {
            cancelled: AtomicBool::new(false),
            allowed: AtomicU64::new(allowance.unwrap_or(u64::MAX)),
            no_more: AtomicBool::new(false),
        }
    }
}

pub struct Job {
    pub request: Arc<Request>,
    pub usage: Usage,
    /// Choices that have not ended.
    pub open: u32,
    events: Sender<Event>,
    reins: Arc<Reins>,
    /// Where they were asked for: log-probabilities of prompt tokens 1.. by position, until they are sent.
    scores: Option<Vec<Option<Token>>>,
}

impl Job {
    pub fn new(request: Arc<Request>, events: Sender<Event>, reins: Arc<Reins>) -> Self {
        let scores = request.score_prompt.then(|| vec![None; request.tokens.len() - 1]);
        let usage = Usage { prompt: request.tokens.len() as u64, ..Usage::default() };
        Self { usage, open: request.choices, events, reins, scores, request }
    }

    pub fn is_cancelled(&self) -> bool {
        self.reins.cancelled.load(Ordering::Relaxed)
    }

    /// Tokens that may still be drawn.
    pub fn allowed(&self) -> u64 {
        self.reins.allowed.load(Ordering::Acquire).saturating_sub(self.usage.completion)
    }

    /// Whether no token will ever be drawn again.
    pub fn is_spent(&self) -> bool {
        // In this order: what was allowed before the end was said is seen.
        self.reins.no_more.load(Ordering::Acquire) && self.allowed() == 0
    }

    /// The request has been let in.
    pub fn started(&mut self, prompt: u64, cached: u64) {
        (self.usage.prompt, self.usage.cached) = (prompt, cached);
        self.send(Event::Started { cached });
    }

    /// The log-probability of the prompt token after `position`.
    pub fn score(&mut self, position: usize, token: Token) {
        if let Some(place) = self.scores.as_mut().and_then(|scores| scores.get_mut(position)) {
            *place = Some(token);
        }
    }

    pub fn token(&mut self, choice: u32, token: Token) {
        self.send_scores();
        self.send(Event::Token { choice, token });
    }

    pub fn choice(&mut self, choice: u32, reason: FinishReason, visible_bytes: u64) {
        self.send_scores();
        self.open -= 1;
        self.send(Event::Choice { choice, reason, visible_bytes });
    }

    pub fn finish(self, error: Option<String>) {
        self.send(Event::Finished(Finished { usage: self.usage, error }));
    }

    /// Once, when all of the prompt is computed. A prompt of one token has no scores, and is told so.
    fn send_scores(&mut self) {
        if let Some(scores) = self.scores.take_if(|scores| scores.iter().all(Option::is_some)) {
            self.send(Event::Prompt(scores.into_iter().flatten().collect()));
        }
    }

    /// The channel holds every event that a request can have; where it is closed, nobody reads any more.
    fn send(&self, event: Event) {
        let _ = self.events.try_send(event);
    }
}
