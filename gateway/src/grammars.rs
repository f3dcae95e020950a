//! Grammars of a base model: compiled off the threads that speak HTTP, within a budget, and kept.

use std::sync::{Arc, OnceLock};

use grammar::{Budget, Cache, Compiler, Encode, Grammar, GrammarError, Vocabulary, VocabularyParts};
use text::Text;

use crate::error::{ApiError, overloaded};
use crate::wire::Structure;

/// What the compiled grammars of a model may take in memory, in bytes.
const CACHE_BYTES: usize = 512 << 20;
/// When what took too long on a busy machine is worth another try.
const RETRY_MS: u64 = 1_000;

/// The compiler of one base model, and what it has compiled.
pub struct Grammars(Arc<Inner>);

struct Inner {
    /// Made with the first grammar: a start has no need of it.
    compiler: OnceLock<Result<Compiler, GrammarError>>,
    cache: Cache,
    /// Rows of the model's output.
    rows: usize,
    /// Tokens that end an answer.
    ends: Vec<u32>,
}

impl Grammars {
    pub fn new(rows: usize, ends: Vec<u32>) -> Self {
        let (compiler, cache) = (OnceLock::new(), Cache::new(CACHE_BYTES));
        Self(Arc::new(Inner { compiler, cache, rows, ends }))
    }

    /// The grammar of what an answer must be. What cannot be enforced is 400 with the reason.
    pub async fn of(&self, text: &Text, structure: Option<&Structure>) -> Result<Option<Arc<Grammar>>, ApiError> {
        let Some(structure) = structure else { return Ok(None) };
        let (inner, source) = (self.0.clone(), structure.source.clone());
        let (tokens, special, digest, encode) =
            (text.token_bytes(), text.special_tokens(), text.digest(), text.encoder());
        let compiling = tokio::task::spawn_blocking(move || {
            let compiler = inner.compiler.get_or_init(|| {
                let encode: Encode = Arc::new(encode);
                let count = u32::try_from(tokens.len().min(inner.rows)).unwrap_or(u32::MAX);
                let parts = VocabularyParts {
                    tokens: (0..count).map(|token| tokens.get(token)).collect(),
                    special,
                    ends: inner.ends.clone(),
                    rows: inner.rows,
                    encode: Some(encode),
                    digest,
                };
                Compiler::new(Vocabulary::new(parts)?)
            });
            inner.cache.get(compiler.as_ref().map_err(Clone::clone)?, &source, &Budget::default())
        });
        match compiling.await.map_err(ApiError::internal)? {
            Ok(grammar) => Ok(Some(grammar)),
            Err(error @ (GrammarError::Vocabulary(_) | GrammarError::Internal(_))) => Err(ApiError::internal(error)),
            Err(error @ GrammarError::Cancelled) => Err(overloaded(error.to_string(), RETRY_MS)),
            Err(error) => {
                let what = match &structure.source {
                    grammar::Source::JsonSchema { .. } => "schema",
                    _ => "grammar",
                };
                let message = format!("Invalid {what} for {}: {error}", structure.what);
                Err(ApiError::param(structure.param, message))
            }
        }
    }
}
