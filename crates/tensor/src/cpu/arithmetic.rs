//! How a packed operand (a weight, a factor of an adapter, a page of K or V) meets the rows that it is multiplied with.

use std::marker::PhantomData;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::buffer::SharedNumbers;
#[cfg(target_arch = "x86_64")]
use super::simd::Avx512;
use super::simd::Vec16;

/// Numbers as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl<'a> Numbers<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn slice(&self, range: Range<usize>) -> Numbers<'a> {
        match self {
            Self::F32(data) => Self::F32(&data[range]),
            Self::Bf16(data) => Self::Bf16(&data[range]),
        }
    }

    /// The number at a place, as f32.
    pub fn get(&self, at: usize) -> f32 {
        match self {
            Self::F32(data) => data[at],
            Self::Bf16(data) => data[at].widen(),
        }
    }
}

/// f32 or bf16 (as its bits).
pub trait Number: bytemuck::Pod + Send + Sync {
    fn widen(self) -> f32;
    fn round(value: f32) -> Self;
    /// The numbers, which must be of this type.
    fn of(numbers: Numbers<'_>) -> &[Self];
    /// A task's part of numbers, which must be of this type.
    ///
    /// # Safety
    /// As for `Shared::slice`.
    unsafe fn part<'a>(of: SharedNumbers<'a>, at: usize, len: usize) -> &'a mut [Self];
    /// Where a task's part begins: for parts of several tasks that lie between each other.
    fn pointer(of: SharedNumbers<'_>, at: usize, len: usize) -> *mut Self;
    /// # Safety
    /// As for `Vec16::store`.
    unsafe fn store<V: Vec16>(lanes: V, to: *mut Self);
}

impl Number for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn of(numbers: Numbers<'_>) -> &[Self] {
        let Numbers::F32(data) = numbers else { panic!("numbers are f32 here") };
        data
    }
    #[inline(always)]
    unsafe fn part<'a>(of: SharedNumbers<'a>, at: usize, len: usize) -> &'a mut [Self] {
        let SharedNumbers::F32(shared) = of else { panic!("numbers are f32 here") };
        // SAFETY: passed on to the caller.
        unsafe { shared.slice(at, len) }
    }
    #[inline(always)]
    fn pointer(of: SharedNumbers<'_>, at: usize, len: usize) -> *mut Self {
        let SharedNumbers::F32(shared) = of else { panic!("numbers are f32 here") };
        shared.pointer(at, len)
    }
    #[inline(always)]
    unsafe fn store<V: Vec16>(lanes: V, to: *mut Self) {
        // SAFETY: passed on to the caller.
        unsafe { lanes.store(to) }
    }
}

impl Number for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }
    #[inline(always)]
    fn round(value: f32) -> Self {
        half::bf16::from_f32(value).to_bits()
    }
    #[inline(always)]
    fn of(numbers: Numbers<'_>) -> &[Self] {
        let Numbers::Bf16(data) = numbers else { panic!("numbers are bf16 here") };
        data
    }
    #[inline(always)]
    unsafe fn part<'a>(of: SharedNumbers<'a>, at: usize, len: usize) -> &'a mut [Self] {
        let SharedNumbers::Bf16(shared) = of else { panic!("numbers are bf16 here") };
        // SAFETY: passed on to the caller.
        unsafe { shared.slice(at, len) }
    }
    #[inline(always)]
    fn pointer(of: SharedNumbers<'_>, at: usize, len: usize) -> *mut Self {
        let SharedNumbers::Bf16(shared) = of else { panic!("numbers are bf16 here") };
        shared.pointer(at, len)
    }
    #[inline(always)]
    unsafe fn store<V: Vec16>(lanes: V, to: *mut Self) {
        // SAFETY: passed on to the caller.
        unsafe { lanes.store_bf16(to) }
    }
}

/// Multiply-adds of sixteen outputs over `STEP` inputs at once.
///
/// # Safety
/// Every method needs the instruction set of its path; `panel` reads sixteen times `STEP` elements, `splat` reads `STEP`.
pub trait Arithmetic: 'static {
    type V: Vec16;
    /// The packed operand: `[inputs / STEP][16 outputs][STEP]`.
    type W: Number;
    /// The rows.
    type X: Number;
    const STEP: usize;
    type Panel: Copy;
    type Splat: Copy;

    unsafe fn panel(from: *const Self::W) -> Self::Panel;
    unsafe fn splat(from: *const Self::X) -> Self::Splat;
    /// Adds the products of one step, in ascending order of inputs wherever the instructions leave a choice.
    unsafe fn step(sum: Self::V, x: Self::Splat, w: Self::Panel) -> Self::V;
}

/// f32 by f32.
pub struct Whole<V>(PhantomData<V>);

impl<V: Vec16> Arithmetic for Whole<V> {
    type V = V;
    type W = f32;
    type X = f32;
    const STEP: usize = 1;
    type Panel = V;
    type Splat = V;

    #[inline(always)]
    unsafe fn panel(from: *const f32) -> V {
        // SAFETY: passed on to the caller.
        unsafe { V::load(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> V {
        // SAFETY: the caller gives one element.
        unsafe { V::splat(*from) }
    }
    #[inline(always)]
    unsafe fn step(sum: V, x: V, w: V) -> V {
        // SAFETY: passed on to the caller.
        unsafe { sum.fma(x, w) }
    }
}

/// bf16 by f32: widened in registers, which is exact, and multiplied in f32.
pub struct Widened<V>(PhantomData<V>);

impl<V: Vec16> Arithmetic for Widened<V> {
    type V = V;
    type W = u16;
    type X = f32;
    const STEP: usize = 2;
    type Panel = (V, V);
    type Splat = (V, V);

    #[inline(always)]
    unsafe fn panel(from: *const u16) -> (V, V) {
        // SAFETY: passed on to the caller.
        unsafe { V::load_pairs(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> (V, V) {
        // SAFETY: the caller gives two elements.
        unsafe { (V::splat(*from), V::splat(*from.add(1))) }
    }
    #[inline(always)]
    unsafe fn step(sum: V, x: (V, V), w: (V, V)) -> V {
        // SAFETY: passed on to the caller.
        unsafe { sum.fma(x.0, w.0).fma(x.1, w.1) }
    }
}

/// bf16 by bf16: AVX-512's dot product of pairs, summed in f32.
#[cfg(target_arch = "x86_64")]
pub struct Dot;

#[cfg(target_arch = "x86_64")]
impl Arithmetic for Dot {
    type V = Avx512;
    type W = u16;
    type X = u16;
    const STEP: usize = 2;
    type Panel = __m512i;
    type Splat = __m512i;

    #[inline(always)]
    unsafe fn panel(from: *const u16) -> __m512i {
        // SAFETY: AVX-512; the caller gives LANES pairs.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const u16) -> __m512i {
        // SAFETY: AVX-512; the caller gives a pair.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn step(sum: Avx512, x: __m512i, w: __m512i) -> Avx512 {
        // SAFETY: AVX-512 with bf16; the vectors' types are names for the same 64 bytes.
        unsafe {
            let (x, w) = (std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(w));
            Avx512(_mm512_dpbf16_ps(sum.0, x, w))
        }
    }
}

/// sums[i][j] += x[i] . w[j] over `steps` steps from the given addresses on, each sum in one chain of ascending steps.
/// `stride` is the number of elements between two steps of a panel. Where `AHEAD` is not 0, the lines that many bytes ahead
/// are asked for, and where `FAR` is not 0, a line so many bytes on in `next` at every step.
///
/// # Safety
/// `x[i]` has `steps * STEP` elements, and every step of `w[j]` has sixteen times `STEP`.
#[inline(always)]
pub unsafe fn tile<A: Arithmetic, const N: usize, const P: usize, const AHEAD: usize, const FAR: usize>(
    sums: &mut [[A::V; P]; N],
    x: [*const A::X; N],
    w: [*const A::W; P],
    stride: usize,
    steps: usize,
    next: *const u8,
) {
    let mut live = *sums;
    for step in 0..steps {
        // SAFETY: `step < steps`, and the caller gives that many.
        unsafe {
            let mut panels = [A::panel(w[0].add(step * stride)); P];
            for j in 1..P {
                panels[j] = A::panel(w[j].add(step * stride));
            }
            if AHEAD > 0 {
                for w in w {
                    A::V::prefetch(w.wrapping_add(step * stride).cast::<u8>().wrapping_add(AHEAD));
                }
            }
            if FAR > 0 {
                A::V::prefetch_far(next.wrapping_add(step * FAR));
            }
            for i in 0..N {
                let value = A::splat(x[i].add(step * A::STEP));
                for j in 0..P {
                    live[i][j] = A::step(live[i][j], value, panels[j]);
                }
            }
        }
    }
    *sums = live;
}

/// Evaluates the body with a number of rows, from 1 to the path's most (at most 12), as a constant.
macro_rules! with_rows {
    (@ $value:literal, $most:expr, $n:ident => $body:expr) => {{
        const $n: usize = $value;
        if const { $n > $most } { unreachable!("a tile has at most so many rows") } else { $body }
    }};
    ($rows:expr, $most:expr, $n:ident => $body:expr) => {
        match $rows {
            1 => $crate::cpu::arithmetic::with_rows!(@ 1, $most, $n => $body),
            2 => $crate::cpu::arithmetic::with_rows!(@ 2, $most, $n => $body),
            3 => $crate::cpu::arithmetic::with_rows!(@ 3, $most, $n => $body),
            4 => $crate::cpu::arithmetic::with_rows!(@ 4, $most, $n => $body),
            5 => $crate::cpu::arithmetic::with_rows!(@ 5, $most, $n => $body),
            6 => $crate::cpu::arithmetic::with_rows!(@ 6, $most, $n => $body),
            7 => $crate::cpu::arithmetic::with_rows!(@ 7, $most, $n => $body),
            8 => $crate::cpu::arithmetic::with_rows!(@ 8, $most, $n => $body),
            9 => $crate::cpu::arithmetic::with_rows!(@ 9, $most, $n => $body),
            10 => $crate::cpu::arithmetic::with_rows!(@ 10, $most, $n => $body),
            11 => $crate::cpu::arithmetic::with_rows!(@ 11, $most, $n => $body),
            _ => $crate::cpu::arithmetic::with_rows!(@ 12, $most, $n => $body),
        }
    };
}
pub(super) use with_rows;

/// Cuts `rows` into as few blocks of at most `most` as there can be, as even as they can be.
#[inline(always)]
pub fn blocks(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most).max(1);
    (0..count).map(move |block| {
        // Hidden from the optimiser, which else divides again wherever a place is needed: in the inner loops.
        let first = std::hint::black_box(block * rows / count);
        (first, (block + 1) * rows / count - first)
    })
}
