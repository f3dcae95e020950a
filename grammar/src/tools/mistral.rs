//! Mistral: `[TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]` (tokenizers up to version 7) and
//! `[TOOL_CALLS]f[ARGS]{...}`, once for each call, with `[CALL_ID]` and nine characters before `[ARGS]` in version 11.
//!
//! One machine reads both. Ids that the model writes are dropped: they are the caller's to make.

use std::sync::Arc;

use super::lark::{one_of, quote};
use super::list::{self, List};
use super::object::{Extent, Place};
use super::parameters::json_object;
use super::seek::Seek;
use super::{Answer, Either, Error, Family, Lark, Machine, Out, Rules};

const CALLS: &str = "[TOOL_CALLS]";
const ARGUMENTS: &str = "[ARGS]";
const ID: &str = "[CALL_ID]";

pub struct Mistral {
    /// Whether names stand outside of JSON.
    named: bool,
}

pub const MISTRAL: Mistral = Mistral { named: false };
pub const MISTRAL_NAMED: Mistral = Mistral { named: true };

impl Family for Mistral {
    fn name(&self) -> &'static str {
        if self.named { "mistral-named" } else { "mistral" }
    }

    fn speaks(&self, template: &str) -> bool {
        template.contains(CALLS) && template.contains(ARGUMENTS) == self.named
    }

    fn rules(&self, answer: &Answer, lark: &mut Lark) -> Result<Rules, Error> {
        let body = if self.named { named_calls(answer, self.name(), lark)? } else { array(answer, self.name(), lark)? };
        let marker = lark.marker(CALLS);
        let gap = if lark.gap.is_empty() { "" } else { "\"\\n\"? \"\\n\"?" };
        let text_to_calls = lark.text_to(CALLS, &[]);
        Ok(Rules {
            text: lark.text_without(&[CALLS]),
            calls: lark.rule(&format!("{gap} {marker} {body}")),
            opened: lark.rule(&format!("{text_to_calls} {body}")),
        })
    }

    fn machine(&self, answer: &Answer) -> Box<dyn Machine> {
        Either::wrap(
            answer,
            CALLS,
            Box::new(Marked {
                names: answer.names(),
                state: State::Text(Seek::new(&[CALLS])),
                raw: String::new(),
                name: String::new(),
            }),
        )
    }
}

/// What follows the first marker, as an array.
fn array(answer: &Answer, family: &'static str, lark: &mut Lark) -> Result<String, Error> {
    let mut calls = Vec::new();
    for tool in answer.tools() {
        let arguments = json_object(tool, family, lark)?;
        let head = quote(&format!("{{\"name\": \"{}\", \"arguments\": ", tool.name));
        calls.push(lark.rule(&format!("{head} {arguments} \"}}\"")));
    }
    let call = lark.rule(&one_of(&calls));
    let more = if answer.parallel() { format!("(\", \" {call})*") } else { String::new() };
    Ok(lark.rule(&format!("\" \"? \"[\" {call} {more} \"]\"")))
}

/// What follows the first marker, with names before the arguments.
fn named_calls(answer: &Answer, family: &'static str, lark: &mut Lark) -> Result<String, Error> {
    let marker = lark.marker(ARGUMENTS);
    let id = match lark.special(ID) {
        Some(_) => format!("({} /[a-zA-Z0-9]{{9}}/)?", lark.marker(ID)),
        None => String::new(),
    };
    let mut calls = Vec::new();
    for tool in answer.tools() {
        let arguments = json_object(tool, family, lark)?;
        calls.push(lark.rule(&format!("{} {id} {marker} {arguments}", quote(&tool.name))));
    }
    let call = lark.rule(&one_of(&calls));
    let more = if answer.parallel() { format!("({} {call})*", lark.marker(CALLS)) } else { String::new() };
    Ok(lark.rule(&format!("{call} {more}")))
}

enum State {
    Text(Seek),
    /// After a marker: an array or a name.
    Head,
    Array(List),
    /// A name, up to what follows it.
    Name,
    /// Past an id, up to the arguments.
    Id(Seek),
    /// Before the brace of the arguments.
    Brace,
    Arguments(Extent),
    Malformed(Seek),
}

struct Marked {
    names: Arc<[String]>,
    state: State,
    /// What was read since the marker and has not been told, when it is not an array.
    raw: String,
    name: String,
}

impl Marked {
    fn head(&mut self) {
        self.raw = CALLS.into();
        self.name.clear();
        self.state = State::Head;
    }

    fn text(&mut self) {
        self.state = State::Text(Seek::new(&[CALLS]).after_call());
    }

    fn malformed(&mut self, raw: &str, out: &mut Out) {
        // The last characters may begin a marker, so they are read again.
        let mut seek = Seek::new(&[CALLS]).verbatim();
        let rest = raw.strip_prefix(CALLS).unwrap_or(raw);
        out.malformed(&raw[..raw.len() - rest.len()]);
        for c in rest.chars() {
            if seek.step(c, |text| out.malformed(text)).is_some() {
                out.malformed(CALLS);
            }
        }
        self.state = State::Malformed(seek);
    }

    fn name(&mut self, c: char, out: &mut Out) {
        self.raw.push(c);
        self.name.push(c);
        let markers = [(ARGUMENTS, false), (ID, true), ("{", false)];
        for (marker, id) in markers {
            let Some(name) = self.name.strip_suffix(marker).map(|name| name.trim_end().to_string()) else { continue };
            if !self.names.contains(&name) {
                break;
            }
            self.name = name;
            self.state = if id { State::Id(Seek::new(&[ARGUMENTS, "{"])) } else { State::Brace };
            if marker == "{" {
                self.brace('{', out);
            }
            return;
        }
        let begun = self.name.find('[').unwrap_or(self.name.len());
        let known = self.names.iter().any(|name| name.starts_with(self.name[..begun].trim_end()));
        let marker = &self.name[begun..];
        if !known || !(ARGUMENTS.starts_with(marker) || ID.starts_with(marker)) {
            let raw = std::mem::take(&mut self.raw);
            self.malformed(&raw, out);
        }
    }

    fn brace(&mut self, c: char, out: &mut Out) {
        if c == '{' {
            let mut extent = Extent::default();
            extent.step(c);
            self.raw.clear();
            out.call(&self.name);
            out.arguments("{");
            self.state = State::Arguments(extent);
        } else {
            self.raw.push(c);
            if !c.is_ascii_whitespace() {
                let raw = std::mem::take(&mut self.raw);
                self.malformed(&raw, out);
            }
        }
    }
}

impl Machine for Marked {
    fn step(&mut self, c: char, out: &mut Out) {
        match &mut self.state {
            State::Text(seek) => {
                if seek.step(c, |text| out.content(text)).is_some() {
                    self.head();
                }
            }
            State::Head if c.is_ascii_whitespace() => self.raw.push(c),
            State::Head if c == '[' => {
                let mut list = List::array(self.names.clone(), false).after(&std::mem::take(&mut self.raw));
                list.step(c, out);
                self.state = State::Array(list);
            }
            State::Head => {
                self.state = State::Name;
                self.name(c, out);
            }
            State::Array(list) => match list.step(c, out) {
                list::Step::More => {}
                list::Step::Last | list::Step::Behind => self.text(),
                list::Step::Broken => {
                    let raw = list.raw();
                    self.malformed(&raw, out);
                }
            },
            State::Name => self.name(c, out),
            State::Id(seek) => {
                self.raw.push(c);
                match seek.step(c, |_| {}) {
                    Some(0) => self.state = State::Brace,
                    Some(_) => self.brace('{', out),
                    None => {}
                }
            }
            State::Brace => self.brace(c, out),
            State::Arguments(extent) => {
                out.arguments(c.encode_utf8(&mut [0; 4]));
                if extent.step(c) == Place::Last {
                    out.done();
                    self.text();
                }
            }
            State::Malformed(seek) => {
                if seek.step(c, |text| out.malformed(text)).is_some() {
                    self.head();
                }
            }
        }
    }

    fn end(&mut self, out: &mut Out) {
        match &mut self.state {
            State::Text(seek) => seek.end(|text| out.content(text)),
            State::Array(list) if list.unfinished() => out.unfinished(&list.raw()),
            State::Head | State::Name | State::Id(_) | State::Brace => out.unfinished(&self.raw),
            State::Array(_) | State::Arguments(_) => {}
            State::Malformed(seek) => seek.end(|text| out.malformed(text)),
        }
    }
}
