//! The plainest shape, for models whose template knows no tools: the answer is a JSON array of calls,
//! `[{"name": "f", "arguments": {...}}, ...]`. xLAM and others are trained on it.
//!
//! Where content is JSON too (a response format), `<tool_calls>` stands before the array.

use super::lark::{escape, one_of, quote};
use super::list::{List, Step};
use super::parameters::json_object;
use super::seek::{HELD_SPACE, Seek};
use super::{Answer, Error, Family, Lark, Machine, Out, Rules};

const MARKER: &str = "<tool_calls>";

pub struct Generic;

impl Family for Generic {
    fn name(&self) -> &'static str {
        "json"
    }

    fn speaks(&self, _template: &str) -> bool {
        // It is what is left when no other family does.
        false
    }

    fn rules(&self, answer: &Answer, lark: &mut Lark) -> Result<Rules, Error> {
        let (mut first, mut calls) = (Vec::new(), Vec::new());
        for tool in answer.tools() {
            let arguments = json_object(tool, self.name(), lark)?;
            let head = format!("{{\"name\": \"{}\", \"arguments\": ", tool.name);
            let tail = lark.rule(&format!("{arguments} \"}}\""));
            // Up to the name this could be content, so that it must be one terminal.
            let opening = format!("{}{}", if answer.marked() { MARKER } else { "" }, "[");
            first.push(lark.rule(&format!("/{}{}{}/ {tail}", lark.gap, escape(&opening), escape(&head))));
            calls.push(lark.rule(&format!("{} {tail}", quote(&head))));
        }
        let more = if answer.parallel() { format!("(\", \" {})*", one_of(&calls)) } else { String::new() };
        let calls = lark.rule(&format!("{} {more} \"]\"", one_of(&first)));
        let text = lark.text(&format!("/(?s:.*)/ & ~/{}(?s:.*)/", trigger(answer)));
        Ok(Rules { text, opened: calls.clone(), calls })
    }

    fn machine(&self, answer: &Answer) -> Box<dyn Machine> {
        let state = if answer.marked() {
            State::Marker(String::new())
        } else {
            State::Calls(List::array(answer.names(), true))
        };
        Box::new(Whole { names: answer.names(), state })
    }
}

/// How an answer of calls begins: as the parser reads it.
fn trigger(answer: &Answer) -> String {
    let space = r"[ \t\n\x0c\r]*";
    let names: Vec<String> = answer.tools().iter().map(|tool| escape(&tool.name)).collect();
    let kind = format!(r#"("type"{space}:{space}"function"{space},{space})*"#);
    format!(r#"{space}\[{space}\{{{space}{kind}"name"{space}:{space}"({})""#, names.join("|"))
}

enum State {
    /// Before the marker.
    Marker(String),
    Calls(List),
    Text(Seek),
    Malformed,
}

/// An answer that is either calls or text.
struct Whole {
    names: std::sync::Arc<[String]>,
    state: State,
}

impl Machine for Whole {
    fn step(&mut self, c: char, out: &mut Out) {
        match &mut self.state {
            State::Marker(held) => {
                held.push(c);
                let begun = held.trim_start();
                if begun == MARKER {
                    self.state = State::Calls(List::array(self.names.clone(), false).after(MARKER));
                } else if !MARKER.starts_with(begun) || held.len() - begun.len() >= HELD_SPACE {
                    out.content(held);
                    self.state = State::Text(Seek::new(&[]).verbatim());
                }
            }
            State::Calls(list) => match list.step(c, out) {
                Step::More => {}
                Step::Last | Step::Behind => self.state = State::Text(Seek::new(&[]).verbatim().after_call()),
                Step::Broken if list.committed() => {
                    out.malformed(&list.raw());
                    self.state = State::Malformed;
                }
                Step::Broken => {
                    out.content(&list.raw());
                    self.state = State::Text(Seek::new(&[]).verbatim());
                }
            },
            State::Text(seek) => {
                seek.step(c, |text| out.content(text));
            }
            State::Malformed => out.malformed(c.encode_utf8(&mut [0; 4])),
        }
    }

    fn end(&mut self, out: &mut Out) {
        match &mut self.state {
            State::Marker(held) => out.content(held),
            State::Calls(list) if !list.committed() => out.content(&list.raw()),
            State::Calls(list) if list.unfinished() => out.unfinished(&list.raw()),
            State::Calls(_) | State::Malformed => {}
            State::Text(seek) => seek.end(|text| out.content(text)),
        }
    }
}
