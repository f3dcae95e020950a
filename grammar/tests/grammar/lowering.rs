//! What schemas take, one row each: a schema, documents that it takes, and documents that it does not.

use std::sync::LazyLock;

use grammar::{Budget, Compiler, GrammarError, SchemaOptions, Source, Whitespace};
use serde_json::{Value, json};

use crate::corpus;

static COMPILER: LazyLock<Compiler> = LazyLock::new(|| Compiler::new(corpus::bytes()).unwrap());

fn compile(schema: Value, options: SchemaOptions) -> Result<std::sync::Arc<grammar::Grammar>, GrammarError> {
    COMPILER.compile(&Source::JsonSchema { schema, options }, &Budget::new(std::time::Duration::from_secs(5)))
}

fn check(schema: Value, taken: &[&str], refused: &[&str]) {
    let grammar = compile(schema.clone(), SchemaOptions::default()).unwrap_or_else(|e| panic!("{schema}: {e}"));
    for text in taken {
        assert_eq!(corpus::accepts(&grammar, text), Ok(()), "{schema}");
    }
    for text in refused {
        assert!(corpus::accepts(&grammar, text).is_err(), "{schema} takes {text}");
    }
}

#[test]
fn numbers() {
    check(json!({"type": "integer"}), &["0", "-1", "12"], &["01", "1.5", "1.0", "\"1\"", "1e3"]);
    check(json!({"type": "number"}), &["0", "-1.5", "1e3", "0.30000000000000004"], &[".5", "1.", "NaN"]);
    check(json!({"type": "number", "minimum": -10, "exclusiveMaximum": 0}), &["-1", "-10", "-0.5"], &["0", "1", "-11"]);
    check(json!({"type": "integer", "minimum": 5, "maximum": 12}), &["5", "9", "12"], &["4", "13", "50"]);
    check(json!({"type": "integer", "multipleOf": 3}), &["0", "3", "-6", "12"], &["4", "10"]);
    check(json!({"type": "number", "multipleOf": 0.01}), &["0.01", "19.99", "5"], &["0.001"]);
    check(json!({"type": "number", "not": {"multipleOf": 2}}), &["1", "2.5"], &["2", "4.0"]);
    check(json!({"enum": [1, 2.5]}), &["1", "2.5", "1.0"], &["2", "1.5"]);
    check(json!({"if": {"exclusiveMaximum": 0}, "then": {"minimum": -10}}), &["-1", "0", "5", "\"a\""], &["-100"]);
    check(
        json!({"type": "number", "if": {"exclusiveMaximum": 0}, "then": {"minimum": -10}, "else": {"multipleOf": 2}}),
        &["-1", "0", "4"],
        &["-100", "3"],
    );
}

#[test]
fn strings() {
    check(
        json!({"type": "string", "minLength": 2, "maxLength": 3}),
        &["\"ab\"", "\"äöü\"", r#""\n\"""#],
        &["\"a\"", "\"abcd\""],
    );
    check(json!({"type": "string", "pattern": "^a.*z$"}), &["\"az\"", "\"abcz\""], &["\"abc\"", "\"za\""]);
    check(
        json!({"type": "string", "format": "date"}),
        &["\"2024-02-29\""],
        &["\"2023-02-29\"", "\"2024-13-01\"", "\"today\""],
    );
    check(json!({"type": "string", "format": "phone"}), &["\"anything\""], &[]);
    check(json!({"type": "string", "not": {"enum": ["a", "b"]}}), &["\"c\"", "\"\"", "\"aa\""], &["\"a\"", "\"b\""]);
    check(json!({"type": "string", "not": {"pattern": "x"}}), &["\"abc\""], &["\"axb\""]);
    check(json!({"enum": ["a", "b", null]}), &["\"a\"", "null"], &["\"c\""]);
}

#[test]
fn arrays() {
    check(
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}),
        &["[1]", "[1,2,3]"],
        &["[]", "[1,2,3,4]", "[\"a\"]"],
    );
    check(
        json!({"prefixItems": [{"type": "integer"}, {"type": "string"}], "items": false, "type": "array"}),
        &["[]", "[1]", "[1,\"a\"]"],
        &["[\"a\"]", "[1,\"a\",2]"],
    );
    check(
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 20, "maxItems": 40}),
        &[&list(20), &list(33), &list(40)],
        &[&list(19), &list(41)],
    );
    check(json!({"type": "array", "contains": {"const": 5}}), &["[5]", "[1,5,2]", "[5,5]"], &["[]", "[1,2]"]);
    check(
        json!({"type": "array", "contains": {"type": "integer"}, "minContains": 2, "maxContains": 2, "maxItems": 4}),
        &["[1,2]", "[\"a\",1,2]"],
        &["[1]", "[1,2,3]"],
    );
    check(
        json!({"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": true}),
        &["[]", "[\"b\",\"a\"]"],
        &["[\"a\",\"a\"]"],
    );
    check(
        json!({"not": {"type": "array", "items": {"type": "integer"}}}),
        &["1", "[\"a\"]", "[1,null]"],
        &["[]", "[1,2]"],
    );
}

fn list(items: usize) -> String {
    format!("[{}]", vec!["7"; items].join(","))
}

#[test]
fn objects() {
    let closed = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"], "additionalProperties": false});
    check(
        closed,
        &[r#"{"a":1}"#, r#"{"a":1,"b":"x"}"#],
        &["{}", r#"{"b":"x"}"#, r#"{"a":1,"c":2}"#, r#"{"b":"x","a":1}"#, r#"{"a":1,"a":2}"#],
    );
    check(
        json!({"type": "object", "properties": {"a": {"type": "integer"}}}),
        &["{}", r#"{"x":[1]}"#, r#"{"a":1,"x":null}"#],
        &[r#"{"a":"x"}"#],
    );
    check(
        json!({"type": "object", "patternProperties": {"^s_": {"type": "string"}, "_i$": {"type": "integer"}}, "additionalProperties": false}),
        &[r#"{"s_a":"x","b_i":1}"#],
        &[r#"{"s_a":1}"#, r#"{"s_i":1}"#, r#"{"c":1}"#],
    );
    check(json!({"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}), &[r#"{"ab":1}"#, "{}"], &[r#"{"A":1}"#]);
    check(
        json!({"type": "object", "minProperties": 1, "maxProperties": 2}),
        &[r#"{"a":1}"#, r#"{"a":1,"b":2}"#],
        &["{}", r#"{"a":1,"b":2,"c":3}"#],
    );
    check(
        json!({"type": "object", "properties": {"a": true, "b": true, "c": true}, "additionalProperties": false, "minProperties": 2}),
        &[r#"{"a":1,"c":2}"#],
        &["{}", r#"{"b":1}"#],
    );
    check(
        json!({"type": "object", "properties": {"a": true}, "required": ["b"], "dependentRequired": {"a": ["c"]}}),
        &[r#"{"b":1}"#, r#"{"a":1,"b":1,"c":1}"#],
        &[r#"{"a":1,"b":1}"#],
    );
    check(
        json!({"const": {"a": 1, "b": [true]}}),
        &[r#"{"a":1,"b":[true]}"#],
        &[r#"{"a":1}"#, r#"{"a":2,"b":[true]}"#],
    );
    check(
        json!({"type": "object", "required": ["a"], "not": {"required": ["b"]}}),
        &[r#"{"a":1}"#],
        &[r#"{"a":1,"b":2}"#],
    );
    check(
        json!({"type": "object", "not": {"properties": {"a": {"type": "string"}}, "additionalProperties": false}}),
        &[r#"{"a":1}"#, r#"{"b":1}"#, r#"{"a":"x","b":1}"#],
        &["{}", r#"{"a":"x"}"#],
    );
}

#[test]
fn combinations() {
    let one = json!({"oneOf": [
        {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "integer"}}, "required": ["kind"], "additionalProperties": false},
        {"type": "object", "properties": {"kind": {"const": "b"}, "y": {"type": "integer"}}, "required": ["kind"], "additionalProperties": false},
    ]});
    check(one, &[r#"{"kind":"a","x":1}"#, r#"{"kind":"b"}"#], &[r#"{"kind":"a","y":1}"#, r#"{"kind":"c"}"#]);
    check(json!({"oneOf": [{"type": "integer"}, {"minimum": 2}]}), &["1", "2.5", "\"a\""], &["3", "1.5"]);
    check(
        json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"}),
        &[r#"{"a":1}"#, r#"{"b":1}"#],
        &["{}", r#"{"a":1,"b":1}"#],
    );
    check(json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), &["null", "\"x\""], &["1"]);
    check(json!({"allOf": [{"minimum": 1}, {"maximum": 3}], "type": "integer"}), &["1", "3"], &["0", "4"]);
    check(
        json!({"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}, "type": "object"}),
        &[r#"{"a":1,"b":2}"#, r#"{"c":1}"#],
        &[r#"{"a":1}"#, "{}", r#"{"b":1}"#],
    );
}

#[test]
fn references() {
    let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}, "required": ["v"], "additionalProperties": false}}});
    check(tree, &[r#"{"v":1}"#, r#"{"v":1,"next":{"v":2,"next":{"v":3}}}"#], &[r#"{"v":1,"next":{}}"#]);
    let both = json!({
        "allOf": [{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/two"}],
        "$defs": {
            "one": {"type": "object", "properties": {"child": {"$ref": "#/$defs/one"}, "a": {"type": "integer"}}},
            "two": {"type": "object", "properties": {"child": {"$ref": "#/$defs/two"}, "b": {"type": "integer"}}},
        }
    });
    check(both, &[r#"{"child":{"a":1,"b":2}}"#], &[r#"{"child":{"b":"x"}}"#, r#"{"child":{"a":"x"}}"#]);
    let siblings = json!({"type": "object", "properties": {"n": {"$ref": "#", "required": ["n"]}, "m": {"type": "null"}}, "additionalProperties": false});
    check(siblings, &["{}", r#"{"m":null}"#], &[r#"{"n":{}}"#]);
}

#[test]
fn many_optional_properties() {
    let properties: serde_json::Map<String, Value> =
        (0..1500).map(|n| (format!("p{n}"), json!({"type": "integer"}))).collect();
    let schema = json!({"type": "object", "properties": properties, "required": ["p7"], "additionalProperties": false});
    check(schema, &[r#"{"p7":1}"#, r#"{"p7":1,"p1499":2,"p0":3}"#], &["{}", r#"{"p7":1,"p1500":1}"#, r#"{"p7":"x"}"#]);
}

#[test]
fn whitespace_is_one_blank_at_most() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]});
    let grammar =
        compile(schema, SchemaOptions { whitespace: Whitespace::OneSpace, ..SchemaOptions::default() }).unwrap();
    for text in [r#"{"a":[1,2]}"#, r#"{"a": [1, 2], "b": 3}"#] {
        assert_eq!(corpus::accepts(&grammar, text), Ok(()));
    }
    for text in [r#"{ "a":[]}"#, r#"{"a":  []}"#, "{\"a\":\n[]}", r#"{"a":[]} "#, r#"{"a" :[]}"#] {
        assert!(corpus::accepts(&grammar, text).is_err(), "{text}");
    }
}

#[test]
fn any_order() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": true, "c": true}, "required": ["a", "c"], "maxProperties": 3, "additionalProperties": false});
    let grammar = compile(schema, SchemaOptions { any_order: true, ..SchemaOptions::default() }).unwrap();
    for text in [r#"{"c":1,"a":2}"#, r#"{"b":0,"c":1,"a":2}"#] {
        assert_eq!(corpus::accepts(&grammar, text), Ok(()));
    }
    for text in [r#"{"c":1}"#, r#"{"a":1,"a":1,"c":1}"#, r#"{"c":1,"a":"x"}"#] {
        assert!(corpus::accepts(&grammar, text).is_err(), "{text}");
    }
}

/// What cannot be enforced says where, which keyword, and what to do.
#[test]
fn refusals() {
    let table = [
        (json!({"type": "array", "uniqueItems": true}), "'uniqueItems' cannot be enforced"),
        (
            json!({"properties": {"x": {"pattern": "(a)\\1"}}}),
            "at '/properties/x': 'pattern' '(a)\\1' refers back to a group",
        ),
        (json!({"$ref": "#"}), "'$ref' refers to itself"),
        (
            json!({"$ref": "https://example.com/other.json"}),
            "'$ref' 'https://example.com/other.json' points outside the schema",
        ),
        (
            json!({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}),
            "no document can satisfy this schema",
        ),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), "no document can satisfy this schema"),
        (json!({"type": "str"}), "'type' 'str' is unknown"),
        (json!({"type": "object", "minProperties": 2}), "'minProperties' cannot be enforced where names are free"),
        (json!({"type": "object", "properties": {"a": 5}}), "neither an object nor a boolean"),
    ];
    for (schema, expected) in table {
        let error = compile(schema.clone(), SchemaOptions::default()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "{schema}: {error}");
    }
}
