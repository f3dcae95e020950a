//! Attention over paged K and V: online softmax in f32 (Milakov and Gimelshein 2018), pages in absolute order.
//!
//! A row reads K and V from the pool only, page by page from the same absolute positions, so its result does not depend on
//! how the prompt was cut or on who shares the step.

use super::Cpu;
use super::matrix::Shared;
use super::simd::Vec16;

/// One layer's K or V: element (page, kv head, position in page, d).
#[derive(Debug)]
pub enum Cache {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Cache {
    pub fn store(&mut self, at: usize, values: &[f32]) {
        match self {
            Self::F32(data) => data[at..at + values.len()].copy_from_slice(values),
            Self::Bf16(data) => {
                for (slot, &value) in data[at..].iter_mut().zip(values) {
                    *slot = half::bf16::from_f32(value).to_bits();
                }
            }
        }
    }
}

/// A row of the step, as attention sees it.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    pub pages: &'a [u32],
    /// The row's own position: it sees positions up to and including this one.
    pub position: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_tokens: usize,
    /// How many positions a row sees, itself included.
    pub window: Option<usize>,
}

/// out[row] = softmax(q k^T / sqrt(head_dim)) v for every row and head. q is [rows, stride] with the heads first; out is [rows, heads * head_dim].
pub fn attend(cpu: &Cpu, heads: Heads, queries: &[Query<'_>], input: Input<'_>, out: &mut [f32]) {
    let width = heads.heads * heads.head_dim;
    let group = heads.heads / heads.kv_heads * heads.head_dim;
    let out = Shared::new(out);
    cpu.pool.run(queries.len() * heads.kv_heads, &|task| {
        let (row, kv_head) = (task / heads.kv_heads, task % heads.kv_heads);
        let at = kv_head * group;
        // SAFETY: each task has its own row and heads.
        let out = unsafe { out.slice(row * width + at, group) };
        let q = &input.q[row * input.stride + at..][..group];
        cpu.path.attend(One { heads, query: queries[row], kv_head, q, k: input.k, v: input.v, out });
    });
}

#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub q: &'a [f32],
    pub stride: usize,
    pub k: &'a Cache,
    pub v: &'a Cache,
}

pub(super) struct One<'a> {
    heads: Heads,
    query: Query<'a>,
    kv_head: usize,
    q: &'a [f32],
    k: &'a Cache,
    v: &'a Cache,
    out: &'a mut [f32],
}

impl One<'_> {
    #[inline(always)]
    pub(super) unsafe fn run<V: Vec16>(self) {
        match (self.k, self.v) {
            (Cache::F32(k), Cache::F32(v)) => self.over::<V, f32>(k, v),
            (Cache::Bf16(k), Cache::Bf16(v)) => self.over::<V, u16>(k, v),
            _ => unreachable!("K and V have one dtype"),
        }
    }

    #[inline(always)]
    fn over<V: Vec16, E: Element>(self, k: &[E], v: &[E]) {
        let Heads { head_dim, page_tokens, kv_heads, .. } = self.heads;
        let end = self.query.position + 1;
        let first = self.heads.window.map_or(0, |window| end.saturating_sub(window));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut scores = [0f32; 64];
        assert!(page_tokens <= scores.len(), "a page has at most 64 positions");
        for (q, out) in self.q.chunks_exact(head_dim).zip(self.out.chunks_exact_mut(head_dim)) {
            let (mut largest, mut sum) = (f32::NEG_INFINITY, 0f32);
            out.fill(0.0);
            for (index, &page) in
                self.query.pages.iter().enumerate().take(end.div_ceil(page_tokens)).skip(first / page_tokens)
            {
                let base = (page as usize * kv_heads + self.kv_head) * page_tokens * head_dim;
                let from = first.saturating_sub(index * page_tokens);
                let to = page_tokens.min(end - index * page_tokens);
                let mut top = largest;
                for place in from..to {
                    let key = &k[base + place * head_dim..][..head_dim];
                    scores[place] = dot::<V, E>(q, key) * scale;
                    top = top.max(scores[place]);
                }
                let shrink = (largest - top).exp();
                sum *= shrink;
                out.iter_mut().for_each(|out| *out *= shrink);
                largest = top;
                for place in from..to {
                    let weight = (scores[place] - largest).exp();
                    sum += weight;
                    let value = &v[base + place * head_dim..][..head_dim];
                    for (out, &value) in out.iter_mut().zip(value) {
                        *out = V::fused(weight, value.widen(), *out);
                    }
                }
            }
            out.iter_mut().for_each(|out| *out /= sum);
        }
    }
}

/// Sixteen lanes, added in a fixed order.
#[inline(always)]
fn dot<V: Vec16, E: Element>(a: &[f32], b: &[E]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_chunks.remainder()).zip(b_chunks.remainder()) {
        *lane = a * b.widen();
    }
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..16 {
            lanes[i] = V::fused(a[i], b[i].widen(), lanes[i]);
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

trait Element: Copy + Sync {
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }
}
