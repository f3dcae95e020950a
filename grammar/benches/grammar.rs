//! What grammars cost and how many schemas they take: `cargo bench -p grammar [-- PART...]`.
//!
//! Parts: `real-world`, `suite`, `masks` (with compiling), `hostile`; all of them without an argument. `--alone` measures llguidance by
//! itself. `MYRIAD_GRAMMAR_DATA` names the folder with the corpora.

#[path = "../tests/grammar/corpus.rs"]
#[allow(dead_code)]
mod corpus;

#[path = "../tests/grammar/hostile.rs"]
mod hostile;

use std::collections::BTreeMap;
use std::time::Instant;

use corpus::{Case, Outcome};
use grammar::{Budget, Compiler, GrammarError, SchemaOptions, Source};
use llguidance::api::TopLevelGrammar;
use llguidance::{ParserFactory, toktrie};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let alone = arguments.iter().any(|argument| argument == "--alone");
    let parts: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with("--")).collect();
    let asked = |part: &str| parts.is_empty() || parts.contains(&part);
    let verbose = arguments.iter().any(|argument| argument == "--verbose");
    if asked("real-world") {
        let step = std::env::var("STEP").map_or(1, |step| step.parse().unwrap());
        if let Some(cases) = corpus::real_world(step) {
            report("real-world schemas", &cases, alone, verbose, SchemaOptions::default());
            if !alone {
                let any_order = SchemaOptions { any_order: true, ..SchemaOptions::default() };
                report("real-world schemas, properties in any order", &cases, alone, verbose, any_order);
            }
        }
    }
    if asked("masks") {
        masks(std::env::var("STEP").map_or(4, |step| step.parse().unwrap()));
    }
    if asked("hostile") {
        hostile();
    }
    for draft in ["draft7", "draft2020-12"] {
        if asked("suite") {
            if let Some(cases) = corpus::official(draft) {
                report(
                    draft,
                    &cases,
                    alone,
                    verbose,
                    SchemaOptions { annotate_formats: true, any_order: true, ..SchemaOptions::default() },
                );
            }
        }
    }
}

/// Time of a quantile of sorted times.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn line(name: &str, mut times: Vec<f64>, unit: &str) {
    times.sort_by(f64::total_cmp);
    let at = |share| quantile(&times, share);
    println!(
        "{name}: n {} p50 {:.1} p90 {:.1} p99 {:.1} p99.9 {:.1} max {:.1} {unit}",
        times.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

/// Masks along the valid documents of real-world schemas, and what compiling takes, at 102k tokens.
fn masks(step: usize) {
    let (Some(cases), Some(vocabulary)) = (corpus::real_world(step), corpus::large()) else { return };
    let compiler = Compiler::new(vocabulary.clone()).unwrap();
    let (mut compiles, mut masks, mut forced, mut all, mut bytes) = (Vec::new(), Vec::new(), 0, 0, Vec::new());
    let mut row = vec![0u32; vocabulary.mask_words()];
    let mut worst = (0.0, String::new());
    for case in &cases {
        let source = Source::schema(case.schema.clone());
        let begin = Instant::now();
        let compiled = compiler.compile(&source, &Budget::default());
        compiles.push(begin.elapsed().as_secs_f64() * 1e3);
        let Ok(grammar) = compiled else { continue };
        bytes.push(grammar.bytes() as f64 / 1e6);
        for document in case.documents.iter().filter(|document| document.valid).take(2) {
            let mut matcher = grammar.matcher();
            for token in vocabulary.greedy(document.text.as_bytes()) {
                let begin = Instant::now();
                if matcher.mask(&mut row).is_err() {
                    break;
                }
                let taken = begin.elapsed().as_secs_f64() * 1e6;
                if taken > worst.0 {
                    worst = (taken, format!("{} behind {} tokens", case.name, matcher.taken().len()));
                }
                masks.push(taken);
                all += 1;
                forced += usize::from(row.iter().map(|word| word.count_ones()).sum::<u32>() == 1);
                if matcher.accept(token).is_err() {
                    break;
                }
            }
        }
    }
    line("compile and first masks, 102k tokens", compiles, "ms");
    line("masks, 102k tokens", masks, "us");
    line("memory of a grammar", bytes, "MB");
    println!("one token allowed: {:.1} % of {all}; worst mask: {}", 100.0 * forced as f64 / all as f64, worst.1);
}

/// The hostile corpus: how long each takes until it is compiled or refused.
fn hostile() {
    let compiler = Compiler::new(corpus::bytes()).unwrap();
    let (mut times, mut refused, mut largest) = (Vec::new(), 0, 0);
    let mut slow = Vec::new();
    for source in hostile::sources() {
        let shown: String = format!("{source:?}").chars().take(120).collect();
        let begin = Instant::now();
        let outcome = compiler.compile(&source, &Budget::default());
        let taken = begin.elapsed().as_secs_f64() * 1e3;
        if taken > 100.0 {
            slow.push(format!("{taken:.0} ms {shown}"));
        }
        times.push(taken);
        match outcome {
            Ok(grammar) => largest = largest.max(grammar.bytes()),
            Err(GrammarError::Internal(panic)) => println!("PANIC {panic}: {shown}"),
            Err(_) => refused += 1,
        }
    }
    println!("hostile: {} sources, {refused} refused, largest grammar {:.1} MB", times.len(), largest as f64 / 1e6);
    line("hostile", times, "ms");
    slow.iter().for_each(|slow| println!("  {slow}"));
}

fn report(name: &str, cases: &[Case], alone: bool, verbose: bool, options: SchemaOptions) {
    let outcomes: Vec<Outcome> = if alone {
        let factory = factory();
        cases.iter().map(|case| corpus::outcome(case, by_itself(&factory, case))).collect()
    } else {
        let compiler = Compiler::new(corpus::bytes()).unwrap();
        let timed = |case: &Case| {
            let begin = Instant::now();
            let outcome = corpus::ours(&compiler, case, options.clone());
            let taken = begin.elapsed();
            if verbose && taken > std::time::Duration::from_millis(50) {
                println!("slow: {} {:.0} ms {outcome:?}", case.name, taken.as_secs_f64() * 1e3);
            }
            outcome
        };
        cases.iter().map(timed).collect()
    };
    let counts = corpus::counts(&outcomes);
    let right = counts.get("right").copied().unwrap_or(0);
    println!(
        "{name}: {right} of {} right ({:.1} %) {counts:?}",
        cases.len(),
        100.0 * right as f64 / cases.len() as f64
    );
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let reason = match outcome {
            Outcome::Right => continue,
            Outcome::Refused(reason) => format!("refused: {}", reason.chars().take(100).collect::<String>()),
            Outcome::TooNarrow(which) if verbose => format!("narrow: {}", which.chars().take(300).collect::<String>()),
            Outcome::TooNarrow(_) => "too narrow".into(),
            Outcome::TooWide(which) => {
                format!("TOO WIDE: {}: {}", case.name, which.chars().take(300).collect::<String>())
            }
        };
        reasons.entry(reason).or_default().push(&case.name);
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    for (reason, names) in reasons.iter().take(if verbose { 2000 } else { 40 }) {
        println!("{:5} {reason} [{}]", names.len(), names.iter().take(3).copied().collect::<Vec<_>>().join(" | "));
    }
}

/// llguidance with its own compiler of schemas and its own limits.
fn factory() -> ParserFactory {
    let vocabulary = corpus::bytes();
    let mut factory = ParserFactory::new_simple(vocabulary.environment()).unwrap();
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    factory
}

fn by_itself(factory: &ParserFactory, case: &Case) -> Result<impl FnMut(&str) -> Result<(), String> + use<>, String> {
    let parser = factory.create_parser(TopLevelGrammar::from_json_schema(case.schema.clone()));
    let mut first = llguidance::Matcher::new(parser);
    first.compute_mask().map_err(|e| e.to_string())?;
    Ok(move |text: &str| {
        let mut matcher = first.deep_clone();
        let tokens: Vec<toktrie::TokenId> = text.bytes().map(u32::from).collect();
        let all = matcher.try_consume_tokens(&tokens).is_ok_and(|taken| taken == tokens.len());
        if all && matcher.is_accepting().unwrap_or(false) { Ok(()) } else { Err(text.to_owned()) }
    })
}
