//! A weight as the CPU reads it, packed once at load, and its product with the rows of a step.

use std::ops::Range;

use super::arithmetic::{Arithmetic, Number, blocks, tile, with_rows};
use super::buffer::{NumberBuffer, Shared, SharedNumbers};
use super::int8::{self, Integers, Quantised};
use super::lora::{self, Adapters};
use super::simd::{LANES, Vec16};
use super::{Cpu, Numbers, Path, dispatch};
use crate::{DType, Format};

/// Panels that a pass reads side by side: a pair of them is one stream of memory.
pub(super) const PAIR: usize = 2;
/// Rows whose sums a task computes for each of its pairs before it goes on to the next: they stay in the second-level cache.
pub(super) const TASK_ROWS: usize = 96;
/// Tasks that each thread should find, so that all end at about the same time.
const TASKS_PER_THREAD: usize = 8;
/// Rows that a task looks up.
const GATHER_ROWS: usize = 16;
/// Rows of the widest path's tile.
const MOST_ROWS: usize = 12;
/// How far ahead of the multiply-adds weights are asked for, in bytes: prefetchers stop at every page.
pub(super) const AHEAD: usize = 2048;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// [outputs, inputs] in panels of 16 outputs, two panels side by side: element (o, i) of panel p = o / 16 is at
/// `[p / 2][i / step][p % 2][o % 16][i % step]`, where a step is 1 input of f32, 2 of bf16 and 4 of 8 bits. What is padded is zero.
#[derive(Debug)]
pub struct Matrix {
    panels: usize,
    inputs: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Plain(NumberBuffer),
    Int8(int8::Weights),
}

/// Elements between two rows of activations of that width. A vector past the last is still inside, and rows do not fall on the
/// same lines of the first-level cache.
pub const fn row_stride(width: usize) -> usize {
    let stride = width.next_multiple_of(2 * LANES);
    if stride.is_multiple_of(256) { stride + 2 * LANES } else { stride }
}

impl Matrix {
    /// All zero; `panels` of 16 outputs.
    pub fn zeroed(format: Format, panels: usize, inputs: usize) -> Self {
        let panels = panels.next_multiple_of(PAIR);
        let data = match format {
            Format::Plain(dtype) => {
                let elements = panels * LANES * inputs.next_multiple_of(dtype.inputs_per_step());
                Data::Plain(NumberBuffer::zeroed(dtype, elements))
            }
            Format::Int8 => Data::Int8(int8::Weights::zeroed(panels * LANES, inputs)),
        };
        Self { panels, inputs, data }
    }

    /// Packs row-major [outputs, inputs] into the panels `first`, `first + every`, ...; what becomes 8 bits is given in f32.
    pub fn fill(&mut self, source: Numbers<'_>, first: usize, every: usize) {
        assert!(source.len().is_multiple_of(self.inputs), "a matrix has outputs x inputs elements");
        let (inputs, rows) = (self.inputs, source.len() / self.inputs);
        let last = first + rows.div_ceil(LANES).saturating_sub(1) * every;
        assert!(rows == 0 || last < self.panels, "the rows have panels");
        match (&mut self.data, source) {
            (Data::Plain(NumberBuffer::F32(data)), Numbers::F32(source)) => {
                pack(data, source, inputs, 1, (first, every))
            }
            (Data::Plain(NumberBuffer::Bf16(data)), Numbers::Bf16(source)) => {
                pack(data, source, inputs, 2, (first, every))
            }
            (Data::Int8(weights), Numbers::F32(source)) => {
                for (output, row) in source.chunks_exact(inputs).enumerate() {
                    let (panel, lane) = (first + output / LANES * every, output % LANES);
                    weights.fill(panel * LANES + lane, row, |input| place(panel, lane, input, inputs, Packing::INT8));
                }
            }
            _ => panic!("a matrix is filled with numbers of its type"),
        }
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Outputs, the padded ones too.
    pub fn width(&self) -> usize {
        self.panels * LANES
    }

    pub fn format(&self) -> Format {
        match &self.data {
            Data::Plain(numbers) => Format::Plain(numbers.dtype()),
            Data::Int8(_) => Format::Int8,
        }
    }

    /// y[row] = row `outputs[row]` of the matrix, as f32.
    pub fn gather(&self, cpu: &Cpu, outputs: &[u32], y: &mut [f32], stride: usize) {
        let y = Shared::new(y);
        cpu.pool.run(outputs.len().div_ceil(GATHER_ROWS), &|task| {
            let rows = outputs.iter().enumerate().skip(task * GATHER_ROWS).take(GATHER_ROWS);
            for (row, &output) in rows {
                let output = output as usize;
                // SAFETY: each row is one task's.
                let y = unsafe { y.slice(row * stride, self.inputs) };
                let at = |input, packing| place(output / LANES, output % LANES, input, self.inputs, packing);
                for (input, value) in y.iter_mut().enumerate() {
                    *value = match &self.data {
                        Data::Plain(data) => data.numbers().get(at(input, Packing::of(data.dtype()))),
                        Data::Int8(weights) => weights.get(output, at(input, Packing::INT8)),
                    };
                }
            }
        });
    }

    /// W x for every row, each output one chain of multiply-adds over the inputs in ascending order, then over the ranks of
    /// the row's adapter: the same for one row and for many.
    pub fn product(&self, cpu: &Cpu, x: Rows<'_>, adapters: Adapters<'_>, epilogue: Epilogue<'_>) {
        x.check(self.inputs);
        assert!(self.format() != Format::Int8 || x.quantised.is_some_and(|rounded| rounded.has(x.rows, self.inputs)));
        let pairs = self.panels / PAIR;
        let together = (pairs / (cpu.pool.threads() * TASKS_PER_THREAD)).clamp(1, TASKS_PER_THREAD);
        let (groups, row_tiles) = (pairs.div_ceil(together), x.rows.div_ceil(TASK_ROWS));
        let out = epilogue.share(self.width());
        cpu.pool.run(groups * row_tiles, &|task| {
            let (group, first) = (task % groups, task / groups * TASK_ROWS);
            let task = Task {
                matrix: self,
                x,
                rows: first..x.rows.min(first + TASK_ROWS),
                pairs: group * together..pairs.min((group + 1) * together),
                next: (group + cpu.pool.threads()) * together % pairs,
                adapters,
                out,
            };
            match self.format() {
                Format::Plain(dtype) => cpu.path.product(dtype, task),
                Format::Int8 => cpu.path.product_int8(task),
            }
        });
    }
}

/// How inputs are packed: how many side by side, and up to a multiple of how many.
#[derive(Debug, Clone, Copy)]
struct Packing {
    step: usize,
    multiple: usize,
}

impl Packing {
    const INT8: Self = Self { step: int8::STEP, multiple: int8::GROUP };

    fn of(dtype: DType) -> Self {
        Self { step: dtype.inputs_per_step(), multiple: dtype.inputs_per_step() }
    }
}

/// Where element (lane of a panel, input) is.
fn place(panel: usize, lane: usize, input: usize, inputs: usize, Packing { step, multiple }: Packing) -> usize {
    let pair = panel / PAIR * inputs.next_multiple_of(multiple) * PAIR;
    (pair + input / step * step * PAIR + panel % PAIR * step) * LANES + lane * step + input % step
}

fn pack<T: Copy>(data: &mut [T], source: &[T], inputs: usize, step: usize, (first, every): (usize, usize)) {
    for (panel, rows) in source.chunks(LANES * inputs).enumerate() {
        for (lane, row) in rows.chunks_exact(inputs).enumerate() {
            let start = place(first + panel * every, lane, 0, inputs, Packing { step, multiple: step });
            for (at, values) in row.chunks(step).enumerate() {
                let at = start + at * step * PAIR * LANES;
                data[at..at + values.len()].copy_from_slice(values);
            }
        }
    }
}

/// Rows that are multiplied: [rows, inputs] with a stride, of the type that the path wants.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub numbers: Numbers<'a>,
    pub rows: usize,
    pub stride: usize,
    /// The same rows, rounded: only where the weights have 8 bits.
    pub quantised: Option<&'a Quantised>,
}

impl Rows<'_> {
    /// That all steps of all rows are there: a step may be one input longer than the row.
    pub(super) fn check(&self, inputs: usize) {
        let needed = self.rows.saturating_sub(1) * self.stride + inputs.next_multiple_of(2);
        assert!(self.rows == 0 || self.numbers.len() >= needed, "x is [rows, inputs]");
    }
}

/// What becomes of a product's outputs. `y` has a row for each row of x, with `stride` elements between them.
pub enum Epilogue<'a> {
    /// y = W x + bias
    Store { y: &'a mut [f32], stride: usize, bias: Option<&'a [f32]> },
    /// y += W x + bias
    Add { y: &'a mut [f32], stride: usize, bias: Option<&'a [f32]> },
    /// y = silu(gate) * up, silu(z) = z / (1 + e^-z), where gate and up take turns panel by panel.
    Gate { y: &'a mut NumberBuffer, stride: usize, bias: Option<&'a [f32]> },
}

#[derive(Clone, Copy)]
enum Out<'a> {
    Store { y: Shared<'a, f32>, stride: usize, bias: Option<&'a [f32]> },
    Add { y: Shared<'a, f32>, stride: usize, bias: Option<&'a [f32]> },
    Gate { y: SharedNumbers<'a>, stride: usize, bias: Option<&'a [f32]> },
}

impl<'a> Epilogue<'a> {
    fn share(self, width: usize) -> Out<'a> {
        let (Self::Store { bias, .. } | Self::Add { bias, .. } | Self::Gate { bias, .. }) = &self;
        assert!(bias.is_none_or(|bias| bias.len() >= width), "a bias has a value for each output");
        match self {
            Self::Store { y, stride, bias } => Out::Store { y: Shared::new(y), stride, bias },
            Self::Add { y, stride, bias } => Out::Add { y: Shared::new(y), stride, bias },
            Self::Gate { y, stride, bias } => Out::Gate { y: y.shared(), stride, bias },
        }
    }
}

/// Outputs of a pair of panels for the rows of a tile.
#[repr(align(64))]
pub(super) struct Sums(pub(super) [[f32; PAIR * LANES]; MOST_ROWS]);

struct Task<'a> {
    matrix: &'a Matrix,
    x: Rows<'a>,
    rows: Range<usize>,
    pairs: Range<usize>,
    /// The pair that a thread reads after these.
    next: usize,
    adapters: Adapters<'a>,
    out: Out<'a>,
}

dispatch!(product, Task<'_>);

impl Path {
    fn product_int8(self, task: Task<'_>) {
        #[cfg(target_arch = "x86_64")]
        {
            use super::arithmetic::{Dot, Widened};
            use super::simd::{Avx2, Avx512};
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")]
            unsafe fn avx512_bf16(task: Task<'_>) {
                // SAFETY: the features are enabled here.
                unsafe { task.with::<Dot, int8::Vnni>() }
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn avx512(task: Task<'_>) {
                // SAFETY: the features are enabled here.
                unsafe { task.with::<Widened<Avx512>, int8::Vnni>() }
            }
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(task: Task<'_>) {
                // SAFETY: the features are enabled here.
                unsafe { task.with::<Widened<Avx2>, int8::Madd>() }
            }
            match self {
                // SAFETY: a path is only used where `available` said so.
                Self::Avx512Bf16 => return unsafe { avx512_bf16(task) },
                // SAFETY: as above, and it was looked for.
                Self::Avx512 if is_x86_feature_detected!("avx512vnni") => return unsafe { avx512(task) },
                // SAFETY: as above; whatever has AVX-512 has AVX2, and integers give the same sums.
                Self::Avx512 | Self::Avx2 => return unsafe { avx2(task) },
                Self::Portable => {}
            }
        }
        // SAFETY: the portable path needs nothing.
        unsafe { task.with::<super::arithmetic::Widened<super::simd::Portable>, int8::Plain>() }
    }
}

impl Task<'_> {
    #[inline(always)]
    unsafe fn run<A: Arithmetic>(self) {
        let Data::Plain(numbers) = &self.matrix.data else { unreachable!("8 bits have a kernel of their own") };
        let data = A::W::of(numbers.numbers());
        for pair in self.pairs.clone() {
            for (index, (first, rows)) in self.tiles::<A>(pair, A::V::TILE_ROWS).enumerate() {
                let mut sums = Sums([[0.0; PAIR * LANES]; MOST_ROWS]);
                let next = self.next(pair, index, bytemuck::cast_slice(data));
                // SAFETY: the caller has the path's instruction set, and the rows are rows of x and y.
                unsafe {
                    with_rows!(rows, A::V::TILE_ROWS, N => self.base::<A, N>(data, (pair, next), first, &mut sums));
                    self.finish::<A>(pair, first, &mut sums.0[..rows]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn with<A: Arithmetic, I: Integers>(self) {
        let (Data::Int8(weights), Some(x)) = (&self.matrix.data, self.x.quantised) else {
            unreachable!("8 bits meet rounded rows")
        };
        for pair in self.pairs.clone() {
            for (index, (first, rows)) in self.tiles::<A>(pair, I::TILE_ROWS).enumerate() {
                let mut sums = Sums([[0.0; PAIR * LANES]; MOST_ROWS]);
                let next = self.next(pair, index, &weights.bytes);
                // SAFETY: as above.
                unsafe {
                    let at = (self.matrix.inputs, pair);
                    with_rows!(rows, I::TILE_ROWS, N => int8::tile::<I, N>(weights, x, at, first, next, &mut sums));
                    self.finish::<A>(pair, first, &mut sums.0[..rows]);
                }
            }
        }
    }

    /// The tiles of a pair, as (first row, rows).
    #[inline(always)]
    fn tiles<A: Arithmetic>(&self, pair: usize, most: usize) -> impl Iterator<Item = (usize, usize)> + use<A> {
        // SAFETY: asks for memory only.
        unsafe { lora::prefetch::<A>(&self.adapters, &self.rows, pair * PAIR..(pair + 1) * PAIR) };
        let start = self.rows.start;
        blocks(self.rows.len(), most).map(move |(first, rows)| (start + first, rows))
    }

    /// Which part of the pair after this one a tile asks for while it computes: by turns the first and the second half, a line
    /// a step, so that memory is not idle while the later tiles read what the first one has brought.
    #[inline(always)]
    fn next(&self, pair: usize, tile: usize, data: &[u8]) -> *const u8 {
        let next = if pair + 1 < self.pairs.end { pair + 1 } else { self.next };
        let size = data.len() / (self.matrix.panels / PAIR);
        data.as_ptr().wrapping_add(next * size + tile % 2 * size / 2)
    }

    /// What the base weights contribute to `N` rows of a pair of panels.
    #[inline(always)]
    unsafe fn base<A: Arithmetic, const N: usize>(
        &self,
        data: &[A::W],
        (pair, next): (usize, *const u8),
        row: usize,
        sums: &mut Sums,
    ) {
        let steps = self.matrix.inputs.div_ceil(A::STEP);
        let stride = PAIR * LANES * A::STEP;
        // SAFETY: all addresses below lie in the weights and in x, as their lengths were checked by `product`.
        unsafe {
            let x = A::X::of(self.x.numbers).as_ptr();
            let mut rows = [x; N];
            for (i, place) in rows.iter_mut().enumerate() {
                *place = x.add((row + i) * self.x.stride);
            }
            let w = data.as_ptr().add(pair * steps * stride);
            let mut live = [[A::V::splat(0.0); PAIR]; N];
            let w = [w, w.add(LANES * A::STEP)];
            tile::<A, N, PAIR, AHEAD, LINE>(&mut live, rows, w, stride, steps, next);
            for (sums, live) in sums.0.iter_mut().zip(live) {
                live[0].store(sums.as_mut_ptr());
                live[1].store(sums.as_mut_ptr().add(LANES));
            }
        }
    }

    /// Adds what the adapters contribute, and writes the outputs.
    #[inline(always)]
    unsafe fn finish<A: Arithmetic>(&self, pair: usize, row: usize, sums: &mut [[f32; PAIR * LANES]]) {
        // SAFETY: the rows are rows of y.
        unsafe {
            for panel in 0..PAIR {
                lora::expand::<A>(&self.adapters, row, pair * PAIR + panel, panel * LANES, sums);
            }
            for (i, sums) in sums.iter().enumerate() {
                let (low, high) = (A::V::load(sums.as_ptr()), A::V::load(sums.as_ptr().add(LANES)));
                self.write::<A>(row + i, pair, [low, high]);
            }
        }
    }

    #[inline(always)]
    unsafe fn write<A: Arithmetic>(&self, row: usize, pair: usize, mut sums: [A::V; PAIR]) {
        let at = pair * PAIR * LANES;
        let (Out::Store { bias, .. } | Out::Add { bias, .. } | Out::Gate { bias, .. }) = self.out;
        // SAFETY: outputs of different tasks are disjoint; slices are as long as what is loaded and stored.
        unsafe {
            if let Some(bias) = bias {
                let bias = bias[at..at + PAIR * LANES].as_ptr();
                sums = [sums[0].add(A::V::load(bias)), sums[1].add(A::V::load(bias.add(LANES)))];
            }
            match self.out {
                Out::Store { y, stride, .. } => {
                    let y = y.slice(row * stride + at, PAIR * LANES).as_mut_ptr();
                    sums[0].store(y);
                    sums[1].store(y.add(LANES));
                }
                Out::Add { y, stride, .. } => {
                    let y = y.slice(row * stride + at, PAIR * LANES).as_mut_ptr();
                    A::V::load(y).add(sums[0]).store(y);
                    A::V::load(y.add(LANES)).add(sums[1]).store(y.add(LANES));
                }
                Out::Gate { y, stride, .. } => {
                    let y = A::X::part(y, row * stride + pair * LANES, LANES);
                    let [gate, up] = sums;
                    let power = gate.mul(A::V::splat(-std::f32::consts::LOG2_E)).exp2();
                    let active = gate.div(A::V::splat(1.0).add(power)).mul(up);
                    A::X::store(active, y.as_mut_ptr());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Path, Pool};
    use super::*;

    /// Numbers from a place, in [-1, 1), exact in bf16.
    fn number(n: usize) -> f32 {
        (n.wrapping_mul(2_654_435_761) >> 7 & 127) as f32 / 64.0 - 1.0
    }

    fn rows(dtype: DType, rows: usize, width: usize) -> NumberBuffer {
        let mut buffer = NumberBuffer::zeroed(dtype, rows * row_stride(width));
        for row in 0..rows {
            for at in 0..width {
                let (place, value) = (row * row_stride(width) + at, number(row * width + at + 9));
                match &mut buffer {
                    NumberBuffer::F32(data) => data[place] = value,
                    NumberBuffer::Bf16(data) => data[place] = Number::round(value),
                }
            }
        }
        buffer
    }

    fn product(cpu: &Cpu, matrix: &Matrix, count: usize) -> Vec<f32> {
        let x = rows(cpu.path.activations(matrix.format().dtype()), count, matrix.inputs());
        let mut y = vec![0.0; count * matrix.width()];
        let stride = row_stride(matrix.inputs());
        let x = Rows { numbers: x.numbers(), rows: count, stride, quantised: None };
        let mut quantised = Quantised::default();
        quantised.round(cpu, x, matrix.inputs());
        let epilogue = Epilogue::Store { y: &mut y, stride: matrix.width(), bias: None };
        matrix.product(cpu, Rows { quantised: Some(&quantised), ..x }, Adapters::NONE, epilogue);
        y
    }

    #[test]
    fn a_row_has_the_same_product_alone_and_among_others_and_nearly_the_same_on_every_path() {
        let (outputs, inputs) = (50, 75);
        let source: Vec<f32> = (0..outputs * inputs).map(number).collect();
        let halves: Vec<u16> = source.iter().map(|&value| Number::round(value)).collect();
        for format in [Format::Plain(DType::F32), Format::Plain(DType::Bf16), Format::Int8] {
            let mut matrix = Matrix::zeroed(format, 4, inputs);
            let halved = format == Format::Plain(DType::Bf16);
            matrix.fill(if halved { Numbers::Bf16(&halves) } else { Numbers::F32(&source) }, 0, 1);
            // 8 bits are off by half a step of their scale in each of the inputs.
            let (element, sum) = if format == Format::Int8 { (0.5 / 127.0 + 1e-6, 0.2) } else { (0.0, 1e-4) };
            let (cpu, mut row) = (Cpu { path: Path::Portable, pool: Arc::new(Pool::new(1)) }, vec![0.0; inputs]);
            matrix.gather(&cpu, &[37], &mut row, inputs);
            let exact = &source[37 * inputs..38 * inputs];
            assert!(row.iter().zip(exact).all(|(a, b)| (a - b).abs() <= element), "{row:?}");
            let mut before: Option<Vec<f32>> = None;
            for path in Path::ALL.into_iter().filter(|path| path.available()) {
                let cpu = Cpu { path, pool: Arc::new(Pool::new(2)) };
                let many = product(&cpu, &matrix, 131);
                for count in [1, 2, 7, 12, 25] {
                    assert_eq!(many[..count * matrix.width()], product(&cpu, &matrix, count), "{count} rows");
                }
                for (at, found) in many.iter().enumerate() {
                    let (row, output) = (at / matrix.width(), at % matrix.width());
                    let term = |input| number(row * inputs + input + 9) * number(output * inputs + input);
                    let expected: f32 = if output < outputs { (0..inputs).map(term).sum() } else { 0.0 };
                    assert!((found - expected).abs() < sum, "{} {row} {output}: {found}, {expected}", path.name());
                }
                let other = before.replace(many.clone()).unwrap_or(many.clone());
                assert!(many.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-4), "{} differs", path.name());
            }
        }
    }
}
