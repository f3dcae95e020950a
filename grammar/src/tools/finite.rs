//! Which schemas have an instance at all: one that needs itself without an end has none, and its grammar no end.

use std::collections::HashSet;

use serde_json::Value;

use super::kinds::{Kinds, resolve};

/// The references of a schema that have an instance.
pub struct Finite {
    known: HashSet<String>,
}

impl Finite {
    pub fn of(root: &Value) -> Self {
        let mut references = HashSet::new();
        collect(root, &mut references);
        let mut finite = Self { known: HashSet::new() };
        // Each round finds what needs only what is known; the last finds nothing.
        loop {
            let new: Vec<String> = references
                .iter()
                .filter(|reference| !finite.known.contains(*reference))
                .filter(|reference| {
                    resolve(&Value::from(reference.as_str()), root).is_none_or(|target| finite.has_instance(target))
                })
                .cloned()
                .collect();
            if new.is_empty() {
                return finite;
            }
            finite.known.extend(new);
        }
    }

    /// Whether `schema` has an instance, as far as its structure says. What is not structure is left to those who enforce it.
    pub fn has_instance(&self, schema: &Value) -> bool {
        let Value::Object(keywords) = schema else { return *schema != Value::Bool(false) };
        let list = |keyword: &str| keywords.get(keyword).and_then(Value::as_array);
        let branches = |keyword: &str| list(keyword).is_none_or(|all| all.iter().any(|s| self.has_instance(s)));
        let reference = keywords.get("$ref").and_then(Value::as_str).is_none_or(|target| self.known.contains(target));
        let all = list("allOf").is_none_or(|all| all.iter().all(|s| self.has_instance(s)));
        if !reference || !all || !branches("anyOf") || !branches("oneOf") {
            return false;
        }
        let kinds = keywords.get("type").map_or(Kinds::ALL, Kinds::of_type);
        let object = || {
            let property = |name: &Value| keywords.get("properties")?.get(name.as_str()?);
            let required = list("required").into_iter().flatten();
            required.filter_map(property).all(|schema| self.has_instance(schema))
        };
        let array = || {
            let some = keywords.get("minItems").and_then(Value::as_u64).is_some_and(|least| least > 0);
            !some || keywords.get("items").is_none_or(|items| self.has_instance(items))
        };
        let scalars = kinds.without(Kinds::OBJECT).without(Kinds::ARRAY) != Kinds::NONE;
        scalars || kinds.any(Kinds::OBJECT) && object() || kinds.any(Kinds::ARRAY) && array()
    }
}

fn collect(schema: &Value, references: &mut HashSet<String>) {
    match schema {
        Value::Object(keywords) => {
            references.extend(keywords.get("$ref").and_then(Value::as_str).map(str::to_string));
            keywords.values().for_each(|value| collect(value, references));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
        _ => {}
    }
}
