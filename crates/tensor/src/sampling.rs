//! What is asked of a row's logits, and what comes back. The site itself is in each backend (`cpu/sample.rs`).

use std::sync::{Arc, OnceLock};

/// How a request wants its tokens drawn. The same for all rows of a sequence.
///
/// Order of application: logit bias, repetition penalty, presence and frequency penalties, mask and banned tokens,
/// temperature, then top-k, top-p, min-p on what is left, then one draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the largest logit, the lowest token id among equals.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probabilities sum to at least this. 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: u32,
    /// Tokens below this share of the largest probability are dropped. 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (Keskar et al. 2019). 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens seen in the output. 0 is off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output. 0 is off.
    pub frequency_penalty: f32,
    /// Added to the named tokens' logits.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }
}

impl Sampling {
    /// Whether the sampler needs to know which tokens came before.
    pub fn needs_counts(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Which tokens a sequence has seen, for the penalties.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Distinct tokens of the prompt, ascending.
    pub prompt: Arc<[u32]>,
    /// (token, occurrences) in the output so far, ascending by token.
    pub output: Vec<(u32, u32)>,
}

/// The tokens that may be drawn: one bit for each, set = allowed. It may be made while the step is computed: whoever draws waits for it.
#[derive(Debug, Clone, Default)]
pub struct Mask(Arc<OnceLock<Box<[u32]>>>);

impl Mask {
    /// Makes it known; only the first time counts.
    pub fn set(&self, bits: Box<[u32]>) {
        let _ = self.0.set(bits);
    }

    /// Whether the token is among the bits; those past their end are not.
    pub fn allows(bits: &[u32], token: usize) -> bool {
        bits.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// The bits, once they are known.
    pub fn wait(&self) -> &[u32] {
        self.0.wait()
    }
}

/// One draw.
#[derive(Debug, Clone)]
pub struct SampleRow {
    pub sampling: Arc<Sampling>,
    /// Uniform in [0, 1): a function of (seed, choice, position) and nothing else.
    pub uniform: f32,
    /// Present only where `sampling.needs_counts()`.
    pub counts: Option<TokenCounts>,
    /// Tokens that must not be drawn (end of sequence under `ignore_eos` or `min_tokens`).
    pub banned: Arc<[u32]>,
    /// Absent = all are allowed.
    pub mask: Option<Mask>,
    /// How many of the most probable tokens to report; absent = no log-probability at all.
    pub top_logprobs: Option<u16>,
}

/// What is asked of a row's logits.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Draw the next token.
    Sample(SampleRow),
    /// The log-probability of a given next token (a prompt that is echoed).
    Score { target: u32, top_logprobs: u16 },
}

/// A row's logits overflowed: its weights are too large for what it was given. Says nothing of the other rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not numbers")]
pub struct NotANumber;

/// What a row answered. Log-probabilities are natural, over the raw logits, before any penalty, mask or temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct RowOutput {
    pub token: u32,
    /// 0 where no log-probability was asked for.
    pub logprob: f32,
    /// (token, log-probability), most probable first, lowest token id first among equals.
    pub top: Vec<(u32, f32)>,
}
