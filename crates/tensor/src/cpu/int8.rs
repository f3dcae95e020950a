//! 8-bit weights: each output has a scale of its own, and rows are rounded to 8 bits on the way in, with a scale for every 64 inputs.
//!
//! Sums of integers are exact, so they are the same on every path; the scales are applied in one order.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::arithmetic::{Arithmetic, Number};
use super::buffer::{Buffer, Shared};
use super::matrix::{AHEAD, LINE, PAIR, Rows, Sums, TASK_ROWS};
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
/// Rows that a task rounds: a part of a block, whose scales are whole cache lines.
const ROUND_ROWS: usize = 16;
const _: () = assert!(TASK_ROWS.is_multiple_of(ROUND_ROWS));

/// Below this a group is all zero: what it would be multiplied by is no number.
const LEAST: f32 = 128.0 * f32::MIN_POSITIVE;

/// What brings numbers of that largest magnitude to 127.
#[inline(always)]
fn inverse(largest: f32) -> f32 {
    if largest >= LEAST { 127.0 / largest } else { 0.0 }
}

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
        let inverse = inverse(largest);
        for (input, weight) in row.iter().enumerate() {
            self.bytes[place(input)] = ((weight * inverse).round_ties_even() as i32 + ZERO) as u8;
        }
    }

    pub(super) fn get(&self, output: usize, place: usize) -> f32 {
        (i32::from(self.bytes[place]) - ZERO) as f32 * self.scales[output]
    }
}

/// Rows rounded to 8 bits, in blocks of as many as a task of a product reads: `[block][group][row of the block][GROUP]`, so that
/// what a tile reads lies one line behind the other, at distances that are known when it is compiled.
#[derive(Debug, Default)]
pub struct Quantised {
    rows: usize,
    inputs: usize,
    values: Buffer<i8>,
    /// [block, group, row of the block].
    scales: Buffer<f32>,
    /// What the sum over a group begins with, laid down as the scales are: it takes back the weights' zero.
    starts: Buffer<i32>,
}

/// Where a row's groups are: the first one, and how far it is to the next.
#[inline(always)]
fn groups_of(row: usize, rows: usize, inputs: usize) -> (usize, usize) {
    let first = row / TASK_ROWS * TASK_ROWS;
    (first * inputs.div_ceil(GROUP) + row - first, TASK_ROWS.min(rows - first))
}

impl Quantised {
    pub(super) fn has(&self, rows: usize, inputs: usize) -> bool {
        self.rows == rows && self.inputs == inputs
    }

    pub fn round(&mut self, cpu: &Cpu, x: Rows<'_>, inputs: usize) {
        x.check(inputs);
        let groups = x.rows * inputs.div_ceil(GROUP);
        (self.rows, self.inputs) = (x.rows, inputs);
        self.values.grow(groups * GROUP);
        self.scales.grow(groups);
        self.starts.grow(groups);
        let (values, scales) = (Shared::new(&mut self.values[..]), Shared::new(&mut self.scales[..]));
        let starts = Shared::new(&mut self.starts[..]);
        let dtype = match x.numbers {
            Numbers::F32(_) => crate::DType::F32,
            Numbers::Bf16(_) => crate::DType::Bf16,
        };
        cpu.pool.run(x.rows.div_ceil(ROUND_ROWS), &|task| {
            let rows = task * ROUND_ROWS..x.rows.min((task + 1) * ROUND_ROWS);
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
        for row in self.rows.clone() {
            let x = &A::X::of(self.x.numbers)[row * self.x.stride..][..self.inputs];
            let (first, distance) = groups_of(row, self.x.rows, self.inputs);
            for (group, x) in x.chunks(GROUP).enumerate() {
                let at = first + group * distance;
                let mut whole = [0f32; GROUP];
                match <&[A::X; GROUP]>::try_from(x) {
                    Ok(x) => whole = x.map(Number::widen),
                    Err(_) => whole.iter_mut().zip(x).for_each(|(whole, x)| *whole = x.widen()),
                }
                // SAFETY: each row is one task's, and the caller has the path's instruction set.
                unsafe {
                    let (scale, start) = round_group::<A::V>(&whole, self.values.slice(at * GROUP, GROUP));
                    self.scales.pointer(at, 1).write(scale);
                    self.starts.pointer(at, 1).write(start);
                }
            }
        }
    }
}

/// Rounds a group; returns its scale and what its sums begin with.
#[inline(always)]
unsafe fn round_group<V: Vec16>(x: &[f32; GROUP], values: &mut [i8]) -> (f32, i32) {
    // SAFETY: a group is made of whole vectors.
    unsafe {
        let mut lanes = [V::splat(0.0); GROUP / LANES];
        for (index, lanes) in lanes.iter_mut().enumerate() {
            *lanes = V::load(x.as_ptr().add(index * LANES));
        }
        let largest = V::magnitude(lanes);
        let inverse = V::splat(inverse(largest));
        let mut sum = V::splat(0.0);
        for (index, lanes) in lanes.into_iter().enumerate() {
            let rounded = lanes.mul(inverse).round();
            sum = sum.add(rounded);
            rounded.store_i8(values[index * LANES..(index + 1) * LANES].as_mut_ptr());
        }
        // Neither infinity nor what is no number may be rounded away: the scale becomes no number.
        (largest / 127.0 + largest * 0.0, -ZERO * sum.sum() as i32)
    }
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
    const TILE_ROWS: usize = 8;

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

/// What the base weights contribute to `N` rows of a pair of panels. `next` is what is read after this tile.
#[inline(always)]
pub(super) unsafe fn tile<I: Integers, const N: usize>(
    weights: &Weights,
    x: &Quantised,
    (inputs, pair): (usize, usize),
    first: usize,
    next: *const u8,
    sums: &mut Sums,
) {
    const STRIDE: usize = PAIR * LANES * STEP;
    const STEPS: usize = GROUP / STEP;
    let groups = inputs.div_ceil(GROUP);
    let (first, distance) = groups_of(first, x.rows, inputs);
    // SAFETY: the rows were rounded and are of one block, and the pair is one of the matrix.
    unsafe {
        let w = weights.bytes.as_ptr().add(pair * groups * STEPS * STRIDE);
        // In registers: a store would hold up the loads of the weights that fall on the same place of a page.
        let mut totals = [[I::V::splat(0.0); PAIR]; N];
        for group in 0..groups {
            let at = first + group * distance;
            let values = x.values.as_ptr().add(at * GROUP);
            let (scales, starts) = (x.scales.as_ptr().add(at), x.starts.as_ptr().add(at));
            let (w, next) = (w.add(group * STEPS * STRIDE), next.wrapping_add(group * STEPS * LINE));
            let mut live = [[I::start(0); PAIR]; N];
            for (i, live) in live.iter_mut().enumerate() {
                *live = [I::start(*starts.add(i)); PAIR];
                // The same group of the rows behind these.
                I::V::prefetch(values.wrapping_add((N + i) * GROUP).cast());
            }
            for step in 0..STEPS {
                let w = w.add(step * STRIDE);
                let panels = [I::panel(w), I::panel(w.add(LANES * STEP))];
                I::V::prefetch(w.wrapping_add(AHEAD));
                I::V::prefetch(w.wrapping_add(AHEAD + LANES * STEP));
                I::V::prefetch_far(next.wrapping_add(step * LINE));
                for (i, live) in live.iter_mut().enumerate() {
                    let value = I::splat(values.add(i * GROUP + step * STEP));
                    *live = [I::step(live[0], value, panels[0]), I::step(live[1], value, panels[1])];
                }
            }
            for i in 0..N {
                let scale = I::V::splat(*scales.add(i));
                totals[i][0] = totals[i][0].fma(I::to_f32(live[i][0]), scale);
                totals[i][1] = totals[i][1].fma(I::to_f32(live[i][1]), scale);
            }
        }
        let scales = weights.scales.as_ptr().add(pair * PAIR * LANES);
        let scales = [I::V::load(scales), I::V::load(scales.add(LANES))];
        for (sums, totals) in sums.0.iter_mut().zip(totals) {
            totals[0].mul(scales[0]).store(sums.as_mut_ptr());
            totals[1].mul(scales[1]).store(sums.as_mut_ptr().add(LANES));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Path, Pool};
    use super::*;

    #[test]
    fn rows_are_rounded_alike_on_every_path_and_what_is_no_number_is_kept() {
        // More than a block of rows, and a last group that is not whole.
        let (rows, inputs) = (TASK_ROWS + 21, 2 * GROUP + 11);
        let stride = super::super::row_stride(inputs);
        let groups = inputs.div_ceil(GROUP);
        let number = |n: usize| (n.wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 1024.0 - 31.0;
        let mut data: Vec<f32> = (0..rows * stride).map(number).collect();
        data[..GROUP].fill(0.0);
        data[stride..stride + GROUP].fill(f32::MIN_POSITIVE / 4.0);
        (data[2 * stride + 70], data[3 * stride + 70], data[4 * stride + 70]) =
            (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        let x = Rows { numbers: Numbers::F32(&data), rows, stride, quantised: None };
        for path in Path::ALL.into_iter().filter(|path| path.available()) {
            let mut found = Quantised::default();
            found.round(&Cpu { path, pool: Arc::new(Pool::new(2)) }, x, inputs);
            for (row, group) in (0..rows).flat_map(|row| (0..groups).map(move |group| (row, group))) {
                let (first, distance) = groups_of(row, rows, inputs);
                let at = first + group * distance;
                let (scale, start) = (found.scales[at], found.starts[at]);
                let exact = &data[row * stride..][group * GROUP..inputs.min((group + 1) * GROUP)];
                if (2..5).contains(&row) && group == 1 {
                    assert!(scale.is_nan(), "{} {row}: {scale}", path.name());
                    continue;
                }
                let largest = exact.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                assert_eq!(scale, largest / 127.0, "{} {row} {group}", path.name());
                let values = &found.values[at * GROUP..(at + 1) * GROUP];
                let expected = |x: &f32| (x * inverse(largest)).round_ties_even() as i8;
                let expected: Vec<i8> = exact.iter().map(expected).chain(std::iter::repeat(0)).take(GROUP).collect();
                assert_eq!(values, expected, "{} {row} {group}", path.name());
                assert_eq!(start, -ZERO * values.iter().map(|&value| i32::from(value)).sum::<i32>());
            }
        }
    }
}
