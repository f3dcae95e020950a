//! The kernels of the shape of a 135M Llama against what this machine can do at most.
//!
//!     cargo bench -p tensor [-- [PATH] [FORMAT] [products] [attention] [shrink] [between]]

mod limits;

use std::sync::Arc;

use limits::{Limits, best};
use tensor::cpu::attention::{self, Cache, Chunk, Heads, Input, PAGE_TOKENS, Query, Scratch};
use tensor::cpu::lora::{self, Adapters, Update};
use tensor::cpu::prepare::{self, Norm, Positions};
use tensor::cpu::sample;
use tensor::cpu::{Cpu, Epilogue, LANES, Matrix, NumberBuffer, Numbers, Path, Pool, Quantised, Rows, row_stride};
use tensor::{Ask, DType, Format, SampleRow, Sampling};

/// Weights that few rows read in turn, in bytes: more than the caches hold.
const STREAMED: usize = 256 << 20;
/// (name, outputs, inputs)
const SITES: [(&str, usize, usize); 5] =
    [("qkv", 960, 576), ("o", 576, 576), ("gate_up", 3072, 576), ("down", 576, 1536), ("head", 49152, 576)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let all = !["products", "attention", "shrink", "between"].into_iter().any(named);
    let paths: Vec<Path> = match Path::ALL.into_iter().find(|path| named(path.name())) {
        Some(path) => vec![path],
        None => Path::ALL.into_iter().filter(|path| path.available() && *path != Path::Portable).collect(),
    };
    let formats = [Format::Plain(DType::F32), Format::Plain(DType::Bf16), Format::Int8];
    let format = formats.into_iter().find(|format| named(format.name())).unwrap_or(Format::Plain(DType::Bf16));
    let pool = Arc::new(Pool::new(std::thread::available_parallelism().map_or(1, usize::from)));
    let limits = limits::measure(&pool);
    println!("threads {}", pool.threads());
    println!("read    {:7.1} GB/s", limits.read / 1e9);
    println!("f32     {:7.1} GFLOP/s", limits.f32 / 1e9);
    println!("bf16    {:7.1} GFLOP/s", limits.bf16 / 1e9);
    println!("int8    {:7.1} GOP/s", limits.int8 / 1e9);
    for path in paths {
        let cpu = Cpu { path, pool: pool.clone() };
        println!(
            "\n{} {}: us, GB/s of weights (% of read), GFLOP/s (% of the instructions' peak)",
            path.name(),
            format.name()
        );
        if all || named("products") {
            products(&cpu, format, limits);
        }
        if all || named("attention") {
            attention(&cpu, format.dtype(), limits);
        }
        if all || named("shrink") {
            shrink(&cpu, format.dtype(), limits);
        }
        if all || named("between") {
            between(&cpu, format.dtype());
        }
    }
}

/// The most that the path's multiply-adds could do.
fn peak(path: Path, format: Format, limits: Limits) -> f64 {
    match (path, format) {
        (Path::Avx512Bf16 | Path::Avx512, Format::Int8) => limits.int8,
        (Path::Avx512Bf16, Format::Plain(DType::Bf16)) => limits.bf16,
        (Path::Avx512Bf16 | Path::Avx512, _) => limits.f32,
        // Half as wide.
        _ => limits.f32 / 2.0,
    }
}

fn numbers(dtype: DType, count: usize) -> NumberBuffer {
    let mut buffer = NumberBuffer::zeroed(dtype, count);
    let value = |n: usize| (n.wrapping_mul(2_654_435_761) >> 7 & 127) as f32 / 64.0 - 1.0;
    match &mut buffer {
        NumberBuffer::F32(data) => data.iter_mut().enumerate().for_each(|(n, x)| *x = value(n)),
        NumberBuffer::Bf16(data) => {
            data.iter_mut().enumerate().for_each(|(n, x)| *x = half::bf16::from_f32(value(n)).to_bits());
        }
    }
    buffer
}

fn products(cpu: &Cpu, format: Format, limits: Limits) {
    let peak = peak(cpu.path, format, limits);
    for (name, outputs, inputs) in SITES {
        let source = numbers(if format == Format::Int8 { DType::F32 } else { format.dtype() }, outputs * inputs);
        let size = if format == Format::Int8 { 1 } else { format.dtype().bytes() };
        let copies = (STREAMED / (outputs * inputs * size)).min(60);
        let matrices: Vec<Matrix> = (0..copies)
            .map(|_| {
                let mut matrix = Matrix::zeroed(format, outputs / LANES, inputs);
                matrix.fill(source.numbers(), 0, 1);
                matrix
            })
            .collect();
        for rows in [1, 8, 32, 512, 2048] {
            if name == "head" && rows > 32 {
                continue;
            }
            let used = if rows > 32 { &matrices[..2] } else { &matrices[..] };
            let x = numbers(cpu.path.activations(format.dtype()), rows * row_stride(inputs));
            let x = Rows { numbers: x.numbers(), rows, stride: row_stride(inputs), quantised: None };
            let mut quantised = Quantised::default();
            let mut y = vec![0.0; rows * outputs];
            let seconds = best(|| {
                for matrix in used {
                    if format == Format::Int8 {
                        quantised.round(cpu, x, inputs);
                    }
                    let epilogue = Epilogue::Store { y: &mut y, stride: outputs, bias: None };
                    matrix.product(cpu, Rows { quantised: Some(&quantised), ..x }, Adapters::NONE, epilogue);
                }
            }) / used.len() as f64;
            let (bytes, operations) = ((outputs * inputs * size) as f64, 2.0 * (outputs * inputs * rows) as f64);
            print(&format!("{name:8} {rows:4} rows"), seconds, (bytes, operations), (limits.read, peak));
        }
    }
}

fn print(what: &str, seconds: f64, (bytes, operations): (f64, f64), (read, peak): (f64, f64)) {
    let percent = |rate: f64, limit: f64| format!("{:6.1} ({:3.0} %)", rate / 1e9, rate / limit * 100.0);
    let (bytes, operations) = (percent(bytes / seconds, read), percent(operations / seconds, peak));
    println!("{what} {:9.1} us  {bytes}  {operations}", seconds * 1e6);
}

/// Rows of sequences in decode, chunks that begin at 0, and a row after a long context.
fn attention(cpu: &Cpu, dtype: DType, limits: Limits) {
    let heads = Heads { heads: 9, kv_heads: 3, head_dim: 64, window: None };
    let pages = 16_384;
    let filled = || {
        let mut cache = Cache::new(dtype, pages, heads);
        cache.fill(numbers(dtype, pages * heads.kv_heads * heads.page_head()));
        cache
    };
    let (k, v) = (filled(), filled());
    let loads: [(usize, usize, usize); 8] = [
        (1, 1, 128),
        (8, 1, 128),
        (32, 1, 128),
        (1, 512, 0),
        (1, 2048, 0),
        (1, 1, 2048),
        (1, 1, 31_744),
        (32, 1, 4096),
    ];
    for (sequences, rows, position) in loads {
        let each = (position + rows).div_ceil(PAGE_TOKENS);
        let tables: Vec<Vec<u32>> =
            (0..sequences).map(|s| (0..each).map(|page| (s * each + page) as u32 % pages as u32).collect()).collect();
        let chunk = |(index, pages)| Chunk { first: index * rows, rows, pages, position };
        let chunks: Vec<Chunk<'_>> = tables.iter().map(Vec::as_slice).enumerate().map(chunk).collect();
        let stride = row_stride(heads.heads * heads.head_dim);
        let q = numbers(cpu.path.activations(dtype), sequences * rows * stride);
        let mut out = NumberBuffer::zeroed(cpu.path.activations(dtype), sequences * rows * stride);
        let (input, mut scratch) = (Input { q: q.numbers(), stride, k: &k, v: &v }, Scratch::default());
        let seconds = best(|| attention::attend(cpu, heads, &chunks, input, &mut out, &mut scratch));
        let seen = sequences * rows * position + sequences * rows * (rows + 1) / 2;
        let width = heads.heads * heads.head_dim;
        let read = sequences * (position + rows) * heads.kv_heads * heads.head_dim * 2 * dtype.bytes();
        let what = format!("attention {sequences:2} x {rows:4} rows at {position:5}");
        let peak = peak(cpu.path, Format::Plain(dtype), limits);
        print(&what, seconds, (read as f64, 4.0 * (seen * width) as f64), (limits.read, peak));
    }
}

/// The shrink of q, k and v: an adapter of each rank for every row.
fn shrink(cpu: &Cpu, dtype: DType, limits: Limits) {
    let (rows, inputs) = (32, 576);
    for rank in [8, 16, 32, 64] {
        let ranks = 3 * rank;
        let size = (ranks * inputs + LANES * dtype.inputs_per_step()).next_multiple_of(64);
        let copies = STREAMED / (size * dtype.bytes() * rows);
        let a = numbers(dtype, size * rows * copies);
        let x = numbers(cpu.path.activations(dtype), rows * row_stride(inputs));
        let x = Rows { numbers: x.numbers(), rows, stride: row_stride(inputs), quantised: None };
        let part = |index: usize| -> Numbers<'_> { a.numbers().slice(index * size..(index + 1) * size) };
        let mut shrunk = NumberBuffer::zeroed(cpu.path.activations(dtype), 0);
        let seconds = best(|| {
            for copy in 0..copies {
                let update = |row| Update { rows: row..row + 1, ranks, a: part(copy * rows + row), modules: [None; 3] };
                let updates: Vec<Update<'_>> = (0..rows).map(update).collect();
                lora::shrink(cpu, &updates, x, inputs, &mut shrunk);
            }
        }) / copies as f64;
        let (bytes, operations) = (rows * ranks * inputs * dtype.bytes(), 2 * rows * ranks * inputs);
        let limits = (limits.read, peak(cpu.path, Format::Plain(dtype), limits));
        print(&format!("shrink of 32 adapters of rank {rank:2}"), seconds, (bytes as f64, operations as f64), limits);
    }
}

/// What lies between the products of a layer, and what ends a step.
fn between(cpu: &Cpu, dtype: DType) {
    let heads = Heads { heads: 9, kv_heads: 3, head_dim: 64, window: None };
    let (hidden, width) = (576, 960);
    let activations = cpu.path.activations(dtype);
    for rows in [1, 8, 32, 512] {
        let pages: Vec<u32> = (0..rows as u32).collect();
        let queries: Vec<Query<'_>> = (0..rows).map(|row| Query { pages: &pages, position: row }).collect();
        let mut x = vec![0.5f32; rows * width];
        let mut y = NumberBuffer::zeroed(activations, rows * row_stride(hidden));
        let weight = vec![1.0; hidden];
        let norm = Norm { weight: &weight, eps: 1e-5 };
        let normed = best(|| {
            prepare::norm(cpu, norm, (&x, hidden), |row| row, (&mut y, row_stride(hidden), rows));
        });
        let (mut k, mut v) = (Cache::new(dtype, rows, heads), Cache::new(dtype, rows, heads));
        let (cos, sin) = (vec![0.8; rows * 32], vec![0.6; rows * 32]);
        let turn = Positions {
            heads,
            queries: &queries,
            cos: &cos,
            sin: &sin,
            q_norm: None,
            k_norm: None,
            k: hidden,
            v: hidden + 192,
        };
        let turned = best(|| {
            prepare::positions(cpu, &turn, (&mut x, width), (&mut y, row_stride(hidden)), (&mut k, &mut v));
        });
        println!("{rows:4} rows: norm {:.1} us, positions {:.1} us", normed * 1e6, turned * 1e6);
    }
    let mut logits: Vec<f32> = (0..49_152u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 20) as f32 / 512.0).collect();
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let nucleus = Sampling { top_p: 0.9, ..Sampling::default() };
    for (what, sampling) in [("greedy", greedy), ("top-p", nucleus), ("any", Sampling::default())] {
        let ask = Ask::Sample(SampleRow {
            sampling: Arc::new(sampling),
            uniform: 0.5,
            counts: None,
            banned: Arc::new([]),
            mask: None,
            top_logprobs: None,
        });
        let seconds = best(|| {
            std::hint::black_box(sample::answer(cpu.path, &ask, &mut logits)).expect("numbers");
        });
        println!("sampling of 49,152 tokens, {what}: {:.1} us", seconds * 1e6);
    }
    let empty = best(|| (0..1_000).for_each(|_| cpu.pool.run(cpu.pool.threads(), &|_| {})));
    println!("a pass that does nothing: {:.2} us", empty * 1e3);
}
