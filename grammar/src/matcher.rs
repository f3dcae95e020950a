//! A compiled grammar and the place of one sequence in it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use llguidance::TokenParser;
use llguidance::api::StopReason;

use crate::error::MatchError;
use crate::limits;
use crate::vocabulary::Vocabulary;

/// A compiled grammar: immutable, shared by all sequences that it steers.
pub struct Grammar {
    /// A parser at its beginning. It is only ever copied, deeply: copies that share a lexer would wait for each other.
    first: Mutex<TokenParser>,
    vocabulary: Vocabulary,
    bytes: usize,
}

impl Grammar {
    pub(crate) fn new(first: TokenParser, vocabulary: Vocabulary, bytes: usize) -> Self {
        Self { first: Mutex::new(first), vocabulary, bytes }
    }

    /// What it takes in memory, estimated, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The place of a new sequence: before its first token.
    pub fn matcher(self: &Arc<Self>) -> Matcher {
        let parser = self.first.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Matcher { parser, grammar: self.clone(), taken: Vec::new(), spent: Duration::ZERO, failed: None }
    }
}

/// The place of one sequence in its grammar. A failure is final: every later call returns it.
pub struct Matcher {
    parser: TokenParser,
    grammar: Arc<Grammar>,
    taken: Vec<u32>,
    /// Processor time that its steps took.
    spent: Duration,
    failed: Option<MatchError>,
}

impl Matcher {
    /// Which tokens may come next: bit `t % 32` of `row[t / 32]` is token t's. Once the document is finished these are the tokens
    /// that end an answer. `row` has [`Vocabulary::mask_words`] words.
    pub fn mask(&mut self, row: &mut [u32]) -> Result<(), MatchError> {
        assert_eq!(row.len(), self.grammar.vocabulary.mask_words(), "a mask has one bit for each row of the output");
        row.fill(0);
        if self.finished() {
            self.grammar.vocabulary.ends().iter().for_each(|&end| row[end as usize / 32] |= 1 << (end % 32));
            return Ok(());
        }
        let allowed = self.contained(|parser| parser.compute_mask())?;
        let words = row.len();
        row.copy_from_slice(&allowed.as_slice()[..words]);
        Ok(())
    }

    /// Takes a token; one that is not allowed changes nothing.
    pub fn accept(&mut self, token: u32) -> Result<(), MatchError> {
        let ends = self.grammar.vocabulary.ends().contains(&token);
        if self.finished() {
            return if ends { Ok(()) } else { Err(MatchError::Refused(token)) };
        }
        if token as usize >= self.grammar.vocabulary.rows() {
            return Err(MatchError::Refused(token));
        }
        let allowed = match ends {
            true => self.may_stop()?,
            false => self.contained(|parser| parser.validate_tokens_raw(&[token]))? == 1,
        };
        if !allowed {
            return Err(MatchError::Refused(token));
        }
        self.contained(|parser| {
            parser.consume_token(token)?;
            parser.check_stop()
        })?;
        self.taken.push(token);
        Ok(())
    }

    /// Takes back the last tokens.
    pub fn rollback(&mut self, tokens: usize) -> Result<(), MatchError> {
        if tokens > self.taken.len() {
            return Err(MatchError::Rollback { asked: tokens, taken: self.taken.len() });
        }
        self.contained(|parser| parser.rollback(tokens))?;
        self.taken.truncate(self.taken.len() - tokens);
        Ok(())
    }

    /// Tokens that the grammar leaves no choice about, as the tokenizer writes them; they are not taken yet.
    pub fn forced_tokens(&mut self) -> Result<Vec<u32>, MatchError> {
        if self.finished() {
            return Ok(Vec::new());
        }
        self.contained(|parser| Ok::<_, std::convert::Infallible>(parser.compute_ff_tokens()))
    }

    /// Whether the document is complete as it stands: an end of the answer may come next.
    pub fn may_stop(&mut self) -> Result<bool, MatchError> {
        if self.finished() {
            return Ok(true);
        }
        self.contained(|parser| Ok::<_, std::convert::Infallible>(parser.is_accepting()))
    }

    /// Whether nothing but the end of the answer can follow.
    pub fn finished(&self) -> bool {
        use StopReason::{EndOfSentence, NoExtension};
        self.failed.is_none() && matches!(self.parser.stop_reason(), NoExtension | EndOfSentence)
    }

    /// A second sequence at the same place, which shares nothing that either changes.
    pub fn deep_clone(&self) -> Self {
        Self {
            parser: self.parser.deep_clone(),
            grammar: self.grammar.clone(),
            taken: self.taken.clone(),
            spent: self.spent,
            failed: self.failed.clone(),
        }
    }

    pub fn grammar(&self) -> &Arc<Grammar> {
        &self.grammar
    }

    /// Tokens taken so far.
    pub fn taken(&self) -> &[u32] {
        &self.taken
    }

    /// Runs one step of the parser; what goes wrong in it, panics included, is kept.
    fn contained<T, E: std::fmt::Display>(
        &mut self,
        step: impl FnOnce(&mut TokenParser) -> Result<T, E>,
    ) -> Result<T, MatchError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let (parser, began) = (&mut self.parser, limits::thread_time());
        let done = catch_unwind(AssertUnwindSafe(|| step(parser)));
        let took = limits::thread_time().saturating_sub(began);
        self.spent += took;
        let tokens = u32::try_from(self.taken.len()).unwrap_or(u32::MAX);
        let late = took > limits::STEP_TIME || self.spent > limits::MATCH_TIME + limits::TOKEN_TIME * tokens;
        let failed = match done {
            Ok(Ok(_)) if late => MatchError::TooComplex("it takes too long".into()),
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(e)) => match self.parser.stop_reason() {
                StopReason::LexerTooComplex | StopReason::ParserTooComplex => MatchError::TooComplex(e.to_string()),
                StopReason::NoExtensionBias => MatchError::DeadEnd,
                _ => MatchError::Internal(e.to_string()),
            },
            Err(panic) => MatchError::Internal(crate::compiler::panic_text(&panic)),
        };
        self.failed = Some(failed.clone());
        Err(failed)
    }
}
