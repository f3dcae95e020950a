//! The CPU backend.

mod arithmetic;
pub mod attention;
mod buffer;
mod int8;
pub mod lora;
pub mod matrix;
pub mod pool;
pub mod prepare;
pub mod sample;
mod simd;

use std::sync::Arc;

use crate::DType;

pub use arithmetic::Numbers;
pub use buffer::{Buffer, NumberBuffer};
pub use int8::Quantised;
pub use matrix::{Epilogue, Matrix, Rows, row_stride};
pub use pool::Pool;
pub use simd::LANES;

/// Which instructions the kernels use. Answers are bit-identical within one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Dot products of bf16 pairs, for activations too (whatever has them has VNNI).
    Avx512Bf16,
    /// bf16 widened in registers and multiplied in f32.
    Avx512,
    Avx2,
    Portable,
}

impl Path {
    pub const ALL: [Self; 4] = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// The fastest that this machine has. A function of the machine alone, since answers differ between paths.
    ///
    /// The dot product of bf16 is twice as fast as multiplying in f32 on AMD's cores and half as fast on Intel's
    /// (docs/benchmarks.md), where it is there only because the matrix unit has it too.
    pub fn detect() -> Self {
        let dot = Self::Avx512Bf16.available() && is_amd();
        let first = if dot { Self::Avx512Bf16 } else { Self::Avx512 };
        [first, Self::Avx2].into_iter().find(|path| path.available()).unwrap_or(Self::Portable)
    }

    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Avx512Bf16 => {
                Self::Avx512.available()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Portable => true,
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Portable;
    }

    /// bf16 halves what is read, and widening it is nearly free beside the multiply-adds; the portable path has to pay for it.
    pub fn best_dtype(self) -> DType {
        if self == Self::Portable { DType::F32 } else { DType::Bf16 }
    }

    /// How rows are held that meet weights of that type.
    pub fn activations(self, weights: DType) -> DType {
        if self == Self::Avx512Bf16 { weights } else { DType::F32 }
    }

    /// Rows whose sums stay in registers.
    fn tile_rows(self) -> usize {
        use simd::Vec16;
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Avx512Bf16 | Self::Avx512 => simd::Avx512::TILE_ROWS,
            Self::Avx2 => simd::Avx2::TILE_ROWS,
            Self::Portable => simd::Portable::TILE_ROWS,
        };
        #[cfg(not(target_arch = "x86_64"))]
        simd::Portable::TILE_ROWS
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = std::arch::x86_64::__cpuid(0);
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A path and the threads to run it on.
#[derive(Clone)]
pub struct Cpu {
    pub path: Path,
    pub pool: Arc<Pool>,
}

/// Defines `Path::NAME(self, weights, args)`: the kernel's one generic text, compiled for each path and type of weights.
macro_rules! dispatch {
    ($name:ident, $args:ty) => {
        impl $crate::cpu::Path {
            fn $name(self, weights: $crate::DType, args: $args) {
                #[cfg(target_arch = "x86_64")]
                use $crate::cpu::{
                    arithmetic::Dot,
                    simd::{Avx2, Avx512},
                };
                use $crate::cpu::{
                    arithmetic::{Whole, Widened},
                    simd::Portable,
                };
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
                unsafe fn avx512_bf16<A: Arithmetic>(args: $args) {
                    // SAFETY: the features are enabled here.
                    unsafe { args.run::<A>() }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
                unsafe fn avx512<A: Arithmetic>(args: $args) {
                    // SAFETY: the features are enabled here.
                    unsafe { args.run::<A>() }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2<A: Arithmetic>(args: $args) {
                    // SAFETY: the features are enabled here.
                    unsafe { args.run::<A>() }
                }
                // SAFETY: a path is only used where `available` said so, and the portable one needs nothing.
                unsafe {
                    match (self, weights) {
                        #[cfg(target_arch = "x86_64")]
                        (Self::Avx512Bf16, $crate::DType::Bf16) => avx512_bf16::<Dot>(args),
                        #[cfg(target_arch = "x86_64")]
                        (Self::Avx512Bf16 | Self::Avx512, $crate::DType::F32) => avx512::<Whole<Avx512>>(args),
                        #[cfg(target_arch = "x86_64")]
                        (Self::Avx512, $crate::DType::Bf16) => avx512::<Widened<Avx512>>(args),
                        #[cfg(target_arch = "x86_64")]
                        (Self::Avx2, $crate::DType::F32) => avx2::<Whole<Avx2>>(args),
                        #[cfg(target_arch = "x86_64")]
                        (Self::Avx2, $crate::DType::Bf16) => avx2::<Widened<Avx2>>(args),
                        (_, $crate::DType::F32) => args.run::<Whole<Portable>>(),
                        (_, $crate::DType::Bf16) => args.run::<Widened<Portable>>(),
                    }
                }
            }
        }
    };
}
use dispatch;
