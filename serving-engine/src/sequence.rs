//! One choice of one request, from its prompt to its last token.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use grammar::MatchError;
use model::{Ask, RowOutput, SampleRow, Slot, TokenCounts};

use crate::masks::Steering;
use crate::pages::{PageKey, next_key, root_key};
use crate::random::uniform;
use crate::request::{FinishReason, Request, Token};
use crate::speculation::{Trust, guess};
use crate::stop::{StopWatch, Watched};

/// A sequence's plain counters are its state: what is computed, what is known, which pages it holds.
pub struct Sequence {
    pub job: u64,
    pub choice: u32,
    pub request: Arc<Request>,
    /// Prompt, then what was drawn.
    pub tokens: Vec<u32>,
    /// How many of the tokens have their K and V in the pool.
    pub computed: usize,
    pub pages: Vec<u32>,
    /// Keys of the full pages whose content is known, in order.
    pub keys: Vec<PageKey>,
    pub root: PageKey,
    /// While it runs: the slot of its adapter.
    pub slot: Slot,
    /// Order of arrival; the youngest is preempted first.
    pub arrival: u64,
    /// When it was first looked at and could not start, in steps.
    pub waiting_since: Option<u64>,
    /// While it waits: since when, in steps.
    pub place_since: Option<u64>,
    /// While it runs: the last step that gave it a row, or that it could not use one in.
    pub last_row: u64,
    /// While it waits: its pages on disk that were not asked for yet, in order, and those that were. None where nobody has looked.
    pub on_disk: Option<(VecDeque<PageKey>, Vec<PageKey>)>,
    /// Whether its first admission has been counted as a prefix-cache query.
    pub started: bool,
    /// Guesses at the tokens to come, of the step that is being computed.
    pub guesses: Vec<u32>,
    pub trust: Trust,
    pub steering: Option<Steering>,
    watch: StopWatch,
    drawn: BTreeMap<u32, u32>,
    prompt_set: Arc<[u32]>,
}

/// What a drawn token did.
#[derive(Debug, PartialEq)]
pub struct Drawn {
    /// Nothing for a stop token: its bytes are no part of the answer.
    pub token: Option<Token>,
    pub end: Option<(FinishReason, u64)>,
    /// Why the whole request fails: a bound of its grammar was hit.
    pub failed: Option<MatchError>,
}

impl Sequence {
    pub fn new(job: u64, choice: u32, request: Arc<Request>, arrival: u64) -> Self {
        let mut prompt_set: Vec<u32> = match request.sampling.needs_counts() {
            true => request.tokens.to_vec(),
            false => Vec::new(),
        };
        prompt_set.sort_unstable();
        prompt_set.dedup();
        Self {
            job,
            choice,
            tokens: request.tokens.to_vec(),
            computed: 0,
            pages: Vec::new(),
            keys: Vec::new(),
            root: root_key(request.cache_salt, request.adapter),
            slot: Slot::BASE,
            arrival,
            waiting_since: None,
            place_since: None,
            last_row: 0,
            on_disk: None,
            started: false,
            guesses: Vec::new(),
            trust: Trust::default(),
            steering: request.grammar.clone().map(Steering::new),
            watch: StopWatch::new(request.stop.clone(), request.include_stop),
            drawn: BTreeMap::new(),
            prompt_set: prompt_set.into(),
            request,
        }
    }

    pub fn prompt(&self) -> usize {
        self.request.tokens.len()
    }

    pub fn generated(&self) -> u32 {
        (self.tokens.len() - self.prompt()) as u32
    }

    /// Rows that must be computed before the next token can be drawn; one while it is decoding.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The token at `position`, or the guess at it.
    pub fn token_at(&self, position: usize) -> u32 {
        self.tokens.get(position).copied().unwrap_or_else(|| self.guesses[position - self.tokens.len()])
    }

    /// Whether the row at `position` draws a token: that of the last token, and those of guesses.
    pub fn draws_at(&self, position: usize) -> bool {
        position + 1 >= self.tokens.len() && self.request.max_tokens > 0
    }

    /// Guesses at what comes next, as many as are worth it and as the pages have room for.
    pub fn guess(&mut self, most: usize, context: usize, page_tokens: usize) {
        self.guesses.clear();
        // What a grammar allows after a guess would have to be known before the step.
        if self.pending() != 1 || !self.request.speculation || self.steering.is_some() {
            return;
        }
        let length = self.tokens.len();
        let left = (self.request.max_tokens - self.generated()).saturating_sub(1) as usize;
        let room = (self.pages.len() * page_tokens - length).min(context.saturating_sub(length + 1));
        let guessed = guess(&self.tokens, most.min(left).min(room).min(self.trust.most()));
        self.guesses = guessed.to_vec();
    }

    /// Keys of the full pages that it may read from the cache, in order. The last token is always computed: its row is what the next one
    /// is drawn from.
    pub fn readable(&self, page_tokens: usize) -> impl Iterator<Item = PageKey> {
        let scores = self.request.score_prompt && self.choice == 0;
        let readable = if scores { 0 } else { (self.tokens.len() - 1) / page_tokens };
        let pages = self.tokens.chunks_exact(page_tokens).take(readable);
        pages.scan(self.root, |key, tokens| {
            *key = next_key(*key, tokens);
            Some(*key)
        })
    }

    /// Whether the row at `position` tells the log-probability of the prompt token after it.
    pub fn scores_at(&self, position: usize) -> bool {
        self.request.score_prompt && self.choice == 0 && position + 1 < self.prompt()
    }

    /// What is asked of the row at `position`, where anything is.
    pub fn ask(&self, position: usize) -> Option<Ask> {
        if self.draws_at(position) {
            return Some(Ask::Sample(self.sample_row(position + 1 - self.tokens.len())));
        }
        let top_logprobs = self.request.top_logprobs.unwrap_or(0);
        self.scores_at(position).then(|| Ask::Score { target: self.tokens[position + 1], top_logprobs })
    }

    /// The draw after so many guesses, as if they had been drawn.
    fn sample_row(&self, guesses: usize) -> SampleRow {
        let request = &self.request;
        let position = u32::try_from(self.tokens.len() + guesses).unwrap_or(u32::MAX);
        // A grammar says itself where an answer may end.
        let may_end = self.steering.is_some();
        let must_go_on = !may_end && (request.ignore_eos || self.generated() + (guesses as u32) < request.min_tokens);
        SampleRow {
            sampling: request.sampling.clone(),
            uniform: uniform(request.seed, self.choice, position),
            counts: request.sampling.needs_counts().then(|| {
                let mut drawn = self.drawn.clone();
                self.guesses[..guesses].iter().for_each(|&token| *drawn.entry(token).or_default() += 1);
                TokenCounts { prompt: self.prompt_set.clone(), output: drawn.into_iter().collect() }
            }),
            banned: if must_go_on { request.stop_tokens.clone() } else { Arc::new([]) },
            mask: None,
            top_logprobs: request.top_logprobs,
        }
    }

    /// Takes a drawn token in. `bytes` are what it adds to the answer, `context` the model's longest sequence.
    pub fn draw(&mut self, output: RowOutput, bytes: &[u8], context: usize) -> Drawn {
        let RowOutput { token, logprob, top } = output;
        self.tokens.push(token);
        if self.request.sampling.needs_counts() {
            *self.drawn.entry(token).or_default() += 1;
        }
        let visible = self.watch.total();
        if self.request.stop_tokens.contains(&token) && (!self.request.ignore_eos || self.steering.is_some()) {
            let failed = self.steering.as_ref().and_then(|steering| steering.accept(token).err());
            return Drawn { token: None, end: Some((FinishReason::Stop, visible)), failed };
        }
        let (held_bytes, mut end) = match self.watch.push(bytes) {
            Watched::Open { held_bytes } => (held_bytes, None),
            Watched::Stopped { visible_bytes, held_bytes } => (held_bytes, Some((FinishReason::Stop, visible_bytes))),
        };
        let accepted = self.steering.as_ref().map_or(Ok(false), |steering| steering.accept(token));
        if end.is_none() && accepted == Ok(true) {
            end = Some((FinishReason::Stop, self.watch.total()));
        }
        if end.is_none() && (self.generated() >= self.request.max_tokens || self.tokens.len() >= context) {
            end = Some((FinishReason::Length, self.watch.total()));
        }
        Drawn { token: Some(Token { id: token, logprob, top, held_bytes }), end, failed: accepted.err() }
    }

    /// Bytes of the answer so far.
    pub fn visible_bytes(&self) -> u64 {
        self.watch.total()
    }
}
