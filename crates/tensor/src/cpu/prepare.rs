//! What lies between the products: RMSNorm, rotary positions, and storing K and V. Rows are computed each by itself.

use std::ops::Range;

use super::arithmetic::{Arithmetic, Number};
use super::attention::{Cache, Heads, Query};
use super::buffer::{NumberBuffer, Shared, SharedNumbers};
use super::simd::{LANES, Vec16};
use super::{Cpu, dispatch};

/// Rows that one task prepares.
const TASK_ROWS: usize = 4;

/// y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub weight: &'a [f32],
    pub eps: f32,
}

/// y[row] = norm(x[at(row)]) for `rows` rows, rounded as the product that reads it wants. Both have `stride` elements a row.
pub fn norm(
    cpu: &Cpu,
    norm: Norm<'_>,
    (x, stride): (&[f32], usize),
    at: impl Fn(usize) -> usize + Sync,
    (y, y_stride, rows): (&mut NumberBuffer, usize, usize),
) {
    let (dtype, y) = (y.dtype(), y.shared());
    cpu.pool.run(rows.div_ceil(TASK_ROWS), &|task| {
        for row in task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS) {
            let x = &x[at(row) * stride..][..norm.weight.len()];
            cpu.path.norm(dtype, NormRow { norm, x, y, at: row * y_stride });
        }
    });
}

struct NormRow<'a> {
    norm: Norm<'a>,
    x: &'a [f32],
    y: SharedNumbers<'a>,
    at: usize,
}

dispatch!(norm, NormRow<'_>);

impl NormRow<'_> {
    #[inline(always)]
    unsafe fn run<A: Arithmetic>(self) {
        // SAFETY: each row is one task's.
        let y = unsafe { A::X::part(self.y, self.at, self.x.len()) };
        // SAFETY: the caller has the path's instruction set.
        let scale = unsafe { scale::<A::V>(self.x, self.norm.eps) };
        let whole = self.x.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            // SAFETY: `at + LANES` is within all three.
            unsafe {
                let x = A::V::load(self.x[at..].as_ptr()).mul(A::V::splat(scale));
                A::X::store(x.mul(A::V::load(self.norm.weight[at..].as_ptr())), y[at..].as_mut_ptr());
            }
        }
        for ((y, x), weight) in y.iter_mut().zip(self.x).zip(self.norm.weight).skip(whole) {
            *y = A::X::round(x * scale * weight);
        }
    }
}

/// 1 / sqrt(mean(x^2) + eps). The sum has sixteen lanes, added in a fixed order.
#[inline(always)]
unsafe fn scale<V: Vec16>(x: &[f32], eps: f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut tail = [0f32; LANES];
    tail[..rest.len()].copy_from_slice(rest);
    // SAFETY: a chunk has LANES elements.
    let sum = unsafe {
        let mut sum = V::splat(0.0);
        for chunk in chunks.iter().chain([&tail]) {
            let lanes = V::load(chunk.as_ptr());
            sum = sum.fma(lanes, lanes);
        }
        sum.sum()
    };
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// Turns q and k by their positions, stores k and v in the pool, and hands q on, scaled for the softmax in powers of two.
pub struct Positions<'a> {
    pub heads: Heads,
    pub queries: &'a [Query<'a>],
    /// head_dim / 2 cosines and sines for each row.
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    pub q_norm: Option<Norm<'a>>,
    pub k_norm: Option<Norm<'a>>,
    /// Where k and v begin in a row; q is at its beginning.
    pub k: usize,
    pub v: usize,
}

/// `qkv` is [rows, stride] and is used up; `q` gets [rows, q_stride].
pub fn positions(
    cpu: &Cpu,
    positions: &Positions<'_>,
    (qkv, stride): (&mut [f32], usize),
    (q, q_stride): (&mut NumberBuffer, usize),
    (k, v): (&mut Cache, &mut Cache),
) {
    let rows = positions.queries.len();
    let (qkv, q) = (Shared::new(qkv), q.shared());
    let (dtype, k, v) = (k.dtype(), k.shared(), v.shared());
    cpu.pool.run(rows.div_ceil(TASK_ROWS), &|task| {
        let rows = task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS);
        cpu.path.positions(dtype, PositionRows { positions, rows, qkv, stride, q, q_stride, k, v });
    });
}

struct PositionRows<'a> {
    positions: &'a Positions<'a>,
    rows: Range<usize>,
    qkv: Shared<'a, f32>,
    stride: usize,
    q: SharedNumbers<'a>,
    q_stride: usize,
    k: SharedNumbers<'a>,
    v: SharedNumbers<'a>,
}

dispatch!(positions, PositionRows<'_>);

impl PositionRows<'_> {
    #[inline(always)]
    unsafe fn run<A: Arithmetic>(self) {
        let Positions { heads, .. } = *self.positions;
        let Heads { head_dim, kv_heads, .. } = heads;
        let (q_width, kv_width) = (heads.heads * head_dim, kv_heads * head_dim);
        let half = head_dim / 2;
        // Scores are then powers of two, which cost less than powers of e.
        let scale = std::f32::consts::LOG2_E / (head_dim as f32).sqrt();
        for row in self.rows.clone() {
            let place = row * half..(row + 1) * half;
            let (cos, sin) = (&self.positions.cos[place.clone()], &self.positions.sin[place]);
            // SAFETY: each row is one task's, in the rows and in the pool.
            unsafe {
                let qkv = self.qkv.slice(row * self.stride, self.stride);
                let (q, rest) = qkv.split_at_mut(self.positions.k);
                let (k, v) = rest.split_at_mut(self.positions.v - self.positions.k);
                let (q, k, v) = (&mut q[..q_width], &mut k[..kv_width], &v[..kv_width]);
                turn::<A::V>(q, head_dim, self.positions.q_norm, cos, sin);
                turn::<A::V>(k, head_dim, self.positions.k_norm, cos, sin);
                for (to, &from) in A::X::part(self.q, row * self.q_stride, q_width).iter_mut().zip(q.iter()) {
                    *to = A::X::round(from * scale);
                }
                let query = &self.positions.queries[row];
                for head in 0..kv_heads {
                    let part = head * head_dim..(head + 1) * head_dim;
                    super::attention::store::<A>(heads, query, head, &k[part.clone()], &v[part], (self.k, self.v));
                }
            }
        }
    }
}

/// Norms every head, then turns it (Su et al. 2021) in the half-split layout: element i with element i + head_dim / 2.
#[inline(always)]
unsafe fn turn<V: Vec16>(heads: &mut [f32], head_dim: usize, norm: Option<Norm<'_>>, cos: &[f32], sin: &[f32]) {
    for head in heads.chunks_exact_mut(head_dim) {
        if let Some(norm) = norm {
            // SAFETY: the caller has the path's instruction set.
            let scale = unsafe { scale::<V>(head, norm.eps) };
            for (x, &weight) in head.iter_mut().zip(norm.weight) {
                *x = *x * scale * weight;
            }
        }
        let (low, high) = head.split_at_mut(head_dim / 2);
        for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
