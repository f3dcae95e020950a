//! Sixteen f32 lanes on each instruction path, behind one face, so that every kernel has one text.
//!
//! Lane arithmetic is the same on AVX-512 and AVX2 (fused multiply-add); the portable path rounds twice.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of a vector on every path: panels are this many outputs wide.
pub const LANES: usize = 16;

/// Sixteen f32 lanes.
///
/// # Safety
/// Every method needs the instruction set of its path; loads and stores need `LANES` valid elements, aligned or not.
#[expect(clippy::missing_safety_doc, reason = "said once, for all of them, above")]
pub trait Vec16: Copy {
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen bf16, widened exactly.
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// a * b + self
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// a * b + c for one lane, rounded as `fma` rounds.
    fn fused(a: f32, b: f32, c: f32) -> f32;
}

#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Vec16 for Portable {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives LANES valid elements.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller gives LANES valid elements.
        let half = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(half.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for LANES elements.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn fma(mut self, a: Self, b: Self) -> Self {
        for ((sum, a), b) in self.0.iter_mut().zip(a.0).zip(b.0) {
            *sum += a * b;
        }
        self
    }
    #[inline(always)]
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

#[cfg(target_arch = "x86_64")]
impl Vec16 for Avx2 {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: this path runs on AVX2 only.
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: AVX2; the caller gives LANES valid elements.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: AVX2; the caller gives LANES valid elements.
        unsafe {
            let widen = |half: __m128i| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)));
            Self(widen(_mm_loadu_si128(from.cast())), widen(_mm_loadu_si128(from.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: AVX2; the caller gives room for LANES elements.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: this path runs on AVX2 with FMA only.
        unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
    }
    #[inline(always)]
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

#[cfg(target_arch = "x86_64")]
impl Vec16 for Avx512 {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: this path runs on AVX-512 only.
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: AVX-512; the caller gives LANES valid elements.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: AVX-512; the caller gives LANES valid elements.
        Self(unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))))
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: AVX-512; the caller gives room for LANES elements.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: this path runs on AVX-512 only.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }
    #[inline(always)]
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}
