//! Whole steps of a 135M Llama with random weights, in process.
//!
//!     cargo bench -p model [-- [PATH] [FORMAT] [decode] [adapters] [mixed] [prefill] [context] [load]]

mod model;

use std::sync::Arc;
use std::time::Instant;

use ::model::{
    Ask, CpuExecutor, DType, Executor, Format, LoadOptions, PageTable, Runs, SampleRow, Sampling, Slot, Step,
};
use tensor::cpu::{Cpu, Path as CpuPath, Pool};

const PAGE: usize = 16;
/// Tokens that a sequence has before it is measured.
const CONTEXT: usize = 128;
/// The best of so many rounds counts: others on the machine can only slow one down.
const ROUNDS: usize = 3;
const SLOTS: u32 = 32;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let path = CpuPath::ALL.into_iter().find(|path| named(path.name())).unwrap_or(CpuPath::detect());
    let formats = [Format::Plain(DType::F32), Format::Int8];
    let format = formats.into_iter().find(|format| named(format.name())).unwrap_or(Format::Plain(DType::Bf16));
    let parts = ["decode", "adapters", "mixed", "prefill", "context", "load"];
    let all = !parts.iter().any(|part| named(part));
    let wanted = |part: &str| all || named(part);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = Cpu { path, pool: Arc::new(Pool::new(threads)) };
    let options = LoadOptions { format: Some(format), kv_bytes: 1 << 30, slots: SLOTS };
    let folder = model::folder();
    let start = Instant::now();
    let mut bench = Bench { executor: ::model::load(&folder, &options, &cpu).expect("the model loads") };
    println!("{} {} {threads} threads", path.name(), format.name());
    if wanted("load") {
        println!("load: {:.2} s", start.elapsed().as_secs_f64());
    }
    if wanted("decode") {
        for rows in [1, 8, 32] {
            bench.decode(rows, "no adapter", &vec![0; rows]);
        }
    }
    if wanted("adapters") {
        bench.bind(&[16; SLOTS as usize]);
        for rows in [1, 8, 32] {
            bench.decode(rows, "one adapter", &vec![1; rows]);
            bench.decode(rows, "an adapter each", &(1..=rows as u32).collect::<Vec<_>>());
        }
        bench.decode(8, "7 of 8 with an adapter", &[0, 1, 2, 3, 4, 5, 6, 7]);
    }
    if wanted("mixed") {
        for ranks in [[8; 8], [16; 8], [32; 8], [64; 8], [8, 16, 32, 64, 8, 16, 32, 64]] {
            bench.bind(&ranks);
            bench.decode(8, &format!("ranks {ranks:?}"), &(1..=8).collect::<Vec<_>>());
        }
    }
    if wanted("prefill") {
        for rows in [16, 512, 2048] {
            bench.prefill(rows, Slot::BASE);
        }
        bench.bind(&[16]);
        bench.prefill(512, Slot(1));
    }
    if wanted("context") {
        for context in [2_048, 8_192, 31_744] {
            bench.context(context);
        }
    }
}

struct Bench {
    executor: CpuExecutor,
}

/// A sequence's row or rows of a step.
struct Part {
    pages: PageTable,
    position: usize,
    rows: usize,
    slot: Slot,
}

fn greedy() -> Ask {
    Ask::Sample(SampleRow {
        sampling: Arc::new(Sampling { temperature: 0.0, ..Sampling::default() }),
        uniform: 0.0,
        counts: None,
        banned: Arc::new([]),
        mask: None,
        top_logprobs: None,
    })
}

impl Bench {
    fn bind(&mut self, ranks: &[usize]) {
        for (index, &rank) in ranks.iter().enumerate() {
            let image = model::adapter(index as u64, rank, self.executor.dtype());
            self.executor.bind(Slot(index as u32 + 1), image).expect("the adapter fits");
        }
    }

    /// One step; the last row of every part is asked.
    fn step(&mut self, parts: &[Part]) {
        let mut step = Step::default();
        for part in parts {
            for position in part.position..part.position + part.rows {
                step.tokens.push((position * 7_919 % model::VOCABULARY) as u32);
                step.positions.push(position as u32);
            }
            step.sequences.push(part.rows as u32, part.pages.clone());
            step.slots.extend(part.rows as u32, part.slot);
            step.asks.push((step.tokens.len() as u32 - 1, greedy()));
        }
        let (mut sequences, mut slots) = (Runs::new(), Runs::new());
        std::mem::swap(&mut sequences, &mut step.sequences);
        std::mem::swap(&mut slots, &mut step.slots);
        let ticket = self.executor.submit(Step { sequences, slots, ..step }).expect("the step is sound");
        self.executor.collect(ticket).expect("it was submitted");
    }

    fn pages(sequence: usize, tokens: usize) -> PageTable {
        let each = tokens.div_ceil(PAGE);
        (0..each).map(|page| (sequence * each + page) as u32).collect::<Vec<_>>().into()
    }

    /// Generated tokens per second of `rows` sequences, each after `CONTEXT` tokens.
    fn decode(&mut self, rows: usize, what: &str, slots: &[u32]) {
        let steps = 8;
        let part = |sequence: usize, position, rows| Part {
            pages: Self::pages(sequence, 2 * CONTEXT),
            position,
            rows,
            slot: Slot(slots[sequence]),
        };
        for sequence in 0..rows {
            self.step(&[part(sequence, 0, CONTEXT)]);
        }
        let mut best = f64::INFINITY;
        for round in 0..ROUNDS * 2 {
            let start = Instant::now();
            for step in 0..steps {
                let parts: Vec<Part> = (0..rows).map(|s| part(s, CONTEXT + round * steps + step, 1)).collect();
                self.step(&parts);
            }
            best = best.min(start.elapsed().as_secs_f64() / steps as f64);
        }
        println!("decode {rows:2} rows, {what}: {:8.2} ms {:8.1} tokens/s", best * 1e3, rows as f64 / best);
    }

    fn prefill(&mut self, rows: usize, slot: Slot) {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            self.step(&[Part { pages: Self::pages(0, rows), position: 0, rows, slot }]);
            best = best.min(start.elapsed().as_secs_f64());
        }
        let shape = self.executor.shape();
        let linears: usize = ::model::Linear::ALL.iter().map(|&l| shape.linear(l).0 * shape.linear(l).1).sum();
        let attention = rows * shape.heads * shape.head_dim;
        let operations = 2.0 * (rows * shape.layers) as f64 * (linears + attention) as f64;
        println!(
            "prefill {rows} rows, slot {}: {:.1} ms {:.1} tokens/s {:.1} GFLOP/s",
            slot.0,
            best * 1e3,
            rows as f64 / best,
            operations / best / 1e9
        );
    }

    /// A row after a long context, and a chunk that ends it.
    fn context(&mut self, context: usize) {
        let pages = Self::pages(0, context + 1_024);
        let part = |position, rows| Part { pages: pages.clone(), position, rows, slot: Slot::BASE };
        // What is in the pages does not matter for the time, as long as it is numbers.
        let time = |bench: &mut Self, rows| {
            let start = Instant::now();
            bench.step(&[part(context, rows)]);
            start.elapsed().as_secs_f64()
        };
        let best = (0..ROUNDS).map(|_| time(self, 1)).fold(f64::INFINITY, f64::min);
        let chunk = time(self, 256);
        println!("context {context}: a row {:.2} ms, a chunk of 256 {:.1} ms", best * 1e3, chunk * 1e3);
    }
}
