//! A weight as the CPU reads it: panels of 16 outputs, inputs running inside a panel, packed once at load.

use half::bf16;

use super::simd::{LANES, Vec16};
use crate::DType;

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

/// [outputs, inputs], packed: element (o, i) is at `(o / 16 * inputs + i) * 16 + o % 16`; the last panel is padded with zeros.
#[derive(Debug)]
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    data: Data,
}

impl Matrix {
    /// Packs row-major [outputs, inputs].
    pub fn pack_f32(source: &[f32], outputs: usize, inputs: usize) -> Self {
        Self { outputs, inputs, data: Data::F32(pack(source, outputs, inputs)) }
    }

    pub fn pack_bf16(source: &[bf16], outputs: usize, inputs: usize) -> Self {
        Self { outputs, inputs, data: Data::Bf16(pack(bytemuck::cast_slice(source), outputs, inputs)) }
    }
}

fn pack<T: Copy + Default>(source: &[T], outputs: usize, inputs: usize) -> Vec<T> {
    assert_eq!(source.len(), outputs * inputs, "a matrix has outputs x inputs elements");
    let mut packed = vec![T::default(); outputs.div_ceil(LANES) * LANES * inputs];
    for (output, row) in source.chunks_exact(inputs.max(1)).enumerate() {
        let panel = &mut packed[output / LANES * inputs * LANES..];
        for (input, &value) in row.iter().enumerate() {
            panel[input * LANES + output % LANES] = value;
        }
    }
    packed
}

/// Rows of activations that one pass over a panel serves.
const ROWS: usize = 6;
/// Panels that one pass reads side by side.
const PANELS: usize = 4;
/// Rows of a tile: what a thread claims at once is this many rows by `PANELS` panels.
const TILE_ROWS: usize = 48;

/// Where a product goes.
pub struct Output<'a> {
    pub y: &'a mut [f32],
    /// Elements between two rows of `y`.
    pub stride: usize,
    /// Added to every row.
    pub bias: Option<&'a [f32]>,
}

impl Matrix {
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => data.len() * 4,
            Data::Bf16(data) => data.len() * 2,
        }
    }

    /// Row `output` of the matrix, as f32.
    pub fn row(&self, output: usize, into: &mut [f32]) {
        let panel = output / LANES * self.inputs * LANES + output % LANES;
        for (input, value) in into.iter_mut().enumerate().take(self.inputs) {
            let at = panel + input * LANES;
            *value = match &self.data {
                Data::F32(data) => data[at],
                Data::Bf16(data) => f32::from_bits(u32::from(data[at]) << 16),
            };
        }
    }

    pub fn dtype(&self) -> DType {
        match &self.data {
            Data::F32(_) => DType::F32,
            Data::Bf16(_) => DType::Bf16,
        }
    }

    /// y[row] = x[row] W^T (+ bias), x is [rows, inputs] and y [rows, outputs] with a stride.
    ///
    /// Each output is one chain of multiply-adds over the inputs in ascending order: the same for one row and for many.
    pub fn product(&self, cpu: &super::Cpu, x: &[f32], rows: usize, output: Output<'_>) {
        assert!(x.len() >= rows * self.inputs, "x is [rows, inputs]");
        assert!(rows == 0 || output.y.len() >= (rows - 1) * output.stride + self.outputs, "y is [rows, outputs]");
        let groups = self.outputs.div_ceil(LANES * PANELS);
        let row_tiles = rows.div_ceil(TILE_ROWS);
        let y = Shared::new(output.y);
        cpu.pool.run(groups * row_tiles, &|task| {
            let (group, tile) = (task % groups, task / groups);
            let first = tile * TILE_ROWS;
            let tile = Tile {
                matrix: self,
                x: &x[first * self.inputs..],
                rows: TILE_ROWS.min(rows - first),
                group,
                // SAFETY: tiles are disjoint parts of y, whose length was checked.
                y: unsafe { y.at(first * output.stride) },
                stride: output.stride,
                bias: output.bias,
            };
            cpu.path.product(&tile);
        });
    }
}

/// A buffer that the tasks of one pass share: each writes its own part.
pub(super) struct Shared {
    start: *mut f32,
    len: usize,
}
// SAFETY: tasks write disjoint parts.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(buffer: &mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len() }
    }

    /// # Safety
    /// As for `slice`, of everything that is written from there on.
    unsafe fn at(&self, at: usize) -> *mut f32 {
        assert!(at <= self.len, "a task's part lies in the buffer");
        // SAFETY: in bounds by the assertion.
        unsafe { self.start.add(at) }
    }

    /// # Safety
    /// No two live slices of one pass may overlap, and the buffer must outlive them.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at + len <= self.len, "a task's part lies in the buffer");
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

pub(super) struct Tile<'a> {
    matrix: &'a Matrix,
    x: &'a [f32],
    rows: usize,
    group: usize,
    y: *mut f32,
    stride: usize,
    bias: Option<&'a [f32]>,
}

impl Tile<'_> {
    #[inline(always)]
    pub(super) unsafe fn run<V: Vec16>(&self) {
        match &self.matrix.data {
            // SAFETY: the caller has the path's instruction set.
            Data::F32(data) => unsafe { self.rows::<V, f32>(data) },
            // SAFETY: the same.
            Data::Bf16(data) => unsafe { self.rows::<V, u16>(data) },
        }
    }

    #[inline(always)]
    unsafe fn rows<V: Vec16, W: Weight>(&self, data: &[W]) {
        let mut row = 0;
        while row < self.rows {
            let left = self.rows - row;
            // SAFETY: `row + n <= rows`.
            unsafe {
                row += match left {
                    1 => self.block::<V, W, 1>(data, row),
                    2 => self.block::<V, W, 2>(data, row),
                    3 => self.block::<V, W, 3>(data, row),
                    4 => self.block::<V, W, 4>(data, row),
                    5 => self.block::<V, W, 5>(data, row),
                    _ => self.block::<V, W, ROWS>(data, row),
                };
            }
        }
    }

    #[inline(always)]
    unsafe fn block<V: Vec16, W: Weight, const N: usize>(&self, data: &[W], row: usize) -> usize {
        let inputs = self.matrix.inputs;
        let panels = self.matrix.outputs.div_ceil(LANES);
        let first = self.group * PANELS;
        // SAFETY: all addresses below lie in `data`, `x` and `y` as their lengths were checked by `product`.
        unsafe {
            let mut sums = [[V::splat(0.0); PANELS]; N];
            let x: [*const f32; N] = std::array::from_fn(|i| self.x.as_ptr().add((row + i) * inputs));
            // A group at the edge reads its last panel more than once and writes it once.
            let w: [*const W; PANELS] =
                std::array::from_fn(|j| data.as_ptr().add((first + j).min(panels - 1) * inputs * LANES));
            for k in 0..inputs {
                let weights: [V; PANELS] = std::array::from_fn(|j| W::load::<V>(w[j].add(k * LANES)));
                for i in 0..N {
                    let value = V::splat(*x[i].add(k));
                    for j in 0..PANELS {
                        sums[i][j] = sums[i][j].fma(value, weights[j]);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate().take(panels - first) {
                    self.write(*sum, row + i, (first + j) * LANES);
                }
            }
        }
        N
    }

    #[inline(always)]
    unsafe fn write<V: Vec16>(&self, sum: V, row: usize, output: usize) {
        let mut lanes = [0f32; LANES];
        // SAFETY: `lanes` has LANES elements, and only outputs that exist are written.
        unsafe {
            sum.store(lanes.as_mut_ptr());
            let y = self.y.add(row * self.stride + output);
            for (lane, &value) in lanes.iter().enumerate().take(self.matrix.outputs - output) {
                *y.add(lane) = value + self.bias.map_or(0.0, |bias| bias[output + lane]);
            }
        }
    }
}

/// An element of a packed matrix.
trait Weight: Copy {
    unsafe fn load<V: Vec16>(from: *const Self) -> V;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<V: Vec16>(from: *const Self) -> V {
        // SAFETY: passed on to the caller.
        unsafe { V::load(from) }
    }
}

impl Weight for u16 {
    #[inline(always)]
    unsafe fn load<V: Vec16>(from: *const Self) -> V {
        // SAFETY: passed on to the caller.
        unsafe { V::load_bf16(from) }
    }
}
