//! The corpora: no invalid document is ever accepted, and what is right stays right.

use std::collections::BTreeMap;
use std::path::Path;

use grammar::{Compiler, SchemaOptions};

use crate::corpus::{self, Outcome};

/// Real-world schemas in a test of minutes: every so many-th; `MYRIAD_GRAMMAR_EVERY=1` takes all.
const EVERY: usize = 20;
/// The least share of them that has to be right, in percent.
const RIGHT_PERCENT: usize = 93;

#[test]
fn real_world_schemas() {
    let every = std::env::var("MYRIAD_GRAMMAR_EVERY").map_or(EVERY, |every| every.parse().unwrap());
    let Some(cases) = corpus::real_world(every) else { return };
    let compiler = Compiler::new(corpus::bytes()).unwrap();
    let outcomes: Vec<Outcome> =
        cases.iter().map(|case| corpus::ours(&compiler, case, SchemaOptions::default())).collect();
    let counts = corpus::counts(&outcomes);
    println!("{} schemas: {counts:?}", cases.len());
    let wide = cases.iter().zip(&outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::TooWide(_)));
    assert_eq!(
        wide.map(|(case, outcome)| format!("{}: {outcome:?}", case.name)).collect::<Vec<_>>(),
        Vec::<String>::new()
    );
    assert!(counts["right"] * 100 >= cases.len() * RIGHT_PERCENT, "{counts:?}");
}

/// The official suite against the file of expected results, which lists what is not right. It may only shrink; with
/// `MYRIAD_GRAMMAR_UPDATE=1` it is written anew.
#[test]
fn official_suite() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grammar/suite.txt");
    let compiler = Compiler::new(corpus::bytes()).unwrap();
    let options = SchemaOptions { annotate_formats: true, any_order: true, ..SchemaOptions::default() };
    let mut found = String::new();
    for draft in ["draft7", "draft2020-12"] {
        let Some(cases) = corpus::official(draft) else { return };
        let outcomes: Vec<Outcome> = cases.iter().map(|case| corpus::ours(&compiler, case, options.clone())).collect();
        println!("{draft}: {:?}", corpus::counts(&outcomes));
        for (case, outcome) in cases.iter().zip(&outcomes) {
            match outcome {
                Outcome::Right => {}
                Outcome::Refused(_) => found += &format!("{draft} refused: {}\n", case.name),
                Outcome::TooNarrow(_) => found += &format!("{draft} too narrow: {}\n", case.name),
                Outcome::TooWide(which) => panic!("{draft}: {} takes the invalid document {which}", case.name),
            }
        }
    }
    if std::env::var_os("MYRIAD_GRAMMAR_UPDATE").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = lines(&std::fs::read_to_string(&path).unwrap());
    let found = lines(&found);
    let worse: Vec<&String> =
        found.iter().filter(|(line, count)| expected.get(*line) < Some(count)).map(|(line, _)| line).collect();
    assert!(worse.is_empty(), "these were right: {worse:#?}");
    let better: Vec<&String> =
        expected.iter().filter(|(line, count)| found.get(*line) < Some(count)).map(|(line, _)| line).collect();
    assert!(better.is_empty(), "these are right now, write the file anew with MYRIAD_GRAMMAR_UPDATE=1: {better:#?}");
}

fn lines(text: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    text.lines().for_each(|line| *lines.entry(line.to_owned()).or_default() += 1);
    lines
}
