//! What can go wrong with a grammar, for the one who wrote it.

use thiserror::Error;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GrammarError {
    /// A keyword of a schema that cannot be enforced, or is not valid.
    #[error("at '{pointer}': '{keyword}' {reason}; {advice}")]
    Schema { pointer: String, keyword: String, reason: String, advice: String },

    /// A schema outside the subset that strict mode takes, in the words that clients know.
    #[error("{0}")]
    Strict(String),

    #[error("{kind} cannot be compiled: {reason}")]
    Source { kind: &'static str, reason: String },

    #[error("{what} is over the limit of {limit}; make it smaller")]
    Limit { what: &'static str, limit: usize },

    #[error("no document can satisfy this {kind}: {reason}")]
    Unsatisfiable { kind: &'static str, reason: String },

    #[error("compiling the grammar takes too long; make it simpler")]
    Deadline,

    #[error("compiling the grammar was called off")]
    Cancelled,

    #[error("the vocabulary cannot be used for grammars: {0}")]
    Vocabulary(String),

    /// A defect of ours or of a library, contained.
    #[error("compiling the grammar failed inside: {0}")]
    Internal(String),
}

/// What ends an answer that a grammar steers.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MatchError {
    #[error("token {0} does not continue the document")]
    Refused(u32),

    #[error("cannot take back {asked} tokens of {taken}")]
    Rollback { asked: usize, taken: usize },

    #[error("no token of the vocabulary continues the document")]
    DeadEnd,

    /// A bound of the parser was hit in mid-answer.
    #[error("the grammar became too complex in mid-answer: {0}")]
    TooComplex(String),

    #[error("matching failed inside: {0}")]
    Internal(String),
}
