//! Schemas as grammars of values, in Python's words or JSON's.
//!
//! What a simple schema takes is written here, with one spelling of what lies between values, and shared: a schema of the
//! outside's costs llguidance far more than a rule. Everything else goes through the hook as it is.

use serde_json::{Map, Value, json};

use super::Error;
use super::finite::Finite;
use super::kinds::{Kinds, resolve, standalone};
use super::lark::{Lark, one_of, quote};
use super::literal::Dialect;
use super::parameters::sequence;

/// Schemas as rules. In Python, what is not simple is written as JSON too, which the parser reads as well.
pub struct Values<'a, 'b, 'c> {
    root: &'a Value,
    lark: &'b mut Lark<'c>,
    dialect: Dialect,
    finite: Finite,
    /// Rules of references, so that a schema may contain itself.
    references: Vec<(String, String)>,
}

/// Keywords that say nothing about which values are valid.
pub const ANNOTATIONS: [&str; 11] = [
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$defs",
    "definitions",
    "$schema",
];

impl<'a, 'b, 'c> Values<'a, 'b, 'c> {
    pub fn new(root: &'a Value, dialect: Dialect, lark: &'b mut Lark<'c>) -> Self {
        Self { root, lark, dialect, finite: Finite::of(root), references: Vec::new() }
    }

    pub fn rule(&mut self, schema: &Value) -> Result<String, Error> {
        if let Value::Object(keywords) = schema
            && self.has_instance(schema)
            && let Some(rule) = self.simple(keywords)?
        {
            return Ok(rule);
        }
        match (schema, self.dialect) {
            (Value::Bool(true), Dialect::Python) => self.any(),
            _ => self.lark.schema(&standalone(schema, self.root)),
        }
    }

    fn has_instance(&self, schema: &Value) -> bool {
        Kinds::of(schema, self.root) != Kinds::NONE && self.finite.has_instance(schema)
    }

    /// The rule of a simple schema.
    fn simple(&mut self, keywords: &Map<String, Value>) -> Result<Option<String>, Error> {
        let mut rules: Vec<&str> = keywords.keys().map(String::as_str).filter(|k| !ANNOTATIONS.contains(k)).collect();
        rules.sort_unstable();
        match rules.as_slice() {
            [] if self.dialect == Dialect::Python => Ok(Some(self.any()?)),
            ["$ref"] => self.reference(&keywords["$ref"]),
            ["const"] | ["const", "type"] => self.listed(std::slice::from_ref(&keywords["const"]), keywords),
            ["enum"] | ["enum", "type"] => {
                self.listed(keywords["enum"].as_array().map(Vec::as_slice).unwrap_or_default(), keywords)
            }
            ["anyOf"] => {
                let branches = keywords["anyOf"].as_array().cloned().unwrap_or_default();
                let rules = branches.iter().filter(|schema| self.has_instance(schema)).cloned().collect::<Vec<_>>();
                let rules = rules.iter().map(|schema| self.rule(schema)).collect::<Result<Vec<_>, _>>()?;
                Ok((!rules.is_empty()).then(|| self.lark.rule(&one_of(&rules))))
            }
            _ => match keywords.get("type") {
                Some(Value::Array(types)) if !types.is_empty() && !keywords.contains_key("enum") => {
                    let mut rules = Vec::new();
                    for name in types {
                        let one = Value::Object(of_one_type(name, keywords));
                        if self.has_instance(&one) {
                            rules.push(self.rule(&one)?);
                        }
                    }
                    Ok((!rules.is_empty()).then(|| self.lark.rule(&one_of(&rules))))
                }
                Some(Value::String(name)) => self.typed(name, &rules, keywords),
                _ => Ok(None),
            },
        }
    }

    fn typed(&mut self, name: &str, rules: &[&str], keywords: &Map<String, Value>) -> Result<Option<String>, Error> {
        let only = |known: &[&str]| rules.iter().all(|rule| known.contains(rule));
        match name {
            "boolean" if only(&["type"]) => self.values(&[json!(true), json!(false)]),
            "null" if only(&["type"]) => self.values(&[json!(null)]),
            "integer" if rules.len() > 1 && only(&["type", "minimum", "maximum"]) => {
                let range = range(keywords.get("minimum"), keywords.get("maximum"));
                Ok(range.map(|range| self.lark.rule(&format!("/{range}/"))))
            }
            "array" if only(&["type", "items", "minItems", "maxItems"]) => self.array(keywords),
            "object" if only(&["type", "properties", "required", "additionalProperties"]) => self.object(keywords),
            _ => Ok(None),
        }
    }

    /// Those of `values` that the `type` beside them takes.
    fn listed(&mut self, values: &[Value], keywords: &Map<String, Value>) -> Result<Option<String>, Error> {
        let types = keywords.get("type").unwrap_or(&Value::Null);
        let named = |name: &str| types == name || types.as_array().is_some_and(|types| types.iter().any(|t| t == name));
        let whole = named("integer") && !named("number");
        let valid = |value: &&Value| Kinds::of_type(types).any(Kinds::of_value(value)) && !(whole && value.is_f64());
        let values: Vec<Value> = values.iter().filter(valid).cloned().collect();
        self.values(&values)
    }

    fn values(&mut self, values: &[Value]) -> Result<Option<String>, Error> {
        let values: Vec<String> = values.iter().map(|value| quote(&self.write(value))).collect();
        Ok((!values.is_empty()).then(|| self.lark.rule(&one_of(&values))))
    }

    fn write(&self, value: &Value) -> String {
        write(value, self.dialect)
    }

    fn array(&mut self, keywords: &Map<String, Value>) -> Result<Option<String>, Error> {
        let bound = |name: &str| keywords.get(name).map(|bound| bound.as_u64().ok_or(())).transpose();
        let (Ok(least), Ok(most)) = (bound("minItems"), bound("maxItems")) else { return Ok(None) };
        let least = least.unwrap_or(0);
        if most.is_some_and(|most| most < least) || !keywords.get("items").is_none_or(Value::is_object) {
            return Ok(None);
        }
        let item = keywords.get("items").unwrap_or(&Value::Bool(true));
        if !self.has_instance(item) {
            return if least == 0 { self.values(&[json!([])]) } else { Ok(None) };
        }
        let item = self.rule(item)?;
        let items = match (least, most) {
            (0, Some(0)) => String::new(),
            (_, most) => {
                let repeat = match most {
                    Some(most) => format!("{{{},{}}}", least.max(1) - 1, most - 1),
                    None => format!("{{{},}}", least.max(1) - 1),
                };
                format!("({item} (\", \" {item}){repeat}){}", if least == 0 { "?" } else { "" })
            }
        };
        Ok(Some(self.lark.rule(&format!("\"[\" {items} \"]\""))))
    }

    fn object(&mut self, keywords: &Map<String, Value>) -> Result<Option<String>, Error> {
        let Some(properties) = keywords.get("properties").and_then(Value::as_object) else {
            return self.map(keywords);
        };
        let required: Vec<&str> = keywords
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let open = keywords.get("additionalProperties").is_some_and(|additional| *additional != Value::Bool(false));
        if open || properties.is_empty() || required.iter().any(|name| !properties.contains_key(*name)) {
            return Ok(None);
        }
        let mut items = Vec::new();
        for (name, schema) in properties.iter().filter(|(_, schema)| self.has_instance(schema)).collect::<Vec<_>>() {
            let value = self.rule(schema)?;
            let item = format!("{} {value}", quote(&format!("{}: ", Value::from(name.as_str()))));
            items.push((self.lark.rule(&item), required.contains(&name.as_str())));
        }
        let items = sequence(&items, ", ", self.lark);
        Ok(Some(self.lark.rule(&format!("\"{{\" {items} \"}}\""))))
    }

    /// An object of any keys.
    fn map(&mut self, keywords: &Map<String, Value>) -> Result<Option<String>, Error> {
        let values = keywords.get("additionalProperties").unwrap_or(&Value::Bool(true));
        if keywords.contains_key("required") {
            return Ok(None);
        }
        if !self.has_instance(values) {
            return self.values(&[json!({})]);
        }
        let value = self.rule(values)?;
        let key = self.lark.schema(&json!({"type": "string"}))?;
        Ok(Some(self.lark.rule(&format!("\"{{\" ({key} \": \" {value} (\", \" {key} \": \" {value})*)? \"}}\""))))
    }

    fn any(&mut self) -> Result<String, Error> {
        if let Some(rule) = &self.lark.any {
            return Ok(rule.clone());
        }
        let name = self.lark.reserve();
        self.lark.any = Some(name.clone());
        let string = self.lark.schema(&json!({"type": "string"}))?;
        let number = self.lark.schema(&json!({"type": "number"}))?;
        let list = format!("\"[\" ({name} (\", \" {name})*)? \"]\"");
        let map = format!("\"{{\" ({string} \": \" {name} (\", \" {string} \": \" {name})*)? \"}}\"");
        let words = "\"True\" | \"False\" | \"None\"";
        self.lark.named(&name, &format!("{string} | {number} | {words} | {list} | {map}"));
        Ok(name)
    }

    fn reference(&mut self, reference: &Value) -> Result<Option<String>, Error> {
        let Some(target) = resolve(reference, self.root).cloned() else { return Ok(None) };
        let key = reference.as_str().unwrap_or_default().to_string();
        if let Some((_, rule)) = self.references.iter().find(|(known, _)| *known == key) {
            return Ok(Some(rule.clone()));
        }
        let name = self.lark.reserve();
        self.references.push((key, name.clone()));
        let rule = self.rule(&target)?;
        if rule == name {
            // A reference to itself has no value; llguidance says so.
            return Ok(None);
        }
        self.lark.named(&name, &rule);
        Ok(Some(name))
    }
}

/// The keywords of a schema of several types that say something about one of them.
fn of_one_type(name: &Value, keywords: &Map<String, Value>) -> Map<String, Value> {
    const SPEAK_OF: [(&str, &[&str]); 4] = [
        ("string", &["minLength", "maxLength", "pattern", "format"]),
        ("number", &["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
        ("array", &["items", "minItems", "maxItems", "uniqueItems", "prefixItems", "contains"]),
        (
            "object",
            &["properties", "required", "additionalProperties", "minProperties", "maxProperties", "patternProperties"],
        ),
    ];
    let about = if name == "integer" { "number" } else { name.as_str().unwrap_or_default() };
    let says = |keyword: &str| SPEAK_OF.iter().all(|(of, known)| *of == about || !known.contains(&keyword));
    let mut one: Map<String, Value> =
        keywords.iter().filter(|(k, _)| says(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    one.insert("type".into(), name.clone());
    one
}

/// A value as the dialect writes it, with the spaces that Python puts between.
fn write(value: &Value, dialect: Dialect) -> String {
    match (value, dialect) {
        (Value::Null, Dialect::Python) => "None".into(),
        (Value::Bool(true), Dialect::Python) => "True".into(),
        (Value::Bool(false), Dialect::Python) => "False".into(),
        (Value::Array(items), _) => {
            format!("[{}]", items.iter().map(|v| write(v, dialect)).collect::<Vec<_>>().join(", "))
        }
        (Value::Object(items), _) => {
            let item =
                |(key, value): (&String, &Value)| format!("{}: {}", Value::from(key.as_str()), write(value, dialect));
            format!("{{{}}}", items.iter().map(item).collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

/// Digits of an integer that has no upper bound.
const DIGITS: usize = 18;

/// The integers between two bounds, as a regular expression; `None` where a bound is no integer of moderate size, or nothing is
/// between them.
fn range(least: Option<&Value>, most: Option<&Value>) -> Option<String> {
    let far = 10i64.pow(DIGITS as u32) - 1;
    let bound = |bound: Option<&Value>, far: i64| match bound {
        Some(value) => value.as_i64().filter(|bound| bound.abs() <= far.abs()),
        None => Some(far),
    };
    let (least, most) = (bound(least, -far)?, bound(most, far)?);
    let mut parts = Vec::new();
    if least < 0 {
        parts.push(format!("-({})", natural(1.max(-most), -least)?));
    }
    if most >= 0 {
        parts.push(natural(least.max(0), most)?);
    }
    (least <= most).then(|| format!("({})", parts.join("|")))
}

fn natural(least: i64, most: i64) -> Option<String> {
    let mut parts = Vec::new();
    let mut from = least;
    while from <= most {
        let digits = from.to_string();
        let to = most.min(10i64.pow(digits.len() as u32) - 1);
        parts.push(between(digits.as_bytes(), to.to_string().as_bytes()));
        from = to + 1;
    }
    (!parts.is_empty()).then(|| parts.join("|"))
}

/// Numbers of one length from `least` to `most`.
fn between(least: &[u8], most: &[u8]) -> String {
    let (Some((first, least)), Some((last, most))) = (least.split_first(), most.split_first()) else {
        return String::new();
    };
    let rest = least.len();
    let all = |digits: &[u8], digit: u8| digits.iter().all(|d| *d == digit);
    let any = |from: u8, to: u8| {
        let digits = if from == to {
            char::from(from).to_string()
        } else {
            format!("[{}-{}]", char::from(from), char::from(to))
        };
        if rest == 0 { digits } else { format!("{digits}[0-9]{{{rest}}}") }
    };
    if first == last && !(all(least, b'0') && all(most, b'9')) {
        return format!("{}({})", char::from(*first), between(least, most));
    }
    let (mut from, mut to, mut parts) = (*first, *last, Vec::new());
    if !all(least, b'0') {
        parts.push(format!("{}({})", char::from(from), between(least, &vec![b'9'; rest])));
        from += 1;
    }
    if !all(most, b'9') {
        parts.push(format!("{}({})", char::from(to), between(&vec![b'0'; rest], most)));
        to -= 1;
    }
    if from <= to {
        parts.push(any(from, to));
    }
    parts.join("|")
}

#[cfg(test)]
mod tests {
    use llguidance::derivre::Regex;

    use super::*;

    #[test]
    fn ranges_hold_what_is_between_their_bounds_and_nothing_else() {
        let bounds = [
            -1000, -999, -120, -101, -100, -99, -10, -9, -1, 0, 1, 5, 9, 10, 19, 99, 100, 101, 117, 255, 999, 1000,
            1023,
        ];
        for least in bounds {
            for most in bounds {
                let Some(range) = range(Some(&json!(least)), Some(&json!(most))) else {
                    assert!(least > most);
                    continue;
                };
                let mut range = Regex::new(&range).unwrap();
                for n in -1100..1100 {
                    assert_eq!(range.is_match(&n.to_string()), least <= n && n <= most, "{n} in {least}..={most}");
                }
                assert!(!range.is_match("-0") && !range.is_match("007") && !range.is_match(""));
            }
        }
        let mut open = Regex::new(&range(Some(&json!(42)), None).unwrap()).unwrap();
        assert!(!open.is_match("41") && open.is_match("42") && open.is_match("123456789012345678"));
        assert_eq!(range(Some(&json!(0.5)), None), None);
    }
}
