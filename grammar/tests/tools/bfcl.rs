//! Real functions: every second case of the Berkeley function-calling leaderboard, from the folder that `MYRIAD_GRAMMAR_DATA`
//! names (`bfcl-half.tar.xz`).

use std::path::PathBuf;
use std::process::Command;

use grammar::tools::{Answer, Choice, Tool, families};
use serde_json::{Map, Value, json};

use super::monkey::{Mode, run, runs};
use super::tool;
use super::vocabulary::Vocabulary;

/// Without `MYRIAD_MONKEY_RUNS`, one case of so many is taken.
const SAMPLE: usize = 40;

/// The cases' tools, or `None`, said loudly, where the data is not there.
fn cases() -> Option<Vec<Vec<Tool>>> {
    let Some(folder) = std::env::var_os("MYRIAD_GRAMMAR_DATA") else {
        eprintln!("SKIPPED: MYRIAD_GRAMMAR_DATA is not set, so no function of the leaderboard was tried");
        return None;
    };
    let archive = PathBuf::from(folder).join("bfcl-half.tar.xz");
    let read = Command::new("tar").arg("-xJOf").arg(&archive).output().expect("tar runs");
    assert!(read.status.success(), "{}: {}", archive.display(), String::from_utf8_lossy(&read.stderr));
    let text = String::from_utf8(read.stdout).expect("the archive holds text");
    let cases = text.lines().filter(|line| line.starts_with('{')).map(|line| {
        let case: Value = serde_json::from_str(line).expect("a case is JSON");
        let functions = case["function"].as_array().expect("a case has functions").clone();
        let mut tools: Vec<Tool> = Vec::new();
        for function in functions {
            let name = function["name"].as_str().expect("a function has a name");
            if tools.iter().all(|tool| tool.name != name) {
                tools.push(tool(name, schema(&function["parameters"])));
            }
        }
        tools
    });
    // A case or two has no function at all.
    Some(cases.filter(|tools: &Vec<Tool>| !tools.is_empty()).collect())
}

/// The leaderboard's types in JSON Schema's words.
fn schema(value: &Value) -> Value {
    let Value::Object(keywords) = value else { return value.clone() };
    let mut mapped = Map::new();
    for (key, value) in keywords {
        let value = match (key.as_str(), value) {
            ("type", Value::String(name)) => match name.as_str() {
                "dict" => json!("object"),
                "float" => json!("number"),
                "tuple" => json!("array"),
                "any" => continue,
                name => json!(name),
            },
            ("properties", Value::Object(properties)) => {
                properties.iter().map(|(name, property)| (name.clone(), schema(property))).collect()
            }
            ("items" | "additionalProperties", value) => schema(value),
            // They say nothing, and some are not what the standard wants them to be.
            ("default" | "optional" | "format" | "examples" | "example", _) => continue,
            (_, value) => value.clone(),
        };
        mapped.insert(key.clone(), value);
    }
    // Some values are of another type than the parameter: booleans that are one of several strings, lists that are one of their items.
    let typed = mapped.get("type").map(|name| json!({ "type": name }));
    let fits = |value: &Value| typed.as_ref().is_none_or(|typed| jsonschema::is_valid(typed, value));
    if mapped.get("enum").and_then(Value::as_array).is_some_and(|values| !values.iter().all(fits)) {
        mapped.remove("enum");
    }
    Value::Object(mapped)
}

#[test]
fn calls_of_real_functions_are_valid() {
    let Some(cases) = cases() else { return };
    let sample = std::env::var("MYRIAD_MONKEY_RUNS").map_or(SAMPLE, |_| 1);
    let runs = runs(2).min(20);
    let vocabulary = Vocabulary::new(true);
    for family in families() {
        let (mut tried, mut finished, mut refused) = (0, 0, Vec::new());
        for (index, tools) in cases.iter().enumerate().step_by(sample) {
            let answer = Answer::new(tools, &Choice::Required, true).unwrap_or_else(|e| panic!("{e}"));
            tried += 1;
            if let Err(error) = vocabulary.lark(*family, &answer) {
                refused.push(error.to_string());
                continue;
            }
            let mode = Mode { label: "required", answer, calls: 1..=usize::MAX, content: None };
            finished += run(&vocabulary, *family, &mode, runs, index as u64).0;
        }
        println!(
            "{}: {tried} cases, {} refused, {finished} of {} answers finished",
            family.name(),
            refused.len(),
            tried * runs
        );
        assert!(refused.len() * 50 <= tried, "{}: {refused:#?}", family.name());
        assert!(finished * 5 >= tried, "{}: {finished} of {}", family.name(), tried * runs);
    }
}
