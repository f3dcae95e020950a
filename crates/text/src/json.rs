//! JSON as Python's `json.dumps` writes it: what a chat template's `tojson` must give, to the space.

use serde_json::{Number, Value};

#[derive(Debug, Clone, Default)]
pub struct Style {
    /// Between items, and between a key and its value; Python's own where absent.
    pub separators: Option<(String, String)>,
    pub indent: Option<usize>,
    pub sort_keys: bool,
    pub ensure_ascii: bool,
}

pub fn dumps(value: &Value, style: &Style) -> String {
    let mut text = String::new();
    write(value, style, 0, &mut text);
    text
}

fn write(value: &Value, style: &Style, depth: usize, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(on) => text.push_str(if *on { "true" } else { "false" }),
        Value::Number(number) => text.push_str(&python_number(number)),
        Value::String(string) => write_string(string, style, text),
        Value::Array(items) => {
            let one = |item: &Value, text: &mut String| write(item, style, depth + 1, text);
            list(('[', ']'), items.iter(), style, depth, text, one);
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(key, _)| *key);
            }
            list(('{', '}'), entries.into_iter(), style, depth, text, |(key, item), text| {
                write_string(key, style, text);
                text.push_str(style.separators.as_ref().map_or(": ", |(_, key)| key));
                write(item, style, depth + 1, text);
            });
        }
    }
}

fn list<T>(
    (open, close): (char, char),
    items: impl ExactSizeIterator<Item = T>,
    style: &Style,
    depth: usize,
    text: &mut String,
    mut one: impl FnMut(T, &mut String),
) {
    text.push(open);
    let empty = items.len() == 0;
    let line = |depth: usize, text: &mut String| {
        if let (Some(indent), false) = (style.indent, empty) {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    for (index, item) in items.enumerate() {
        if index > 0 {
            let usual = if style.indent.is_some() { "," } else { ", " };
            text.push_str(style.separators.as_ref().map_or(usual, |(item, _)| item));
        }
        line(depth + 1, text);
        one(item, text);
    }
    line(depth, text);
    text.push(close);
}

fn write_string(string: &str, style: &Style, text: &mut String) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            control if control < ' ' => text.push_str(&format!("\\u{:04x}", control as u32)),
            wide if style.ensure_ascii && !wide.is_ascii() => {
                for unit in wide.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
            plain => text.push(plain),
        }
    }
    text.push('"');
}

/// Python writes an exponent with its sign and at least two digits.
fn python_number(number: &Number) -> String {
    let text = number.to_string();
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, digits_of_exponent) = match exponent.strip_prefix('-') {
                Some(rest) => ('-', rest),
                None => ('+', exponent.trim_start_matches('+')),
            };
            format!("{}e{sign}{digits_of_exponent:0>2}", digits.strip_suffix(".0").unwrap_or(digits))
        }
    }
}
