//! Sources that are no schemas, the words of strict mode, hostile sources, the cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use grammar::{Budget, Cache, Compiler, GrammarError, Source, check_strict};
use serde_json::{Value, json};

use crate::corpus;

fn check(source: Source, taken: &[&str], refused: &[&str]) {
    let compiler = Compiler::new(corpus::bytes()).unwrap();
    let grammar =
        compiler.compile(&source, &Budget::new(Duration::from_secs(5))).unwrap_or_else(|e| panic!("{source:?}: {e}"));
    for text in taken {
        assert_eq!(corpus::accepts(&grammar, text), Ok(()), "{source:?}");
    }
    for text in refused {
        assert!(corpus::accepts(&grammar, text).is_err(), "{source:?} takes {text}");
    }
}

#[test]
fn texts() {
    check(
        Source::schema(serde_json::json!({ "type": "object" })),
        &["{}", r#"{"a":[1,{"b":null}]}"#],
        &["[]", "1", r#"{"a":}"#],
    );
    check(
        Source::Choice(vec!["yes".into(), "no".into(), "not now".into()]),
        &["yes", "no", "not now"],
        &["maybe", "not", ""],
    );
    check(Source::Regex(r"[a-c]+\d{2}".into()), &["ab12"], &["12", "ab1", "ab123"]);
    check(Source::Regex("^(red|green)$".into()), &["red"], &["redgreen"]);
    check(Source::Lark("start: \"a\" (\"b\" | \"c\")+".into()), &["ab", "acb"], &["a", "ad"]);
}

#[test]
fn gbnf() {
    let arithmetic = r#"
        # numbers and sums
        root ::= (expr "=" ws term "\n")+
        expr ::= term ([-+*/] term)*
        term ::= ident | num | "(" ws expr ")" ws
        ident ::= [a-z] [a-z0-9_]* ws
        num ::= [0-9]+ ws
        ws ::= [ \t\n]*
    "#;
    check(Source::Gbnf(arithmetic.into()), &["1+2=3\n", "(a*(b+1))=c\n"], &["1+=3\n", "(1=2\n"]);
    let list = "root ::= \"[\" item{2,3} \"]\"\nitem ::= \"x\" |\n  \"y-\" [^a-z\\]]\n";
    check(Source::Gbnf(list.into()), &["[xx]", "[xy-1x]"], &["[x]", "[xxxx]", "[xy-a]"]);
    for (text, expected) in [
        ("root ::= other", "the rule 'other' is used and not defined"),
        ("other ::= \"a\"", "there is no rule 'root'"),
        ("root ::= \"a\" root", "no document can satisfy this grammar"),
        ("root ::= \"a", "line 1 ends too early"),
        ("root = \"a\"", "has no '::='"),
        ("root ::= [z-a]", "has a class that is not valid"),
    ] {
        let compiler = Compiler::new(corpus::bytes()).unwrap();
        let error = compiler.compile(&Source::Gbnf(text.into()), &Budget::default()).err().unwrap().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

/// OpenAI's own words: clients match on them.
#[test]
fn strict() {
    let object = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    let table = [
        (
            object(json!({"y": {"type": "object", "properties": {}}}), json!(["y"])),
            "Invalid schema for response_format 'x': In context=('properties', 'y'), 'additionalProperties' is required to be supplied and to be false.",
        ),
        (
            json!({"type": "object", "properties": {}}),
            "Invalid schema for response_format 'x': In context=(), 'additionalProperties' is required to be supplied and to be false.",
        ),
        (
            object(json!({"y": {"type": "string"}, "z": {"type": "string"}}), json!(["y"])),
            "Invalid schema for response_format 'x': In context=(), 'required' is required to be supplied and to be an array including every key in properties. Missing 'z'.",
        ),
        (
            object(json!({"y": {"type": "string"}}), json!(["y", "q"])),
            "Invalid schema for response_format 'x': In context=(), 'required' is required to be supplied and to be an array including every key in properties. Extra required key 'q' supplied.",
        ),
        (
            object(
                json!({"o": {"type": "array", "items": object(json!({"roles": {"type": "string"}}), json!([]))}}),
                json!(["o"]),
            ),
            "Invalid schema for response_format 'x': In context=('properties', 'o', 'items'), 'required' is required to be supplied and to be an array including every key in properties. Missing 'roles'.",
        ),
        (
            object(json!({"y": {"type": "array", "items": {}}}), json!(["y"])),
            "Invalid schema for response_format 'x': In context=('properties', 'y', 'items'), schema must have a 'type' key.",
        ),
        (
            object(json!({"y": {"type": "array"}}), json!(["y"])),
            "Invalid schema for response_format 'x': In context=('properties', 'y'), array schema missing items.",
        ),
        (
            object(json!({"y": {"oneOf": [{"type": "string"}]}}), json!(["y"])),
            "Invalid schema for response_format 'x': In context=('properties', 'y'), 'oneOf' is not permitted.",
        ),
        (
            object(json!({"y": {"$ref": "#/$defs/q"}}), json!(["y"])),
            "Invalid schema for response_format 'x': In context=('properties', 'y'), reference to component '#/$defs/q' which was not found in the schema.",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}}),
            "Invalid schema for response_format 'x': schema must be a JSON Schema of 'type: \"object\"', got 'type: \"array\"'.",
        ),
        (
            json!({"anyOf": [{"type": "string"}]}),
            "Invalid schema for response_format 'x': schema must be a JSON Schema of 'type: \"object\"', got 'type: \"None\"'.",
        ),
    ];
    for (schema, expected) in table {
        assert_eq!(
            check_strict(&schema, "response_format 'x'").err().map(|e| e.to_string()).as_deref(),
            Some(expected),
            "{schema}"
        );
    }
    let good = object(json!({"y": {"anyOf": [{"$ref": "#/$defs/q"}, {"type": "null"}]}}), json!(["y"]));
    let mut good = good;
    good["$defs"] = json!({"q": {"type": "string", "enum": ["a"]}});
    assert_eq!(check_strict(&good, "function 'f'"), Ok(()));
}

/// Sources made to hurt: each is refused or compiled in time, none panics.
#[test]
fn hostile() {
    let compiler = Compiler::new(corpus::bytes()).unwrap();
    for source in crate::hostile::sources() {
        let begin = Instant::now();
        let outcome = compiler.compile(&source, &Budget::default());
        let shown: String = format!("{source:?}").chars().take(100).collect();
        assert!(begin.elapsed() < Duration::from_secs(5), "{shown} took {:?}", begin.elapsed());
        if let Err(GrammarError::Internal(panic)) = outcome {
            panic!("{shown}: {panic}");
        }
    }
}

#[test]
fn the_cache_compiles_once_and_keeps_within_its_bound() {
    let compiler = Compiler::new(corpus::bytes()).unwrap();
    let cache = Cache::new(400 << 10);
    let source = Source::schema(json!({"type": "object", "properties": {"a": {"type": "integer"}}}));
    let grammars: Vec<_> = std::thread::scope(|scope| {
        let ask = || cache.get(&compiler, &source, &Budget::default()).unwrap();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(grammars.iter().all(|grammar| Arc::ptr_eq(grammar, &grammars[0])));
    for n in 0..50 {
        cache.get(&compiler, &Source::Choice(vec![format!("choice {n}")]), &Budget::default()).unwrap();
        assert!(cache.bytes() <= 400 << 10);
    }
    assert!(cache.len() < 50);
    let wrong = Source::schema(json!({"type": "nothing"}));
    assert!(cache.get(&compiler, &wrong, &Budget::default()).is_err());
    let late = Budget::new(Duration::ZERO);
    assert_eq!(cache.get(&compiler, &wrong, &late).err().map(|e| e.to_string().contains("unknown")), Some(true));
    let new = Source::Choice(vec!["new".into()]);
    assert_eq!(cache.get(&compiler, &new, &late).err(), Some(GrammarError::Deadline));
    assert!(cache.get(&compiler, &new, &Budget::default()).is_ok(), "what ran out of time once is tried again");
}
