//! Sources to grammars, for one vocabulary, within a budget.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::derivre::RegexAst;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{ParserFactory, TokenParser};

use crate::GrammarError;
use crate::builder::Builder;
use crate::gbnf;
use crate::limits::{self, Budget, COMPILE_STACK_BYTES, GRAMMAR_BYTES, PROBED_MASKS};
use crate::matcher::Grammar;
use crate::schema;
use crate::source::Source;
use crate::vocabulary::Vocabulary;

/// Compiles grammars for one vocabulary; made once per model and shared.
pub struct Compiler {
    factory: ParserFactory,
    vocabulary: Vocabulary,
}

impl Compiler {
    pub fn new(vocabulary: Vocabulary) -> Result<Self, GrammarError> {
        let capabilities = InferenceCapabilities { ff_tokens: false, ..InferenceCapabilities::default() };
        let slices = llguidance::earley::SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(vocabulary.environment(), capabilities, &slices)
            .map_err(|e| GrammarError::Vocabulary(e.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits::parser();
        Ok(Self { factory, vocabulary })
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Compiles a source and computes its first masks, so that what would fail at the first token fails here.
    pub fn compile(&self, source: &Source, budget: &Budget) -> Result<Arc<Grammar>, GrammarError> {
        source.check()?;
        // On a stack of its own: a chain of rules as long as the limits allow may not end the process.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES);
            let failed = |e: std::io::Error| GrammarError::Internal(e.to_string());
            let compiling = thread.spawn_scoped(scope, || self.compile_here(source, budget)).map_err(failed)?;
            compiling.join().unwrap_or_else(|panic| Err(GrammarError::Internal(panic_text(&panic))))
        })
    }

    fn compile_here(&self, source: &Source, budget: &Budget) -> Result<Arc<Grammar>, GrammarError> {
        let compiled = catch_unwind(AssertUnwindSafe(|| {
            let init = lower(source, budget)?;
            budget.check()?;
            let failed = |reason| GrammarError::Source { kind: source.kind(), reason };
            let mut parser = self.factory.create_parser_from_init_default(init).map_err(|e| failed(plain(&e)))?;
            parser.start_without_prompt();
            self.probe(parser, source.kind(), budget)
        }));
        compiled.unwrap_or_else(|panic| Err(GrammarError::Internal(panic_text(&panic))))
    }

    /// Walks the first tokens that the grammar allows. The parser that comes back is at its beginning again and has their lexer
    /// states at hand.
    fn probe(&self, first: TokenParser, kind: &'static str, budget: &Budget) -> Result<Arc<Grammar>, GrammarError> {
        let mut probe = first.deep_clone();
        for _ in 0..PROBED_MASKS {
            budget.check()?;
            let failed = |reason: String| GrammarError::Source { kind, reason };
            let mask =
                probe.compute_mask().map_err(|e| failed(format!("it fails at its first tokens: {}", plain(&e))))?;
            let ends = self.vocabulary.ends();
            let mut next = None;
            mask.iter_set_entries(|token| next = next.or(Some(token as u32).filter(|token| !ends.contains(token))));
            let Some(token) = next else { break };
            let mut taken = || probe.consume_token(token).and_then(|_| probe.check_stop());
            if taken().map_err(|e| failed(format!("it fails at its first tokens: {}", plain(&e))))? {
                break;
            }
        }
        let parser = if probe.reset().is_ok() { probe } else { first };
        let bytes = parser.parser.lexer_stats().num_bytes + (64 << 10);
        if bytes > GRAMMAR_BYTES {
            return Err(GrammarError::Limit { what: "the compiled grammar, in bytes,", limit: GRAMMAR_BYTES });
        }
        Ok(Arc::new(Grammar::new(parser, self.vocabulary.clone(), bytes)))
    }
}

/// The source as llguidance takes it.
fn lower(source: &Source, budget: &Budget) -> Result<GrammarInit, GrammarError> {
    if let Source::Lark(text) = source {
        return Ok(GrammarInit::Serialized(TopLevelGrammar::from_lark(text.clone())));
    }
    let mut builder = Builder::new()?;
    let root = match source {
        Source::JsonSchema { schema, options } => schema::lower(schema, options, budget, &mut builder)?,
        Source::Regex(text) => builder.lexeme(regex(text)?)?,
        Source::Choice(texts) if texts.is_empty() => {
            return Err(GrammarError::Unsatisfiable {
                kind: source.kind(),
                reason: "there is nothing to choose from".into(),
            });
        }
        Source::Choice(texts) => {
            builder.lexeme(RegexAst::Or(texts.iter().cloned().map(RegexAst::Literal).collect()))?
        }
        Source::Gbnf(text) => gbnf::lower(text, &mut builder)?,
        Source::Lark(_) => unreachable!("handled above"),
    };
    builder.finish(root)
}

fn regex(text: &str) -> Result<RegexAst, GrammarError> {
    let kind = "regular expression";
    let set =
        schema::pattern::whole(text).map_err(|reason| GrammarError::Source { kind, reason: format!("it {reason}") })?;
    match schema::pattern::is_empty(&set) {
        Some(false) => Ok(set),
        Some(true) => Err(GrammarError::Unsatisfiable { kind, reason: "it matches no text".into() }),
        None => Err(GrammarError::Source { kind, reason: "it is too complex".into() }),
    }
}

/// The reason in an error of llguidance, on one line.
fn plain(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let text = text.split("\n<").next().unwrap_or_default();
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > 500 {
        let end = (0..=500).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
        line.truncate(end);
    }
    line
}

pub(crate) fn panic_text(panic: &Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}
