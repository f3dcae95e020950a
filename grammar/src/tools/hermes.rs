//! Hermes, Qwen 2.5 and 3, and the built-in model: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`, with or without
//! line breaks around the object, one block for each call.

use std::sync::Arc;

use super::lark::{one_of, quote};
use super::object::{CallObject, Step};
use super::parameters::json_object;
use super::seek::Seek;
use super::{Answer, Either, Error, Family, Lark, Machine, Out, Rules};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

pub struct Hermes;

impl Family for Hermes {
    fn name(&self) -> &'static str {
        "hermes"
    }

    fn speaks(&self, template: &str) -> bool {
        // GLM writes the same marker with arguments of another shape.
        template.contains(OPEN) && !template.contains("<arg_key>")
    }

    fn rules(&self, answer: &Answer, lark: &mut Lark) -> Result<Rules, Error> {
        let (open, close) = (lark.marker(OPEN), lark.marker(CLOSE));
        let mut calls = Vec::new();
        for tool in answer.tools() {
            let arguments = json_object(tool, self.name(), lark)?;
            let head = quote(&format!("{{\"name\": \"{}\", \"arguments\": ", tool.name));
            calls.push(lark.rule(&format!("{head} {arguments} \"}}\"")));
        }
        let line = quote("\n");
        let rest = lark.rule(&format!("{line}? {} {line}? {close}", one_of(&calls)));
        let more = if answer.parallel() { format!("({line}? {open} {rest})*") } else { String::new() };
        let gap = if lark.gap.is_empty() { "" } else { "/\\n/? /\\n/?" };
        let text_to_call = lark.text_to(OPEN, &[]);
        Ok(Rules {
            text: lark.text_without(&[OPEN]),
            calls: lark.rule(&format!("{gap} {open} {rest} {more}")),
            opened: lark.rule(&format!("{text_to_call} {rest} {more}")),
        })
    }

    fn machine(&self, answer: &Answer) -> Box<dyn Machine> {
        Either::wrap(answer, OPEN, Box::new(Blocks { names: answer.names(), state: State::Text(Seek::new(&[OPEN])) }))
    }
}

enum State {
    Text(Seek),
    Object(CallObject),
    /// After an object, up to the closing marker.
    Close(Seek),
    /// In a block that is no call.
    Bad(Seek),
}

struct Blocks {
    names: Arc<[String]>,
    state: State,
}

impl Blocks {
    fn text(&mut self) {
        self.state = State::Text(Seek::new(&[OPEN]).after_call());
    }

    fn object(&mut self) {
        self.state = State::Object(CallObject::new(self.names.clone()));
    }

    /// The object cannot be a call, from its last character on or from its first.
    fn broken(&mut self, c: char, out: &mut Out) {
        let State::Object(object) = &mut self.state else { return };
        if object.told() {
            self.state = State::Close(Seek::new(&[CLOSE, OPEN]).after_call());
            return self.step(c, out);
        }
        let raw = object.raw();
        out.malformed(OPEN);
        out.malformed(&raw[..raw.len() - c.len_utf8()]);
        self.state = State::Bad(Seek::new(&[CLOSE, OPEN]).verbatim());
        self.step(c, out);
    }
}

impl Machine for Blocks {
    fn step(&mut self, c: char, out: &mut Out) {
        match &mut self.state {
            State::Text(seek) => {
                if seek.step(c, |text| out.content(text)).is_some() {
                    self.object();
                }
            }
            State::Object(object) => match object.step(c, out) {
                Step::More => {}
                Step::Done => self.state = State::Close(Seek::new(&[CLOSE, OPEN]).after_call()),
                Step::Broken => self.broken(c, out),
            },
            // A brace too many is the commonest mistake here, and says nothing.
            State::Close(seek) => match seek.step(c, |text| out.malformed(text.trim_start_matches('}'))) {
                Some(0) => self.text(),
                Some(_) => self.object(),
                None => {}
            },
            State::Bad(seek) => match seek.step(c, |text| out.malformed(text)) {
                Some(0) => {
                    out.malformed(CLOSE);
                    self.text();
                }
                Some(_) => self.object(),
                None => {}
            },
        }
    }

    fn end(&mut self, out: &mut Out) {
        match &mut self.state {
            State::Text(seek) => seek.end(|text| out.content(text)),
            State::Object(object) if object.told() => {}
            State::Object(object) => {
                let raw = object.raw();
                out.unfinished(&format!("{OPEN}{raw}"));
            }
            // An incomplete marker is not worth telling once the call is complete.
            State::Close(_) => {}
            State::Bad(seek) => seek.end(|text| out.malformed(text)),
        }
    }
}
