//! Numbers on a device: partitions of a step's rows, and the sites of a transformer as operations on them.
//!
//! Knows nothing of adapters' ids or of requests.

pub mod cpu;
pub mod runs;
pub mod sampling;

pub use runs::Runs;
pub use sampling::{Ask, NotANumber, RowOutput, SampleRow, Sampling, TokenCounts};

use serde::{Deserialize, Serialize};

/// How weights are held. Activations and sums are f32 on every path.
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

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}
