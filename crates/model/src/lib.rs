//! One transformer: its shape, weights, KV pool, adapter slots and forward pass over a step.
//!
//! Knows nothing of scheduling, storage or text.

pub mod checkpoint;
pub mod config;
pub mod cpu;
pub mod error;
pub mod executor;
pub mod forward;
pub mod generation;
pub mod image;
pub mod rope;
pub mod shape;

pub use config::ModelConfig;
pub use cpu::{CpuExecutor, LoadOptions, load};
pub use error::ModelError;
pub use executor::{Executor, ExecutorError, PageTable, PoolShape, Slot, Step, Ticket};
pub use generation::GenerationDefaults;
pub use image::{AdapterImage, ImageBuilder, ImageError, LoraPair, Site};
pub use shape::{Linear, ModelShape};
pub use tensor::{Ask, DType, Format, Mask, NotANumber, RowOutput, Runs, SampleRow, Sampling, TokenCounts};
