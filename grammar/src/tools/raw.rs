//! Values that stand raw between tags: strings without quotes, everything else as JSON. Their grammar and how they are read.
//!
//! How a text is read follows from the schema: where only strings are valid, every text is one; where others are valid too, a text
//! that is a number, `true`, `null` and so on is that, and every other text a string.

use serde_json::Value;

use super::kinds::{Kinds, standalone, without_strings};
use super::lark::{self, Lark, one_of, quote};
use super::literal::{self, Dialect, Literal, is_number, word_as_json};
use super::values::Values;
use super::{Error, pattern};

/// The rule of a value on lines of its own and the closing `tag`. The inner error is a schema over strings that cannot be written raw.
pub fn value(schema: &Value, tag: &str, lark: &mut Lark) -> Result<Result<String, String>, Error> {
    let end = quote(&format!("\n{tag}\n"));
    let kinds = Kinds::of(schema, schema);
    if let Some(choice) = choice(schema, tag) {
        return Ok(Ok(lark.rule(&format!("{choice} {end}"))));
    }
    let strings = match pattern::strings(schema, schema) {
        Ok(strings) => strings,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut rules = Vec::new();
    if let Some(strings) = strings {
        // The first end is the end, and what is read as another type is no string.
        let unlike = readings(kinds).map(|readings| format!(" & ~/{readings}/")).unwrap_or_default();
        rules.push(lark.lazy(&format!("({strings} & ~/(?s:.*){}(?s:.*)/{unlike}) {end}", lark::escape(tag))));
    }
    if kinds == Kinds::STRING {
        return Ok(Ok(lark.rule(&one_of(&rules))));
    }
    if kinds == Kinds::BOOLEAN && is_plain(schema) {
        return Ok(Ok(lark.rule(&format!("(\"true\" | \"false\" | \"True\" | \"False\") {end}"))));
    }
    if !kinds.any(Kinds::STRING) {
        let json = Values::new(schema, Dialect::Json, lark).rule(schema)?;
        rules.push(lark.rule(&format!("{json} {end}")));
        return Ok(Ok(lark.rule(&one_of(&rules))));
    }
    mixed(schema, kinds, &end, &mut rules, lark)?;
    Ok(Ok(lark.rule(&one_of(&rules))))
}

/// The strings of a plain `enum`, none of which holds the tag.
fn choice(schema: &Value, tag: &str) -> Option<String> {
    let keywords = schema.as_object()?;
    let plain = keywords.keys().all(|k| k == "enum" || ANNOTATIONS.contains(&k.as_str()))
        && Kinds::of(schema, schema) == Kinds::STRING;
    let strings: Vec<&str> = keywords.get("enum")?.as_array()?.iter().filter_map(Value::as_str).collect();
    let written = plain && strings.iter().all(|text| !text.is_empty() && !text.contains(tag));
    written.then(|| one_of(&strings.iter().map(|text| quote(text)).collect::<Vec<_>>()))
}

/// Keywords next to which a type alone says what is valid.
const ANNOTATIONS: [&str; 7] = ["type", "title", "description", "default", "examples", "$defs", "definitions"];

/// Whether a schema says nothing but its type.
fn is_plain(schema: &Value) -> bool {
    schema.as_object().is_some_and(|keywords| keywords.keys().all(|k| ANNOTATIONS.contains(&k.as_str())))
}

/// Adds the values that are not strings, of a schema that also takes strings.
fn mixed(schema: &Value, kinds: Kinds, end: &str, rules: &mut Vec<String>, lark: &mut Lark) -> Result<(), Error> {
    let rest = without_strings(schema, schema);
    // Words and numbers begin as strings do: they are one terminal with their end, or the longer string would swallow them.
    let mut scalars = Vec::new();
    let plain = plain_kinds(&rest);
    if plain.any(Kinds::NUMBER) {
        let fraction = if takes_fractions(&rest) { r"(\.[0-9]{1,16})?" } else { "" };
        scalars.push(format!("/-?(0|[1-9][0-9]{{0,15}}){fraction}/"));
    }
    if plain.any(Kinds::BOOLEAN) {
        scalars.push("/true|false/".into());
    }
    if plain.any(Kinds::NULL) {
        scalars.push("/null/".into());
    }
    if let Some(Value::Array(values)) = rest.get("enum")
        && rest.get("anyOf").or(rest.get("oneOf")).is_none()
    {
        let literals = values.iter().filter(|v| !v.is_object() && !v.is_array()).map(|v| quote(&v.to_string()));
        scalars = literals.collect();
    }
    if !scalars.is_empty() {
        rules.push(lark.lazy(&format!("({}) {end}", scalars.join(" | "))));
    }
    if kinds.any(Kinds::OBJECT) || kinds.any(Kinds::ARRAY) {
        let mut containers = standalone(&rest, schema);
        if let Value::Object(keywords) = &mut containers {
            only_containers(keywords);
        }
        let json = lark.schema(&containers)?;
        rules.push(lark.rule(&format!("{json} {end}")));
    }
    Ok(())
}

/// The types of which every value is valid. Numbers with bounds next to strings are left out: they cannot be told from the strings
/// around them by their first characters.
fn plain_kinds(schema: &Value) -> Kinds {
    const NARROW: [&str; 12] = [
        "enum",
        "const",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "not",
        "allOf",
        "if",
        "$ref",
        "dynamicRef",
    ];
    let Value::Object(keywords) = schema else {
        return if *schema == Value::Bool(false) { Kinds::NONE } else { Kinds::ALL };
    };
    if NARROW.iter().any(|k| keywords.contains_key(*k)) {
        return Kinds::NONE;
    }
    let typed = keywords.get("type").map_or(Kinds::ALL, |t| Kinds::of(&serde_json::json!({"type": t}), schema));
    let branches = |name: &str| keywords.get(name).and_then(Value::as_array);
    let any = branches("anyOf").map_or(Kinds::ALL, |all| all.iter().map(plain_kinds).fold(Kinds::NONE, Kinds::or));
    // Of `oneOf`, what no other branch could take as well.
    let one = branches("oneOf").map_or(Kinds::ALL, |all| {
        let alone =
            |at: usize| all.iter().enumerate().filter(move |(other, _)| *other != at).map(|(_, s)| Kinds::of(s, s));
        let plain = all.iter().enumerate().map(|(at, s)| alone(at).fold(plain_kinds(s), Kinds::without));
        plain.fold(Kinds::NONE, Kinds::or)
    });
    typed.and(any).and(one)
}

fn takes_fractions(schema: &Value) -> bool {
    !schema.to_string().contains("\"integer\"")
}

/// Leaves only the objects and arrays of a schema.
fn only_containers(keywords: &mut serde_json::Map<String, Value>) {
    for combination in ["anyOf", "oneOf"] {
        if let Some(Value::Array(branches)) = keywords.get_mut(combination) {
            branches.retain(|s| Kinds::of(s, s).any(Kinds::OBJECT) || Kinds::of(s, s).any(Kinds::ARRAY));
        }
    }
    if let Some(Value::Array(types)) = keywords.get_mut("type") {
        types.retain(|t| t == "object" || t == "array");
    }
    if let Some(Value::Array(values)) = keywords.get_mut("enum") {
        values.retain(|v| v.is_object() || v.is_array());
    }
}

/// Texts that are read as something else than a string, where `kinds` has more than strings. `read` must agree.
fn readings(kinds: Kinds) -> Option<String> {
    let mut readings = Vec::new();
    if kinds.any(Kinds::NUMBER) {
        readings.push(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+\-]?[0-9]+)?");
    }
    if kinds.any(Kinds::BOOLEAN) {
        readings.push("true|false|True|False");
    }
    if kinds.any(Kinds::NULL) {
        readings.push("null|None");
    }
    if kinds.any(Kinds::OBJECT) || kinds.any(Kinds::ARRAY) {
        readings.push(r"[\[{](?s:.*)");
    }
    (!readings.is_empty()).then(|| format!(r"\s*({})\s*", readings.join("|")))
}

/// A value's text as JSON.
pub fn read(text: &str, kinds: Kinds) -> String {
    let trimmed = text.trim();
    let word = word_as_json(trimmed);
    if kinds.any(Kinds::NUMBER) && is_number(trimmed) {
        return trimmed.into();
    }
    if let Some(word) = &word
        && (kinds.any(Kinds::BOOLEAN) && matches!(word.as_str(), "true" | "false")
            || kinds.any(Kinds::NULL) && word == "null")
    {
        return word.clone();
    }
    if (kinds.any(Kinds::OBJECT) || kinds.any(Kinds::ARRAY))
        && trimmed.starts_with(['{', '['])
        && let Some(json) = container(trimmed)
    {
        return json;
    }
    match word {
        Some(word) if !kinds.any(Kinds::STRING) => word,
        _ => Value::from(text).to_string(),
    }
}

/// An object or array, as JSON or as Python writes it.
fn container(text: &str) -> Option<String> {
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
        return Some(text.into());
    }
    let (mut literal, mut json) = (Literal::new(Dialect::Python), String::new());
    let mut steps = text.chars().map(|c| literal.step(c, &mut json)).collect::<Vec<_>>();
    let last = steps.pop()?;
    (last == literal::Step::Last && steps.iter().all(|step| *step == literal::Step::More)).then_some(json)
}
