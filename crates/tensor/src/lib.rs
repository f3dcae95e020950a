//! Numbers on a device: partitions of a step's rows, and the sites of a transformer as operations on them.
//!
//! Knows nothing of adapters' ids or of requests.

pub mod cpu;
pub mod runs;
pub mod sampling;

pub use runs::Runs;
pub use sampling::{Ask, Mask, NotANumber, RowOutput, SampleRow, Sampling, TokenCounts};

use serde::{Deserialize, Serialize};

/// How numbers are held: K and V, adapters, and weights that are not rounded further. Sums are f32 on every path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    Bf16,
}

impl DType {
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Inputs that lie side by side for one output where numbers are packed: what a multiply-add takes at once.
    pub const fn inputs_per_step(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// How a model's weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    Plain(DType),
    /// 8 bits with a scale for each output; rows are rounded to 8 bits where they meet them.
    Int8,
}

impl Format {
    /// How everything else is held: K and V, adapters, and what they meet.
    pub const fn dtype(self) -> DType {
        match self {
            Self::Plain(dtype) => dtype,
            Self::Int8 => DType::Bf16,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Int8 => "int8",
        }
    }
}
