//! The low-rank update of a site: y += (x A^T) B^T, over runs of rows that share an adapter.
//!
//! Both factors are stored so that memory is walked once, front to back, while all outputs accumulate: A transposed
//! [inputs, ranks], B transposed [rank, outputs]. Every output is one chain in ascending order, so a row's result does not
//! depend on the other rows of its run.

use std::ops::Range;

use super::Cpu;
use super::matrix::Shared;
use super::simd::Vec16;

/// Numbers of an adapter, as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

/// One output of a site that an adapter changes.
#[derive(Debug, Clone)]
pub struct Expand<'a> {
    /// Which of the site's ranks it reads.
    pub ranks: Range<usize>,
    /// B transposed, [rank, outputs].
    pub b: Numbers<'a>,
    /// Where its outputs begin in a row of y.
    pub at: usize,
    pub outputs: usize,
}

/// An adapter's part in one site, for a run of rows.
#[derive(Debug, Clone)]
pub struct Update<'a> {
    pub rows: Range<usize>,
    pub ranks: usize,
    /// A transposed, [inputs, ranks], the site's modules side by side.
    pub a: Numbers<'a>,
    pub expand: Vec<Expand<'a>>,
}

/// Rows that share one walk over an adapter's factors.
const BLOCK: usize = 8;

/// y[row] += B (A x[row]) for all updates. x is [rows, inputs], y is [rows, stride].
pub fn apply(cpu: &Cpu, updates: &[Update<'_>], x: &[f32], inputs: usize, y: &mut [f32], stride: usize) {
    let blocks: Vec<(Range<usize>, &Update<'_>)> = updates
        .iter()
        .flat_map(|update| {
            let rows = update.rows.clone();
            rows.clone().step_by(BLOCK).map(move |first| (first..rows.end.min(first + BLOCK), update))
        })
        .collect();
    let y = Shared::new(y);
    cpu.pool.run(blocks.len(), &|task| {
        let (rows, update) = &blocks[task];
        let x = &x[rows.start * inputs..rows.end * inputs];
        // SAFETY: a row is in one block only, so each task has its own rows of y.
        let y = unsafe { y.slice(rows.start * stride, rows.len() * stride) };
        cpu.path.update(Block { update, x, inputs, y, stride });
    });
}

pub(super) struct Block<'a> {
    update: &'a Update<'a>,
    x: &'a [f32],
    inputs: usize,
    y: &'a mut [f32],
    stride: usize,
}

impl Block<'_> {
    #[inline(always)]
    pub(super) unsafe fn run<V: Vec16>(self) {
        let ranks = self.update.ranks;
        let rows = self.x.len() / self.inputs;
        let mut shrunk = vec![0f32; rows * ranks];
        for input in 0..self.inputs {
            let a = input * ranks..(input + 1) * ranks;
            for row in 0..rows {
                let x = self.x[row * self.inputs + input];
                add_scaled::<V>(&mut shrunk[row * ranks..][..ranks], x, self.update.a, a.clone());
            }
        }
        for expand in &self.update.expand {
            for (place, rank) in expand.ranks.clone().enumerate() {
                let b = place * expand.outputs..(place + 1) * expand.outputs;
                for row in 0..rows {
                    let y = &mut self.y[row * self.stride + expand.at..][..expand.outputs];
                    add_scaled::<V>(y, shrunk[row * ranks + rank], expand.b, b.clone());
                }
            }
        }
    }
}

/// y += scale * numbers[range]
#[inline(always)]
fn add_scaled<V: Vec16>(y: &mut [f32], scale: f32, numbers: Numbers<'_>, range: Range<usize>) {
    match numbers {
        Numbers::F32(data) => {
            for (y, &value) in y.iter_mut().zip(&data[range]) {
                *y = V::fused(scale, value, *y);
            }
        }
        Numbers::Bf16(data) => {
            for (y, &bits) in y.iter_mut().zip(&data[range]) {
                *y = V::fused(scale, f32::from_bits(u32::from(bits) << 16), *y);
            }
        }
    }
}
