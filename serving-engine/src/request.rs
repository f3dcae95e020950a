//! The engine's two hand-offs: a `Request` goes in through a bounded inbox, `Event`s come out on its own channel.

use std::num::NonZeroU32;
use std::sync::Arc;

use futures::future::BoxFuture;
use grammar::Grammar;
use model::{AdapterImage, Sampling};
use platform::{Digest, RequestId};

/// Whose fair share a request takes. Opaque to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u64);

#[derive(Clone)]
pub struct Request {
    pub id: RequestId,
    /// Id of one of the engine's base models.
    pub base: Arc<str>,
    pub adapter: Option<Digest>,
    pub lane: Lane,
    /// How much of the engine its lane is due, against others': 2 is twice what 1 is.
    pub weight: NonZeroU32,
    /// Who may share prefix pages: requests with equal salts. Opaque to the engine.
    pub cache_salt: u64,
    pub tokens: Arc<[u32]>,
    pub sampling: Arc<Sampling>,
    pub seed: u64,
    /// How many answers to draw from the one prompt, 1 or more.
    pub choices: u32,
    /// Most tokens per choice.
    pub max_tokens: u32,
    /// How many tokens all choices together may draw until [`crate::Controls::allow`] says more; none: as many as they like.
    pub allowance: Option<u64>,
    /// Fewest tokens before a stop token is allowed.
    pub min_tokens: u32,
    /// Matched against the concatenated bytes of the output's tokens.
    pub stop: Vec<Vec<u8>>,
    /// End-of-sequence ids and the request's own stop tokens. Their own bytes are never part of the answer.
    pub stop_tokens: Arc<[u32]>,
    /// What the answer must be; the stop tokens are allowed where it is complete.
    pub grammar: Option<Arc<Grammar>>,
    /// Draw on past the stop tokens (they are banned).
    pub ignore_eos: bool,
    /// Whether a matched stop string stays in the answer.
    pub include_stop: bool,
    /// Whether what comes next may be guessed from the text. The answer is the same either way.
    pub speculation: bool,
    /// Report log-probabilities with this many alternatives.
    pub top_logprobs: Option<u16>,
    /// Also report the prompt's own log-probabilities (`echo` with `logprobs`); such a request does not read the
    /// prefix cache.
    pub score_prompt: bool,
}

impl Request {
    /// Rows that it will take, about, where answers have `answer` tokens.
    pub fn rows(&self, answer: u64) -> u64 {
        let answers = u64::from(self.choices) * u64::from(self.max_tokens).min(answer);
        self.tokens.len() as u64 + answers
    }
}

/// What comes back, in order per choice; `Finished` comes last and exactly once for the whole request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request has been let in; so many of its prompt's tokens were read from the prefix cache. Once, first of all.
    Started {
        cached: u64,
    },
    /// Log-probabilities of prompt tokens 1.. (the first token has none), once, before any `Token`.
    Prompt(Vec<Token>),
    Token {
        choice: u32,
        token: Token,
    },
    /// A choice is complete: its answer is the first `visible_bytes` bytes of its tokens' concatenated bytes.
    Choice {
        choice: u32,
        reason: FinishReason,
        visible_bytes: u64,
    },
    Finished(Finished),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
    /// How many of the choice's last bytes could still turn out to be part of a stop string: not to be shown yet.
    pub held_bytes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The allowance is used up, and no more was to come.
    Allowance,
    Cancelled,
}

/// The error of a request whose logits overflowed: its adapter's weights are too large.
pub const NOT_NUMBERS: &str = "the model's logits are not numbers";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub usage: Usage,
    /// Set where the whole request failed (its adapter could not be fetched, its logits overflowed, drain, a device error).
    pub error: Option<String>,
}

/// The engine's own count: what is billed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, once, however many choices.
    pub prompt: u64,
    /// Of these, how many were read from the prefix cache.
    pub cached: u64,
    /// Tokens drawn, all choices together, a stop token included. Rows computed past a stop are not.
    pub completion: u64,
    /// Guesses at tokens that were computed, and how many of them were drawn: these are part of `completion`.
    pub guessed: u64,
    pub accepted: u64,
}

/// How the error of an answer begins whose grammar hit one of its bounds.
pub const GRAMMAR_FAILED: &str = "the answer's grammar";

/// Why a request was not taken in. Nothing was computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the engine's queue is full")]
    Full { retry_after_ms: u64 },
    #[error("{most} requests of this account are waiting already, as many as may; send this one later")]
    LaneFull { most: u64, retry_after_ms: u64 },
    #[error("the engine is draining")]
    Draining,
    #[error("base model {0:?} is not loaded on this engine")]
    UnknownBase(String),
    #[error("maximum context length is {context} tokens, but {asked} were asked for ({prompt} in the prompt)")]
    TooLong { context: usize, asked: usize, prompt: usize },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("n may be at most {most}")]
    TooManyChoices { most: u32 },
    #[error("token id {0} is outside the vocabulary")]
    UnknownToken(u32),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("adapter {digest}: {reason}")]
pub struct ImageFetchError {
    pub digest: Digest,
    pub reason: String,
}

/// Where the engine gets an adapter that is not resident. Implemented by the adapter store.
pub trait AdapterImages: Send + Sync {
    fn fetch(&self, digest: Digest) -> BoxFuture<'static, Result<Arc<AdapterImage>, ImageFetchError>>;
}
