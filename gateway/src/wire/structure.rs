//! What the answer must be, in the spellings of OpenAI, vLLM and Fireworks.

use grammar::{SchemaOptions, Source, Whitespace, check_strict};
use serde_json::{Map, Value, json};

use super::Fields;
use crate::error::ApiError;

/// Longest name of a schema, in characters.
const NAME_CHARS: usize = 64;
/// vLLM's fields, each on its own.
const GUIDED: [&str; 4] = ["guided_json", "guided_regex", "guided_choice", "guided_grammar"];

/// What the answer must be.
#[derive(Debug, Clone)]
pub struct Structure {
    pub source: Source,
    /// What errors call it: the field, and the name of the schema where it has one.
    pub what: String,
    /// The field that it came from.
    pub param: &'static str,
}

/// What a request asks its answer to be, if anything; two different wishes are refused.
pub fn structure(fields: &Fields<'_>) -> Result<Option<Structure>, ApiError> {
    let mut wishes: Vec<Structure> = response_format(fields)?.into_iter().collect();
    for name in GUIDED {
        if let Some(value) = fields.get(name) {
            wishes.push(wish(name, name.trim_start_matches("guided_"), value)?);
        }
    }
    if let Some(wanted) = fields.object("structured_outputs")? {
        wishes.extend(structured_outputs(wanted)?);
    }
    match wishes.len() {
        0 | 1 => Ok(wishes.pop()),
        _ => {
            let names: Vec<&str> = wishes.iter().map(|wish| wish.param).collect();
            Err(ApiError::param(names[1], format!("an answer can be only one of {}", names.join(", "))))
        }
    }
}

fn response_format(fields: &Fields<'_>) -> Result<Option<Structure>, ApiError> {
    const PARAM: &str = "response_format";
    let Some(format) = fields.object(PARAM)? else { return Ok(None) };
    let wrong = |reason: &str| ApiError::param(PARAM, format!("{PARAM}: {reason}"));
    let given = |names: &[&str]| names.iter().find_map(|name| format.get(*name).filter(|value| !value.is_null()));
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        // Fireworks takes a schema here.
        Some("json_object") => match given(&["schema"]) {
            Some(schema) => wish(PARAM, "json", schema).map(Some),
            None => wish(PARAM, "json_object", &Value::Null).map(Some),
        },
        Some("json_schema") => json_schema(format).map(Some),
        Some("regex") => {
            let value = given(&["regex", "pattern"]).ok_or_else(|| wrong("a regex needs its pattern"))?;
            wish(PARAM, "regex", value).map(Some)
        }
        Some("grammar") => {
            let value = given(&["grammar"]).ok_or_else(|| wrong("a grammar needs its text in grammar"))?;
            wish(PARAM, "grammar", value).map(Some)
        }
        Some("choice") => {
            let value = given(&["choice", "choices"]).ok_or_else(|| wrong("a choice needs its texts in choices"))?;
            wish(PARAM, "choice", value).map(Some)
        }
        _ => Err(wrong("type must be text, json_object, json_schema, regex, grammar or choice")),
    }
}

/// OpenAI's form: `{"json_schema": {"name", "schema", "strict"}}`.
fn json_schema(format: &Map<String, Value>) -> Result<Structure, ApiError> {
    const PARAM: &str = "response_format";
    let missing = |name: &str| ApiError::param(format!("{PARAM}.{name}"), format!("{PARAM}.{name} is missing"));
    let named = format.get("json_schema").and_then(Value::as_object).ok_or_else(|| missing("json_schema"))?;
    let name = named.get("name").and_then(Value::as_str).ok_or_else(|| missing("json_schema.name"))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.chars().count() > NAME_CHARS || !name.chars().all(is_plain) {
        let param = format!("{PARAM}.json_schema.name");
        return Err(ApiError::param(
            param.clone(),
            format!("{param} must have 1 to {NAME_CHARS} letters, digits, _ and -"),
        ));
    }
    let schema = named.get("schema").ok_or_else(|| missing("json_schema.schema"))?;
    let what = format!("{PARAM} '{name}'");
    let strict = match named.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => *strict,
        Some(_) => {
            let param = format!("{PARAM}.json_schema.strict");
            return Err(ApiError::param(param.clone(), format!("{param} must be true or false")));
        }
    };
    if strict {
        check_strict(schema, &what).map_err(|error| ApiError::param(PARAM, error.to_string()))?;
    }
    Ok(Structure { source: document(schema.clone()), what, param: PARAM })
}

/// vLLM's form: one field of `json`, `regex`, `choice`, `grammar` and `json_object`.
fn structured_outputs(wanted: &Map<String, Value>) -> Result<Option<Structure>, ApiError> {
    const PARAM: &str = "structured_outputs";
    let given: Vec<(&String, &Value)> =
        wanted.iter().filter(|(_, value)| !value.is_null() && **value != Value::Bool(false)).collect();
    let known = |name: &str| ["json", "regex", "choice", "grammar", "json_object"].contains(&name);
    match given[..] {
        [] => Ok(None),
        [(name, value)] if known(name) => wish(PARAM, name, value).map(Some),
        _ => Err(ApiError::param(PARAM, format!("{PARAM} takes one of json, regex, choice, grammar and json_object"))),
    }
}

/// Documents of a schema, in which a blank may follow each comma and colon: models have learnt to write it there, and one that may not
/// writes it into the values.
fn document(schema: Value) -> Source {
    let options = SchemaOptions { whitespace: Whitespace::OneSpace, ..SchemaOptions::default() };
    Source::JsonSchema { schema, options }
}

fn wish(param: &'static str, kind: &str, value: &Value) -> Result<Structure, ApiError> {
    let wrong = |what: &str| ApiError::param(param, format!("{param}: {kind} must be {what}"));
    let text = || value.as_str().map(str::to_owned).ok_or_else(|| wrong("a string"));
    let source = match kind {
        "json_object" => document(json!({ "type": "object" })),
        // vLLM takes the schema's text too.
        "json" => match value {
            Value::String(text) => document(serde_json::from_str(text).map_err(|_| wrong("a JSON Schema"))?),
            schema => document(schema.clone()),
        },
        "regex" => Source::Regex(text()?),
        "choice" => {
            let texts =
                value.as_array().and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect());
            Source::Choice(texts.ok_or_else(|| wrong("a list of strings"))?)
        }
        // Rules are `name ::= ...` in llama.cpp's form and `name: ...` in Lark's.
        _ => match text()? {
            gbnf if gbnf.contains("::=") => Source::Gbnf(gbnf),
            lark => Source::Lark(lark),
        },
    };
    Ok(Structure { source, what: param.into(), param })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Option<Source>, String> {
        let read = structure(&Fields::new(body.as_object().unwrap()));
        read.map(|found| found.map(|found| found.source)).map_err(|error| error.param.unwrap_or_default())
    }

    #[test]
    fn each_spelling_means_the_same() {
        let schema = json!({ "type": "integer" });
        let integer = || Ok(Some(document(json!({ "type": "integer" }))));
        let cases = [
            (json!({}), Ok(None)),
            (json!({ "response_format": null }), Ok(None)),
            (json!({ "response_format": { "type": "text" } }), Ok(None)),
            (json!({ "response_format": { "type": "json_object" } }), Ok(Some(document(json!({ "type": "object" }))))),
            (json!({ "response_format": { "type": "json_object", "schema": schema } }), integer()),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": schema } } }),
                integer(),
            ),
            (json!({ "guided_json": schema }), integer()),
            (json!({ "guided_json": schema.to_string() }), integer()),
            (json!({ "structured_outputs": { "json": schema, "regex": null } }), integer()),
            (json!({ "guided_regex": "[ab]+" }), Ok(Some(Source::Regex("[ab]+".into())))),
            (
                json!({ "response_format": { "type": "regex", "pattern": "[ab]+" } }),
                Ok(Some(Source::Regex("[ab]+".into()))),
            ),
            (json!({ "guided_choice": ["a", "b"] }), Ok(Some(Source::Choice(vec!["a".into(), "b".into()])))),
            (json!({ "guided_grammar": "root ::= \"a\"" }), Ok(Some(Source::Gbnf("root ::= \"a\"".into())))),
            (json!({ "guided_grammar": "start: \"a\"" }), Ok(Some(Source::Lark("start: \"a\"".into())))),
        ];
        for (body, expected) in cases {
            assert_eq!(read(body.clone()), expected, "{body}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let cases = [
            (json!({ "response_format": { "type": "xml" } }), "response_format"),
            (json!({ "response_format": "json" }), "response_format"),
            (json!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema"),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": {} } } }),
                "response_format.json_schema.name",
            ),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a b", "schema": {} } } }),
                "response_format.json_schema.name",
            ),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n" } } }),
                "response_format.json_schema.schema",
            ),
            (json!({ "guided_choice": "a" }), "guided_choice"),
            (json!({ "guided_choice": ["a"], "guided_regex": "a" }), "guided_choice"),
            (json!({ "structured_outputs": { "json": {}, "regex": "a" } }), "structured_outputs"),
        ];
        for (body, expected) in cases {
            assert_eq!(read(body.clone()), Err(expected.to_owned()), "{body}");
        }
    }
}
