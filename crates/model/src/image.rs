//! The adapter image: an adapter's weights as the device reads them, made once at ingest.
//!
//! Contract (the layout is this file's own business and has a version):
//! exact ranks, one contiguous 128-byte aligned buffer, A of q, k, v side by side and A of gate, up side by side
//! (so that each site's shrink is one pass over its input), scale folded into B before rounding to `dtype`.

use std::sync::Arc;

use platform::Digest;

use crate::shape::{Linear, ModelShape};
use tensor::DType;

/// One module's low-rank update: y += B (A x), scale already folded into `b`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    pub rank: usize,
    /// [rank, inputs], row-major.
    pub a: Vec<f32>,
    /// [outputs, rank], row-major.
    pub b: Vec<f32>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("layers.{layer}.{}: A or B has the wrong length for rank {rank}", linear.path())]
    Shape { layer: usize, linear: Linear, rank: usize },
    #[error("adapter image: {0}")]
    Format(String),
}

pub struct ImageBuilder {
    _private: (),
}

impl ImageBuilder {
    pub fn new(_shape: &ModelShape, _dtype: DType) -> Self {
        todo!()
    }

    /// Adds one module. Modules that are never added contribute nothing and take no space.
    pub fn add(&mut self, _layer: usize, _linear: Linear, _pair: LoraPair) -> Result<(), ImageError> {
        todo!()
    }

    pub fn finish(self, _digest: Digest) -> AdapterImage {
        todo!()
    }
}

/// Immutable; shared by `Arc` between the store and the engine. On the CPU a slot points right at it.
#[derive(Debug)]
pub struct AdapterImage {
    _private: (),
}

impl AdapterImage {
    /// The adapter's identity, as the engine and the prefix cache know it.
    pub fn digest(&self) -> Digest {
        todo!()
    }

    /// Size in memory and on disk.
    pub fn bytes(&self) -> usize {
        todo!()
    }

    /// Self-describing: header (magic, image version, dtype, shape, table of modules) and data.
    pub fn to_bytes(&self) -> Vec<u8> {
        todo!()
    }

    /// Checks every offset and length against the buffer before anything is read through them.
    pub fn from_bytes(_bytes: Vec<u8>) -> Result<Arc<Self>, ImageError> {
        todo!()
    }
}
