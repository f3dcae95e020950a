//! Answers of models that run without a grammar: nothing is lost, nothing is made up.

use grammar::tools::{Answer, Choice, Event, Parser, Reasoning, by_name};
use serde_json::json;

use super::transcripts::tools;
use super::{Random, auto, read, tool};

/// Texts and the readings that they must have: content, calls with `!` behind those that are cut off, malformed, unfinished.
pub fn answers(family: &str) -> Vec<(&'static str, [&'static str; 4])> {
    match family {
        "hermes" => vec![
            ("<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>", ["", "now{}", "", ""]),
            (
                "<tool_call>{\"arguments\": {\"text\": \"a\"}, \"name\": \"say\"}</tool_call>",
                ["", "say{\"text\": \"a\"}", "", ""],
            ),
            ("<tool_call>{\"name\": \"now\"}</tool_call>", ["", "now{}", "", ""]),
            ("<tool_call>{\"name\": \"now\", \"arguments\": null}</tool_call>", ["", "now{}", "", ""]),
            (
                "<tool_call>{\"id\": [1, \"}\"], \"name\": \"no\\u0077\", \"arguments\": {}}</tool_call>",
                ["", "now{}", "", ""],
            ),
            ("<tool_call>{\"name\": \"now\", \"arguments\": {}}}</tool_call>", ["", "now{}", "", ""]),
            ("<tool_call>{\"name\": \"now\", \"arguments\": {}\n</tool_call>b", ["b", "now{}", "", ""]),
            ("<tool_call>{\"name\": \"now\", \"arguments\": \"{}\"}</tool_call>", ["", "now{}", "", ""]),
            ("<tool_call>{\"name\": \"say\", \"arguments\": {\"text\": \"a", ["", "say{\"text\": \"a!", "", ""]),
            ("a<tool_call>{\"name\": \"say\", \"argu", ["a", "", "", "<tool_call>{\"name\": \"say\", \"argu"]),
            (
                "a<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>b",
                ["ab", "", "<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>", ""],
            ),
            ("<tool_call> hello </tool_call>", ["", "", "<tool_call> hello </tool_call>", ""]),
            (
                "<tool_call></tool_call><tool_call>{\"name\": \"now\"}</tool_call>",
                ["", "now{}", "<tool_call></tool_call>", ""],
            ),
            (
                "<tool_call>{\"name\": \"now\", \"arguments\": 5}</tool_call>",
                ["", "", "<tool_call>{\"name\": \"now\", \"arguments\": 5}</tool_call>", ""],
            ),
            ("<tool_call>{\"name\": \"now\"}<tool_call>{\"name\": \"now\"}</tool_call>", ["", "now{} now{}", "", ""]),
            ("a</tool_call>", ["a</tool_call>", "", "", ""]),
            ("<tool_", ["<tool_", "", "", ""]),
        ],
        "llama" => vec![
            ("<|python_tag|>{\"name\": \"now\", \"parameters\": {}}", ["", "now{}", "", ""]),
            ("{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}", ["", "now{}", "", ""]),
            ("{\"name\": \"now\", \"arguments\": {}}", ["", "now{}", "", ""]),
            (
                "{\"name\": \"now\", \"parameters\": {}}\n{\"name\": \"now\", \"parameters\": {}}",
                ["", "now{} now{}", "", ""],
            ),
            ("{\"name\": \"rm\", \"parameters\": {}}", ["{\"name\": \"rm\", \"parameters\": {}}", "", "", ""]),
            ("<|python_tag|>print(1)", ["", "", "<|python_tag|>print(1)", ""]),
            ("text <|python_tag|>{\"name\": \"now\"}", ["text", "now{}", "", ""]),
            ("{\"name\": \"now\", \"parameters\": 5}", ["", "", "{\"name\": \"now\", \"parameters\": 5}", ""]),
            ("{\"name\": \"now\", ", ["", "", "", "{\"name\": \"now\", "]),
            ("{\"name\": \"no", ["{\"name\": \"no", "", "", ""]),
            ("{\"<|python_tag|>\": 1}", ["{\"", "", "<|python_tag|>\": 1}", ""]),
        ],
        "json" => vec![
            ("[ {\"name\": \"now\"} , {\"name\": \"now\", \"arguments\": {}} ]", ["", "now{} now{}", "", ""]),
            ("[{\"name\": \"rm\", \"arguments\": {}}]", ["[{\"name\": \"rm\", \"arguments\": {}}]", "", "", ""]),
            ("[{\"name\": \"now\", \"arguments\": {}}, 5]", ["", "now{}", "5]", ""]),
            ("[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"rm\"}]", ["", "now{}", "{\"name\": \"rm\"}]", ""]),
            ("[]", ["[]", "", "", ""]),
            ("[{\"name\": \"now\"", ["", "", "", "[{\"name\": \"now\""]),
        ],
        "mistral" | "mistral-named" => vec![
            ("[TOOL_CALLS] [{\"name\": \"now\", \"arguments\": {}, \"id\": \"abcdefghi\"}]", ["", "now{}", "", ""]),
            ("[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}[TOOL_CALLS]now[ARGS]{}", ["", "now{} now{}", "", ""]),
            ("[TOOL_CALLS]now{}", ["", "now{}", "", ""]),
            ("[TOOL_CALLS]rm[ARGS]{}", ["", "", "[TOOL_CALLS]rm[ARGS]{}", ""]),
            ("[TOOL_CALLS]rm[ARGS]{}[TOOL_CALLS]now{}", ["", "now{}", "[TOOL_CALLS]rm[ARGS]{}", ""]),
            ("[TOOL_CALLS][{\"name\": \"rm\"}]", ["", "", "[TOOL_CALLS][{\"name\": \"rm\"}]", ""]),
            ("[TOOL_CALLS]now[ARGS]5", ["", "", "[TOOL_CALLS]now[ARGS]5", ""]),
            ("[TOOL_CALLS]now[AR", ["", "", "", "[TOOL_CALLS]now[AR"]),
            ("[TOOL_CALLS]say{\"text\": [", ["", "say{\"text\": [!", "", ""]),
            ("[TOOL_CALLS]", ["", "", "", "[TOOL_CALLS]"]),
        ],
        "pythonic" => vec![
            ("[say( text = 'it''s' ), now()]", ["", "say{\"text\": \"it\"!", " 'it''s' ), now()]", ""]),
            (
                "[say(text='it\\'s \"ok\"', to='''a'b''c''',), now(),]",
                ["", "say{\"text\": \"it's \\\"ok\\\"\", \"to\": \"a'b''c\"} now{}", "", ""],
            ),
            ("<|python_start|>[now()]<|python_end|>", ["", "now{}", "", ""]),
            (
                "[store.put(list=[1, (2, 3), .5, 1_000, +7, True, None,], map={'a': {1: false,},})]",
                [
                    "",
                    "store.put{\"list\": [1, [2, 3], 0.5, 1000, 7, true, null], \"map\": {\"a\": {\"1\": false}}}",
                    "",
                    "",
                ],
            ),
            (
                "[say(text=\"\\ud83d\\ude42 \\x41\\d\\/\", to='')]",
                ["", "say{\"text\": \"🙂 A\\\\d\\\\/\", \"to\": \"\"}", "", ""],
            ),
            ("[rm(x=1)]", ["[rm(x=1)]", "", "", ""]),
            ("[now(), rm()]", ["", "now{}", ", rm()]", ""]),
            ("[say(5)]", ["", "say{!", "5)]", ""]),
            ("[store.put(count=0x1F)]", ["", "store.put{\"count\": !", "0x1F)]", ""]),
            ("[say(text=\"a", ["", "say{\"text\": \"a!", "", ""]),
            ("[no", ["[no", "", "", ""]),
            ("[now()] [now()]", ["[now()]", "now{}", "", ""]),
        ],
        "qwen-coder" => vec![
            ("<function=now></function>", ["", "now{}", "", ""]),
            (
                "<tool_call><function=say><parameter=text>a</parameter></function></tool_call>",
                ["", "say{\"text\": \"a\"}", "", ""],
            ),
            ("<tool_call>\n<function=now>\n</tool_call>b", ["b", "now{}", "", ""]),
            (
                "<tool_call><function=store.put><parameter=flag>True</parameter><parameter=nothing>None</parameter>\
                 <parameter=list>['a', True]</parameter><parameter=count>abc</parameter></function></tool_call>",
                [
                    "",
                    "store.put{\"flag\": true, \"nothing\": null, \"list\": [\"a\", true], \"count\": \"abc\"}",
                    "",
                    "",
                ],
            ),
            (
                "<function=store.put><parameter=maybe>\n a\nb \n</parameter><parameter=new>\n[1]\n</parameter></function>",
                ["", "store.put{\"maybe\": \" a\\nb \", \"new\": [1]}", "", ""],
            ),
            (
                "a<tool_call><function=rm></function></tool_call>b",
                ["ab", "", "<tool_call><function=rm></function></tool_call>", ""],
            ),
            ("a <function=rm>b</function>", ["a <function=rm>b</function>", "", "", ""]),
            ("<tool_call>{\"name\": \"now\"}</tool_call>", ["", "", "<tool_call>{\"name\": \"now\"}</tool_call>", ""]),
            ("<tool_call><function=say>x</function></tool_call>", ["", "say{!", "x</function></tool_call>", ""]),
            ("<tool_call><function=say><parameter=text>\na\n", ["", "say{\"text\": \"a\\n!", "", ""]),
            ("<tool_call>\n<func", ["", "", "", "<tool_call>\n<func"]),
        ],
        other => panic!("no malformed answers for {other}"),
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_made_up() {
    let answer = auto(&tools());
    for family in grammar::tools::families() {
        for (text, expected) in answers(family.name()) {
            let reading = read(*family, &answer, &[text]);
            let calls: Vec<String> = reading
                .calls
                .iter()
                .map(|call| format!("{}{}{}", call.name, call.arguments, if call.done { "" } else { "!" }))
                .collect();
            let got = [&reading.content, &calls.join(" "), &reading.malformed, &reading.unfinished];
            assert_eq!(got, expected, "{}: {text}", family.name());
        }
    }
}

#[test]
fn reasoning_is_split_off() {
    let hermes = by_name("hermes").unwrap();
    let with =
        |begun| auto(&tools()).with_reasoning(Reasoning { open: "<think>".into(), close: "</think>".into(), begun });
    let call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    for (begun, text, reasoning, content, calls) in [
        (false, format!("<think>\na <tool_call> b\n</think>\n\n{call}"), "a <tool_call> b", "", 1),
        (true, format!("a\n\nb\n</think>\n\nHello. {call}"), "a\n\nb", "Hello.", 1),
        (true, format!("<think>\na</think>{call}"), "<think>\na", "", 1),
        (false, "Hello <think>a</think>".into(), "", "Hello <think>a</think>", 0),
        (false, "<think>cut o".into(), "cut o", "", 0),
        (false, "<thin".into(), "", "<thin", 0),
        (false, format!("<think></think>{call}</think>"), "", "</think>", 1),
    ] {
        let reading = read(hermes, &with(begun), &[&text]);
        assert_eq!(
            (reading.reasoning.as_str(), reading.content.as_str(), reading.calls.len()),
            (reasoning, content, calls),
            "{text}"
        );
    }
}

#[test]
fn with_choice_none_everything_is_content() {
    let answer = Answer::new(&tools(), &Choice::None, true).unwrap();
    let text = "<tool_call>{\"name\": \"now\"}</tool_call>";
    assert_eq!(read(by_name("hermes").unwrap(), &answer, &[text]).content, text);
}

#[test]
fn a_string_is_read_by_its_schema() {
    let types = |schema| tool("f", json!({"type": "object", "properties": {"a": schema}}));
    for (schema, text, expected) in [
        (json!({"type": "string"}), "12", json!("12")),
        (json!({"type": ["string", "integer"]}), "12", json!(12)),
        (json!({"type": ["string", "integer"]}), "12a", json!("12a")),
        (json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "None", json!(null)),
        (json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "nulls", json!("nulls")),
        (json!({"$ref": "#/$defs/x"}), "true", json!(true)),
        (json!({}), "{\"a\": \"</parameter>\"}", json!({"a": "</parameter>"})),
        (json!({}), "{a}", json!("{a}")),
        (json!({"enum": ["1", "2"]}), "1", json!("1")),
    ] {
        let mut tool = types(schema.clone());
        tool.parameters["$defs"] = json!({"x": {"type": "boolean"}});
        let text = format!("<function=f><parameter=a>\n{text}\n</parameter></function>");
        let reading = read(by_name("qwen-coder").unwrap(), &auto(&[tool]), &[&text]);
        assert_eq!(reading.arguments()[0].1, json!({ "a": expected }), "{schema} {text}");
    }
}

/// Pieces of which nonsense is made that looks like calls.
const PIECES: [&str; 52] = [
    "<tool_call>",
    "</tool_call>",
    "<tool_call",
    "<function=",
    "<function=now>",
    "</function>",
    "<parameter=",
    "<parameter=text>",
    "</parameter>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "<|python_start|>",
    "<|python_end|>",
    "<tool_calls>",
    "{\"name\": \"now\"",
    "{\"name\": \"say\", \"arguments\": ",
    "{\"name\": \"rm\"",
    "\"arguments\"",
    "\"parameters\"",
    "\"name\"",
    "now",
    "say",
    "rm",
    "now(",
    "[now(",
    "text=",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "\"",
    "'",
    "\\",
    ",",
    ";",
    ":",
    "=",
    " ",
    "\n",
    "5",
    "-",
    "True",
    "null",
    "é",
    "🙂",
    "\\u00",
    "<think>",
    "</think>",
];

#[test]
fn nonsense_is_passed_on() {
    let seed = 0x50_0b;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let answers = [
        auto(&tools()),
        auto(&tools()).with_content("%json {}"),
        auto(&tools()).with_reasoning(Reasoning { open: "<think>".into(), close: "</think>".into(), begun: false }),
    ];
    let visible = |text: &str| text.split_whitespace().collect::<String>();
    for family in grammar::tools::families() {
        for round in 0..6000 {
            let answer = &answers[round % answers.len()];
            let pieces: Vec<&str> = (0..1 + random.below(14)).map(|_| PIECES[random.below(PIECES.len())]).collect();
            let text = pieces.concat();
            let whole = read(*family, answer, &[&text]);
            assert_eq!(read(*family, answer, &pieces), whole, "{}: {pieces:?}", family.name());
            let single: Vec<&str> = text.split("").collect();
            assert_eq!(read(*family, answer, &single), whole, "{}: {text:?}", family.name());
            let told: Vec<Event> = {
                let mut parser = Parser::new(*family, answer);
                parser.push(&text).into_iter().chain(parser.finish()).collect()
            };
            if !whole.calls.is_empty() || !whole.reasoning.is_empty() || text.trim_start().starts_with("<think>") {
                continue;
            }
            let told: String = told
                .iter()
                .map(|event| match event {
                    Event::Content(text) | Event::Malformed(text) | Event::Unfinished(text) => text.as_str(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(visible(&told), visible(&text), "{}: {text:?}", family.name());
        }
    }
}
