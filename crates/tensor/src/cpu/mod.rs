//! The CPU backend.

pub mod attention;
pub mod lora;
pub mod matrix;
pub mod norm;
pub mod pool;
pub mod sample;
pub mod simd;

use std::sync::Arc;

pub use matrix::{Matrix, Output};
pub use pool::Pool;

/// Which instructions the kernels use. Answers are bit-identical within one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    Avx512,
    Avx2,
    Portable,
}

impl Path {
    /// The widest that this machine has.
    pub fn detect() -> Self {
        [Self::Avx512, Self::Avx2].into_iter().find(|path| path.available()).unwrap_or(Self::Portable)
    }

    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Avx512 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"),
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Portable => true,
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Portable;
    }

    /// bf16 halves what is read, and widening it is free beside the multiply-adds; the portable path has to pay for it.
    pub fn best_dtype(self) -> crate::DType {
        if self == Self::Portable { crate::DType::F32 } else { crate::DType::Bf16 }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

/// A path and the threads to run it on.
#[derive(Clone)]
pub struct Cpu {
    pub path: Path,
    pub pool: Arc<Pool>,
}

/// Defines `Path::NAME(self, args)`: the kernel's one generic text, compiled for each path.
macro_rules! dispatch {
    ($name:ident, $args:ty) => {
        impl Path {
            fn $name(self, args: $args) {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512bw")]
                unsafe fn avx512(args: $args) {
                    // SAFETY: the feature is enabled here.
                    unsafe { args.run::<simd::Avx512>() }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2(args: $args) {
                    // SAFETY: the feature is enabled here.
                    unsafe { args.run::<simd::Avx2>() }
                }
                match self {
                    // SAFETY: a path is only used where `available` said so.
                    #[cfg(target_arch = "x86_64")]
                    Self::Avx512 => unsafe { avx512(args) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Self::Avx2 => unsafe { avx2(args) },
                    // SAFETY: the portable path needs nothing.
                    _ => unsafe { args.run::<simd::Portable>() },
                }
            }
        }
    };
}

dispatch!(product, &matrix::Tile<'_>);
dispatch!(update, lora::Block<'_>);
dispatch!(attend, attention::One<'_>);
