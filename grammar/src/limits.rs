//! The bounds of everything that is compiled here: sizes of sources, of grammars, of lexers, and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use llguidance::api::ParserLimits;

use crate::GrammarError;

/// Largest source of a grammar, in bytes of its JSON.
pub const SOURCE_BYTES: usize = 1 << 20;
/// Deepest nesting of a schema, or of brackets in a regular expression or grammar.
pub const SOURCE_DEPTH: usize = 64;
/// Most strings to choose from.
pub const CHOICES: usize = 4096;
/// Longest regular expression, in bytes.
pub const REGEX_BYTES: usize = 16 << 10;
/// Largest grammar in Lark or GBNF, in bytes.
pub const GRAMMAR_TEXT_BYTES: usize = 128 << 10;
/// Longest token that the trie of the vocabulary can hold, in bytes.
pub const TOKEN_BYTES: usize = 1000;
/// Most tokens of a vocabulary.
pub const VOCABULARY_TOKENS: usize = 2 << 20;
/// What a compiled grammar may take, in bytes.
pub const GRAMMAR_BYTES: usize = 64 << 20;
/// Most cases that one schema and type are taken apart into.
pub const SCHEMA_SHAPES: usize = 512;
/// How far references and combinations lead from one schema to the next without a step into the document.
pub const SCHEMA_CHAIN: usize = 500;
/// Stack of the thread that compiles, in bytes: parsers go down with the nesting of what they read.
pub const COMPILE_STACK_BYTES: usize = 64 << 20;
/// What taking a schema apart may cost, in steps of well under a microsecond.
pub const SCHEMA_STEPS: usize = 200_000;
/// Most conjunctions of schemas that a document has places for.
pub const SCHEMA_NODES: usize = 20_000;
/// Up to so many optional properties are written in their order; an object with more takes them in any.
pub const OPTIONAL_IN_ORDER: usize = 200;
/// Most states of an array whose items are counted or told apart.
pub const ARRAY_STATES: usize = 2_000;
/// Most patterns of property names that one object distinguishes.
pub const NAME_PATTERNS: usize = 12;

/// Most symbols of a grammar; llguidance numbers them in 16 bits.
pub const GRAMMAR_SYMBOLS: usize = 60_000;

/// Most rules of a grammar in GBNF.
pub const GRAMMAR_RULES: usize = 1_000;

/// How many first masks of a grammar are computed while it is compiled.
pub const PROBED_MASKS: usize = 4;

/// What llguidance may spend. Its own defaults let one grammar take 500 MB and a mask 45 ms.
pub(crate) fn parser() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// The most of a processor's time that one step of a matcher may take.
pub(crate) const STEP_TIME: Duration = Duration::from_millis(50);
/// The most that all steps of a matcher may take: so much, and so much more for each token. A grammar that is ambiguous takes longer for
/// every token, and whoever computes beside it waits.
pub(crate) const MATCH_TIME: Duration = Duration::from_millis(250);
pub(crate) const TOKEN_TIME: Duration = Duration::from_millis(2);

/// Processor time of this thread so far: unlike the clock's, it does not depend on who else is running.
pub(crate) fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// How much of a processor's time a compilation may take, and whether somebody has called it off.
#[derive(Debug, Clone)]
pub struct Budget {
    time: Duration,
    /// By the clock: for a machine that does not get to it.
    deadline: Instant,
    cancelled: Arc<AtomicBool>,
}

/// How much longer than its processor time a compilation may take by the clock.
const CLOCK_TIMES: u32 = 20;

impl Budget {
    pub fn new(time: Duration) -> Self {
        Self { time, deadline: Instant::now() + time * CLOCK_TIMES, cancelled: Arc::default() }
    }

    /// Calls the compilation off; it stops at its next check.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// For who waits while another compiles.
    pub(crate) fn check_clock(&self) -> Result<(), GrammarError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(GrammarError::Cancelled);
        }
        if Instant::now() >= self.deadline { Err(GrammarError::Deadline) } else { Ok(()) }
    }

    /// On the thread that compiles, which does nothing else.
    pub fn check(&self) -> Result<(), GrammarError> {
        self.check_clock()?;
        if thread_time() >= self.time { Err(GrammarError::Deadline) } else { Ok(()) }
    }
}

impl Default for Budget {
    /// What a compilation may take at most, where nobody says otherwise.
    fn default() -> Self {
        Self::new(Duration::from_millis(250))
    }
}
