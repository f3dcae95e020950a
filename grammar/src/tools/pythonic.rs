//! Pythonic calls (Llama 3.2 and 4, ToolACE, OLMo): the answer is `[f(a=1, b="x"), g()]`, in Llama 4 sometimes between
//! `<|python_start|>` and `<|python_end|>`.
//!
//! An answer is calls when it begins with `[`, a declared name and `(`; every other answer is content. JSON cannot begin so.

use std::sync::Arc;

use serde_json::Value;

use super::lark::{escape, one_of, quote};
use super::literal::{self, Dialect, Literal};
use super::parameters::{Parameters, sequence};
use super::seek::{HELD_SPACE, Seek};
use super::values::Values;
use super::{Answer, Error, Family, Lark, Machine, Out, Rules};

const START: &str = "<|python_start|>";
const END: &str = "<|python_end|>";

pub struct Pythonic;

impl Family for Pythonic {
    fn name(&self) -> &'static str {
        "pythonic"
    }

    fn speaks(&self, template: &str) -> bool {
        [START, "func_name1(params_name1=", "[func_name1(", "params_name1=params_value1"]
            .iter()
            .any(|m| template.contains(m))
    }

    fn rules(&self, answer: &Answer, lark: &mut Lark) -> Result<Rules, Error> {
        let (mut first, mut calls) = (Vec::new(), Vec::new());
        for tool in answer.tools() {
            let arguments = match Parameters::of(tool, self.name(), is_identifier)? {
                Parameters::Listed(parameters) => {
                    let mut items = Vec::new();
                    for parameter in &parameters {
                        let value = Values::new(&parameter.schema, Dialect::Python, lark).rule(&parameter.schema)?;
                        let item = format!("{} {value}", quote(&format!("{}=", parameter.name)));
                        items.push((lark.rule(&item), parameter.required));
                    }
                    sequence(&items, ", ", lark)
                }
                Parameters::Open(schema) => {
                    let value = Values::new(&schema, Dialect::Python, lark).rule(&schema)?;
                    let item = lark.rule(&format!("/[a-zA-Z_][a-zA-Z0-9_]*=/ {value}"));
                    lark.rule(&format!("({item} (\", \" {item})*)?"))
                }
            };
            // Up to the parenthesis this could be content, so that it must be one terminal.
            first.push(lark.rule(&format!("/{}\\[{}\\(/ {arguments} \")\"", lark.gap, escape(&tool.name))));
            calls.push(lark.rule(&format!("{} {arguments} \")\"", quote(&format!("{}(", tool.name)))));
        }
        let more = if answer.parallel() { format!("(\", \" {})*", one_of(&calls)) } else { String::new() };
        let plain = lark.rule(&format!("{} {more} \"]\"", one_of(&first)));
        let calls = match (lark.special(START), lark.special(END)) {
            (Some(start), Some(end)) => lark.rule(&format!("{plain} | <[{start}]> {plain} <[{end}]>")),
            _ => plain,
        };
        let names: Vec<String> = answer.tools().iter().map(|tool| escape(&tool.name)).collect();
        let trigger = format!(r"\s*({}\s*)?\[\s*({})\(", escape(START), names.join("|"));
        let text = lark.text(&format!("/(?s:.*)/ & ~/{trigger}(?s:.*)/"));
        Ok(Rules { text, opened: calls.clone(), calls })
    }

    fn machine(&self, answer: &Answer) -> Box<dyn Machine> {
        Box::new(Listing { names: answer.names(), state: State::Start, raw: String::new(), comma: false })
    }
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_alphabetic() || c == '_') && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

enum State {
    /// Up to the first call's parenthesis.
    Start,
    /// Before a further call's name, or inside it.
    Name(String),
    /// Before a keyword, or inside it.
    Keyword(String),
    Value(Literal),
    /// After a value.
    Argument,
    /// After a call.
    Between,
    /// After the list.
    After(Seek),
    Text,
    Malformed,
}

struct Listing {
    names: Arc<[String]>,
    state: State,
    /// What was read and not told.
    raw: String,
    /// An argument came before.
    comma: bool,
}

impl Listing {
    fn call(&mut self, name: &str, out: &mut Out) {
        out.call(name);
        out.arguments("{");
        self.comma = false;
        self.raw.clear();
        self.state = State::Keyword(String::new());
    }

    fn close(&mut self, out: &mut Out) {
        out.arguments("}");
        out.done();
        self.raw.clear();
        self.state = State::Between;
    }

    fn broken(&mut self, out: &mut Out) {
        out.malformed(&std::mem::take(&mut self.raw));
        self.state = State::Malformed;
    }

    fn start(&mut self, out: &mut Out) {
        let begun = self.raw.trim_start();
        if begun.is_empty() && self.raw.len() >= HELD_SPACE {
            return self.no_calls(out);
        }
        if START.starts_with(begun) {
            return;
        }
        let list = begun.strip_prefix(START).unwrap_or(begun).trim_start();
        let Some(name) = list.strip_prefix('[').map(str::trim_start) else {
            if !list.is_empty() {
                self.no_calls(out);
            }
            return;
        };
        match name.strip_suffix('(') {
            Some(name) if self.names.iter().any(|n| n == name) => {
                let name = name.to_string();
                self.call(&name, out);
            }
            None if self.names.iter().any(|n| n.starts_with(name)) => {}
            _ => self.no_calls(out),
        }
    }

    fn no_calls(&mut self, out: &mut Out) {
        if self.raw.trim_start().starts_with(START) {
            return self.broken(out);
        }
        out.content(&std::mem::take(&mut self.raw));
        self.state = State::Text;
    }

    fn value(&mut self, c: char, out: &mut Out) {
        let State::Value(value) = &mut self.state else { return };
        let mut json = String::new();
        let step = value.step(c, &mut json);
        out.arguments(&json);
        match step {
            literal::Step::More => {}
            literal::Step::Last => self.state = State::Argument,
            literal::Step::Behind => {
                self.state = State::Argument;
                self.raw.clear();
                self.step(c, out);
            }
            literal::Step::Broken => self.broken(out),
        }
    }

    fn keyword(&mut self, c: char, out: &mut Out) {
        let State::Keyword(keyword) = &mut self.state else { return };
        match c {
            ')' if keyword.is_empty() => self.close(out),
            _ if c.is_whitespace() && (keyword.is_empty() || keyword.ends_with(' ')) => {}
            _ if c.is_whitespace() => keyword.push(' '),
            '=' if is_identifier(keyword.trim_end()) => {
                let key = Value::from(keyword.trim_end()).to_string();
                out.arguments(&format!("{}{key}: ", if self.comma { ", " } else { "" }));
                self.comma = true;
                self.raw.clear();
                self.state = State::Value(Literal::new(Dialect::Python));
            }
            _ if (c.is_alphanumeric() || c == '_') && !keyword.ends_with(' ') => keyword.push(c),
            _ => self.broken(out),
        }
    }

    fn name(&mut self, c: char, out: &mut Out) {
        let State::Name(name) = &mut self.state else { return };
        match c {
            _ if c.is_whitespace() && name.is_empty() => {}
            '(' if self.names.contains(name) => {
                let name = std::mem::take(name);
                self.call(&name, out);
            }
            ']' if name.is_empty() => self.state = State::After(Seek::new(&[END]).after_call()),
            _ => {
                name.push(c);
                if !self.names.iter().any(|n| n.starts_with(name.as_str())) {
                    self.broken(out);
                }
            }
        }
    }
}

impl Machine for Listing {
    fn step(&mut self, c: char, out: &mut Out) {
        match &mut self.state {
            State::Text => return out.content(c.encode_utf8(&mut [0; 4])),
            State::Malformed => return out.malformed(c.encode_utf8(&mut [0; 4])),
            State::After(seek) => {
                if seek.step(c, |text| out.content(text)).is_some() {
                    self.state = State::After(Seek::new(&[]).verbatim().after_call());
                }
                return;
            }
            _ => self.raw.push(c),
        }
        match &self.state {
            State::Start => self.start(out),
            State::Name(_) => self.name(c, out),
            State::Keyword(_) => self.keyword(c, out),
            State::Value(_) => self.value(c, out),
            State::Argument => match c {
                ',' => self.state = State::Keyword(String::new()),
                ')' => self.close(out),
                _ if c.is_whitespace() => {}
                _ => self.broken(out),
            },
            State::Between => match c {
                ',' => self.state = State::Name(String::new()),
                ']' => self.state = State::After(Seek::new(&[END]).after_call()),
                _ if c.is_whitespace() => {}
                _ => self.broken(out),
            },
            State::After(_) | State::Text | State::Malformed => {}
        }
    }

    fn end(&mut self, out: &mut Out) {
        match &mut self.state {
            State::Start => out.content(&self.raw),
            State::Name(name) if !name.is_empty() => out.unfinished(&self.raw),
            State::After(seek) => seek.end(|text| out.content(text)),
            _ => {}
        }
    }
}
