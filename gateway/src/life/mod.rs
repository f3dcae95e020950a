//! The life of a request: from the engine's events to pieces of answer, with its row in the journal.

mod credit;
pub mod driver;
pub mod piece;
mod pieces;

pub use driver::{Run, Start, start};
pub use piece::{Ending, Piece, ScoredToken};
pub use pieces::Pieces;
