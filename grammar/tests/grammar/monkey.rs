//! The worst model imaginable: whatever it samples, what it finishes is valid, and it never gets stuck.

use std::sync::Arc;
use std::time::Duration;

use grammar::{Budget, Compiler, Grammar, SchemaOptions, Source, Vocabulary};
use serde_json::Value;

use crate::corpus::{self, Case};

/// Tokens after which an answer is left unfinished.
const TOKENS: usize = 400;
const SEED: u64 = 0x6d79_7269_6164;

/// How a monkey chooses among the tokens that are allowed.
#[derive(Debug, Clone, Copy)]
pub enum Mood {
    /// All alike.
    Uniform,
    /// Mostly the same few.
    Peaked,
    /// The longest token, then what closes nothing.
    Adversarial,
    /// Blanks wherever they are allowed.
    Blank,
    /// The end as soon as it is allowed, and what closes.
    Short,
}

pub const MOODS: [Mood; 5] = [Mood::Uniform, Mood::Peaked, Mood::Adversarial, Mood::Blank, Mood::Short];

/// SplitMix64, so that a failure can be run again.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn choose(mood: Mood, random: &mut Random, allowed: &[u32], vocabulary: &Vocabulary) -> u32 {
    let ends = vocabulary.ends();
    if let (Mood::Short, Some(&end)) = (mood, allowed.iter().find(|token| ends.contains(token))) {
        return end;
    }
    let weight = |random: &mut Random, token: u32| {
        let bytes = vocabulary.token(token);
        let noise = random.next() % 1000;
        match mood {
            Mood::Uniform => noise,
            Mood::Peaked => u64::from(token).wrapping_mul(0x9e37_79b9) % 997 * 10 + noise % 97,
            Mood::Adversarial => bytes.len() as u64 * 300 + noise + if bytes.contains(&b'"') { 0 } else { 500 },
            Mood::Blank => noise + if bytes.iter().any(u8::is_ascii_whitespace) { 5000 } else { 0 },
            Mood::Short => noise + if bytes.iter().any(|byte| b"\"}],".contains(byte)) { 5000 } else { 0 },
        }
    };
    // A vocabulary of 100k tokens is sampled.
    let step = (allowed.len() / 512).max(1);
    let offset = random.next() as usize % step;
    let candidates: Vec<u32> = allowed.iter().skip(offset).step_by(step).copied().collect();
    candidates.into_iter().max_by_key(|&token| weight(random, token)).expect("one is allowed")
}

/// What a monkey writes: the text, if it came to an end, and how many tokens it took.
pub fn answer(grammar: &Arc<Grammar>, mood: Mood, random: &mut Random) -> Result<(Option<Vec<u8>>, usize), String> {
    let vocabulary = grammar.vocabulary().clone();
    let mut matcher = grammar.matcher();
    let mut row = vec![0u32; vocabulary.mask_words()];
    let mut text = Vec::new();
    for taken in 0..TOKENS {
        matcher.mask(&mut row).map_err(|e| format!("after {}: {e}", String::from_utf8_lossy(&text)))?;
        let bits = row.iter().enumerate().flat_map(|(word, bits)| {
            (0..32).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| word as u32 * 32 + bit)
        });
        let allowed: Vec<u32> = bits.collect();
        if allowed.is_empty() {
            return Err(format!("dead end after {}", String::from_utf8_lossy(&text)));
        }
        let token = choose(mood, random, &allowed, &vocabulary);
        matcher.accept(token).map_err(|e| format!("{} then token {token}: {e}", String::from_utf8_lossy(&text)))?;
        if vocabulary.ends().contains(&token) {
            return Ok((Some(text), taken));
        }
        text.extend_from_slice(vocabulary.token(token));
    }
    Ok((None, TOKENS))
}

/// Checks a text with a validator that is not ours.
pub fn validator(schema: &Value) -> Option<jsonschema::Validator> {
    jsonschema::options().should_validate_formats(true).build(schema).ok()
}

/// Lets every mood answer to every schema and returns how many tokens and finished answers that were.
pub fn run(compiler: &Compiler, cases: &[Case], rounds: usize) -> (usize, usize) {
    let mut random = Random(SEED);
    let (mut tokens, mut finished) = (0, 0);
    let mut failures = Vec::new();
    for case in cases {
        let Some(validator) = validator(&case.schema) else { continue };
        let source = Source::JsonSchema { schema: case.schema.clone(), options: SchemaOptions::default() };
        let Ok(grammar) = compiler.compile(&source, &Budget::new(Duration::from_secs(1))) else { continue };
        for round in 0..rounds {
            let mood = MOODS[round % MOODS.len()];
            let (text, taken) = match answer(&grammar, mood, &mut random) {
                Ok(answer) => answer,
                Err(e) => {
                    failures.push(format!("{} {mood:?}: {e}", case.name));
                    continue;
                }
            };
            tokens += taken;
            let Some(text) = text else { continue };
            finished += 1;
            let wrong = match serde_json::from_slice::<Value>(&text) {
                Err(e) => Some(e.to_string()),
                Ok(value) => validator.iter_errors(&value).next().map(|e| e.to_string()),
            };
            if let Some(wrong) = wrong {
                failures.push(format!("{} {mood:?}: {wrong}: {}", case.name, String::from_utf8_lossy(&text)));
            }
        }
    }
    assert!(
        failures.is_empty(),
        "seed {SEED:#x}: {} failures: {:#?}",
        failures.len(),
        &failures[..failures.len().min(20)]
    );
    (tokens, finished)
}

#[test]
fn monkeys_write_valid_documents() {
    let Some(cases) = corpus::real_world(60) else { return };
    let compiler = Compiler::new(corpus::bytes()).unwrap();
    let (tokens, finished) = run(&compiler, &cases, 10);
    println!("{tokens} tokens, {finished} finished answers, none invalid, no dead end");
    assert!(finished > 100);
}

#[test]
fn monkeys_with_a_large_vocabulary() {
    let (Some(cases), Some(vocabulary)) = (corpus::real_world(400), corpus::large()) else { return };
    let compiler = Compiler::new(vocabulary).unwrap();
    let (tokens, finished) = run(&compiler, &cases, 5);
    println!("{tokens} tokens, {finished} finished answers, none invalid, no dead end");
    assert!(finished > 5);
}
