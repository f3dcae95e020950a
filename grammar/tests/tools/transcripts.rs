//! Answers as each family's models write them, and what they mean.

use grammar::tools::{Family, Tool, families};
use serde_json::{Value, json};

use super::{auto, read, tool};

pub fn tools() -> Vec<Tool> {
    vec![
        tool("now", json!({"type": "object", "properties": {}, "additionalProperties": false})),
        tool(
            "say",
            json!({"type": "object", "properties": {"text": {"type": "string"}, "to": {"type": "string"}}, "required": ["text"],
                   "additionalProperties": false}),
        ),
        tool(
            "store.put",
            json!({"type": "object", "properties": {
                "count": {"type": "number"}, "flag": {"type": "boolean"}, "nothing": {"type": "null"},
                "list": {"type": "array"}, "map": {"type": "object"}, "maybe": {"type": ["string", "null"]}},
                "additionalProperties": false}),
        ),
    ]
}

/// Calls that a family must write and read back.
pub fn calls() -> Vec<Vec<(&'static str, Value)>> {
    let say = |text: &str| ("say", json!({ "text": text }));
    vec![
        vec![("now", json!({}))],
        vec![("now", json!({})), ("now", json!({}))],
        vec![say("")],
        vec![say("hello")],
        vec![say("} ] ) \" ' { [ (")],
        vec![say("she said \"no\", 'never' and \\ went"), say("\\\\\"\\\\")],
        vec![say("two\nlines\tand a tab\r\n")],
        vec![say("\n\nleading and trailing \n\n")],
        vec![say("äöü 漢字 🙂👩‍👩‍👧 \u{1}")],
        vec![say("<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>")],
        vec![say("[TOOL_CALLS]now[ARGS]{} <|python_tag|>{\"name\": \"now\"} [now()] <tool_calls>[")],
        vec![say("<function=now></function> </tool_call><parameter=text> </param")],
        vec![say("</think> <think> [/THINK]"), ("now", json!({}))],
        vec![("say", json!({"text": "null", "to": "42"}))],
        vec![("say", json!({"text": "True", "to": "{\"a\": 1}"}))],
        vec![("store.put", json!({"count": 12, "flag": true, "nothing": null}))],
        vec![("store.put", json!({"count": -1.5e-7, "flag": false, "list": [], "map": {}}))],
        vec![(
            "store.put",
            json!({"list": [1, [2, [3, "]"]], {"a": {"b": [null, true]}}], "map": {"}": "{", "k\"ey": [{}]}}),
        )],
        vec![("store.put", json!({"maybe": null})), ("store.put", json!({"maybe": "none"})), ("now", json!({}))],
        vec![(
            "store.put",
            json!({"map": {"deep": {"deep": {"deep": {"emoji": "🙂", "quote": "\"", "end": "</tool_call>"}}}}}),
        )],
    ]
}

/// What `family`'s models write for these calls.
pub fn write(family: &str, calls: &[(&str, Value)]) -> String {
    let objects = |key: &str| -> Vec<String> {
        calls
            .iter()
            .map(|(name, arguments)| format!("{{\"name\": \"{name}\", \"{key}\": {}}}", spaced(arguments)))
            .collect()
    };
    match family {
        "hermes" => {
            let blocks: Vec<String> =
                objects("arguments").iter().map(|object| format!("<tool_call>\n{object}\n</tool_call>")).collect();
            blocks.join("\n")
        }
        "llama" => objects("parameters").join("; "),
        "json" => format!("[{}]", objects("arguments").join(", ")),
        "mistral" => format!("[TOOL_CALLS][{}]", objects("arguments").join(", ")),
        "mistral-named" => calls.iter().map(|(name, a)| format!("[TOOL_CALLS]{name}[ARGS]{}", spaced(a))).collect(),
        "pythonic" => {
            let calls: Vec<String> = calls.iter().map(|(name, a)| format!("{name}({})", keywords(a))).collect();
            format!("[{}]", calls.join(", "))
        }
        "qwen-coder" => calls.iter().map(|(name, a)| xml(name, a)).collect::<Vec<_>>().join("\n"),
        other => panic!("no writer for {other}"),
    }
}

/// JSON as Python's `json.dumps` spaces it, which is what templates are rendered with.
pub fn spaced(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        Value::Object(items) => {
            let items: Vec<String> =
                items.iter().map(|(k, v)| format!("{}: {}", Value::from(k.as_str()), spaced(v))).collect();
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    }
}

fn keywords(arguments: &Value) -> String {
    let arguments = arguments.as_object().unwrap();
    arguments.iter().map(|(name, value)| format!("{name}={}", python(value))).collect::<Vec<_>>().join(", ")
}

fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Array(items) => format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", ")),
        Value::Object(items) => {
            let items: Vec<String> =
                items.iter().map(|(k, v)| format!("{}: {}", Value::from(k.as_str()), python(v))).collect();
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    }
}

fn xml(name: &str, arguments: &Value) -> String {
    let mut text = format!("<tool_call>\n<function={name}>\n");
    for (name, value) in arguments.as_object().unwrap() {
        let value = value.as_str().map_or_else(|| spaced(value), str::to_string);
        text += &format!("<parameter={name}>\n{value}\n</parameter>\n");
    }
    text + "</function>\n</tool_call>"
}

/// Whether calls may follow text in this family.
pub fn speaks_first(family: &dyn Family) -> bool {
    ["hermes", "mistral", "mistral-named", "qwen-coder"].contains(&family.name())
}

/// Fifty transcripts and more: the calls above as the family writes them, alone, after text and before text.
pub fn transcripts(family: &dyn Family) -> Vec<String> {
    let mut all = vec![
        String::new(),
        "Just text.".into(),
        "  \n text with space around it \n ".into(),
        "{\"a\": [1, {\"name\": \"x\"}]}".into(),
        "[1, 2, now".into(),
        "a < b, [TOOL, <tool, <|python, <func".into(),
    ];
    for (index, calls) in calls().iter().enumerate() {
        let text = write(family.name(), calls);
        if speaks_first(family) {
            all.push(format!("Let me look. <b> [x] {{}} 🙂\n{text}"));
        }
        if index % 2 == 0 {
            all.push(format!("{text}\nThat was it: {{}} <x> [y]."));
            // Unfinished, somewhere in the middle.
            let cut = text.char_indices().map(|(at, _)| at).nth(text.chars().count() * 2 / 3).unwrap();
            all.push(text[..cut].into());
        }
        all.push(text);
    }
    all.extend(super::malformed::answers(family.name()).iter().map(|(text, _)| text.to_string()));
    all
}

#[test]
fn calls_come_back_as_they_were_written() {
    let answer = auto(&tools());
    for family in families() {
        for calls in calls() {
            let text = write(family.name(), &calls);
            let reading = read(*family, &answer, &[&text]);
            let expected: Vec<(String, Value)> = calls.iter().map(|(name, a)| (name.to_string(), a.clone())).collect();
            assert_eq!(reading.arguments(), expected, "{}: {text}", family.name());
            assert!(reading.calls.iter().all(|call| call.done), "{}: {text}", family.name());
            assert_eq!(
                (reading.content.as_str(), reading.malformed.as_str(), reading.unfinished.as_str()),
                ("", "", ""),
                "{text}"
            );
            if !["pythonic", "qwen-coder"].contains(&family.name()) {
                let verbatim: Vec<String> = calls.iter().map(|(_, a)| spaced(a)).collect();
                let got: Vec<String> = reading.calls.iter().map(|call| call.arguments.clone()).collect();
                assert_eq!(got, verbatim, "arguments in JSON are passed on verbatim");
            }
        }
    }
}

#[test]
fn text_around_calls_is_content_without_the_white_space_between() {
    let answer = auto(&tools());
    for family in families() {
        let calls = write(family.name(), &[("now", json!({})), ("say", json!({"text": "a"}))]);
        let after = read(*family, &answer, &[&format!("{calls}\n\nDone.")]);
        assert_eq!((after.content.as_str(), after.calls.len()), ("Done.", 2), "{}", family.name());
        if speaks_first(*family) {
            let before = read(*family, &answer, &[&format!("Let me look.\n\n{calls}")]);
            assert_eq!((before.content.as_str(), before.calls.len()), ("Let me look.", 2), "{}", family.name());
        }
    }
}

#[test]
fn an_answer_without_calls_is_content_verbatim() {
    let answer = auto(&tools());
    for family in families() {
        for text in transcripts(*family).iter().take(6) {
            let reading = read(*family, &answer, &[text]);
            assert_eq!((&reading.content, reading.calls.len()), (text, 0), "{}", family.name());
        }
        assert!(transcripts(*family).len() >= 50, "{}: {}", family.name(), transcripts(*family).len());
    }
}
