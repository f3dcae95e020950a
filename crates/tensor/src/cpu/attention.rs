//! Attention over paged K and V: online softmax in f32 (Milakov and Gimelshein 2018), blocks of pages in absolute order.
//!
//! A row reads K and V from the pool only, block by block from the same absolute positions, so its result does not depend on
//! how the prompt was cut or on who shares the step. Heads that share K and V, and rows that follow each other, read them together.
//!
//! Both are kept as operands of `tile`: a page of K has its 16 positions in the lanes, a page of V has 16 dimensions in them.
//! Scores and weights are therefore sums in lanes, and nothing is added across lanes but the softmax's denominators.

use super::arithmetic::{Arithmetic, Number, blocks, tile, with_rows};
use super::buffer::{Buffer, NumberBuffer, Shared, SharedNumbers};
use super::matrix::Rows;
use super::simd::{LANES, Vec16};
use super::{Cpu, Numbers, dispatch};
use crate::DType;

/// Positions per page: the lanes of a vector.
pub const PAGE_TOKENS: usize = LANES;
/// Pages whose scores are computed before their weights: a block of positions.
const BLOCK_PAGES: usize = 4;
const BLOCK: usize = BLOCK_PAGES * PAGE_TOKENS;
/// Blocks that are summed on their own: every so many positions the sum starts again, and the parts are put together in order,
/// whether one task or several computed them.
const PART_BLOCKS: usize = 8;
const PART: usize = PART_BLOCKS * BLOCK;
/// Queries (rows times heads that share K and V) of a task.
const TASK_QUERIES: usize = 24;
/// Lanes that have room for a number of each.
const QUERY_LANES: usize = TASK_QUERIES.next_multiple_of(LANES);
/// Below every score, and not so far that a difference would not be a number.
const LOWEST: f32 = -1e30;

/// One layer's K or V: for each (page, kv head) of K `[head_dim / step][16 positions][step]`, of V
/// `[head_dim / 16][16 / step positions][16 dimensions][step]`.
#[derive(Debug)]
pub struct Cache(NumberBuffer);

impl Cache {
    pub fn new(dtype: DType, pages: usize, heads: Heads) -> Self {
        Self(NumberBuffer::zeroed(dtype, pages * heads.kv_heads * heads.page_head()))
    }

    /// Of numbers that are there already; for benchmarks and tests.
    pub fn fill(&mut self, numbers: NumberBuffer) {
        assert_eq!(self.0.bytes().len(), numbers.bytes().len(), "a cache keeps its size");
        self.0 = numbers;
    }

    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// All pages, one after the other.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    /// Makes zero what a step leaves unwritten in the pages that it begins. The weight of a position that is not seen is zero, but
    /// what another sequence left there may be no number.
    pub fn clear(&mut self, heads: Heads, chunks: &[Chunk<'_>]) {
        for chunk in chunks {
            let end = chunk.position + chunk.rows;
            let (page, place) = (end / PAGE_TOKENS, end % PAGE_TOKENS);
            if place == 0 || page * PAGE_TOKENS < chunk.position {
                continue;
            }
            let size = heads.kv_heads * heads.page_head();
            let range = chunk.pages[page] as usize * size..(chunk.pages[page] as usize + 1) * size;
            match &mut self.0 {
                NumberBuffer::F32(data) => data[range].fill(0.0),
                NumberBuffer::Bf16(data) => data[range].fill(0),
            }
        }
    }

    pub(super) fn shared(&mut self) -> SharedNumbers<'_> {
        self.0.shared()
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
    /// How many positions a row sees, itself included.
    pub window: Option<usize>,
}

impl Heads {
    /// Elements of one head in a page, of K or of V.
    pub fn page_head(&self) -> usize {
        self.head_dim.next_multiple_of(LANES) * PAGE_TOKENS
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Stores K and V of one head at a query's position.
///
/// # Safety
/// Nobody else reads or writes that page's head, except for other positions of it.
#[inline(always)]
pub(super) unsafe fn store<A: Arithmetic>(
    heads: Heads,
    query: &Query<'_>,
    head: usize,
    k: &[f32],
    v: &[f32],
    (k_pool, v_pool): (SharedNumbers<'_>, SharedNumbers<'_>),
) {
    let page = query.pages[query.position / PAGE_TOKENS] as usize;
    let place = query.position % PAGE_TOKENS;
    let start = (page * heads.kv_heads + head) * heads.page_head();
    let step = A::STEP;
    let k_page = A::W::pointer(k_pool, start, heads.page_head());
    let v_page = A::W::pointer(v_pool, start, heads.page_head());
    for (d, &value) in k.iter().enumerate() {
        let at = d / step * step * PAGE_TOKENS + place * step + d % step;
        // SAFETY: one element of the page's head, which is this position's.
        unsafe { k_page.add(at).write(A::W::round(value)) };
    }
    for (d, &value) in v.iter().enumerate() {
        let at = (d / LANES * PAGE_TOKENS + place / step * step) * LANES + d % LANES * step + place % step;
        // SAFETY: as above.
        unsafe { v_page.add(at).write(A::W::round(value)) };
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// [rows, stride], scaled by log2(e) / sqrt(head_dim).
    pub q: Numbers<'a>,
    pub stride: usize,
    pub k: &'a Cache,
    pub v: &'a Cache,
}

/// Consecutive rows of one sequence.
#[derive(Debug, Clone)]
pub struct Chunk<'a> {
    pub first: usize,
    pub rows: usize,
    pub pages: &'a [u32],
    /// Position of the first row.
    pub position: usize,
}

/// Memory for the parts of queries that several tasks share, kept from step to step.
#[derive(Debug, Default)]
pub struct Scratch(Buffer<f32>);

/// out[row] = softmax(q k^T / sqrt(head_dim)) v for every row and head; out is [rows, stride] as q is.
pub fn attend(
    cpu: &Cpu,
    heads: Heads,
    chunks: &[Chunk<'_>],
    input: Input<'_>,
    out: &mut NumberBuffer,
    scratch: &mut Scratch,
) {
    let dtype = input.k.dtype();
    let pages = input.k.0.numbers().len() / (heads.kv_heads * heads.page_head());
    let rows: usize = chunks.iter().map(|chunk| chunk.rows).sum();
    let known = |chunk: &Chunk<'_>| {
        chunk.first + chunk.rows <= rows
            && chunk.pages.iter().fold(true, |known, &page| known & ((page as usize) < pages))
    };
    assert!(chunks.iter().all(known), "chunks have rows of the step and pages of the pool");
    assert!(input.v.0.numbers().len() >= input.k.0.numbers().len(), "K and V have the same pages");
    let q = Rows { numbers: input.q, rows, stride: input.stride, quantised: None };
    q.check(heads.heads * heads.head_dim);
    let tiles = tiles(heads, chunks);
    let tasks = tiles.len() * heads.kv_heads;
    let enough = tasks >= 4 * cpu.pool.threads();
    let split = if enough { 1 } else { tiles.iter().map(Tile::parts).max().unwrap_or(1) };
    if split > 1 {
        scratch.0.grow(split * rows * heads.heads * heads.state());
    }
    let shared = Parts { states: Shared::new(&mut scratch.0), rows };
    let out = out.shared();
    let task = |index: usize, job: Job| {
        let (tile, kv_head) = (&tiles[index / heads.kv_heads], index % heads.kv_heads);
        cpu.path.attend(dtype, Attend { heads, tile, kv_head, input, out, shared, job });
    };
    if split == 1 {
        return cpu.pool.run(tasks, &|index| task(index, Job::Whole));
    }
    cpu.pool.run(tasks * split, &|index| task(index / split, Job::Part(index % split)));
    cpu.pool.run(tasks, &|index| task(index, Job::Merge));
}

/// Rows of one chunk that read K and V together.
#[derive(Debug, Clone)]
struct Tile<'a> {
    pages: &'a [u32],
    row: usize,
    rows: usize,
    position: usize,
}

impl Tile<'_> {
    /// Parts up to the last position that it sees.
    fn parts(&self) -> usize {
        (self.position + self.rows).div_ceil(PART)
    }
}

/// The longest first, so that none begins when the others end.
fn tiles<'a>(heads: Heads, chunks: &[Chunk<'a>]) -> Vec<Tile<'a>> {
    let most = (TASK_QUERIES / heads.group()).max(1);
    let cut = |chunk: &Chunk<'a>| {
        let (pages, row, position) = (chunk.pages, chunk.first, chunk.position);
        blocks(chunk.rows, most).map(move |(first, rows)| Tile {
            pages,
            row: row + first,
            rows,
            position: position + first,
        })
    };
    let mut tiles: Vec<Tile<'a>> = chunks.iter().flat_map(cut).collect();
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile.position));
    tiles
}

/// The parts of all queries, for tasks that share them.
#[derive(Clone, Copy)]
struct Parts<'a> {
    states: Shared<'a, f32>,
    rows: usize,
}

#[derive(Debug, Clone, Copy)]
enum Job {
    /// All parts, put together and divided.
    Whole,
    /// One part, left in the scratch.
    Part(usize),
    /// The parts of the scratch, put together and divided.
    Merge,
}

struct Attend<'a> {
    heads: Heads,
    tile: &'a Tile<'a>,
    kv_head: usize,
    input: Input<'a>,
    out: SharedNumbers<'a>,
    shared: Parts<'a>,
    job: Job,
}

dispatch!(attend, Attend<'_>);

impl Attend<'_> {
    #[inline(always)]
    unsafe fn run<A: Arithmetic>(self) {
        let queries = self.tile.rows * self.heads.group();
        let size = self.heads.state();
        let mut wholes = vec![0f32; TASK_QUERIES.min(queries) * size];
        let mut parts = wholes.clone();
        for first in (0..queries).step_by(TASK_QUERIES) {
            let count = TASK_QUERIES.min(queries - first);
            let (whole, part) = (&mut wholes[..count * size], &mut parts[..count * size]);
            whole.chunks_exact_mut(size).for_each(empty);
            // SAFETY: the caller has the path's instruction set, and each query's states are one task's at a time.
            unsafe {
                match self.job {
                    Job::Whole => {
                        for index in 0..self.tile.parts() {
                            self.part::<A>(index, first, part);
                            merge::<A::V>(whole, part, size);
                        }
                        self.finish::<A>(first, whole);
                    }
                    Job::Part(index) => {
                        self.part::<A>(index, first, part);
                        for (query, state) in part.chunks_exact(size).enumerate() {
                            self.shared.states.slice(self.place(index, first + query), size).copy_from_slice(state);
                        }
                    }
                    Job::Merge => {
                        for index in 0..self.tile.parts() {
                            for (query, whole) in whole.chunks_exact_mut(size).enumerate() {
                                let place = self.place(index, first + query);
                                merge::<A::V>(whole, self.shared.states.slice(place, size), size);
                            }
                        }
                        self.finish::<A>(first, whole);
                    }
                }
            }
        }
    }

    /// (row, head) of a query.
    #[inline(always)]
    fn query(&self, query: usize) -> (usize, usize) {
        let group = self.heads.group();
        (self.tile.row + query / group, self.kv_head * group + query % group)
    }

    fn position(&self, query: usize) -> usize {
        self.tile.position + query / self.heads.group()
    }

    /// Where the scratch holds a part of a query.
    fn place(&self, part: usize, query: usize) -> usize {
        let (row, head) = self.query(query);
        ((part * self.shared.rows + row) * self.heads.heads + head) * self.heads.state()
    }

    /// Softmax and weighted sum over the positions of one part, for the queries that have a state.
    #[inline(always)]
    unsafe fn part<A: Arithmetic>(&self, part: usize, first: usize, states: &mut [f32]) {
        let size = self.heads.state();
        let count = states.len() / size;
        states.chunks_exact_mut(size).for_each(empty);
        let (from, to) = (self.heads.first_seen(self.position(first)), self.position(first + count - 1));
        let mut scores = [[0f32; BLOCK]; TASK_QUERIES];
        let mut weights = [[<A::X as bytemuck::Zeroable>::zeroed(); BLOCK]; TASK_QUERIES];
        for start in (part * PART..(part + 1) * PART).step_by(BLOCK) {
            if start > to {
                break;
            }
            if start + BLOCK <= from {
                continue;
            }
            let pages = self.pages(start);
            let live = ((to - start) / PAGE_TOKENS + 1).min(BLOCK_PAGES);
            // SAFETY: pages are in the pool, queries are in q and have states.
            unsafe {
                for (at, rows) in blocks(count, A::V::TILE_ROWS) {
                    with_rows!(rows, A::V::TILE_ROWS, N => self.scores::<A, N>(first + at, &pages, live, &mut scores[at..at + N]));
                }
                let seen = |query: usize| {
                    let position = self.position(first + query);
                    self.heads.first_seen(position).saturating_sub(start).min(BLOCK)
                        ..(position + 1).saturating_sub(start).min(BLOCK)
                };
                let rescale = softmax::<A>(&mut scores[..count], seen, states, &mut weights[..count]);
                for (at, rows) in blocks(count, A::V::TILE_ROWS) {
                    with_rows!(rows, A::V::TILE_ROWS, N => {
                        let states = &mut states[at * size..(at + N) * size];
                        self.values::<A, N>(&weights[at..at + N], &rescale[at..at + N], &pages[..live], states);
                    });
                }
            }
        }
    }

    /// Where the pages of the block of a position begin. What is behind the last one is not seen, but an address is needed.
    #[inline(always)]
    fn pages(&self, position: usize) -> [usize; BLOCK_PAGES] {
        let (first, last) = (position / PAGE_TOKENS, self.tile.pages.len() - 1);
        std::array::from_fn(|index| {
            let page = self.tile.pages[(first + index).min(last)] as usize;
            (page * self.heads.kv_heads + self.kv_head) * self.heads.page_head()
        })
    }

    /// q k^T of `N` queries and a block of positions, two pages at a time.
    #[inline(always)]
    unsafe fn scores<A: Arithmetic, const N: usize>(
        &self,
        first: usize,
        pages: &[usize; BLOCK_PAGES],
        live: usize,
        scores: &mut [[f32; BLOCK]],
    ) {
        let k = A::W::of(self.input.k.0.numbers()).as_ptr();
        let mut q = [A::X::of(self.input.q).as_ptr(); N];
        // SAFETY: pages are in the pool, queries are in q.
        unsafe {
            for (i, q) in q.iter_mut().enumerate() {
                let (row, head) = self.query(first + i);
                *q = q.add(row * self.input.stride + head * self.heads.head_dim);
            }
            for pair in (0..live).step_by(2) {
                let mut sums = [[A::V::splat(0.0); 2]; N];
                let k = [k.add(pages[pair]), k.add(pages[pair + 1])];
                let steps = self.heads.head_dim.div_ceil(A::STEP);
                tile::<A, N, 2, 0, 0>(&mut sums, q, k, LANES * A::STEP, steps, std::ptr::null());
                for (scores, sums) in scores.iter_mut().zip(sums) {
                    sums[0].store(scores[pair * LANES..].as_mut_ptr());
                    sums[1].store(scores[(pair + 1) * LANES..].as_mut_ptr());
                }
            }
        }
    }

    /// Adds the weighted rows of V to the sums of `N` queries, two panels of dimensions at a time.
    #[inline(always)]
    unsafe fn values<A: Arithmetic, const N: usize>(
        &self,
        weights: &[[A::X; BLOCK]],
        rescale: &[f32],
        pages: &[usize],
        states: &mut [f32],
    ) {
        let v = A::W::of(self.input.v.0.numbers()).as_ptr();
        let size = self.heads.state();
        let panels = self.heads.head_dim.div_ceil(LANES);
        for panel in (0..panels).step_by(2) {
            // A last panel without a neighbour is computed twice and stored once.
            let other = (panel + 1).min(panels - 1);
            // SAFETY: pages are in the pool, states have all panels.
            unsafe {
                let mut sums = [[A::V::splat(0.0); 2]; N];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let state = states[i * size + MARKS..(i + 1) * size].as_ptr();
                    let scale = A::V::splat(rescale[i]);
                    sums[0] = A::V::load(state.add(panel * LANES)).mul(scale);
                    sums[1] = A::V::load(state.add(other * LANES)).mul(scale);
                }
                for (index, page) in pages.iter().enumerate() {
                    let mut x = [weights[0].as_ptr(); N];
                    for (i, x) in x.iter_mut().enumerate() {
                        *x = weights[i][index * PAGE_TOKENS..].as_ptr();
                    }
                    let at = |panel: usize| v.add(page + panel * PAGE_TOKENS * LANES);
                    let v = [at(panel), at(other)];
                    tile::<A, N, 2, 0, 0>(&mut sums, x, v, LANES * A::STEP, PAGE_TOKENS / A::STEP, std::ptr::null());
                }
                for (i, sums) in sums.iter().enumerate() {
                    let state = states[i * size + MARKS..(i + 1) * size].as_mut_ptr();
                    sums[0].store(state.add(panel * LANES));
                    if other > panel {
                        sums[1].store(state.add(other * LANES));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<A: Arithmetic>(&self, first: usize, states: &[f32]) {
        let head_dim = self.heads.head_dim;
        for (query, state) in states.chunks_exact(self.heads.state()).enumerate() {
            let (row, head) = self.query(first + query);
            // SAFETY: each query's output is one task's; a state has its marks and whole panels.
            unsafe {
                let total = A::V::splat(A::V::load(state[LANES..].as_ptr()).sum());
                let out = A::X::part(self.out, row * self.input.stride + head * head_dim, head_dim);
                for (out, sum) in out.chunks_mut(LANES).zip(state[MARKS..].chunks_exact(LANES)) {
                    let mut lanes = [<A::X as bytemuck::Zeroable>::zeroed(); LANES];
                    A::X::store(A::V::load(sum.as_ptr()).div(total), lanes.as_mut_ptr());
                    out.copy_from_slice(&lanes[..out.len()]);
                }
            }
        }
    }
}

/// Beginning of a query's state: the largest score in the first lane, then the denominator in sixteen lanes. Its sums follow.
const MARKS: usize = 2 * LANES;

impl Heads {
    /// Elements of a query's state.
    fn state(&self) -> usize {
        MARKS + self.head_dim.next_multiple_of(LANES)
    }
}

fn empty(state: &mut [f32]) {
    state.fill(0.0);
    state[0] = LOWEST;
}

/// Takes a block's scores into the states' largest scores and denominators, makes weights of them, and returns by what each
/// query's sums shrink.
#[inline(always)]
unsafe fn softmax<A: Arithmetic>(
    scores: &mut [[f32; BLOCK]],
    seen: impl Fn(usize) -> std::ops::Range<usize>,
    states: &mut [f32],
    weights: &mut [[A::X; BLOCK]],
) -> [f32; QUERY_LANES] {
    let size = states.len() / scores.len();
    let (mut before, mut after, mut rescale) = ([0f32; QUERY_LANES], [0f32; QUERY_LANES], [0f32; QUERY_LANES]);
    // SAFETY: arrays of whole vectors; the states have their marks.
    unsafe {
        for (query, (scores, state)) in scores.iter_mut().zip(states.chunks_exact_mut(size)).enumerate() {
            let seen = seen(query);
            scores[..seen.start].fill(f32::NEG_INFINITY);
            scores[seen.end..].fill(f32::NEG_INFINITY);
            let mut largest = A::V::splat(state[0]);
            for at in 0..BLOCK_PAGES {
                largest = A::V::load(scores.as_ptr().add(at * LANES)).max(largest);
            }
            before[query] = state[0];
            after[query] = largest.largest();
            state[0] = after[query];
        }
        for at in (0..scores.len()).step_by(LANES) {
            let shrink = A::V::load(before[at..].as_ptr()).sub(A::V::load(after[at..].as_ptr())).exp2();
            shrink.store(rescale[at..].as_mut_ptr());
        }
        for (query, (state, weights)) in states.chunks_exact_mut(size).zip(weights).enumerate() {
            let mut total = A::V::load(state[LANES..].as_ptr()).mul(A::V::splat(rescale[query]));
            let largest = A::V::splat(after[query]);
            for at in 0..BLOCK_PAGES {
                let weight = A::V::load(scores[query].as_ptr().add(at * LANES)).sub(largest).exp2();
                total = total.add(weight);
                A::X::store(weight, weights.as_mut_ptr().add(at * LANES));
            }
            total.store(state[LANES..].as_mut_ptr());
        }
    }
    rescale
}

/// Puts a later part of the same queries' positions together with what came before it.
#[inline(always)]
unsafe fn merge<V: Vec16>(whole: &mut [f32], part: &[f32], size: usize) {
    for (whole, part) in whole.chunks_exact_mut(size).zip(part.chunks_exact(size)) {
        // SAFETY: states are whole vectors.
        unsafe {
            let largest = if whole[0] > part[0] { whole[0] } else { part[0] };
            let old = V::splat(whole[0] - largest).exp2();
            let new = V::splat(part[0] - largest).exp2();
            whole[0] = largest;
            for at in (LANES..size).step_by(LANES) {
                let sum = V::load(whole[at..].as_ptr()).mul(old);
                sum.add(V::load(part[at..].as_ptr()).mul(new)).store(whole[at..].as_mut_ptr());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::prepare::{Positions, positions};
    use super::super::{Path, Pool, row_stride};
    use super::*;

    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    const DIM: usize = 24;
    const TOKENS: usize = 1_100;

    /// Numbers from a place, in [-1, 1), exact in bf16.
    fn number(n: usize) -> f32 {
        (n.wrapping_mul(2_654_435_761) >> 9 & 127) as f32 / 64.0 - 1.0
    }

    /// Element `at` of the row of q, k or v (0, 1, 2) at a position.
    fn element(what: usize, position: usize, at: usize) -> f32 {
        number((what * TOKENS + position) * HEADS * DIM + at) * if what == 2 { 1.0 } else { 2.0 }
    }

    struct Sequence {
        cpu: Cpu,
        heads: Heads,
        pages: Vec<u32>,
        k: Cache,
        v: Cache,
    }

    impl Sequence {
        fn new(path: Path, threads: usize, dtype: DType, window: Option<usize>) -> Self {
            let heads = Heads { heads: HEADS, kv_heads: KV_HEADS, head_dim: DIM, window };
            let count = TOKENS.div_ceil(PAGE_TOKENS);
            // What another sequence left behind is no number.
            let cache = || {
                let mut cache = Cache::new(dtype, count, heads);
                match &mut cache.0 {
                    NumberBuffer::F32(data) => data.fill(f32::NAN),
                    NumberBuffer::Bf16(data) => data.fill(0x7fff),
                }
                cache
            };
            let pages = (0..count as u32).rev().collect();
            Self { cpu: Cpu { path, pool: Arc::new(Pool::new(threads)) }, heads, pages, k: cache(), v: cache() }
        }

        /// Outputs [rows, heads * dim] of a chunk.
        fn step(&mut self, position: usize, rows: usize) -> Vec<f32> {
            let (width, kv_width) = (HEADS * DIM, KV_HEADS * DIM);
            let stride = width + 2 * kv_width;
            let mut qkv = vec![0.0; rows * stride];
            for (row, qkv) in qkv.chunks_exact_mut(stride).enumerate() {
                for (what, first, width) in [(0, 0, width), (1, width, kv_width), (2, width + kv_width, kv_width)] {
                    (0..width).for_each(|at| qkv[first + at] = element(what, position + row, at));
                }
            }
            let pages = self.pages.clone();
            let queries: Vec<Query<'_>> =
                (position..position + rows).map(|position| Query { pages: &pages, position }).collect();
            let (cos, sin) = (vec![1.0; rows * DIM / 2], vec![0.0; rows * DIM / 2]);
            let (k, v) = (width, width + kv_width);
            let (heads, q_norm, k_norm) = (self.heads, None, None);
            let turn = Positions { heads, queries: &queries, cos: &cos, sin: &sin, q_norm, k_norm, k, v };
            let chunks = [Chunk { first: 0, rows, pages: &pages, position }];
            let q_stride = row_stride(width);
            let activations = self.cpu.path.activations(self.k.dtype());
            let mut q = NumberBuffer::zeroed(activations, rows * q_stride);
            let mut out = NumberBuffer::zeroed(activations, rows * q_stride);
            self.v.clear(heads, &chunks);
            positions(&self.cpu, &turn, (&mut qkv, stride), (&mut q, q_stride), (&mut self.k, &mut self.v));
            let input = Input { q: q.numbers(), stride: q_stride, k: &self.k, v: &self.v };
            attend(&self.cpu, heads, &chunks, input, &mut out, &mut Scratch::default());
            let numbers = out.numbers();
            (0..rows).flat_map(|row| (0..width).map(move |at| numbers.get(row * q_stride + at))).collect()
        }
    }

    fn expected(window: Option<usize>, position: usize, head: usize) -> Vec<f64> {
        let kv = head / (HEADS / KV_HEADS) * DIM;
        let seen = window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1;
        let score = |at: usize| -> f64 {
            let terms = (0..DIM).map(|d| element(0, position, head * DIM + d) * element(1, at, kv + d));
            terms.map(f64::from).sum::<f64>() / (DIM as f64).sqrt()
        };
        let weights: Vec<f64> = seen.clone().map(|at| score(at).exp()).collect();
        let total: f64 = weights.iter().sum();
        let sum = |d| seen.clone().zip(&weights).map(|(at, w)| w * f64::from(element(2, at, kv + d))).sum::<f64>();
        (0..DIM).map(|d| sum(d) / total).collect()
    }

    #[test]
    fn a_row_sees_the_same_in_any_chunk_and_what_the_formula_says() {
        for (dtype, window) in
            [(DType::F32, None), (DType::F32, Some(100)), (DType::Bf16, None), (DType::Bf16, Some(700))]
        {
            for path in Path::ALL.into_iter().filter(|path| path.available()) {
                let whole = Sequence::new(path, 2, dtype, window).step(0, TOKENS);
                let width = HEADS * DIM;
                let mut pool = Sequence::new(path, 1, dtype, window);
                for (from, to) in
                    [(0, 7), (7, 8), (8, 500), (500, 501), (501, 1_024), (1_024, TOKENS - 1), (TOKENS - 1, TOKENS)]
                {
                    if from == 501 {
                        pool.cpu.pool = Arc::new(Pool::new(2));
                    }
                    let found = pool.step(from, to - from);
                    assert_eq!(found, whole[from * width..to * width], "{} rows {from} to {to}", path.name());
                }
                let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
                for position in [0, 1, 15, 63, 64, 300, 511, 512, TOKENS - 1] {
                    for head in 0..HEADS {
                        let found = &whole[position * width + head * DIM..][..DIM];
                        for (found, expected) in found.iter().zip(expected(window, position, head)) {
                            let error = (f64::from(*found) - expected).abs();
                            assert!(error < tolerance, "{} at {position}: {found}, {expected}", path.name());
                        }
                    }
                }
            }
        }
    }
}
