//! Writes a grammar in llguidance's Lark: quoting, markers, names of rules.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::Value;

use super::Error;
use super::kinds::bare;

/// What a grammar of calls needs from outside.
pub struct Context<'a> {
    /// The token of a string that is one special token of the vocabulary. Such a marker is matched as that token.
    pub special: &'a dyn Fn(&str) -> Option<u32>,
    /// A schema as an expression of the grammar: `%json {...}`, or a rule that the caller adds to the grammar's text, under names
    /// that begin neither with `t_` nor with `TEXT_`. It is asked for the parts of a tool's schema that are not plainly written
    /// as rules, and must write JSON without `\/`, which Python reads differently.
    pub schema: &'a dyn Fn(&Value) -> Result<String, Error>,
}

/// A schema as it stands.
pub fn plain_json(schema: &Value) -> Result<String, Error> {
    Ok(format!("%json {schema}"))
}

pub struct Lark<'a> {
    context: &'a Context<'a>,
    text: String,
    rules: usize,
    /// The rules that were written, by their attribute and expression: what is the same is written once.
    written: HashMap<String, String>,
    /// What may stand before a call that is not found by a marker, as a regular expression.
    pub(super) gap: &'static str,
    /// How texts may not begin, as a regular expression.
    pub(super) not_first: Option<String>,
    /// The rule of any Python literal, once it is written.
    pub(super) any: Option<String>,
}

impl<'a> Lark<'a> {
    pub(super) fn new(context: &'a Context<'a>) -> Self {
        Self { context, text: String::new(), rules: 0, written: HashMap::new(), gap: "", not_first: None, any: None }
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    /// Adds a rule and returns its name.
    pub fn rule(&mut self, expression: &str) -> String {
        self.attributed("", expression)
    }

    /// Adds a rule that ends at its first match and returns its name.
    pub fn lazy(&mut self, expression: &str) -> String {
        self.attributed("[lazy]", expression)
    }

    /// A name for a rule that others refer to before it is written.
    pub fn reserve(&mut self) -> String {
        self.rules += 1;
        format!("t_{}", self.rules - 1)
    }

    fn attributed(&mut self, attribute: &str, expression: &str) -> String {
        let key = format!("{attribute}: {expression}");
        if let Some(name) = self.written.get(&key) {
            return name.clone();
        }
        let name = self.reserve();
        self.named(&format!("{name}{attribute}"), expression);
        self.written.insert(key, name.clone());
        name
    }

    pub fn named(&mut self, name: &str, expression: &str) {
        let _ = writeln!(self.text, "{name}: {expression}");
    }

    pub fn schema(&mut self, schema: &Value) -> Result<String, Error> {
        let expression = (self.context.schema)(&bare(schema))?;
        Ok(self.rule(&expression))
    }

    pub fn special(&self, marker: &str) -> Option<u32> {
        (self.context.special)(marker)
    }

    /// A marker: its token where it has one, its text otherwise.
    pub fn marker(&self, marker: &str) -> String {
        match self.special(marker) {
            Some(token) => format!("<[{token}]>"),
            None => quote(marker),
        }
    }

    /// Any text in which none of `markers` is spelled out, to the end of the answer.
    pub fn text_without(&mut self, markers: &[&str]) -> String {
        self.text(&without(markers))
    }

    /// A rule for free text from an expression over regular expressions.
    pub fn text(&mut self, expression: &str) -> String {
        let expression = match &self.not_first {
            Some(first) => format!("{expression} & ~/{first}(?s:.*)/"),
            None => expression.to_string(),
        };
        // A name in capitals is a terminal, and only terminals have `&`.
        let name = format!("TEXT_{}", self.rules);
        self.rules += 1;
        self.named(&name, &expression);
        self.rule(&name)
    }

    /// Free text up to and with `marker`, in which none of `others` is spelled out.
    pub fn text_to(&mut self, marker: &str, others: &[&str]) -> String {
        if let Some(token) = self.special(marker) {
            let text = self.text_without(&[&[marker], others].concat());
            return self.rule(&format!("{text} <[{token}]>"));
        }
        let mut text = without(others);
        if let Some(first) = &self.not_first {
            let _ = write!(text, " & ~/{first}(?s:.*)/");
        }
        self.lazy(&format!("({text}) {}", quote(marker)))
    }
}

fn without(markers: &[&str]) -> String {
    let mut expression = String::from("/(?s:.*)/");
    for marker in markers {
        let _ = write!(expression, " & ~/(?s:.*){}(?s:.*)/", escape(marker));
    }
    expression
}

/// A literal string.
pub fn quote(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// Text as part of a regular expression between slashes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(escaped, "\\x{{{:x}}}", c as u32);
            }
            // `\<` and `\>` would be boundaries of words.
            c if r"\.+*?()|[]{}^$#&-~/".contains(c) => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// A choice between expressions.
pub fn one_of(expressions: &[String]) -> String {
    format!("({})", expressions.join(" | "))
}
