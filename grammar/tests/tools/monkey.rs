//! The worst model: it picks tokens at random, in several moods, among those that the grammar allows. Whatever it finishes is
//! calls of declared tools with arguments that an independent validator takes, or content as asked for.

use grammar::tools::{Answer, Choice, Family, Parser, Reasoning, Tool, by_name};
use jsonschema::Validator;
use llguidance::Matcher;
use serde_json::{Value, json};

use super::vocabulary::{Vocabulary, allowed};
use super::{Random, Reading, tool};

/// An answer that is longer is given up.
const TOKENS: usize = 600;

/// Runs for each family and mode, where the environment does not say.
const RUNS: usize = 60;

pub fn runs(default: usize) -> usize {
    std::env::var("MYRIAD_MONKEY_RUNS").map_or(default, |runs| runs.parse().expect("MYRIAD_MONKEY_RUNS is a number"))
}

/// Tools whose schemas have what is hard about schemas.
pub fn tools() -> Vec<Tool> {
    let object = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    vec![
        tool("now", object(json!({}), json!([]))),
        tool("say", object(json!({"text": {"type": "string"}}), json!(["text"]))),
        tool(
            "strings",
            object(
                json!({
                    "pattern": {"type": "string", "pattern": "^[a-z]+(-[0-9]{2,3})?$"},
                    "search": {"type": "string", "pattern": "a.\\d"},
                    "length": {"type": "string", "minLength": 2, "maxLength": 5},
                    "enum": {"type": "string", "enum": ["celsius", "fahrenheit", "a \"b\"", "12"]},
                    "const": {"const": "it's"},
                    "date": {"type": "string", "format": "date"},
                    "either": {"anyOf": [{"type": "string", "maxLength": 3}, {"enum": ["longer"]}]}
                }),
                json!(["pattern", "search", "length", "enum"]),
            ),
        ),
        tool(
            "unions",
            object(
                json!({
                    "nullable": {"type": ["string", "null"]},
                    "number_or_text": {"type": ["string", "integer"], "maxLength": 4},
                    "optional": {"anyOf": [{"type": "string", "pattern": "^x"}, {"type": "null"}]},
                    "bounded": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]},
                    "any": {},
                    "nested": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "boolean"}},
                                         {"type": "object", "properties": {"a": {"type": ["null", "boolean"]}}, "required": ["a"]}]},
                    "mixed": {"enum": ["a", 1, null, true, 2.5]}
                }),
                json!(["nullable", "bounded"]),
            ),
        ),
        tool(
            "numbers",
            object(
                json!({
                    "integer": {"type": "integer", "minimum": -3, "maximum": 117},
                    "number": {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
                    "any": {"type": "number"},
                    "flag": {"type": "boolean"},
                    "nothing": {"type": "null"}
                }),
                json!(["integer", "number", "flag"]),
            ),
        ),
        tool(
            "containers",
            json!({
                "type": "object",
                "properties": {
                    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
                    "pairs": {"type": "array", "items": {"type": "object", "properties": {
                        "key": {"type": "string"}, "value": {"type": ["number", "null"]}}, "required": ["key", "value"]}},
                    "tree": {"$ref": "#/$defs/tree"},
                    "map": {"type": "object", "additionalProperties": {"type": "boolean"}}
                },
                "required": ["list"],
                "additionalProperties": false,
                "$defs": {"tree": {"type": "object", "properties": {
                    "leaf": {"type": "boolean"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                    "required": ["leaf"], "additionalProperties": false}}
            }),
        ),
        tool("anything", json!({"type": "object"})),
        tool("words", json!({"type": "object", "additionalProperties": {"type": "string", "maxLength": 6}})),
    ]
}

/// What an answer must be.
pub struct Mode {
    pub label: &'static str,
    pub answer: Answer,
    /// How many calls there may be.
    pub calls: std::ops::RangeInclusive<usize>,
    /// The schema of the content, where there is one.
    pub content: Option<Value>,
}

pub fn modes(tools: &[Tool]) -> Vec<Mode> {
    let answer = |choice: Choice, parallel| Answer::new(tools, &choice, parallel).unwrap();
    let mode = |label, answer, calls| Mode { label, answer, calls, content: None };
    let format = json!({"type": "object", "properties": {"name": {"enum": ["now", "say"]}, "arguments": {"type": "object"}},
                        "required": ["name"], "additionalProperties": false});
    let thought = |begun| Reasoning { open: "<think>".into(), close: "</think>".into(), begun };
    let formatted = |choice| answer(choice, true).with_content(&format!("%json {format}"));
    let named = tools[tools.len() / 2].name.clone();
    let some: Vec<String> = tools.iter().take(2).map(|tool| tool.name.clone()).collect();
    let many = 1..=usize::MAX;
    vec![
        mode("auto", answer(Choice::Auto, true), 0..=usize::MAX),
        mode("auto, parallel off", answer(Choice::Auto, false), 0..=1),
        mode("auto, reasoning", answer(Choice::Auto, true).with_reasoning(thought(false)), 0..=usize::MAX),
        mode("none", answer(Choice::None, true), 0..=0),
        mode("required", answer(Choice::Required, true), many.clone()),
        mode("required, parallel off", answer(Choice::Required, false), 1..=1),
        mode("required, reasoning", answer(Choice::Required, true).with_reasoning(thought(true)), many.clone()),
        mode("named", answer(Choice::Named(named), true), 1..=1),
        mode("allowed", answer(Choice::Allowed { names: some, required: true }, true), many),
        Mode { content: Some(format.clone()), ..mode("auto, format", formatted(Choice::Auto), 0..=usize::MAX) },
        Mode { content: Some(format.clone()), ..mode("none, format", formatted(Choice::None), 0..=0) },
    ]
}

/// How much the model likes each token.
fn mood(vocabulary: &Vocabulary, random: &mut Random) -> Vec<f64> {
    let peak = [0.0, 1.0, 3.0, 6.0][random.below(4)];
    let closing = [1.0, 20.0, 200.0][random.below(3)];
    let spaces = [1.0, 1.0, 1.0, 50.0][random.below(4)];
    let markers = [0.1, 1.0, 30.0][random.below(3)];
    let like = |token: u32, random: &mut Random| {
        let noise: f64 = (0..6).map(|_| random.unit() - 0.5).sum();
        let text = vocabulary.text(token);
        let mut like = (peak * noise).exp();
        if token == vocabulary.end || text.first().is_some_and(|b| b"\"'}])".contains(b)) || text.starts_with(b"\n</") {
            like *= closing;
        }
        if text.iter().all(|b| b.is_ascii_whitespace()) {
            like *= spaces;
        }
        if text.first().is_some_and(|b| b"<[".contains(b)) && text.len() > 4 {
            like *= markers;
        }
        like
    };
    (0..vocabulary.len() as u32).map(|token| like(token, random)).collect()
}

/// How calls begin: a random model alone hardly ever comes to write this.
fn opening(family: &dyn Family, mode: &Mode) -> &'static str {
    match (family.name(), mode.content.is_some()) {
        ("hermes", _) => "<tool_call>",
        ("qwen-coder", _) => "<tool_call>",
        ("mistral" | "mistral-named", _) => "[TOOL_CALLS]",
        ("llama", false) => "{\"name\": \"",
        ("llama", true) => "<|python_tag|>",
        ("json", false) => "[{\"name\": \"",
        ("json", true) => "<tool_calls>[",
        _ => "[",
    }
}

/// One answer, as a parser gets it; `None` where it did not come to an end.
fn write(vocabulary: &Vocabulary, matcher: &Matcher, opening: &str, random: &mut Random) -> Option<Vec<u8>> {
    let likes = mood(vocabulary, random);
    let mut matcher = matcher.deep_clone();
    let mut text = opening.as_bytes().to_vec();
    for token in vocabulary.tokens(opening, false) {
        matcher.consume_token(token).expect("a call may begin");
    }
    for _ in 0..TOKENS {
        let mask = matcher.compute_mask_or_eos().expect("no limit is hit");
        let total: f64 = allowed(&mask, vocabulary.len()).map(|token| likes[token as usize]).sum();
        assert!(total > 0.0, "a dead end after {:?}", String::from_utf8_lossy(&text));
        let mut left = random.unit() * total;
        let mut choice = allowed(&mask, vocabulary.len());
        let token = choice.find(|token| {
            left -= likes[*token as usize];
            left <= 0.0
        });
        let token = token.or_else(|| allowed(&mask, vocabulary.len()).last()).unwrap();
        if token == vocabulary.end {
            return Some(text);
        }
        matcher.consume_token(token).expect("an allowed token is taken");
        text.extend_from_slice(vocabulary.text(token));
    }
    None
}

/// Why a finished answer is wrong.
fn wrong(reading: &Reading, mode: &Mode, validators: &[(String, Validator)]) -> Option<String> {
    if !reading.malformed.is_empty() || !reading.unfinished.is_empty() {
        return Some("malformed".into());
    }
    if !mode.calls.contains(&reading.calls.len()) {
        return Some(format!("{} calls", reading.calls.len()));
    }
    for call in &reading.calls {
        if !mode.answer.tools().iter().any(|tool| tool.name == call.name) || !call.done {
            return Some(format!("a call of '{}'", call.name));
        }
        let arguments = match serde_json::from_str::<Value>(&call.arguments) {
            Ok(arguments) => arguments,
            // JSON sets no bounds to numbers, this reader does.
            Err(error) if error.to_string().starts_with("number out of range") => continue,
            Err(error) => return Some(format!("{error}: {}", call.arguments)),
        };
        let (_, validator) = validators.iter().find(|(name, _)| *name == call.name)?;
        if let Err(error) = validator.validate(&arguments) {
            return Some(format!("{}: {error}", call.arguments));
        }
    }
    let silent = reading.calls.is_empty() && *mode.calls.start() == 0;
    match &mode.content {
        _ if !silent => (!reading.content.is_empty()).then(|| "content beside calls".into()).filter(|_| !speaks(mode)),
        Some(schema) => match serde_json::from_str(&reading.content) {
            Ok(content) => (!jsonschema::is_valid(schema, &content)).then(|| "content".into()),
            Err(error) if error.to_string().starts_with("number out of range") => None,
            Err(error) => Some(error.to_string()),
        },
        None => None,
    }
}

/// Whether text may stand before calls.
fn speaks(mode: &Mode) -> bool {
    *mode.calls.start() == 0 && mode.content.is_none()
}

/// Runs one family and mode; returns how many answers came to an end and how many had calls.
pub fn run(vocabulary: &Vocabulary, family: &dyn Family, mode: &Mode, runs: usize, seed: u64) -> (usize, usize) {
    let matcher = vocabulary.matcher(family, &mode.answer);
    let validator =
        |tool: &Tool| (tool.name.clone(), jsonschema::validator_for(&tool.parameters).expect("a valid schema"));
    let validators: Vec<_> = mode.answer.tools().iter().map(validator).collect();
    let (mut finished, mut called) = (0, 0);
    for run in 0..runs {
        let mut random = Random(seed ^ ((run as u64) << 20));
        let begins =
            run % 2 == 0 && *mode.calls.start() == 0 && *mode.calls.end() > 0 && !mode.label.contains("reasoning");
        let opening = if begins { opening(family, mode) } else { "" };
        let Some(text) = write(vocabulary, &matcher, opening, &mut random) else { continue };
        let text = String::from_utf8(text).expect("a finished answer is UTF-8");
        let (mut parser, mut reading) = (Parser::new(family, &mode.answer), Reading::default());
        reading.add(parser.push(&text));
        reading.add(parser.finish());
        if let Some(why) = wrong(&reading, mode, &validators) {
            panic!("{} {} seed {seed:#x} run {run}: {why}\n{text}\n{reading:#?}", family.name(), mode.label);
        }
        finished += 1;
        called += usize::from(!reading.calls.is_empty());
    }
    (finished, called)
}

/// One family in all modes, with and without its markers as special tokens.
fn monkeys(family: &str) {
    let seed = std::env::var("MYRIAD_MONKEY_SEED")
        .map_or(0x0bad_cafe_f00d, |seed| seed.parse().expect("MYRIAD_MONKEY_SEED is a number"));
    println!("seed {seed}");
    let (tools, runs, family) = (tools(), runs(RUNS), by_name(family).unwrap());
    for markers in [true, false] {
        let vocabulary = Vocabulary::new(markers);
        for (index, mode) in modes(&tools).iter().enumerate() {
            let (finished, called) = run(&vocabulary, family, mode, runs, seed + index as u64);
            println!(
                "{} {} markers {markers}: {finished} of {runs} finished, {called} with calls",
                family.name(),
                mode.label
            );
            assert!(finished * 10 >= runs, "{} {}: {finished} of {runs} finished", family.name(), mode.label);
        }
    }
}

#[test]
fn what_a_random_hermes_finishes_is_valid() {
    monkeys("hermes");
}

#[test]
fn what_a_random_qwen_coder_finishes_is_valid() {
    monkeys("qwen-coder");
}

#[test]
fn what_a_random_llama_finishes_is_valid() {
    monkeys("llama");
}

#[test]
fn what_a_random_pythonic_model_finishes_is_valid() {
    monkeys("pythonic");
}

#[test]
fn what_a_random_mistral_finishes_is_valid() {
    monkeys("mistral");
    monkeys("mistral-named");
}

#[test]
fn what_a_random_model_without_tools_in_its_template_finishes_is_valid() {
    monkeys("json");
}
