//! Text to tokens and back: tokenizer, the vocabulary's byte table, chat template, streaming decoder.
//!
//! Knows nothing of devices or HTTP.

mod decoder;
mod json;
mod template;
mod time;
mod tokenizer;
pub mod vocabulary;

use std::path::PathBuf;

pub use decoder::StreamDecoder;
pub use template::{ChatInput, TEMPLATE_BYTES};
pub use tokenizer::Text;
pub use vocabulary::TokenBytes;

#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
    /// What the template said, or what is wrong with it.
    #[error("{0}")]
    Template(String),
    #[error(
        "this model has no chat template; use /v1/completions, or give the template as chat_template.jinja in its folder"
    )]
    NoTemplate,
}
