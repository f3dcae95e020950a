//! The parameters of a tool one by one.

use serde_json::{Map, Value};

use super::finite::Finite;
use super::kinds::{Kinds, resolve, standalone};
use super::lark::{Lark, quote};
use super::literal::Dialect;
use super::values::{ANNOTATIONS, Values};
use super::{Error, Tool};

/// One parameter.
pub struct Parameter {
    pub name: String,
    /// A schema that stands alone.
    pub schema: Value,
    pub required: bool,
}

/// What arguments a tool takes.
pub enum Parameters {
    /// These and no others, in this order.
    Listed(Vec<Parameter>),
    /// Any names, with values of this schema.
    Open(Value),
}

/// Keywords of the arguments object that `Parameters` holds.
const HELD: [&str; 4] = ["type", "properties", "required", "additionalProperties"];

/// Whether a keyword of the arguments object says nothing about what is valid.
fn is_annotation(keyword: &str) -> bool {
    ANNOTATIONS.contains(&keyword) || ["$id", "strict"].contains(&keyword)
}

const NOTHING: &str = "it is required and nothing is valid for it; give it a schema with an end";

/// References from the arguments object to another are followed this often.
const REFERENCES: usize = 8;

impl Parameters {
    /// `writable` says whether the family can write a parameter of that name.
    pub fn of(tool: &Tool, family: &'static str, writable: fn(&str) -> bool) -> Result<Self, Error> {
        let refuse = |pointer: String, reason: &str| Error::Parameters {
            tool: tool.name.clone(),
            family,
            pointer,
            reason: reason.into(),
        };
        let root = tool.schema();
        if let Some(reference) = foreign_reference(&root) {
            let reason = format!("the reference '{reference}' does not point into $defs; move what it means there");
            return Err(refuse(String::new(), &reason));
        }
        let keywords = object(&root);
        if let Some(keyword) =
            keywords.keys().find(|k| !HELD.contains(&k.as_str()) && !is_annotation(k) && !k.starts_with("x-"))
        {
            let reason =
                "only properties, required and additionalProperties are supported here; move the rule into a property";
            return Err(refuse(format!("/{}", escape(keyword)), reason));
        }
        if !Kinds::of(&root, &root).any(Kinds::OBJECT) {
            return Err(refuse("/type".into(), "arguments are an object"));
        }
        let additional = keywords.get("additionalProperties").unwrap_or(&Value::Bool(true));
        let none = Map::new();
        let properties = keywords.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required: Vec<&str> = keywords
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if properties.is_empty() && required.is_empty() && *additional != Value::Bool(false) {
            return Ok(Self::Open(standalone(additional, &root)));
        }
        let undeclared =
            required.iter().filter(|name| !properties.contains_key(**name)).map(|name| (*name, additional));
        let finite = Finite::of(&root);
        let mut listed = Vec::new();
        for (name, schema) in properties.iter().map(|(name, schema)| (name.as_str(), schema)).chain(undeclared) {
            let required = required.contains(&name);
            let pointer = || format!("/properties/{}", escape(name));
            let nothing = Kinds::of(schema, &root) == Kinds::NONE || !finite.has_instance(schema);
            match (nothing, required) {
                (true, true) => return Err(refuse(pointer(), NOTHING)),
                (true, false) => continue,
                _ if !writable(name) => return Err(refuse(pointer(), "the name cannot be written; rename it")),
                _ => listed.push(Parameter { name: name.into(), schema: standalone(schema, &root), required }),
            }
        }
        Ok(Self::Listed(listed))
    }
}

/// A reference that means something else once a part of the schema stands alone.
fn foreign_reference(schema: &Value) -> Option<String> {
    match schema {
        Value::Object(keywords) => keywords.iter().find_map(|(keyword, value)| match (keyword.as_str(), value) {
            ("$ref", Value::String(target)) if ["#/$defs/", "#/definitions/"].iter().any(|d| target.starts_with(d)) => {
                None
            }
            ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(target)) => Some(target.clone()),
            _ => foreign_reference(value),
        }),
        Value::Array(items) => items.iter().find_map(foreign_reference),
        _ => None,
    }
}

/// The keywords of the arguments object, behind references that stand alone.
fn object(root: &Value) -> Map<String, Value> {
    let mut schema = root;
    for _ in 0..REFERENCES {
        let alone = |keyword: &str| is_annotation(keyword) || keyword == "$ref" || keyword == "type";
        if !schema.as_object().is_some_and(|keywords| keywords.keys().all(|keyword| alone(keyword))) {
            break;
        }
        let Some(target) = schema.get("$ref").and_then(|reference| resolve(reference, root)) else { break };
        schema = target;
    }
    schema.as_object().cloned().unwrap_or_default()
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// How a text is read: the types that each parameter of a tool may have.
pub struct Types {
    known: Vec<(String, Kinds)>,
    other: Kinds,
}

impl Types {
    pub fn of(tool: &Tool) -> Self {
        let root = &tool.parameters;
        let keywords = object(root);
        let properties = keywords.get("properties").and_then(Value::as_object);
        let kinds = |schema: &Value| Kinds::of(schema, root);
        Self {
            known: properties.into_iter().flatten().map(|(name, schema)| (name.clone(), kinds(schema))).collect(),
            other: keywords.get("additionalProperties").map_or(Kinds::ALL, kinds),
        }
    }

    pub fn get(&self, name: &str) -> Kinds {
        let kinds = self.known.iter().find(|(known, _)| known == name).map_or(self.other, |(_, kinds)| *kinds);
        // What nothing is valid for is still read, by its looks.
        if kinds == Kinds::NONE { Kinds::ALL } else { kinds }
    }
}

/// The rule of a tool's arguments as a JSON object.
pub fn json_object(tool: &Tool, family: &'static str, lark: &mut Lark) -> Result<String, Error> {
    let schema = tool.schema();
    if foreign_reference(&schema).is_some() {
        return lark.schema(&schema);
    }
    if !Finite::of(&schema).has_instance(&schema) {
        let (tool, pointer, reason) = (tool.name.clone(), String::new(), NOTHING.into());
        return Err(Error::Parameters { tool, family, pointer, reason });
    }
    Values::new(&schema, Dialect::Json, lark).rule(&schema)
}

/// A rule for items in a fixed order, some of which may be left out, with `separator` between those that are there.
pub fn sequence(items: &[(String, bool)], separator: &str, lark: &mut Lark) -> String {
    let separator = if separator.is_empty() { String::new() } else { format!("{} ", quote(separator)) };
    let next = |(item, required): &(String, bool)| {
        let item = format!("{separator}{item}");
        if *required { item } else { format!("({item})?") }
    };
    // Any item up to the first that is required may be the one without a separator.
    let certain = items.iter().position(|(_, required)| *required).unwrap_or(items.len());
    let rest = items.get(certain + 1..).unwrap_or_default();
    let mut after =
        lark.rule(&if rest.is_empty() { quote("") } else { rest.iter().map(next).collect::<Vec<_>>().join(" ") });
    let mut first = match items.get(certain) {
        Some((item, _)) => vec![format!("{item} {after}")],
        None => vec![quote("")],
    };
    for at in (0..certain).rev() {
        if let Some(item) = items.get(at + 1) {
            after = lark.rule(&format!("{} {after}", next(item)));
        }
        first.push(format!("{} {after}", items[at].0));
    }
    lark.rule(&first.join(" | "))
}
