//! 8-bit weights: each output has a scale of its own, and rows are rounded to 8 bits on the way in, with a scale for every 64 inputs.
//!
//! Sums of integers are exact, so they are the same on every path; the scales are applied in one order.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::arithmetic::{Arithmetic, Number, with_rows};
use super::buffer::{Buffer, Shared};
use super::matrix::{PAIR, Rows, Sums};
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{LANES, Portable, Vec16};
use super::{Cpu, Numbers, dispatch};

/// Inputs that are multiplied at once.
pub(super) const STEP: usize = 4;
/// Inputs whose activations share a scale: an outlier costs only its neighbours their precision.
pub(super) const GROUP: usize = 64;
/// Weights are stored with this added, as the instructions want one side without a sign.
const ZERO: i32 = 128;
/// Rows that a task rounds.
const TASK_ROWS: usize = 4;

/// A matrix's weights: `[outputs / 32][inputs / 4][2][16][4]`, as `Matrix` lays panels down, and a scale for each output.
#[derive(Debug)]
pub struct Weights {
    pub(super) bytes: Buffer<u8>,
    pub(super) scales: Buffer<f32>,
}

impl Weights {
    pub(super) fn zeroed(outputs: usize, inputs: usize) -> Self {
        let mut bytes = Buffer::zeroed(outputs * inputs.next_multiple_of(GROUP));
        bytes.fill(ZERO as u8);
        Self { bytes, scales: Buffer::zeroed(outputs) }
    }

    /// Rounds one output's weights; `place` says where each input is.
    pub(super) fn fill(&mut self, output: usize, row: &[f32], place: impl Fn(usize) -> usize) {
        let largest = row.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
        self.scales[output] = largest / 127.0;
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        for (input, weight) in row.iter().enumerate() {
            self.bytes[place(input)] = ((weight * inverse).round_ties_even() as i32 + ZERO) as u8;
        }
    }

    pub(super) fn get(&self, output: usize, place: usize) -> f32 {
        (i32::from(self.bytes[place]) - ZERO) as f32 * self.scales[output]
    }
}

/// Rows rounded to 8 bits.
#[derive(Debug, Default)]
pub struct Quantised {
    /// [rows, inputs rounded up to whole groups].
    values: Buffer<i8>,
    /// [rows, groups].
    scales: Buffer<f32>,
    /// What the sum over a group begins with: it takes back the weights' zero.
    starts: Buffer<i32>,
}

impl Quantised {
    pub(super) fn has(&self, rows: usize, inputs: usize) -> bool {
        let groups = rows * inputs.div_ceil(GROUP);
        self.values.len() >= groups * GROUP && self.scales.len() >= groups && self.starts.len() >= groups
    }

    pub fn round(&mut self, cpu: &Cpu, x: Rows<'_>, inputs: usize) {
        let groups = inputs.div_ceil(GROUP);
        self.values.grow(x.rows * groups * GROUP);
        self.scales.grow(x.rows * groups);
        self.starts.grow(x.rows * groups);
        let (values, scales) = (Shared::new(&mut self.values[..]), Shared::new(&mut self.scales[..]));
        let starts = Shared::new(&mut self.starts[..]);
        let dtype = match x.numbers {
            Numbers::F32(_) => crate::DType::F32,
            Numbers::Bf16(_) => crate::DType::Bf16,
        };
        cpu.pool.run(x.rows.div_ceil(TASK_ROWS), &|task| {
            let rows = task * TASK_ROWS..x.rows.min((task + 1) * TASK_ROWS);
            cpu.path.round(dtype, Round { x, rows, inputs, values, scales, starts });
        });
    }
}

struct Round<'a> {
    x: Rows<'a>,
    rows: Range<usize>,
    inputs: usize,
    values: Shared<'a, i8>,
    scales: Shared<'a, f32>,
    starts: Shared<'a, i32>,
}

dispatch!(round, Round<'_>);

impl Round<'_> {
    #[inline(always)]
    unsafe fn run<A: Arithmetic>(self) {
        let groups = self.inputs.div_ceil(GROUP);
        for row in self.rows.clone() {
            let x = &A::X::of(self.x.numbers)[row * self.x.stride..][..self.inputs];
            // SAFETY: each row is one task's.
            let (values, scales, starts) = unsafe {
                let values = self.values.slice(row * groups * GROUP, groups * GROUP);
                (values, self.scales.slice(row * groups, groups), self.starts.slice(row * groups, groups))
            };
            for (group, x) in x.chunks(GROUP).enumerate() {
                let mut whole = [0f32; GROUP];
                for (whole, x) in whole.iter_mut().zip(x) {
                    *whole = x.widen();
                }
                let values = &mut values[group * GROUP..(group + 1) * GROUP];
                // SAFETY: the caller has the path's instruction set.
                (scales[group], starts[group]) = unsafe { round_group::<A::V>(&whole, values) };
            }
        }
    }
}

/// Rounds a group; returns its scale and what its sums begin with.
#[inline(always)]
unsafe fn round_group<V: Vec16>(x: &[f32; GROUP], values: &mut [i8]) -> (f32, i32) {
    let mut rounded = [0f32; GROUP];
    // SAFETY: a group is made of whole vectors.
    let (scale, sum) = unsafe {
        let zero = V::splat(0.0);
        let (mut largest, mut nothing) = (zero, zero);
        for at in (0..GROUP).step_by(LANES) {
            let lanes = V::load(x.as_ptr().add(at));
            largest = largest.max(lanes).max(zero.sub(lanes));
            // Zero, or no number where something here is none: that must not be rounded away.
            nothing = nothing.fma(lanes, zero);
        }
        let largest = largest.largest();
        let inverse = V::splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        let mut sum = zero;
        for at in (0..GROUP).step_by(LANES) {
            let lanes = V::load(x.as_ptr().add(at)).mul(inverse).round();
            sum = sum.add(lanes);
            lanes.store(rounded.as_mut_ptr().add(at));
        }
        (largest / 127.0 + nothing.sum(), sum.sum())
    };
    for (value, rounded) in values.iter_mut().zip(rounded) {
        *value = rounded as i32 as i8;
    }
    (scale, -ZERO * sum as i32)
}

/// Sixteen integer sums of products of 4 inputs each.
///
/// # Safety
/// Every method needs the instruction set of its path; `panel` reads 64 bytes, `splat` reads `STEP`.
pub trait Integers: 'static {
    type V: Vec16;
    type Sum: Copy;
    type Panel: Copy;
    type Splat: Copy;
    /// Rows of a tile two panels wide whose sums stay in registers.
    const TILE_ROWS: usize;

    unsafe fn start(value: i32) -> Self::Sum;
    unsafe fn panel(from: *const u8) -> Self::Panel;
    unsafe fn splat(from: *const i8) -> Self::Splat;
    unsafe fn step(sum: Self::Sum, x: Self::Splat, w: Self::Panel) -> Self::Sum;
    unsafe fn to_f32(sum: Self::Sum) -> Self::V;
}

#[cfg(target_arch = "x86_64")]
pub struct Vnni;

#[cfg(target_arch = "x86_64")]
impl Integers for Vnni {
    type V = Avx512;
    type Sum = __m512i;
    type Panel = __m512i;
    type Splat = __m512i;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn start(value: i32) -> __m512i {
        // SAFETY: this path runs on AVX-512 only.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn panel(from: *const u8) -> __m512i {
        // SAFETY: AVX-512; the caller gives 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i8) -> __m512i {
        // SAFETY: AVX-512; the caller gives 4 bytes.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn step(sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: AVX-512 with VNNI.
        unsafe { _mm512_dpbusd_epi32(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn to_f32(sum: __m512i) -> Avx512 {
        // SAFETY: this path runs on AVX-512 only.
        Avx512(unsafe { _mm512_cvtepi32_ps(sum) })
    }
}

/// Bytes widened to 16 bits: the byte-wise product of AVX2 saturates.
#[cfg(target_arch = "x86_64")]
pub struct Madd;

#[cfg(target_arch = "x86_64")]
impl Integers for Madd {
    type V = Avx2;
    type Sum = (__m256i, __m256i);
    /// Even and odd bytes of the first and the second eight outputs.
    type Panel = [__m256i; 4];
    type Splat = (__m256i, __m256i);
    const TILE_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn start(value: i32) -> (__m256i, __m256i) {
        // SAFETY: this path runs on AVX2 only.
        unsafe { (_mm256_set1_epi32(value), _mm256_set1_epi32(value)) }
    }
    #[inline(always)]
    unsafe fn panel(from: *const u8) -> [__m256i; 4] {
        // SAFETY: AVX2; the caller gives 64 bytes.
        unsafe {
            let (low, high) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast()));
            let mask = _mm256_set1_epi16(0xff);
            let (even_low, even_high) = (_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
            [even_low, _mm256_srli_epi16::<8>(low), even_high, _mm256_srli_epi16::<8>(high)]
        }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i8) -> (__m256i, __m256i) {
        // SAFETY: AVX2; the caller gives 4 bytes.
        unsafe {
            let x = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)), _mm256_srai_epi16::<8>(x))
        }
    }
    #[inline(always)]
    unsafe fn step(sum: (__m256i, __m256i), x: (__m256i, __m256i), w: [__m256i; 4]) -> (__m256i, __m256i) {
        // SAFETY: this path runs on AVX2 only.
        unsafe {
            let low = _mm256_add_epi32(_mm256_madd_epi16(w[0], x.0), _mm256_madd_epi16(w[1], x.1));
            let high = _mm256_add_epi32(_mm256_madd_epi16(w[2], x.0), _mm256_madd_epi16(w[3], x.1));
            (_mm256_add_epi32(sum.0, low), _mm256_add_epi32(sum.1, high))
        }
    }
    #[inline(always)]
    unsafe fn to_f32(sum: (__m256i, __m256i)) -> Avx2 {
        // SAFETY: this path runs on AVX2 only.
        unsafe { Avx2(_mm256_cvtepi32_ps(sum.0), _mm256_cvtepi32_ps(sum.1)) }
    }
}

pub struct Plain;

impl Integers for Plain {
    type V = Portable;
    type Sum = [i32; LANES];
    type Panel = [[u8; STEP]; LANES];
    type Splat = [i8; STEP];
    const TILE_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn start(value: i32) -> [i32; LANES] {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn panel(from: *const u8) -> [[u8; STEP]; LANES] {
        // SAFETY: the caller gives 64 bytes.
        unsafe { from.cast::<[[u8; STEP]; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i8) -> [i8; STEP] {
        // SAFETY: the caller gives 4 bytes.
        unsafe { from.cast::<[i8; STEP]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn step(mut sum: [i32; LANES], x: [i8; STEP], w: [[u8; STEP]; LANES]) -> [i32; LANES] {
        for (sum, w) in sum.iter_mut().zip(w) {
            for (w, x) in w.into_iter().zip(x) {
                *sum += i32::from(w) * i32::from(x);
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn to_f32(sum: [i32; LANES]) -> Portable {
        let mut lanes = [0f32; LANES];
        for (lane, sum) in lanes.iter_mut().zip(sum) {
            *lane = sum as f32;
        }
        // SAFETY: the array has LANES elements.
        unsafe { Portable::load(lanes.as_ptr()) }
    }
}

/// What the base weights contribute to some rows of a pair of panels.
#[inline(always)]
pub(super) unsafe fn base<I: Integers>(
    weights: &Weights,
    x: &Quantised,
    (inputs, pair): (usize, usize),
    (first, rows): (usize, usize),
    sums: &mut Sums,
) {
    for (from, rows) in super::arithmetic::blocks(rows, I::TILE_ROWS) {
        let sums = &mut sums[from..];
        // SAFETY: passed on to the caller.
        with_rows!(rows, I::TILE_ROWS, N => unsafe { tile::<I, N>(weights, x, (inputs, pair), first + from, sums) });
    }
}

#[inline(always)]
unsafe fn tile<I: Integers, const N: usize>(
    weights: &Weights,
    x: &Quantised,
    (inputs, pair): (usize, usize),
    first: usize,
    sums: &mut [[f32; PAIR * LANES]],
) {
    let groups = inputs.div_ceil(GROUP);
    let stride = PAIR * LANES * STEP;
    // SAFETY: the rows were rounded, and the pair is one of the matrix.
    unsafe {
        let w = weights.bytes.as_ptr().add(pair * groups * GROUP / STEP * stride);
        let values = x.values.as_ptr().add(first * groups * GROUP);
        let mut totals = [[I::V::splat(0.0); PAIR]; N];
        for group in 0..groups {
            let mut live = [[I::start(0); PAIR]; N];
            for (i, live) in live.iter_mut().enumerate() {
                *live = [I::start(*x.starts.as_ptr().add((first + i) * groups + group)); PAIR];
            }
            for step in group * GROUP / STEP..(group + 1) * GROUP / STEP {
                let w = w.add(step * stride);
                let panels = [I::panel(w), I::panel(w.add(LANES * STEP))];
                I::V::prefetch(w.wrapping_add(super::matrix::AHEAD));
                I::V::prefetch(w.wrapping_add(super::matrix::AHEAD + LANES * STEP));
                for (i, live) in live.iter_mut().enumerate() {
                    let value = I::splat(values.add(i * groups * GROUP + step * STEP));
                    *live = [I::step(live[0], value, panels[0]), I::step(live[1], value, panels[1])];
                }
            }
            for i in 0..N {
                let scale = I::V::splat(*x.scales.as_ptr().add((first + i) * groups + group));
                totals[i][0] = totals[i][0].fma(I::to_f32(live[i][0]), scale);
                totals[i][1] = totals[i][1].fma(I::to_f32(live[i][1]), scale);
            }
        }
        let scales = weights.scales.as_ptr().add(pair * PAIR * LANES);
        let scales = [I::V::load(scales), I::V::load(scales.add(LANES))];
        for i in 0..N {
            totals[i][0].mul(scales[0]).store(sums[i].as_mut_ptr());
            totals[i][1].mul(scales[1]).store(sums[i].as_mut_ptr().add(LANES));
        }
    }
}
