//! Text to tokens and back: tokenizer, the vocabulary's byte table, chat template, streaming decoder.
//!
//! Knows nothing of devices or HTTP.

pub mod vocabulary;

pub use vocabulary::TokenBytes;
