//! String schemas as regular expressions over raw text, for families that write strings without quotes.

use serde_json::Value;

use super::kinds::{Kinds, resolve};
use super::lark::{escape, quote};

/// Formats that are enforced; the standard makes every format an annotation, so the others are.
const FORMATS: [(&str, &str); 7] = [
    ("date", r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"),
    ("time", r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"),
    (
        "date-time",
        r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])",
    ),
    ("uuid", r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"),
    ("ipv4", r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"),
    ("email", r"[a-zA-Z0-9_+\-]{1,32}(\.[a-zA-Z0-9_+\-]{1,31})?@[a-zA-Z0-9]{1,30}(\.[a-zA-Z0-9]{1,30}){1,3}"),
    ("hostname", r"[a-zA-Z0-9]{1,30}(-[a-zA-Z0-9]{1,30})?(\.[a-zA-Z0-9]{1,30}){0,3}"),
];

/// Keywords that narrow a string, and those that never touch one.
const READ: [&str; 9] = ["type", "enum", "const", "pattern", "minLength", "maxLength", "format", "anyOf", "oneOf"];
const REFUSED: [&str; 5] = ["not", "if", "then", "else", "dependentSchemas"];

/// References and combinations are followed this deep.
const DEPTH: usize = 8;

/// An expression over terminals for exactly the strings that `schema`, a part of `root`, lets through; `None` where it lets none
/// through. An error says what cannot be written so.
pub fn strings(schema: &Value, root: &Value) -> Result<Option<String>, String> {
    at(schema, root, 0)
}

fn at(schema: &Value, root: &Value, depth: usize) -> Result<Option<String>, String> {
    if !Kinds::of(schema, root).any(Kinds::STRING) {
        return Ok(None);
    }
    let Value::Object(keywords) = schema else { return Ok(Some("/(?s:.*)/".into())) };
    if depth == DEPTH {
        return Err("its references go too deep".into());
    }
    if let Some(keyword) = REFUSED.iter().find(|k| keywords.contains_key(**k)) {
        return Err(format!("'{keyword}' over strings is not supported here"));
    }
    let mut all = Vec::new();
    for keyword in READ {
        let Some(value) = keywords.get(keyword) else { continue };
        match keyword {
            "enum" => all.push(literals(value.as_array().into_iter().flatten())),
            "const" => all.push(literals([value].into_iter())),
            "pattern" => all.push(search(value.as_str().unwrap_or_default())?),
            "format" => {
                let known = FORMATS.iter().find(|(name, _)| value == name);
                all.extend(known.map(|(_, pattern)| format!("/{}/", pattern.replace('/', "\\/"))));
            }
            "anyOf" | "oneOf" => {
                let branches = value.as_array().into_iter().flatten().map(|s| at(s, root, depth + 1));
                let branches: Vec<String> = branches.filter_map(Result::transpose).collect::<Result<_, _>>()?;
                if keyword == "oneOf" && branches.len() > 1 {
                    return Err("two branches of 'oneOf' take strings; use 'anyOf'".into());
                }
                all.push(format!("({})", branches.join(" | ")));
            }
            _ => {}
        }
    }
    let bound = |name: &str| keywords.get(name).and_then(Value::as_u64);
    if let (Some(_), _) | (_, Some(_)) = (bound("minLength"), bound("maxLength")) {
        let most = bound("maxLength").map_or(String::new(), |most| most.to_string());
        all.push(format!("/(?s:.{{{},{most}}})/", bound("minLength").unwrap_or(0)));
    }
    if let Some(target) = keywords.get("$ref").and_then(|target| resolve(target, root)) {
        all.extend(at(target, root, depth + 1)?);
    }
    for schema in keywords.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        all.extend(at(schema, root, depth + 1)?);
    }
    Ok(Some(if all.is_empty() { "/(?s:.*)/".into() } else { format!("({})", all.join(" & ")) }))
}

fn literals<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    let strings: Vec<String> = values
        .filter_map(Value::as_str)
        .map(|text| if text.is_empty() { "/(?:)/".into() } else { quote(text) })
        .collect();
    format!("({})", strings.join(" | "))
}

/// A pattern of JSON Schema is searched for, in the dialect of ECMA 262.
fn search(pattern: &str) -> Result<String, String> {
    let mut alternatives = Vec::new();
    for alternative in alternatives_of(pattern) {
        let (begun, rest) = match alternative.strip_prefix('^') {
            Some(rest) => ("", rest),
            None => ("(?s:.*)", alternative),
        };
        let escaped = |text: &str| text.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1;
        let (rest, ended) = match rest.strip_suffix('$') {
            Some(rest) if !escaped(rest) => (rest, ""),
            _ => (rest, "(?s:.*)"),
        };
        alternatives.push(format!("{begun}(?:{}){ended}", translate(rest)?));
    }
    Ok(format!("/({})/", alternatives.join("|")))
}

/// The alternatives at the top of a pattern, where anchors may stand.
fn alternatives_of(pattern: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth, mut class, mut escaped) = (Vec::new(), 0, 0, false, false);
    for (at, c) in pattern.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => class = true,
            ']' => class = false,
            '(' if !class => depth += 1,
            ')' if !class => depth -= 1,
            '|' if !class && depth == 0 => {
                parts.push(&pattern[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&pattern[from..]);
    parts
}

/// ECMA's classes are of ASCII letters and digits, its dot stops at four kinds of line ends.
fn translate(pattern: &str) -> Result<String, String> {
    let refuse = |what: &str| Err(format!("the pattern's {what} is not supported here"));
    let (mut text, mut class) = (String::new(), false);
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('d') => text.push_str(if class { "0-9" } else { "[0-9]" }),
                Some('w') => text.push_str(if class { "a-zA-Z0-9_" } else { "[a-zA-Z0-9_]" }),
                Some('D') if !class => text.push_str("[^0-9]"),
                Some('W') if !class => text.push_str("[^a-zA-Z0-9_]"),
                Some(c @ ('D' | 'W' | 'S')) if class => return refuse(&format!("class with '\\{c}'")),
                Some(c @ ('b' | 'B' | 'c' | 'k' | '1'..='9')) => return refuse(&format!("'\\{c}'")),
                Some(c) if c.is_ascii_alphanumeric() => text.extend(['\\', c]),
                Some(c) => text.push_str(&escape(&c.to_string())),
                None => return refuse("last backslash"),
            },
            '[' if !class => {
                class = true;
                text.push(c);
            }
            // Inside a class these are themselves; the other dialect nests classes and combines them.
            '[' | '&' | '~' if class => text.extend(['\\', c]),
            ']' => {
                class = false;
                text.push(c);
            }
            '^' | '$' if !class => return refuse("anchor inside a group"),
            '(' if !class && chars.peek() == Some(&'?') => {
                text.push(c);
                text.extend(chars.next());
                if chars.peek() != Some(&':') {
                    return refuse("group that looks around or is named");
                }
            }
            '.' if !class => text.push_str(r"[^\n\r\x{2028}\x{2029}]"),
            '/' => text.push_str("\\/"),
            c => text.push(c),
        }
    }
    Ok(text)
}
