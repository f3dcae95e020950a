//! The subset of JSON Schema that OpenAI's strict mode takes, refused in OpenAI's words: clients and people match on them.

use serde_json::{Map, Value};

use crate::GrammarError;

/// Keywords that strict mode does not take.
const NOT_PERMITTED: [&str; 17] = [
    "allOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contains",
    "uniqueItems",
    "prefixItems",
];
const TYPES: [&str; 7] = ["string", "number", "integer", "boolean", "object", "array", "null"];
/// Most properties of a schema, all together.
const PROPERTIES: usize = 5000;
/// Most values of all enums together.
const ENUM_VALUES: usize = 1000;

/// Checks that a schema is in the subset. `what` is what it is for: `response_format 'NAME'` or `function 'NAME'`.
pub fn check_strict(schema: &Value, what: &str) -> Result<(), GrammarError> {
    let wrong = |reason: String| GrammarError::Strict(format!("Invalid schema for {what}: {reason}"));
    let kind = match &schema["type"] {
        Value::Null => "None".to_owned(),
        Value::String(kind) => kind.clone(),
        other => other.to_string(),
    };
    if kind != "object" {
        return Err(wrong(format!("schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind}\"'.")));
    }
    let mut checker = Checker { root: schema, properties: 0, values: 0 };
    checker.check(schema, &mut Vec::new()).map_err(|(context, reason)| wrong(format!("In context={context}, {reason}")))
}

struct Checker<'a> {
    root: &'a Value,
    properties: usize,
    values: usize,
}

/// A place, as Python shows a tuple, and what is wrong there.
type Wrong = (String, String);

impl<'a> Checker<'a> {
    fn check(&mut self, schema: &'a Value, context: &mut Vec<String>) -> Result<(), Wrong> {
        let Some(members) = schema.as_object() else {
            return Err((tuple(context), "schema must have a 'type' key.".into()));
        };
        if let Some(reason) = self.own(members) {
            return Err((tuple(context), reason));
        }
        for (keyword, value) in members {
            match (keyword.as_str(), value) {
                ("properties" | "$defs" | "definitions", Value::Object(named)) => {
                    for (name, inner) in named {
                        self.inside(inner, context, &[keyword, name])?;
                    }
                }
                ("items", inner) => self.inside(inner, context, &[keyword])?,
                ("anyOf", Value::Array(options)) => {
                    for (at, inner) in options.iter().enumerate() {
                        self.inside(inner, context, &[keyword, &at.to_string()])?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn inside(&mut self, schema: &'a Value, context: &mut Vec<String>, steps: &[&str]) -> Result<(), Wrong> {
        context.extend(steps.iter().map(|step| step.to_string()));
        self.check(schema, context)?;
        context.truncate(context.len() - steps.len());
        Ok(())
    }

    /// What is wrong with a schema's own keywords.
    fn own(&mut self, members: &Map<String, Value>) -> Option<String> {
        if let Some(keyword) = members.keys().find(|keyword| NOT_PERMITTED.contains(&keyword.as_str())) {
            return Some(format!("'{keyword}' is not permitted."));
        }
        if let Some(Value::String(reference)) = members.get("$ref") {
            let found =
                reference == "#" || reference.strip_prefix('#').is_some_and(|at| self.root.pointer(at).is_some());
            return (!found)
                .then(|| format!("reference to component '{reference}' which was not found in the schema."));
        }
        self.values += members.get("enum").and_then(Value::as_array).map_or(0, Vec::len);
        if self.values > ENUM_VALUES {
            return Some(format!("the schema has more than {ENUM_VALUES} enum values in total."));
        }
        let kinds: Vec<&str> = match members.get("type") {
            Some(Value::String(kind)) => vec![kind],
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if let Some(kind) = kinds.iter().find(|kind| !TYPES.contains(kind)) {
            return Some(format!("'{kind}' is not valid under any of the given schemas."));
        }
        let typed =
            !kinds.is_empty() || ["anyOf", "enum", "const"].iter().any(|keyword| members.contains_key(*keyword));
        if !typed {
            return Some("schema must have a 'type' key.".into());
        }
        if kinds.contains(&"object") || members.contains_key("properties") {
            return self.object(members);
        }
        (kinds.contains(&"array") && !members.contains_key("items")).then(|| "array schema missing items.".into())
    }

    fn object(&mut self, members: &Map<String, Value>) -> Option<String> {
        if members.get("additionalProperties") != Some(&Value::Bool(false)) {
            return Some("'additionalProperties' is required to be supplied and to be false.".into());
        }
        let empty = Map::new();
        let properties = members.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        self.properties += properties.len();
        if self.properties > PROPERTIES {
            return Some(format!("the schema has more than {PROPERTIES} properties in total."));
        }
        let required: Vec<&str> =
            members.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let every = "'required' is required to be supplied and to be an array including every key in properties.";
        if let Some(missing) = properties.keys().find(|name| !required.contains(&name.as_str())) {
            return Some(format!("{every} Missing '{missing}'."));
        }
        let extra = required.iter().find(|name| !properties.contains_key(**name));
        extra.map(|name| format!("{every} Extra required key '{name}' supplied."))
    }
}

/// A tuple of strings as Python shows it.
fn tuple(context: &[String]) -> String {
    let quoted: Vec<String> = context.iter().map(|step| format!("'{}'", step.replace('\'', "\\'"))).collect();
    match &quoted[..] {
        [one] => format!("({one},)"),
        all => format!("({})", all.join(", ")),
    }
}
