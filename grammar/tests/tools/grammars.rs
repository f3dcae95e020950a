//! Grammars let through what families write, and refuse undeclared names and broken arguments.

use grammar::tools::{Answer, Choice, Error, Reasoning, Tool, by_name, detect, families};
use serde_json::{Value, json};

use super::transcripts::{calls, speaks_first, tools, write};
use super::vocabulary::Vocabulary;
use super::{auto, read, tool};

fn answer(choice: Choice, parallel: bool) -> Answer {
    Answer::new(&tools(), &choice, parallel).unwrap()
}

#[test]
fn what_families_write_is_let_through() {
    for vocabulary in [Vocabulary::new(true), Vocabulary::new(false)] {
        for family in families() {
            let (auto, required) = (answer(Choice::Auto, true), answer(Choice::Required, true));
            let (auto, required) = (vocabulary.matcher(*family, &auto), vocabulary.matcher(*family, &required));
            for calls in calls() {
                let text = write(family.name(), &calls);
                // In JSON families a string with a marker has the marker's token in it where there is one; models write it
                // with other tokens, which `tokens` does not know.
                if vocabulary.special("<think>").is_some()
                    && super::vocabulary::MARKERS
                        .iter()
                        .any(|m| calls.iter().any(|(_, arguments)| arguments.to_string().contains(m)))
                {
                    continue;
                }
                for (mode, matcher) in [("auto", &auto), ("required", &required)] {
                    assert!(
                        vocabulary.accepts(matcher, &text),
                        "{} {mode}: {text:?} stops at {:?}",
                        family.name(),
                        &text[vocabulary.follow(matcher, &text, false).0..]
                    );
                }
                if speaks_first(*family) {
                    let text = format!("Let me <b>look</b>. 🙂\n{text}");
                    assert!(vocabulary.accepts(&auto, &text), "{}: {text:?}", family.name());
                    assert!(!vocabulary.accepts(&required, &text), "{}: {text:?}", family.name());
                }
            }
        }
    }
}

#[test]
fn text_is_free_under_auto_and_forbidden_under_required() {
    for vocabulary in [Vocabulary::new(true), Vocabulary::new(false)] {
        for family in families() {
            let auto = vocabulary.matcher(*family, &answer(Choice::Auto, true));
            let none = vocabulary.matcher(*family, &answer(Choice::None, true));
            let required = vocabulary.matcher(*family, &answer(Choice::Required, true));
            for text in [
                "",
                "Hello.",
                "{\"a\": 1}",
                "[1, 2]",
                "  [x] {\"name\": 5} <tool <b>",
                "{\"name\": \"other\"}",
                "[other()]",
            ] {
                assert!(vocabulary.accepts(&auto, text), "{}: {text}", family.name());
                assert!(vocabulary.accepts(&none, text), "{}: {text}", family.name());
                assert!(!vocabulary.accepts(&required, text), "{}: {text}", family.name());
            }
            let call = write(family.name(), &[("now", json!({}))]);
            assert!(vocabulary.accepts(&auto, &call) && vocabulary.accepts(&required, &call));
            assert!(!vocabulary.accepts(&none, &call), "{}: a call under none", family.name());
            if family.name() == "qwen-coder" {
                // A function without its block is a call as well, so that no text holds one.
                let bare = format!("a <function=now>\n</function> {call}");
                assert_eq!(read(*family, &answer(Choice::Auto, true), &[&bare]).calls.len(), 2);
                assert!(!vocabulary.accepts(&auto, &bare));
            }
        }
    }
}

#[test]
fn only_declared_names_and_valid_arguments() {
    let wrong: Vec<(&str, Value)> = vec![
        ("later", json!({})),
        ("nowhere", json!({})),
        ("no", json!({})),
        ("now", json!({"x": 1})),
        ("say", json!({})),
        ("say", json!({"to": "a"})),
        ("say", json!({"text": "a", "more": "b"})),
        ("store.put", json!({"count": "many"})),
        ("store.put", json!({"flag": 1})),
        ("store.put", json!({"list": {}})),
    ];
    for vocabulary in [Vocabulary::new(true), Vocabulary::new(false)] {
        for family in families() {
            let required = vocabulary.matcher(*family, &answer(Choice::Required, true));
            let auto = vocabulary.matcher(*family, &answer(Choice::Auto, true));
            for call in &wrong {
                let text = write(family.name(), std::slice::from_ref(call));
                assert!(!vocabulary.accepts(&required, &text), "{}: {text}", family.name());
                // Under auto it may be content, and then the parser reads it as content.
                if vocabulary.accepts(&auto, &text) {
                    let reading = read(*family, &answer(Choice::Auto, true), &[&text]);
                    assert_eq!(reading.content, text, "{}", family.name());
                }
            }
        }
    }
}

#[test]
fn choice_and_parallel_bound_the_calls() {
    let vocabulary = Vocabulary::new(true);
    let now = ("now", json!({}));
    let say = ("say", json!({"text": "a"}));
    for family in families() {
        let one = |call: &(&'static str, Value)| write(family.name(), std::slice::from_ref(call));
        let two = write(family.name(), &[now.clone(), say.clone()]);
        let accepts = |answer: &Answer, text: &str| vocabulary.accepts(&vocabulary.matcher(*family, answer), text);
        for choice in [Choice::Auto, Choice::Required] {
            assert!(accepts(&answer(choice.clone(), true), &two), "{}", family.name());
            assert!(!accepts(&answer(choice, false), &two), "{}", family.name());
        }
        let named = answer(Choice::Named("say".into()), true);
        assert!(accepts(&named, &one(&say)) && !accepts(&named, &one(&now)) && !accepts(&named, &two));
        for required in [true, false] {
            let some = answer(Choice::Allowed { names: vec!["now".into()], required }, true);
            assert!(accepts(&some, &one(&now)));
            assert_eq!(accepts(&some, "text"), !required);
            assert!(read(*family, &some, &[&one(&say)]).calls.is_empty());
        }
    }
}

#[test]
fn content_is_the_response_format_or_calls() {
    let format = json!({"type": "object", "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                        "required": ["name", "parameters"], "additionalProperties": false});
    for vocabulary in [Vocabulary::new(true), Vocabulary::new(false)] {
        for family in families() {
            let both = answer(Choice::Auto, true).with_content(&format!("%json {format}"));
            let matcher = vocabulary.matcher(*family, &both);
            // Even a document that looks like a call is content, and one with markers in its strings.
            let looks = "{\"name\": \"<tool_call>[TOOL_CALLS]<|python_tag|><function=\", \"parameters\": {}}";
            assert_eq!(read(*family, &both, &[looks]).content, looks, "{}", family.name());
            let document = "{\"name\": \"now\", \"parameters\": {}}";
            assert!(vocabulary.accepts(&matcher, document), "{}", family.name());
            assert_eq!(read(*family, &both, &[document]).content, document, "{}", family.name());
            assert!(!vocabulary.accepts(&matcher, "text"));
            let marker = match family.name() {
                "llama" => "<|python_tag|>",
                "json" => "<tool_calls>",
                _ => "",
            };
            let call = format!("{marker}{}", write(family.name(), &[("now", json!({}))]));
            assert!(vocabulary.accepts(&matcher, &call), "{}: {call}", family.name());
            assert_eq!(read(*family, &both, &[&call]).calls.len(), 1, "{}", family.name());
        }
    }
}

#[test]
fn reasoning_stands_before_the_grammar() {
    for vocabulary in [Vocabulary::new(true), Vocabulary::new(false)] {
        for family in families() {
            let call = write(family.name(), &[("now", json!({}))]);
            for begun in [false, true] {
                let reasoning = Reasoning { open: "<think>".into(), close: "</think>".into(), begun };
                for choice in [Choice::Auto, Choice::Required] {
                    let with = answer(choice.clone(), true).with_reasoning(reasoning.clone());
                    let matcher = vocabulary.matcher(*family, &with);
                    let open = if begun { "" } else { "<think>" };
                    for text in [format!("{open}\nWhy {{ [ not\n</think>\n\n{call}"), format!("{open}</think>{call}")] {
                        assert!(vocabulary.accepts(&matcher, &text), "{} {choice:?} {begun}: {text:?}", family.name());
                        assert_eq!(read(*family, &with, &[&text]).calls.len(), 1, "{}: {text:?}", family.name());
                    }
                    assert_eq!(vocabulary.accepts(&matcher, &call), !begun, "{} {choice:?}", family.name());
                    let text = format!("{open}Why not</think>\nHello.");
                    assert_eq!(
                        vocabulary.accepts(&matcher, &text),
                        choice == Choice::Auto,
                        "{} {text:?}",
                        family.name()
                    );
                }
            }
        }
    }
}

#[test]
fn without_strict_any_object_is_taken() {
    let vocabulary = Vocabulary::new(true);
    let mut loose = tool("f", json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}));
    loose.strict = false;
    for family in families() {
        let matcher = vocabulary.matcher(*family, &Answer::new(&[loose.clone()], &Choice::Required, true).unwrap());
        for arguments in [json!({}), json!({"b": [1, true]}), json!({"a": "x", "c": null})] {
            let text = write(family.name(), &[("f", arguments)]);
            assert!(vocabulary.accepts(&matcher, &text), "{}: {text}", family.name());
        }
    }
}

#[test]
fn families_are_known_by_their_templates() {
    let mini = include_str!("../../../models/myriad-mini/chat_template.jinja");
    for (template, name) in [
        (mini, "hermes"),
        ("{{ '\\n<tool_call>\\n{\"name\": \"' }} ... </tool_call>", "hermes"),
        ("<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>", "qwen-coder"),
        ("<tool_call>{name}\n<arg_key>k</arg_key>", "json"),
        ("{{- \"[TOOL_CALLS][\" }}", "mistral"),
        ("{{- '[TOOL_CALLS]' + name + '[CALL_ID]' + id + '[ARGS]' + arguments }}", "mistral-named"),
        ("<|start_header_id|> Respond in the format {\"name\": function name, \"parameters\": dictionary}", "llama"),
        ("{{- \"<|python_tag|>\" + tool_call.name }}", "llama"),
        ("<|header_start|> [func_name1(params_name1=params_value1, params_name2=params_value2...)]", "pythonic"),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "json"),
    ] {
        assert_eq!(detect(template).name(), name, "{template}");
    }
    for family in families() {
        assert_eq!(by_name(family.name()).unwrap().name(), family.name());
    }
    assert_eq!(
        by_name("nope").err().unwrap().to_string(),
        "no family of tool calls is named 'nope': use one of qwen-coder, mistral-named, mistral, pythonic, hermes, llama, json"
    );
    assert_eq!(Reasoning::detect("<think>\n</think>").unwrap().open, "<think>");
    assert_eq!(Reasoning::detect(mini), None);
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    let object = || json!({"type": "object"});
    let refused = |tools: &[Tool], choice: Choice| Answer::new(tools, &choice, true).err().unwrap();
    assert_eq!(refused(&[tool("a b", object())], Choice::Auto), Error::BadName("a b".into()));
    assert_eq!(refused(&[tool("", object())], Choice::Auto), Error::BadName("".into()));
    assert_eq!(refused(&[tool("a", object()), tool("a", object())], Choice::Auto), Error::RepeatedTool("a".into()));
    assert_eq!(refused(&[tool("a", object())], Choice::Named("b".into())), Error::UnknownTool("b".into()));
    assert_eq!(refused(&[], Choice::Required), Error::NoTools);
    let vocabulary = Vocabulary::new(false);
    let lark = |family: &str, parameters: Value| {
        let answer = auto(&[tool("f", parameters)]);
        vocabulary.lark(by_name(family).unwrap(), &answer).map(drop).map_err(|e| e.to_string())
    };
    let names = json!({"type": "object", "properties": {"a b": {"type": "string"}}});
    assert_eq!(
        lark("pythonic", names.clone()).unwrap_err(),
        "the parameters of 'f' cannot be enforced for models that write calls as 'pythonic': /properties/a b: the name cannot be written; \
         rename it"
    );
    assert!(lark("qwen-coder", names.clone()).is_ok() && lark("hermes", names).is_ok());
    let either = json!({"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]});
    assert!(lark("hermes", either.clone()).is_ok());
    for family in ["pythonic", "qwen-coder"] {
        assert!(lark(family, either.clone()).unwrap_err().contains("/anyOf: only properties, required"), "{family}");
    }
    let looks = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?=a)b"}}});
    assert!(lark("qwen-coder", looks).unwrap_err().contains("/properties/a: the pattern's group that looks around"));
}

#[test]
fn a_schema_without_an_end_is_refused_and_an_optional_one_left_out() {
    let vocabulary = Vocabulary::new(false);
    let parameters = |required: Value, chain: Value| {
        json!({"type": "object", "properties": {"chain": {"$ref": "#/$defs/chain"}, "text": {"type": "string"}},
               "required": required, "$defs": {"chain": chain}})
    };
    let endless = json!({"type": "object", "properties": {"next": {"$ref": "#/$defs/chain"}}, "required": ["next"]});
    let ending = json!({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/chain"}, {"type": "null"}]}},
                        "required": ["next"]});
    let itself = json!({"$ref": "#/$defs/chain"});
    for family in families() {
        let answer = |parameters: Value| Answer::new(&[tool("f", parameters)], &Choice::Required, true).unwrap();
        for chain in [&endless, &itself] {
            let error = vocabulary.lark(*family, &answer(parameters(json!(["chain"]), chain.clone()))).unwrap_err();
            assert!(error.to_string().contains("nothing is valid for it"), "{}: {error}", family.name());
            let without = answer(parameters(json!([]), chain.clone()));
            let matcher = vocabulary.matcher(*family, &without);
            assert!(vocabulary.accepts(&matcher, &write(family.name(), &[("f", json!({"text": "a"}))])));
        }
        let matcher = vocabulary.matcher(*family, &answer(parameters(json!(["chain"]), ending.clone())));
        let text = write(family.name(), &[("f", json!({"chain": {"next": {"next": null}}}))]);
        assert!(vocabulary.accepts(&matcher, &text), "{}: {text}", family.name());
    }
}

#[test]
fn schemas_that_branch_without_bound_are_read_in_bounded_time() {
    // Each definition is two of the next: 2^40 paths.
    let definitions: serde_json::Map<String, Value> = (0..40)
        .map(|at| {
            let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
            (
                format!("d{at}"),
                json!({"anyOf": [next.clone(), next, {"type": "array", "items": {"$ref": "#/$defs/d0"}}]}),
            )
        })
        .chain([("d40".to_string(), json!({"type": ["string", "null"]}))])
        .collect();
    let parameters =
        json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "required": ["a"], "$defs": definitions});
    let answer = auto(&[tool("f", parameters)]);
    let vocabulary = Vocabulary::new(false);
    for family in families() {
        // It may be refused; it may not take for ever.
        let _ = vocabulary.lark(*family, &answer);
        let _ = read(*family, &answer, &["text"]);
    }
}
