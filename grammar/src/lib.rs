//! What an answer may look like: JSON Schema, regular expressions, grammars and tool calls, as sets of allowed next tokens, and the
//! parsers that take tool calls out of an answer's text.
//!
//! A [`Vocabulary`] is made once per model, a [`Compiler`] for it turns each [`Source`] into a [`Grammar`], and every sequence has
//! a [`Matcher`] of its own: `mask`, sample, `accept`, until `finished`.

mod builder;
mod cache;
mod compiler;
mod error;
mod gbnf;
pub mod limits;
mod matcher;
mod schema;
mod source;
mod strict;
pub mod tools;
mod vocabulary;

pub use cache::Cache;
pub use compiler::Compiler;
pub use error::{GrammarError, MatchError};
pub use limits::Budget;
pub use matcher::{Grammar, Matcher};
pub use source::{SchemaOptions, Source, Whitespace};
pub use strict::check_strict;
pub use vocabulary::{Encode, Vocabulary, VocabularyParts};
