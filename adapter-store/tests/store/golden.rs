//! Fidelity: every family and every kind of adapter against what transformers and peft answered (`tests/oracle`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use adapter_store::{PeftConfig, tensors};
use model::{
    AdapterImage, Ask, CpuExecutor, DType, Executor, Format, ImageBuilder, LoadOptions, ModelConfig, PageTable,
    RowOutput, Runs, SampleRow, Sampling, Slot, Step,
};
use platform::Digest;
use safetensors::SafeTensors;
use serde_json::Value;
use tensor::cpu::{Cpu, Path as CpuPath, Pool};

/// Largest error of a log-probability that is allowed, in f32.
const TOLERANCE: f32 = 1e-3;
const WHOLE: Format = Format::Plain(DType::F32);
const HALF: Format = Format::Plain(DType::Bf16);
/// How much worse than transformers' own bf16 ours may be.
const BF16_MARGIN: f64 = 1.1;

fn models() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/fixtures/models");
    let mut models: Vec<PathBuf> = std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    assert!(models.len() >= 7, "the oracle's fixtures are incomplete");
    models
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

fn load(folder: &Path, format: Format, path: CpuPath) -> CpuExecutor {
    let cpu = Cpu { path, pool: Arc::new(Pool::new(2)) };
    model::load(folder, &LoadOptions { format: Some(format), kv_bytes: 8 << 20, slots: 1 }, &cpu).unwrap()
}

/// The image of a PEFT folder, read and bound as an upload is.
fn image(folder: &Path, executor: &CpuExecutor) -> Arc<AdapterImage> {
    let config = PeftConfig::parse(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let target = tensors::Target { id: "base", shape: executor.shape() };
    let bound = tensors::bind(&weights, &config, target).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut builder = ImageBuilder::new(executor.shape(), executor.dtype());
    for ((layer, linear), pair) in bound.pairs {
        builder.add(layer, linear, pair).unwrap();
    }
    let image = builder.finish(Digest::of(b"adapter"));
    // Through its stored form, as a restart reads it.
    AdapterImage::from_bytes(&image.to_bytes()).unwrap()
}

/// One sequence on an executor.
struct Sequence<'a> {
    executor: &'a mut CpuExecutor,
    pages: PageTable,
    slot: Slot,
    length: u32,
}

impl Sequence<'_> {
    fn step(&mut self, tokens: &[u32], asks: Vec<(u32, Ask)>) -> Vec<RowOutput> {
        let rows = tokens.len() as u32;
        let (mut sequences, mut slots) = (Runs::new(), Runs::new());
        sequences.push(rows, self.pages.clone());
        slots.push(rows, self.slot);
        let positions = (self.length..self.length + rows).collect();
        self.length += rows;
        let ticket = self.executor.submit(Step { tokens: tokens.to_vec(), positions, sequences, slots, asks }).unwrap();
        self.executor.collect(ticket).unwrap().into_iter().map(Result::unwrap).collect()
    }
}

fn greedy() -> Ask {
    Ask::Sample(SampleRow {
        sampling: Arc::new(Sampling { temperature: 0.0, ..Sampling::default() }),
        uniform: 0.0,
        counts: None,
        banned: Arc::new([]),
        mask: None,
        top_logprobs: Some(u16::MAX),
    })
}

/// Log-probabilities [prompt, vocabulary] of the prompt's positions, then `count` greedy tokens.
fn run(executor: &mut CpuExecutor, slot: Slot, prompt: &[u32], count: usize) -> (Vec<Vec<f32>>, Vec<u32>) {
    let vocabulary = executor.shape().vocabulary;
    assert!(vocabulary <= usize::from(u16::MAX), "all of a fixture's log-probabilities can be asked for");
    let pages: PageTable = (0..16).collect::<Vec<u32>>().into();
    let mut sequence = Sequence { executor, pages, slot, length: 0 };
    let last = prompt.len() as u32 - 1;
    let score = |row: u32| (row, Ask::Score { target: 0, top_logprobs: u16::MAX });
    let mut asks: Vec<(u32, Ask)> = (0..last).map(score).collect();
    asks.push((last, greedy()));
    // In two chunks that end within a page, as a scheduler might cut it.
    let cut = (prompt.len() / 3) as u32;
    let later = asks.split_off(cut as usize).into_iter().map(|(row, ask)| (row - cut, ask)).collect();
    let mut outputs = sequence.step(&prompt[..cut as usize], asks);
    outputs.extend(sequence.step(&prompt[cut as usize..], later));
    let mut drawn = vec![outputs[last as usize].token];
    while drawn.len() < count {
        let output = sequence.step(&[drawn[drawn.len() - 1]], vec![(0, greedy())]);
        drawn.push(output[0].token);
    }
    let dense = |output: &RowOutput| {
        let mut row = vec![f32::NAN; vocabulary];
        output.top.iter().for_each(|&(token, logprob)| row[token as usize] = logprob);
        row
    };
    (outputs.iter().map(dense).collect(), drawn)
}

/// What the oracle wrote of a case: log-probabilities [prompt, vocabulary].
fn expected(folder: &Path, case: &str, vocabulary: usize) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(folder.join(format!("expected/{case}.safetensors"))).unwrap();
    let logits = SafeTensors::deserialize(&bytes).unwrap();
    let logits: Vec<f32> =
        logits.tensor("logits").unwrap().data().as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect();
    let normal = |row: &[f32]| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        row.iter().map(|&logit| logit - largest - sum.ln() as f32).collect()
    };
    logits.chunks_exact(vocabulary).map(normal).collect()
}

fn check(folder: &Path, case: &str, executor: &mut CpuExecutor, slot: Slot) -> f32 {
    let known = json(&folder.join(format!("expected/{case}.json")));
    let (prompt, tokens) = (tokens(&known["prompt"]), tokens(&known["greedy"]));
    let (found, drawn) = run(executor, slot, &prompt, tokens.len());
    let expected = expected(folder, case, executor.shape().vocabulary);
    assert_eq!(found.len(), expected.len());
    let error = found.iter().flatten().zip(expected.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error <= TOLERANCE, "{} {case}: a log-probability is off by {error}", folder.display());
    assert_eq!(drawn, tokens, "{} {case}: greedy tokens differ", folder.display());
    error
}

fn adapters(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder.join("adapters")) else { return Vec::new() };
    let mut adapters: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    adapters.sort();
    adapters
}

#[test]
fn every_family_and_kind_of_adapter_answers_as_the_reference_does() {
    let mut cases = 0;
    for folder in models() {
        for path in CpuPath::ALL.into_iter().filter(|path| path.available()) {
            let mut executor = load(&folder, WHOLE, path);
            let mut worst = check(&folder, "base", &mut executor, Slot::BASE);
            for adapter in adapters(&folder) {
                let image = image(&adapter, &executor);
                executor.bind(Slot(1), image).unwrap();
                let case = adapter.file_name().unwrap().to_str().unwrap();
                worst = worst.max(check(&folder, case, &mut executor, Slot(1)));
                cases += 1;
            }
            println!("{} {}: largest error {worst:.1e}", folder.file_name().unwrap().to_string_lossy(), path.name());
        }
    }
    assert!(cases >= 10, "only {cases} adapters were checked");
}

#[test]
fn bf16_is_as_near_to_f32_as_transformers_own_on_every_path() {
    for folder in models() {
        let known = json(&folder.join("expected/bf16.json"));
        let mut whole = load(&folder, WHOLE, CpuPath::detect());
        for path in CpuPath::ALL.into_iter().filter(|path| path.available()) {
            let mut half = load(&folder, HALF, path);
            // The widening paths differ in nothing but the order of a lane's arithmetic: one of them reads all prompts.
            let few = path != CpuPath::detect() && path != CpuPath::Avx512Bf16;
            for (case, reference) in known["cases"].as_object().unwrap() {
                let slot = if case == "base" { Slot::BASE } else { Slot(1) };
                if slot != Slot::BASE {
                    let adapter = folder.join("adapters").join(case);
                    for executor in [&mut whole, &mut half] {
                        let image = image(&adapter, executor);
                        executor.bind(slot, image).unwrap();
                    }
                }
                let prompts: Vec<Vec<u32>> = known["prompts"].as_array().unwrap().iter().map(tokens).collect();
                let read = if few { prompts.len().div_ceil(8) } else { prompts.len() };
                let (mut sum, mut positions) = (0.0, 0);
                for prompt in &prompts[..read] {
                    let (p, _) = run(&mut whole, slot, prompt, 1);
                    let (q, _) = run(&mut half, slot, prompt, 1);
                    for (p, q) in p.iter().zip(&q) {
                        sum += p.iter().zip(q).map(|(&p, &q)| f64::from(p).exp() * f64::from(p - q)).sum::<f64>();
                        positions += 1;
                    }
                }
                let (ours, theirs) = (sum / f64::from(positions), reference["mean_kl"].as_f64().unwrap());
                let (name, path) = (folder.file_name().unwrap().to_string_lossy(), path.name());
                println!("{name} {case} {path}: KL {ours:.2e}, transformers {theirs:.2e}");
                assert!(few || positions >= 2048, "{name} {case}: only {positions} positions");
                assert!(ours <= theirs * BF16_MARGIN, "{name} {case} {path}: KL {ours} against {theirs}");
            }
        }
    }
}

/// What 8-bit weights cost, on random weights, which are harder to round than trained ones: printed, and bounded loosely.
#[test]
fn eight_bit_weights_stay_near_to_f32_on_every_path() {
    for folder in models() {
        let known = json(&folder.join("expected/bf16.json"));
        let prompts: Vec<Vec<u32>> = known["prompts"].as_array().unwrap().iter().take(8).map(tokens).collect();
        let mut whole = load(&folder, WHOLE, CpuPath::detect());
        let exact: Vec<_> = prompts.iter().map(|prompt| run(&mut whole, Slot::BASE, prompt, 1).0).collect();
        for path in CpuPath::ALL.into_iter().filter(|path| path.available()) {
            let mut rounded = load(&folder, Format::Int8, path);
            let (mut kl, mut losses, mut positions) = (0.0, [0.0, 0.0], 0.0);
            for (prompt, exact) in prompts.iter().zip(&exact) {
                let (found, _) = run(&mut rounded, Slot::BASE, prompt, 1);
                for (at, (p, q)) in exact.iter().zip(&found).enumerate() {
                    kl += p.iter().zip(q).map(|(&p, &q)| f64::from(p).exp() * f64::from(p - q)).sum::<f64>();
                    positions += 1.0;
                    if let Some(&next) = prompt.get(at + 1) {
                        losses[0] -= f64::from(p[next as usize]);
                        losses[1] -= f64::from(q[next as usize]);
                    }
                }
            }
            let pairs = positions - prompts.len() as f64;
            let [before, after] = losses.map(|loss| (loss / pairs).exp());
            let (name, kl) = (folder.file_name().unwrap().to_string_lossy(), kl / positions);
            println!("{name} {}: int8 KL {kl:.2e}, perplexity {before:.3} -> {after:.3}", path.name());
            assert!(kl < 5e-2, "{name} {}: KL {kl}", path.name());
        }
    }
}

#[test]
fn the_older_spelling_of_a_configuration_means_the_same() {
    for folder in models() {
        let older = tempfile::tempdir().unwrap();
        std::fs::copy(folder.join("config-transformers-4.json"), older.path().join("config.json")).unwrap();
        assert_eq!(
            ModelConfig::load(older.path()).unwrap(),
            ModelConfig::load(&folder).unwrap(),
            "{}",
            folder.display()
        );
    }
}
