//! Schemas, regular expressions and grammars made to hurt.

use grammar::Source;
use serde_json::{Map, Value, json};

fn nested(depth: usize, wrap: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(json!({"type": "string"}), |inner, _| wrap(inner))
}

/// The corpus: every kind at several sizes.
pub fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for size in [4, 8, 12, 16, 20, 24, 28, 32, 40, 60, 100, 500, 2000] {
        sources.extend(schemas(size).into_iter().map(Source::schema));
        sources.extend(regexes(size).into_iter().map(Source::Regex));
        sources.extend(grammars(size));
    }
    sources
}

fn schemas(size: usize) -> Vec<Value> {
    let range = || 0..size;
    let properties: Map<String, Value> = range().map(|n| (format!("p{n}"), json!({"type": "integer"}))).collect();
    let either: Vec<Value> =
        range().map(|n| json!({"anyOf": [{"required": [format!("a{n}")]}, {"required": [format!("b{n}")]}]})).collect();
    let overlapping: Vec<Value> =
        range().map(|n| json!({"properties": {(format!("p{n}")): {"type": "integer"}}})).collect();
    let chain: Map<String, Value> = range()
        .map(|n| {
            (
                format!("d{n}"),
                json!({"allOf": [{"$ref": format!("#/$defs/d{}", n + 1)}, {"$ref": format!("#/$defs/d{}", n + 1)}]}),
            )
        })
        .chain([(format!("d{size}"), json!({"type": "string"}))])
        .collect();
    let trees: Map<String, Value> = range()
        .map(|n| {
            let options: Vec<Value> = (0..size.min(40)).map(|m| json!({"$ref": format!("#/$defs/t{m}")})).collect();
            (format!("t{n}"), json!({"type": "object", "properties": {(format!("x{n}")): {"allOf": options}}}))
        })
        .collect();
    let roots: Vec<Value> = (0..size).map(|n| json!({"$ref": format!("#/$defs/t{n}")})).collect();
    let patterns: Map<String, Value> =
        range().map(|n| (format!("^.*x{n}.*y.*$"), json!({"type": "integer"}))).collect();
    let moduli: Vec<Value> = (0..size.min(60)).map(|n| json!({"not": {"multipleOf": 2 * n + 3}})).collect();
    vec![
        nested(size, |inner| json!({"type": "array", "items": inner})),
        nested(size, |inner| json!({"not": inner})),
        json!({"type": "object", "properties": properties}),
        json!({"type": "object", "allOf": either}),
        json!({"oneOf": overlapping}),
        json!({"$ref": "#/$defs/d0", "$defs": chain}),
        json!({"allOf": roots, "$defs": trees}),
        json!({"type": "object", "patternProperties": patterns}),
        json!({"type": "integer", "allOf": moduli}),
        json!({"type": "string", "minLength": size * 1000, "pattern": "^(a|b|ab)*c"}),
        json!({"type": "string", "maxLength": size * 1000, "allOf": [{"pattern": format!("a.{{{size}}}b")}, {"pattern": format!("b.{{{size}}}a")}]}),
        json!({"type": "array", "minItems": size * 1000, "maxItems": size * 2000}),
        json!({"type": "array", "contains": {"const": 1}, "minContains": size, "maxItems": size * 10}),
        json!({"enum": range().map(|n| "x".repeat(n * 7 % 300) + &n.to_string()).collect::<Vec<_>>()}),
        json!({"type": "array", "items": {"enum": range().collect::<Vec<_>>()}, "uniqueItems": true}),
        json!({"type": "number", "multipleOf": 1e-7, "minimum": size}),
        json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        json!({"type": "object", "minProperties": size, "properties": {"a": {}, "b": {}, "c": {}}, "additionalProperties": false}),
        json!({"type": "integer", "minimum": -1e300, "maximum": 1e300, "multipleOf": size}),
    ]
}

fn regexes(size: usize) -> Vec<String> {
    vec![
        "(".repeat(size) + "a" + &")*".repeat(size),
        format!("(a|b)*a(a|b){{{size}}}"),
        format!("(x+x+)+y{{{size}}}"),
        format!("((a{{0,{size}}}){{0,{size}}}){{0,{size}}}"),
        format!("(.*a){{{size}}}"),
        format!("[^a]{{{size},}}(.*b.*c.*){{{size}}}"),
        "a?".repeat(size) + &"a".repeat(size),
        (0..size).map(|n| format!("(?:.*{n}.*)|")).collect::<String>() + "z",
        "(?=.*a)".repeat(size) + "b",
        "[".repeat(size),
        "\\".repeat(size),
        format!("\\p{{L}}{{{size}}}\\p{{Greek}}*"),
    ]
}

fn grammars(size: usize) -> Vec<Source> {
    let rules: String = (0..size).map(|n| format!("r{n} ::= r{} r{} | \"x{n}\"\n", n + 1, n + 1)).collect();
    let lark: String = (0..size).map(|n| format!("r{n}: r{} r{} | \"x{n}\"\n", n + 1, n + 1)).collect();
    vec![
        Source::Gbnf(format!("root ::= r0\n{rules}r{size} ::= \"y\"")),
        Source::Gbnf(format!("root ::= {}\"a\"{}", "(".repeat(size), ")*".repeat(size))),
        Source::Gbnf("root ::= root root | root | \"a\"".into()),
        Source::Gbnf(format!("root ::= (\"a\"{{0,{size}}} root?){{0,{size}}}")),
        Source::Lark(format!("start: r0\n{lark}r{size}: \"y\"")),
        Source::Lark("start: start".into()),
        Source::Lark(format!("start: {}\"a\"{}", "(".repeat(size), ")*".repeat(size))),
        Source::Lark(format!("start: /(a|b)*a(a|b){{{size}}}/")),
        Source::Lark(format!("start: X{{{size},{}}}\nX: \"a\" | X2\nX2: /b.*/", size * 1000)),
        Source::Lark("start: <no-such-token>".into()),
        Source::Lark("start: %json {\"type\": \"string\", \"pattern\": \"(\"}".into()),
        Source::Choice((0..size).map(|n| "ab".repeat(n % 100) + &n.to_string()).collect()),
        Source::Lark("%ignore /x*/\nstart: \"a\"".repeat(size)),
    ]
}
