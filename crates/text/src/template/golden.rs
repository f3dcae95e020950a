//! Against what transformers' own renderer writes: tests/oracle/templates.py says how the cases are made.

use std::path::Path;

use serde_json::{Map, Value};

use super::{ChatInput, render};
use crate::Text;

/// Templates whose authors' refusals must come through word for word.
const SPEAKS: [&str; 2] = ["Roles must alternate", "Only user and assistant"];

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn cases() -> Value {
    let path = repository().join("tests/oracle/fixtures/templates.json");
    serde_json::from_slice(&std::fs::read(path).expect("the fixture is committed")).expect("the fixture is JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is not text"))
}

#[test]
fn every_template_writes_what_transformers_writes() {
    let golden = cases();
    let special = golden["special"].as_object().unwrap();
    let now = || 1_000_000_000;
    assert_eq!(golden["now"], now());
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let (template, name) = (text(case, "template"), text(case, "conversation"));
        let conversation = &golden["conversations"][name];
        let extra = conversation["extra"].as_object().cloned().unwrap_or_default();
        let input = ChatInput {
            messages: &conversation["messages"],
            tools: conversation.get("tools"),
            add_generation_prompt: case["add_generation_prompt"] == true,
            template: None,
            extra: &extra,
        };
        let got = render(text(&golden["templates"], template), &input, special, now).map_err(|e| e.to_string());
        let agrees = match (&got, case.get("text"), case.get("error")) {
            (Ok(got), Some(expected), _) => expected == got,
            (Err(got), _, Some(expected)) => {
                let expected = expected.as_str().unwrap_or_default();
                got == expected || !SPEAKS.iter().any(|said| expected.starts_with(said))
            }
            _ => false,
        };
        if !agrees {
            wrong.push(format!("{template} / {name}:\n  want {case}\n  got  {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_built_in_model_is_prompted_as_transformers_prompts_it() {
    let model = Text::load(&repository().join("models/myriad-mini")).unwrap();
    for case in cases()["mini"].as_array().unwrap() {
        let input = ChatInput {
            messages: &case["messages"],
            tools: case.get("tools").filter(|tools| !tools.is_null()),
            add_generation_prompt: true,
            template: None,
            extra: &Map::new(),
        };
        let rendered = model.render(&input).unwrap();
        assert_eq!(rendered, text(case, "text"));
        assert_eq!(serde_json::json!(model.encode_rendered(&rendered).unwrap()), case["tokens"], "{rendered}");
    }
}
