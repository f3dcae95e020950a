//! A schema's JSON as a document: its sub-schemas, what their references point to, and which draft they are in.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::GrammarError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Draft {
    D4,
    D6,
    D7,
    D2019,
    D2020,
}

impl Draft {
    /// The draft that `$schema` names; the newest otherwise.
    fn of(schema: &Value) -> Option<Self> {
        let name = schema.get("$schema")?.as_str()?;
        let known = [
            ("draft-03", Self::D4),
            ("draft-04", Self::D4),
            ("draft-06", Self::D6),
            ("draft-07", Self::D7),
            ("2019-09", Self::D2019),
        ];
        Some(known.iter().find(|(part, _)| name.contains(part)).map_or(Self::D2020, |(_, draft)| *draft))
    }

    /// Before 2019-09 what stands beside a `$ref` is ignored.
    pub fn ref_stands_alone(self) -> bool {
        self <= Self::D7
    }
}

/// A place in a document that is a schema.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    pub value: &'a Value,
    pub draft: Draft,
    /// The JSON pointer of the place, for messages.
    pub pointer: String,
    /// Against what its references are resolved.
    base: String,
}

impl<'a> Place<'a> {
    pub fn members(&self) -> Option<&'a Map<String, Value>> {
        self.value.as_object()
    }

    /// The schema below this one, at these steps.
    pub fn below(&self, document: &Document<'a>, value: &'a Value, steps: &[&str]) -> Self {
        let mut pointer = self.pointer.clone();
        for step in steps {
            pointer.push('/');
            pointer += &step.replace('~', "~0").replace('/', "~1");
        }
        let (base, draft) = document.entered(&self.base, self.draft, value);
        Self { value, draft, pointer, base }
    }

    pub fn wrong(&self, keyword: &str, reason: &str, advice: &str) -> GrammarError {
        let pointer = if self.pointer.is_empty() { "/".into() } else { self.pointer.clone() };
        GrammarError::Schema { pointer, keyword: keyword.into(), reason: reason.into(), advice: advice.into() }
    }
}

/// A root schema with everything in it that can be referred to.
pub struct Document<'a> {
    root: &'a Value,
    draft: Draft,
    /// Schemas with an identifier of their own, by it.
    resources: HashMap<String, (&'a Value, String, Draft)>,
    /// Anchors by base and name.
    anchors: HashMap<(String, String), Place<'a>>,
    /// How many dynamic anchors there are of a name.
    dynamic: HashMap<String, usize>,
}

impl<'a> Document<'a> {
    pub fn new(root: &'a Value) -> Self {
        let draft = Draft::of(root).unwrap_or(Draft::D2020);
        let mut document =
            Self { root, draft, resources: HashMap::new(), anchors: HashMap::new(), dynamic: HashMap::new() };
        let place = document.root();
        document.resources.insert(String::new(), (root, String::new(), draft));
        document.resources.insert(place.base.clone(), (root, String::new(), draft));
        document.scan(place);
        document
    }

    pub fn root(&self) -> Place<'a> {
        let (base, draft) = self.entered("", self.draft, self.root);
        Place { value: self.root, draft, pointer: String::new(), base }
    }

    /// The base and draft inside a schema that may have an identifier of its own.
    fn entered(&self, base: &str, draft: Draft, value: &Value) -> (String, Draft) {
        let draft = Draft::of(value).unwrap_or(draft);
        match identifier(value, draft) {
            Some(id) => (joined(base, id), draft),
            None => (base.to_owned(), draft),
        }
    }

    fn scan(&mut self, place: Place<'a>) {
        if let Some(id) = identifier(place.value, place.draft)
            && !id.is_empty()
        {
            let entry = (place.value, place.pointer.clone(), place.draft);
            self.resources.entry(place.base.clone()).or_insert(entry);
        }
        for (keyword, sign) in [("$anchor", ""), ("$dynamicAnchor", ""), ("$id", "#"), ("id", "#")] {
            let name = place.value.get(keyword).and_then(Value::as_str).and_then(|name| name.strip_prefix(sign));
            let Some(name) = name.filter(|name| !name.is_empty() && !name.contains(['/', ':', '#'])) else { continue };
            if sign.is_empty() || place.draft.ref_stands_alone() {
                self.anchors.entry((place.base.clone(), name.to_owned())).or_insert_with(|| place.clone());
            }
            if keyword == "$dynamicAnchor" {
                *self.dynamic.entry(name.to_owned()).or_default() += 1;
            }
        }
        self.scan_below(&place);
    }

    fn scan_below(&mut self, place: &Place<'a>) {
        let Some(members) = place.members() else { return };
        for (keyword, value) in members {
            match (keyword.as_str(), value) {
                ("enum" | "const" | "default" | "examples" | "example", _) => {}
                (_, Value::Object(named)) if has_named_schemas(keyword) => {
                    for (name, value) in named {
                        self.scan(place.below(self, value, &[keyword, name]));
                    }
                }
                (_, Value::Object(_)) => self.scan(place.below(self, value, &[keyword])),
                (_, Value::Array(items)) => {
                    for (at, item) in items.iter().enumerate().filter(|(_, item)| item.is_object()) {
                        self.scan(place.below(self, item, &[keyword, &at.to_string()]));
                    }
                }
                _ => {}
            }
        }
    }

    /// What a reference points to.
    pub fn resolve(&self, from: &Place<'a>, reference: &str) -> Result<Place<'a>, GrammarError> {
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let base = if uri.is_empty() { from.base.clone() } else { joined(&from.base, uri) };
        let Some((value, pointer, draft)) = self.resources.get(&base) else {
            let advice = "put what it points to into $defs and refer to it as #/$defs/NAME";
            return Err(from.wrong("$ref", &format!("'{reference}' points outside the schema"), advice));
        };
        let (inner, draft) = self.entered(&base, *draft, value);
        let start =
            Place { value, draft, pointer: pointer.clone(), base: if base.is_empty() { inner } else { base.clone() } };
        let fragment = unescaped(fragment);
        let found = if fragment.is_empty() {
            Some(start)
        } else if fragment.starts_with('/') {
            self.walk(start, &fragment)
        } else {
            self.anchors.get(&(start.base.clone(), fragment)).cloned()
        };
        found.ok_or_else(|| from.wrong("$ref", &format!("'{reference}' points to nothing"), "correct the reference"))
    }

    /// Whether a dynamic reference can only mean what a plain one would.
    pub fn is_static(&self, reference: &str) -> bool {
        match reference.strip_prefix('#') {
            Some(name) => self.dynamic.get(name).copied().unwrap_or(0) <= 1,
            None => false,
        }
    }

    fn walk(&self, start: Place<'a>, pointer: &str) -> Option<Place<'a>> {
        let mut place = start;
        for step in pointer[1..].split('/') {
            let step = step.replace("~1", "/").replace("~0", "~");
            let value = match place.value {
                Value::Object(members) => members.get(&step)?,
                Value::Array(items) => items.get(step.parse::<usize>().ok()?)?,
                _ => return None,
            };
            place = place.below(self, value, &[&step]);
        }
        Some(place)
    }
}

/// Keywords whose members are schemas by name.
fn has_named_schemas(keyword: &str) -> bool {
    matches!(
        keyword,
        "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" | "dependencies"
    )
}

/// The identifier that makes a schema a resource of its own.
fn identifier(value: &Value, draft: Draft) -> Option<&str> {
    let members = value.as_object()?;
    if draft.ref_stands_alone() && members.contains_key("$ref") {
        return None;
    }
    let id = members.get(if draft == Draft::D4 { "id" } else { "$id" })?.as_str()?;
    let id = id.split_once('#').map_or(id, |(uri, _)| uri);
    (!id.is_empty()).then_some(id)
}

/// A reference against its base (RFC 3986, section 5.2, without a query).
fn joined(base: &str, reference: &str) -> String {
    let scheme = |uri: &str| uri.find(':').filter(|&at| !uri[..at].contains(['/', '?', '#']) && at > 0);
    if scheme(reference).is_some() || base.is_empty() {
        return reference.to_owned();
    }
    let authority = scheme(base).map_or(0, |at| at + 1);
    if reference.starts_with("//") {
        return format!("{}{reference}", &base[..authority]);
    }
    let path = match base[authority..].strip_prefix("//") {
        Some(rest) => authority + 2 + rest.find('/').unwrap_or(rest.len()),
        None => authority,
    };
    let merged = if reference.starts_with('/') {
        reference.to_owned()
    } else {
        let folder = base[path..].rfind('/').map_or("/", |at| &base[path..][..=at]);
        format!("{folder}{reference}")
    };
    let mut steps: Vec<&str> = Vec::new();
    let count = merged.split('/').count();
    for (at, step) in merged.split('/').enumerate() {
        match step {
            "." | ".." => {
                if step == ".." && steps.len() > 1 {
                    steps.pop();
                }
                if at + 1 == count {
                    steps.push("");
                }
            }
            step => steps.push(step),
        }
    }
    format!("{}{}", &base[..path], steps.join("/"))
}

/// Percent-escapes taken out.
fn unescaped(text: &str) -> String {
    let (mut bytes, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let escape = text.as_bytes()[at] == b'%';
        let code = text.get(at + 1..at + 3).and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| escape);
        bytes.push(code.unwrap_or(text.as_bytes()[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_joined_as_the_rfc_says() {
        let table = [
            ("http://a/b/c/d", "g", "http://a/b/c/g"),
            ("http://a/b/c/d", "./g", "http://a/b/c/g"),
            ("http://a/b/c/d", "../g", "http://a/b/g"),
            ("http://a/b/c/d", "/g", "http://a/g"),
            ("http://a/b/c/d", "//g", "http://g"),
            ("http://a/b/c/d", "urn:x:y", "urn:x:y"),
            ("http://a", "g", "http://a/g"),
            ("", "g.json", "g.json"),
        ];
        for (base, reference, expected) in table {
            assert_eq!(joined(base, reference), expected, "{reference} against {base}");
        }
    }
}
