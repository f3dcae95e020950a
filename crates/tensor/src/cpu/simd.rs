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
pub trait Vec16: Copy + 'static {
    /// Rows of a tile two panels wide whose sums stay in registers.
    const TILE_ROWS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Rounds to bf16, to nearest, ties to even; what is not a number stays none.
    unsafe fn store_bf16(self, to: *mut u16);
    /// The even and the odd ones of 32 bf16, widened exactly.
    unsafe fn load_pairs(from: *const u16) -> (Self, Self);
    /// a * b + self
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The larger of each lane; `other` where either is not a number.
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// To the nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of whole lanes from -127 (which gives 0) to 128 (which gives infinity).
    unsafe fn power_of_two(self) -> Self;
    /// The largest magnitude of all lanes; not a number where one of them is none.
    unsafe fn magnitude(of: [Self; 4]) -> f32;
    /// Stores whole lanes from -128 to 127.
    unsafe fn store_i8(self, to: *mut i8);
    /// Asks for the cache line of an address that is read soon; the address need not be valid.
    unsafe fn prefetch(from: *const u8);
    /// The same, but no nearer than the second-level cache: for what is read later.
    unsafe fn prefetch_far(from: *const u8);

    /// The lanes, added in a fixed order.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0f32; LANES];
        // SAFETY: the array has LANES elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }

    /// The largest lane that is a number.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut lanes = [0f32; LANES];
        // SAFETY: the array has LANES elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = lanes[i].max(lanes[i + half]);
            }
        }
        lanes[0]
    }

    /// 2^x with a relative error below 2e-7 (a test measures it); 0 below -126.5, infinity above 127.5, NaN of NaN.
    ///
    /// A polynomial of degree 6 on [-0.5, 0.5], with the coefficients of exp2f in the Cephes library, times a power of two.
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        // SAFETY: lane arithmetic only.
        unsafe {
            let x = Self::splat(-127.0).max(Self::splat(128.0).min(self));
            let whole = x.round();
            let part = x.sub(whole);
            let mut y = Self::splat(1.535_336_2e-4);
            for coefficient in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
                y = Self::splat(coefficient).fma(y, part);
            }
            y.mul(whole.power_of_two())
        }
    }
}

#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(mut self, other: Self, with: impl Fn(f32, f32) -> f32) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a = with(*a, b);
        }
        self
    }
}

impl Vec16 for Portable {
    const TILE_ROWS: usize = 4;

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
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for LANES elements.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        let half = self.0.map(|value| half::bf16::from_f32(value).to_bits());
        // SAFETY: the caller gives room for LANES elements.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(half) }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> (Self, Self) {
        // SAFETY: the caller gives twice LANES valid elements.
        let pairs = unsafe { from.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        let widen = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        (Self(pairs.map(|pair| widen(pair[0]))), Self(pairs.map(|pair| widen(pair[1]))))
    }
    #[inline(always)]
    unsafe fn fma(mut self, a: Self, b: Self) -> Self {
        for ((sum, a), b) in self.0.iter_mut().zip(a.0).zip(b.0) {
            *sum += a * b;
        }
        self
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        Self(self.0.map(|power| f32::from_bits(((power as i32 + 127) as u32) << 23)))
    }
    #[inline(always)]
    unsafe fn magnitude(of: [Self; 4]) -> f32 {
        // As integers, so that what is not a number is above all numbers.
        let bits = of.iter().flat_map(|lanes| lanes.0).map(|lane| lane.to_bits() & 0x7fff_ffff);
        f32::from_bits(bits.fold(0, u32::max))
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        // SAFETY: the caller gives room for LANES elements.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(self.0.map(|lane| lane as i32 as i8)) }
    }
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_far(_from: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2(pub(super) __m256, pub(super) __m256);

#[cfg(target_arch = "x86_64")]
macro_rules! avx2_lanes {
    ($($name:ident => $instruction:ident),*) => {
        $(#[inline(always)]
        unsafe fn $name(self, other: Self) -> Self {
            // SAFETY: this path runs on AVX2 only.
            unsafe { Self($instruction(self.0, other.0), $instruction(self.1, other.1)) }
        })*
    };
}

#[cfg(target_arch = "x86_64")]
impl Vec16 for Avx2 {
    const TILE_ROWS: usize = 3;

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
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: AVX2; the caller gives room for LANES elements.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: AVX2; the caller gives room for LANES elements.
        unsafe {
            for (place, lanes) in [self.0, self.1].into_iter().enumerate() {
                let bits = _mm256_castps_si256(lanes);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let none = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(lanes, lanes));
                let high = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, none));
                let (low, top) = (_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high));
                _mm_storeu_si128(to.add(place * 8).cast(), _mm_packus_epi32(low, top));
            }
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> (Self, Self) {
        // SAFETY: AVX2; the caller gives twice LANES valid elements.
        unsafe {
            let (a, b) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast()));
            let even = |pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
            let odd = |pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32)));
            (Self(even(a), even(b)), Self(odd(a), odd(b)))
        }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: this path runs on AVX2 with FMA only.
        unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
    }
    avx2_lanes!(add => _mm256_add_ps, sub => _mm256_sub_ps, mul => _mm256_mul_ps, div => _mm256_div_ps,
        max => _mm256_max_ps, min => _mm256_min_ps);
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: this path runs on AVX2 only.
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        // SAFETY: this path runs on AVX2 only.
        unsafe {
            let power = |lanes| {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(lanes), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            Self(power(self.0), power(self.1))
        }
    }
    #[inline(always)]
    unsafe fn magnitude(of: [Self; 4]) -> f32 {
        // SAFETY: this path runs on AVX2 only.
        unsafe {
            let mask = _mm256_set1_epi32(0x7fff_ffff);
            let mut most = _mm256_setzero_si256();
            for lanes in of.into_iter().flat_map(|lanes| [lanes.0, lanes.1]) {
                // As integers, so that what is not a number is above all numbers.
                most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(lanes), mask));
            }
            let mut bits = [0u32; 8];
            _mm256_storeu_si256(bits.as_mut_ptr().cast(), most);
            f32::from_bits(bits.into_iter().fold(0, u32::max))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        // SAFETY: AVX2; the caller gives room for LANES elements.
        unsafe {
            let halves = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(halves);
            let (low, high) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            _mm_storeu_si128(to.cast(), _mm_packs_epi16(low, high));
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: a prefetch of any address does nothing but bring a line nearer.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(from: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512(pub(super) __m512);

#[cfg(target_arch = "x86_64")]
macro_rules! avx512_lanes {
    ($($name:ident => $instruction:ident),*) => {
        $(#[inline(always)]
        unsafe fn $name(self, other: Self) -> Self {
            // SAFETY: this path runs on AVX-512 only.
            unsafe { Self($instruction(self.0, other.0)) }
        })*
    };
}

#[cfg(target_arch = "x86_64")]
impl Vec16 for Avx512 {
    const TILE_ROWS: usize = 12;

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
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: AVX-512; the caller gives room for LANES elements.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: AVX-512; the caller gives room for LANES elements.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let none = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let kept = _mm512_mask_or_epi32(rounded, none, bits, _mm512_set1_epi32(0x40_0000));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept)));
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> (Self, Self) {
        // SAFETY: AVX-512; the caller gives twice LANES valid elements.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
            (Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))), Self(_mm512_castsi512_ps(odd)))
        }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: this path runs on AVX-512 only.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }
    avx512_lanes!(add => _mm512_add_ps, sub => _mm512_sub_ps, mul => _mm512_mul_ps, div => _mm512_div_ps,
        max => _mm512_max_ps, min => _mm512_min_ps);
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: this path runs on AVX-512 only.
        Self(unsafe { _mm512_roundscale_ps::<0>(self.0) })
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        // SAFETY: this path runs on AVX-512 only.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    unsafe fn magnitude(of: [Self; 4]) -> f32 {
        // SAFETY: this path runs on AVX-512 only.
        unsafe {
            let mask = _mm512_set1_epi32(0x7fff_ffff);
            // As integers, so that what is not a number is above all numbers.
            let bits = of.map(|lanes| _mm512_and_si512(_mm512_castps_si512(lanes.0), mask));
            let most = _mm512_max_epu32(_mm512_max_epu32(bits[0], bits[1]), _mm512_max_epu32(bits[2], bits[3]));
            f32::from_bits(_mm512_reduce_max_epu32(most))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        // SAFETY: AVX-512; the caller gives room for LANES elements.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0))) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: this path runs on AVX-512 only.
        unsafe {
            let high = _mm512_castpd_ps(_mm512_shuffle_f64x2::<0b11_10_11_10>(
                _mm512_castps_pd(self.0),
                _mm512_castps_pd(self.0),
            ));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_castps512_ps256(high));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: a prefetch of any address does nothing but bring a line nearer.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(from: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: this path runs on AVX-512 only.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arithmetic::Arithmetic;
    use super::super::{Path, dispatch};
    use super::*;

    struct Exp2<'a>(&'a [f32], &'a mut [f32]);

    impl Exp2<'_> {
        #[inline(always)]
        unsafe fn run<A: Arithmetic>(self) {
            for (x, y) in self.0.chunks_exact(LANES).zip(self.1.chunks_exact_mut(LANES)) {
                // SAFETY: chunks have LANES elements.
                unsafe { A::V::load(x.as_ptr()).exp2().store(y.as_mut_ptr()) }
            }
        }
    }

    dispatch!(exp2, Exp2<'_>);

    #[test]
    fn the_power_of_two_is_as_exact_as_it_says_on_every_path() {
        let mut x: Vec<f32> = (0..160_000).map(|i| i as f32 / 160_000.0 * 250.0 - 125.0).collect();
        x.extend([f32::NEG_INFINITY, -1e30, -126.6, 129.0, f32::INFINITY, f32::NAN, 0.0, -0.0]);
        x.extend([0.0; 8]);
        for path in Path::ALL.into_iter().filter(|path| path.available()) {
            let mut y = vec![0.0; x.len()];
            path.exp2(crate::DType::F32, Exp2(&x, &mut y));
            let error = |(x, y): (&f32, &f32)| (f64::from(*y) / f64::from(*x).exp2() - 1.0).abs();
            let worst = x.iter().zip(&y).take(160_000).map(error).fold(0.0, f64::max);
            println!("{}: {worst:.2e}", path.name());
            assert!(worst < 2e-7, "{}: relative error {worst:e}", path.name());
            assert_eq!(y[160_000..160_005], [0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY]);
            assert!(y[160_005].is_nan());
            assert_eq!(y[160_006..160_008], [1.0, 1.0]);
        }
    }
}
