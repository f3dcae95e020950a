//! One transformer: its shape, weights, KV pool, adapter slots and forward pass over a step.
//!
//! Knows nothing of scheduling, storage or text.

pub mod executor;
pub mod image;
pub mod shape;

pub use executor::{Executor, PageTable, PoolShape, Slot, Step, Ticket};
pub use image::{AdapterImage, ImageBuilder, ImageError, LoraPair};
pub use shape::{Linear, ModelShape};
pub use tensor::{Ask, DType, RowOutput, Runs, SampleRow, Sampling, TokenCounts};
