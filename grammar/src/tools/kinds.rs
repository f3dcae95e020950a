//! Which types of values a schema lets through: what a family needs to know that writes strings without quotes.

use serde_json::{Map, Value, json};

/// A set of JSON types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds(u8);

/// So many schemas are looked at behind references and combinations; beyond it any type is possible.
const SCHEMAS: usize = 4096;

/// References are followed this deep.
const DEPTH: usize = 32;

impl Kinds {
    pub const NONE: Self = Self(0);
    pub const STRING: Self = Self(1);
    pub const NUMBER: Self = Self(2);
    pub const BOOLEAN: Self = Self(4);
    pub const NULL: Self = Self(8);
    pub const OBJECT: Self = Self(16);
    pub const ARRAY: Self = Self(32);
    pub const ALL: Self = Self(63);

    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether one of the types of `other` is in it.
    pub fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn named(name: &str) -> Self {
        match name {
            "string" => Self::STRING,
            "number" | "integer" => Self::NUMBER,
            "boolean" => Self::BOOLEAN,
            "null" => Self::NULL,
            "object" => Self::OBJECT,
            "array" => Self::ARRAY,
            _ => Self::ALL,
        }
    }

    pub fn of_value(value: &Value) -> Self {
        match value {
            Value::String(_) => Self::STRING,
            Value::Number(_) => Self::NUMBER,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Null => Self::NULL,
            Value::Object(_) => Self::OBJECT,
            Value::Array(_) => Self::ARRAY,
        }
    }

    /// The types that `schema`, a part of `root`, may let through: never fewer than it does.
    pub fn of(schema: &Value, root: &Value) -> Self {
        Self::at(schema, root, 0, &mut SCHEMAS.clone())
    }

    /// The types of a `type` keyword.
    pub fn of_type(types: &Value) -> Self {
        match types {
            Value::String(name) => Self::named(name),
            Value::Array(names) => {
                names.iter().filter_map(Value::as_str).fold(Self::NONE, |kinds, name| kinds.or(Self::named(name)))
            }
            _ => Self::ALL,
        }
    }

    fn at(schema: &Value, root: &Value, depth: usize, left: &mut usize) -> Self {
        let Value::Object(keywords) = schema else {
            return if *schema == Value::Bool(false) { Self::NONE } else { Self::ALL };
        };
        if depth == DEPTH || *left == 0 {
            return Self::ALL;
        }
        *left -= 1;
        let mut kinds = keywords.get("type").map_or(Self::ALL, Self::of_type);
        if let Some(Value::Array(values)) = keywords.get("enum") {
            kinds = kinds.and(values.iter().fold(Self::NONE, |kinds, value| kinds.or(Self::of_value(value))));
        }
        if let Some(value) = keywords.get("const") {
            kinds = kinds.and(Self::of_value(value));
        }
        for combination in ["anyOf", "oneOf"] {
            if let Some(Value::Array(schemas)) = keywords.get(combination) {
                kinds =
                    kinds.and(schemas.iter().fold(Self::NONE, |kinds, s| kinds.or(Self::at(s, root, depth + 1, left))));
            }
        }
        if let Some(Value::Array(schemas)) = keywords.get("allOf") {
            kinds = schemas.iter().fold(kinds, |kinds, s| kinds.and(Self::at(s, root, depth + 1, left)));
        }
        if let Some(target) = keywords.get("$ref").and_then(|target| resolve(target, root)) {
            kinds = kinds.and(Self::at(target, root, depth + 1, left));
        }
        kinds
    }
}

/// What a reference inside `root` points at.
pub fn resolve<'a>(reference: &Value, root: &'a Value) -> Option<&'a Value> {
    root.pointer(reference.as_str()?.strip_prefix('#')?)
}

/// `schema` as a document of its own: with the definitions that its references mean, if it has any.
pub fn standalone(schema: &Value, root: &Value) -> Value {
    let Value::Object(keywords) = schema else {
        return schema.clone();
    };
    if !refers(schema) {
        return schema.clone();
    }
    let mut own = keywords.clone();
    for definitions in ["$defs", "definitions"] {
        if let Some(found) = root.get(definitions)
            && !own.contains_key(definitions)
        {
            own.insert(definitions.into(), found.clone());
        }
    }
    Value::Object(own)
}

fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(keywords) => keywords.contains_key("$ref") || keywords.values().any(refers),
        Value::Array(items) => items.iter().any(refers),
        _ => false,
    }
}

/// `schema` without the strings that it lets through.
pub fn without_strings(schema: &Value, root: &Value) -> Value {
    without_strings_at(schema, root, 0)
}

fn without_strings_at(schema: &Value, root: &Value, depth: usize) -> Value {
    // Less than the schema takes is never wrong.
    if depth == DEPTH {
        return Value::Bool(false);
    }
    let Value::Object(keywords) = schema else {
        return json!({"type": ["number", "boolean", "null", "object", "array"]});
    };
    if let Some(target) = keywords.get("$ref").and_then(|target| resolve(target, root)) {
        return without_strings_at(target, root, depth + 1);
    }
    let mut rest: Map<String, Value> = keywords.clone();
    for combination in ["anyOf", "oneOf"] {
        if let Some(Value::Array(schemas)) = keywords.get(combination) {
            let schemas = schemas.iter().filter(|s| Kinds::of(s, root) != Kinds::STRING);
            let schemas: Vec<Value> = schemas.map(|s| without_strings_at(s, root, depth + DEPTH / 4)).collect();
            rest.insert(combination.into(), schemas.into());
        }
    }
    for value in ["enum", "examples"] {
        if let Some(Value::Array(values)) = keywords.get(value) {
            let values: Vec<Value> = values.iter().filter(|v| !v.is_string()).cloned().collect();
            rest.insert(value.into(), values.into());
        }
    }
    match keywords.get("type") {
        Some(Value::Array(names)) => {
            let names: Vec<Value> = names.iter().filter(|name| *name != "string").cloned().collect();
            rest.insert("type".into(), names.into());
        }
        Some(_) => {}
        None if ["enum", "const", "anyOf", "oneOf"].iter().any(|k| keywords.contains_key(*k)) => {}
        None => {
            rest.insert("type".into(), json!(["number", "boolean", "null", "object", "array"]));
        }
    }
    Value::Object(rest)
}

/// `schema` without what says nothing about validity, so that schemas that mean the same are the same.
pub fn bare(schema: &Value) -> Value {
    const SILENT: [&str; 8] =
        ["title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"];
    const SCHEMAS: [&str; 10] = [
        "items",
        "additionalProperties",
        "not",
        "if",
        "then",
        "else",
        "contains",
        "propertyNames",
        "additionalItems",
        "unevaluatedProperties",
    ];
    const LISTS: [&str; 5] = ["anyOf", "oneOf", "allOf", "prefixItems", "items"];
    const MAPS: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
    let Value::Object(keywords) = schema else { return schema.clone() };
    let keywords = keywords.iter().filter(|(keyword, _)| !SILENT.contains(&keyword.as_str()));
    let keywords = keywords.map(|(keyword, value)| {
        let name = keyword.as_str();
        let value = match value {
            Value::Object(_) if SCHEMAS.contains(&name) => bare(value),
            Value::Array(schemas) if LISTS.contains(&name) => schemas.iter().map(bare).collect(),
            Value::Object(schemas) if MAPS.contains(&name) => {
                schemas.iter().map(|(name, schema)| (name.clone(), bare(schema))).collect()
            }
            _ => value.clone(),
        };
        (keyword.clone(), value)
    });
    Value::Object(keywords.collect())
}
