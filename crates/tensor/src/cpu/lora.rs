//! The low-rank update of a site: y += (x A^T) B^T, over runs of rows that share an adapter.
//!
//! It is done in two parts. The shrink (x A^T) has a pass of its own. The expand is a part of the base product: each task adds to its
//! own outputs what the adapters of its rows contribute, so B is read once, while the base weights stream, and y is written once.
//!
//! Every rank is the sum of chains over fixed cuts of the inputs, and every output goes on with the chain of its base product, so
//! a row's result does not depend on the other rows of its run.

use std::ops::Range;

use super::arithmetic::{Arithmetic, Number, blocks, tile, with_rows};
use super::buffer::{NumberBuffer, SharedNumbers};
use super::matrix::Rows;
use super::simd::{LANES, Vec16};
use super::{Cpu, Numbers, dispatch};
use crate::DType;

/// Steps of the inputs that one chain of a shrink takes.
const CUT: usize = 64;
/// How far ahead of the multiply-adds A is asked for, and how much of the next task's A before this one's, in bytes.
const AHEAD: usize = 2048;
/// Tasks that each thread should find at least, so that all end at about the same time.
const TASKS_PER_THREAD: usize = 4;
/// Rows that share one walk over a panel of B.
const EXPAND_ROWS: usize = 4;
/// Linears that a site has at most.
pub const MODULES: usize = 3;

/// One linear of a site that an adapter changes.
#[derive(Debug, Clone, Copy)]
pub struct Module<'a> {
    /// Its first rank among the site's, and how many it has: a multiple of the step.
    pub first: usize,
    pub ranks: usize,
    /// B with the scale folded in: `[outputs / 16][ranks / step][16][step]`.
    pub b: Numbers<'a>,
    /// The panels of y that it changes: the first one, and how often the distance to the next was doubled.
    pub panel: usize,
    pub doubled: u32,
}

impl<'a> Module<'a> {
    /// What it adds to a panel of y.
    fn panel(&self, panel: usize) -> Option<Numbers<'a>> {
        let distance = panel.checked_sub(self.panel)?;
        let index = distance >> self.doubled;
        if index << self.doubled != distance {
            return None;
        }
        let size = self.ranks * LANES;
        let range = index * size..(index + 1) * size;
        match self.b {
            Numbers::F32(b) => b.get(range).map(Numbers::F32),
            Numbers::Bf16(b) => b.get(range).map(Numbers::Bf16),
        }
    }
}

/// An adapter's part in one site, for a run of rows.
#[derive(Debug, Clone)]
pub struct Update<'a> {
    pub rows: Range<usize>,
    /// Ranks of all modules together.
    pub ranks: usize,
    /// A in panels of 16 ranks, the last one as wide as what is left: `[inputs / step][width][step]`. A whole vector may be read at
    /// every step, so that there is room for one behind the last.
    pub a: Numbers<'a>,
    pub modules: [Option<Module<'a>>; MODULES],
}

/// The adapters of a site in the order of their rows, with what the shrink made of the rows: [rows, stride].
#[derive(Debug, Clone, Copy)]
pub struct Adapters<'a> {
    pub updates: &'a [Update<'a>],
    pub shrunk: Numbers<'a>,
    pub stride: usize,
}

impl<'a> Adapters<'a> {
    pub const NONE: Self = Self { updates: &[], shrunk: Numbers::F32(&[]), stride: 0 };

    /// The updates of some rows: they are in the order of their rows.
    #[inline(always)]
    fn of(&self, rows: &Range<usize>) -> &'a [Update<'a>] {
        let first = self.updates.partition_point(|update| update.rows.end <= rows.start);
        let end = self.updates.partition_point(|update| update.rows.start < rows.end);
        &self.updates[first..end.max(first)]
    }
}

/// Elements between two rows of what the shrink makes.
pub fn shrunk_stride(updates: &[Update<'_>]) -> usize {
    updates.iter().map(|update| update.ranks).max().unwrap_or(0).next_multiple_of(LANES)
}

/// shrunk[row] = x[row] A^T for every row that has an adapter; returns the stride of `shrunk`.
pub fn shrink(cpu: &Cpu, updates: &[Update<'_>], x: Rows<'_>, inputs: usize, shrunk: &mut NumberBuffer) -> usize {
    x.check(inputs);
    assert!(updates.iter().all(|update| update.rows.end <= x.rows), "adapters have rows of the step");
    let stride = shrunk_stride(updates);
    shrunk.grow(x.rows * stride);
    let out = shrunk.shared();
    let rows = |update: &Update<'_>| update.rows.len().div_ceil(cpu.path.tile_rows());
    // A is read front to back, by one task where there are enough of them.
    let whole = updates.iter().map(rows).sum::<usize>() >= TASKS_PER_THREAD * cpu.pool.threads();
    let mut tasks = Vec::with_capacity(updates.len() * 4);
    for update in updates {
        let panels = update.ranks.div_ceil(LANES);
        for (first, rows) in blocks(update.rows.len(), cpu.path.tile_rows()) {
            let first = update.rows.start + first;
            let each = if whole { panels } else { 1 };
            tasks.extend((0..panels).step_by(each).map(|at| (update, first..first + rows, at..at + each)));
        }
    }
    cpu.pool.run(tasks.len(), &|task| {
        let (update, rows, panels) = tasks[task].clone();
        let next = tasks.get(task + cpu.pool.threads()).map(|(update, ..)| update.a);
        let dtype = match update.a {
            Numbers::F32(_) => DType::F32,
            Numbers::Bf16(_) => DType::Bf16,
        };
        cpu.path.shrink(dtype, Shrink { update, rows, panels, next, x, inputs, out, stride });
    });
    stride
}

struct Shrink<'a> {
    update: &'a Update<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    /// What a thread reads after this.
    next: Option<Numbers<'a>>,
    x: Rows<'a>,
    inputs: usize,
    out: SharedNumbers<'a>,
    stride: usize,
}

dispatch!(shrink, Shrink<'_>);

impl Shrink<'_> {
    #[inline(always)]
    unsafe fn run<A: Arithmetic>(self) {
        if let Some(next) = self.next {
            let next = A::W::of(next).as_ptr().cast::<u8>();
            // SAFETY: asks for memory only.
            (0..AHEAD).step_by(64).for_each(|line| unsafe { A::V::prefetch(next.wrapping_add(line)) });
        }
        for panel in self.panels.clone() {
            // SAFETY: the caller has the path's instruction set.
            with_rows!(self.rows.len(), A::V::TILE_ROWS, N => unsafe { self.panel::<A, N>(panel) });
        }
    }

    #[inline(always)]
    unsafe fn panel<A: Arithmetic, const N: usize>(&self, panel: usize) {
        let steps = self.inputs.div_ceil(A::STEP);
        let width = LANES.min(self.update.ranks - panel * LANES);
        let (start, stride) = (panel * LANES * steps * A::STEP, width * A::STEP);
        let a = A::W::of(self.update.a);
        assert!(a.len() >= start + steps.saturating_sub(1) * stride + LANES * A::STEP, "A has its ranks and room");
        // SAFETY: the rows are rows of x; a vector at the last step ends in A, as was checked.
        unsafe {
            let a = a.as_ptr().add(start);
            let mut x = [A::X::of(self.x.numbers).as_ptr(); N];
            for (i, x) in x.iter_mut().enumerate() {
                *x = x.add((self.rows.start + i) * self.x.stride);
            }
            let mut totals = [A::V::splat(0.0); N];
            let mut step = 0;
            while step < steps {
                let mut sums = [[A::V::splat(0.0)]; N];
                let mut from = x;
                for from in &mut from {
                    *from = from.add(step * A::STEP);
                }
                let steps = CUT.min(steps - step);
                tile::<A, N, 1, AHEAD, 0>(&mut sums, from, [a.add(step * stride)], stride, steps, std::ptr::null());
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = total.add(sum[0]);
                }
                step += CUT;
            }
            for (i, total) in totals.iter().enumerate() {
                let mut lanes = [<A::X as bytemuck::Zeroable>::zeroed(); LANES];
                A::X::store(*total, lanes.as_mut_ptr());
                // Only its own ranks: those behind them are another task's.
                let at = (self.rows.start + i) * self.stride + panel * LANES;
                A::X::part(self.out, at, width).copy_from_slice(&lanes[..width]);
            }
        }
    }
}

/// Asks for what the adapters of some rows add to some panels, before the base product takes its time.
#[inline(always)]
pub(super) unsafe fn prefetch<A: Arithmetic>(adapters: &Adapters<'_>, rows: &Range<usize>, panels: Range<usize>) {
    for update in adapters.of(rows) {
        for module in update.modules.iter().flatten() {
            for b in panels.clone().filter_map(|panel| module.panel(panel)) {
                let b = A::W::of(b);
                for line in (0..size_of_val(b)).step_by(64) {
                    // SAFETY: asks for memory only.
                    unsafe { A::V::prefetch(b.as_ptr().cast::<u8>().wrapping_add(line)) };
                }
            }
        }
    }
}

/// Goes on with the sums of a panel, which are at `place` of each row, by what the rows' adapters add to them.
#[inline(always)]
pub(super) unsafe fn expand<A: Arithmetic>(
    adapters: &Adapters<'_>,
    first: usize,
    panel: usize,
    place: usize,
    sums: &mut [[f32; 2 * LANES]],
) {
    for update in adapters.of(&(first..first + sums.len())) {
        let (from, to) = (update.rows.start.max(first), update.rows.end.min(first + sums.len()));
        for module in update.modules.iter().flatten() {
            let Some(b) = module.panel(panel) else { continue };
            let mut row = from;
            while row < to {
                let together = if to - row >= EXPAND_ROWS { EXPAND_ROWS } else { 1 };
                let start = row * adapters.stride + module.first;
                let end = start + (together - 1) * adapters.stride + module.ranks;
                let (b, x) = (A::W::of(b).as_ptr(), A::X::of(adapters.shrunk)[start..end].as_ptr());
                let sums = &mut sums[row - first..];
                assert!(module.ranks.is_multiple_of(A::STEP), "ranks are whole steps");
                // SAFETY: the rows have sums and were shrunk, as the slices above say; B has a panel of the module's ranks.
                unsafe {
                    match together {
                        EXPAND_ROWS => {
                            rows::<A, EXPAND_ROWS>(b, x, module.ranks, adapters.stride, place, sums);
                        }
                        _ => rows::<A, 1>(b, x, module.ranks, adapters.stride, place, sums),
                    }
                }
                row += together;
            }
        }
    }
}

#[inline(always)]
unsafe fn rows<A: Arithmetic, const N: usize>(
    b: *const A::W,
    shrunk: *const A::X,
    ranks: usize,
    stride: usize,
    place: usize,
    sums: &mut [[f32; 2 * LANES]],
) {
    // SAFETY: the caller gives rows that were shrunk, a panel of B, and N rows of sums.
    unsafe {
        let mut live = [[A::V::splat(0.0)]; N];
        let mut x = [shrunk; N];
        for i in 0..N {
            live[i][0] = A::V::load(sums[i][place..place + LANES].as_ptr());
            x[i] = shrunk.add(i * stride);
        }
        tile::<A, N, 1, 0, 0>(&mut live, x, [b], LANES * A::STEP, ranks / A::STEP, std::ptr::null());
        for i in 0..N {
            live[i][0].store(sums[i][place..place + LANES].as_mut_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::matrix::{Epilogue, Matrix, row_stride};
    use super::super::{Path, Pool};
    use super::*;
    use crate::Format;

    const INPUTS: usize = 600;
    const OUTPUTS: usize = 40;

    fn number(n: usize) -> f32 {
        (n.wrapping_mul(2_654_435_761) >> 9 & 63) as f32 / 64.0 - 0.5
    }

    fn buffer(dtype: DType, values: &[f32]) -> NumberBuffer {
        let mut buffer = NumberBuffer::zeroed(dtype, values.len());
        match &mut buffer {
            NumberBuffer::F32(data) => data.copy_from_slice(values),
            NumberBuffer::Bf16(data) => data.iter_mut().zip(values).for_each(|(to, &from)| *to = Number::round(from)),
        }
        buffer
    }

    fn a(adapter: usize, rank: usize, input: usize) -> f32 {
        number(adapter * 1_000_003 + rank * INPUTS + input)
    }

    fn b(adapter: usize, rank: usize, output: usize) -> f32 {
        number(adapter * 1_000_003 + 77_777 + rank * OUTPUTS + output)
    }

    fn x(row: usize, input: usize) -> f32 {
        number(row * INPUTS + input + 5)
    }

    /// Packs an adapter's A and B.
    fn packed(dtype: DType, adapter: usize, ranks: usize) -> (NumberBuffer, NumberBuffer) {
        let step = dtype.inputs_per_step();
        let mut packed = vec![0.0; ranks * INPUTS + LANES * step];
        let mut outputs = vec![0.0; ranks * OUTPUTS.next_multiple_of(LANES)];
        for rank in 0..ranks {
            let (panel, lane) = (rank / LANES, rank % LANES);
            let width = LANES.min(ranks - panel * LANES);
            for input in 0..INPUTS {
                let at = panel * LANES * INPUTS + (input / step * width + lane) * step + input % step;
                packed[at] = a(adapter, rank, input);
            }
            for output in 0..OUTPUTS {
                let at = output / LANES * LANES * ranks + (rank / step * LANES + output % LANES) * step + rank % step;
                outputs[at] = b(adapter, rank, output);
            }
        }
        (buffer(dtype, &packed), buffer(dtype, &outputs))
    }

    /// y of rows `first..first + rows` of the whole list, of which each is (adapter, or none; ranks).
    fn product(cpu: &Cpu, dtype: DType, list: &[(usize, usize)], first: usize, rows: usize) -> Vec<f32> {
        let stride = row_stride(INPUTS);
        let mut values = vec![0.0; rows * stride];
        for row in 0..rows {
            (0..INPUTS).for_each(|input| values[row * stride + input] = x(first + row, input));
        }
        let activations = cpu.path.activations(dtype);
        let numbers = buffer(activations, &values);
        let images: Vec<_> = list.iter().map(|&(adapter, ranks)| packed(dtype, adapter, ranks)).collect();
        let mut updates: Vec<Update<'_>> = Vec::new();
        for row in 0..rows {
            let (adapter, ranks) = list[first + row];
            if ranks == 0 {
                continue;
            }
            if row > 0 && list[first + row - 1].0 == adapter {
                updates.last_mut().unwrap().rows.end += 1;
                continue;
            }
            let (a, b) = &images[first + row];
            let module = Module { first: 0, ranks, b: b.numbers(), panel: 0, doubled: 0 };
            updates.push(Update { rows: row..row + 1, ranks, a: a.numbers(), modules: [Some(module), None, None] });
        }
        let x = Rows { numbers: numbers.numbers(), rows, stride, quantised: None };
        let mut shrunk = NumberBuffer::zeroed(activations, 0);
        let shrunk_stride = shrink(cpu, &updates, x, INPUTS, &mut shrunk);
        let matrix = Matrix::zeroed(Format::Plain(dtype), OUTPUTS.div_ceil(LANES), INPUTS);
        let mut y = vec![0.0; rows * matrix.width()];
        let adapters = Adapters { updates: &updates, shrunk: shrunk.numbers(), stride: shrunk_stride };
        let epilogue = Epilogue::Store { y: &mut y, stride: matrix.width(), bias: None };
        matrix.product(cpu, x, adapters, epilogue);
        y.chunks_exact(matrix.width()).flat_map(|row| row[..OUTPUTS].to_vec()).collect()
    }

    #[test]
    fn adapters_of_all_ranks_add_what_they_would_add_alone() {
        // Runs of one row and of many, with and without an adapter.
        let mut list: Vec<(usize, usize)> = vec![(0, 0), (1, 16), (2, 8), (3, 64), (4, 2), (5, 22), (0, 0)];
        list.extend([(6, 48); 30]);
        list.extend([(0, 0), (7, 10)]);
        for dtype in [DType::F32, DType::Bf16] {
            for path in Path::ALL.into_iter().filter(|path| path.available()) {
                let cpu = Cpu { path, pool: Arc::new(Pool::new(2)) };
                let all = product(&cpu, dtype, &list, 0, list.len());
                for (row, &(adapter, ranks)) in list.iter().enumerate() {
                    let found = &all[row * OUTPUTS..(row + 1) * OUTPUTS];
                    assert_eq!(found, product(&cpu, dtype, &list, row, 1), "{} row {row}", path.name());
                    let shrunk = |rank| (0..INPUTS).map(|input| x(row, input) * a(adapter, rank, input)).sum::<f32>();
                    let shrunk: Vec<f32> = (0..ranks).map(shrunk).collect();
                    for (output, found) in found.iter().enumerate() {
                        let terms = shrunk.iter().enumerate().map(|(rank, shrunk)| shrunk * b(adapter, rank, output));
                        let expected: f32 = terms.sum();
                        let tolerance = if dtype == DType::F32 { 1e-3 } else { 0.3 };
                        assert!((found - expected).abs() < tolerance, "{}: {found}, {expected}", path.name());
                    }
                }
            }
        }
    }
}
