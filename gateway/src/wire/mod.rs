//! Requests as they come over the wire: each field is honoured, accepted as neutral, or refused by name.
//!
//! `null` is as if left out. Fields that no list here names are ignored, as client libraries add their own.

pub mod chat;
pub mod completion;
pub mod fields;
pub mod sampling;
pub mod structure;

pub use chat::ChatRequest;
pub use completion::{CompletionRequest, Prompt};
pub use fields::Fields;
pub use sampling::Common;
pub use structure::Structure;
