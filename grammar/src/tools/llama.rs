//! Llama 3.1 to 3.3: the answer is `{"name": "f", "parameters": {...}}`, sometimes after `<|python_tag|>`, several with `; `
//! between.
//!
//! Where content is JSON too (a response format), `<|python_tag|>` always stands before the calls.

use std::sync::Arc;

use super::lark::{escape, one_of, quote};
use super::list::{List, Step};
use super::parameters::json_object;
use super::seek::{HELD_SPACE, Seek};
use super::{Answer, Either, Error, Family, Lark, Machine, Out, Rules};

const TAG: &str = "<|python_tag|>";

pub struct Llama;

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn speaks(&self, template: &str) -> bool {
        template.contains(TAG) || (template.contains("<|start_header_id|>") && template.contains("\"parameters\": "))
    }

    fn rules(&self, answer: &Answer, lark: &mut Lark) -> Result<Rules, Error> {
        let (mut first, mut calls) = (Vec::new(), Vec::new());
        for tool in answer.tools() {
            let arguments = json_object(tool, self.name(), lark)?;
            let head = format!("{{\"name\": \"{}\", \"parameters\": ", tool.name);
            let tail = lark.rule(&format!("{arguments} \"}}\""));
            // Up to the name this could be content, so that it must be one terminal.
            first.push(lark.rule(&format!("/{}{}/ {tail}", lark.gap, escape(&head))));
            calls.push(lark.rule(&format!("{} {tail}", quote(&head))));
        }
        let more = if answer.parallel() { format!("(\"; \" {})*", one_of(&calls)) } else { String::new() };
        let plain = format!("{} {more}", one_of(&first));
        let gap = if lark.gap.is_empty() { "" } else { "\"\\n\"? \"\\n\"?" };
        let tagged = format!("{gap} {} {} {more}", lark.marker(TAG), one_of(&calls));
        let calls = match (answer.marked(), lark.special(TAG)) {
            (true, _) => lark.rule(&tagged),
            (false, Some(_)) => lark.rule(&format!("{plain} | {tagged}")),
            (false, None) => lark.rule(&plain),
        };
        let trigger = trigger(answer);
        let text = lark.text(&format!("/(?s:.*)/ & ~/{trigger}(?s:.*)/ & ~/(?s:.*){}(?s:.*)/", escape(TAG)));
        Ok(Rules { text, opened: calls.clone(), calls })
    }

    fn machine(&self, answer: &Answer) -> Box<dyn Machine> {
        let state = State::Start { list: List::bare(answer.names(), true), held: String::new() };
        Either::wrap(answer, TAG, Box::new(Objects { names: answer.names(), state }))
    }
}

/// How an answer of calls begins: as the parser reads it.
fn trigger(answer: &Answer) -> String {
    let space = r"[ \t\n\x0c\r]*";
    let names: Vec<String> = answer.tools().iter().map(|tool| escape(&tool.name)).collect();
    let kind = format!(r#"("type"{space}:{space}"function"{space},{space})*"#);
    format!(r#"{space}\{{{space}{kind}"name"{space}:{space}"({})""#, names.join("|"))
}

enum State {
    /// Nothing has come that says whether this is text.
    Start {
        list: List,
        held: String,
    },
    Calls(List),
    Text(Seek),
    Malformed,
}

struct Objects {
    names: Arc<[String]>,
    state: State,
}

impl Objects {
    fn tagged(&mut self) {
        self.state = State::Calls(List::bare(self.names.clone(), false).after(TAG));
    }

    /// What was held back is text.
    fn text(&mut self, out: &mut Out) {
        let State::Start { held, .. } = &mut self.state else { return };
        let held = std::mem::take(held);
        self.state = State::Text(Seek::new(&[TAG]));
        held.chars().for_each(|c| self.step(c, out));
    }

    fn start(&mut self, c: char, out: &mut Out) {
        let State::Start { list, held } = &mut self.state else { return };
        held.push(c);
        let begun = held.trim_start();
        if begun == TAG {
            return self.tagged();
        }
        if begun.is_empty() && held.len() >= HELD_SPACE {
            return self.text(out);
        }
        match list.step(c, out) {
            Step::Broken if !TAG.starts_with(held.trim_start()) => {
                self.text(out);
            }
            _ if list.committed() => {
                let list = std::mem::replace(list, List::bare(self.names.clone(), false));
                self.state = State::Calls(list);
            }
            _ => {}
        }
    }
}

impl Machine for Objects {
    fn step(&mut self, c: char, out: &mut Out) {
        match &mut self.state {
            State::Start { .. } => self.start(c, out),
            State::Calls(list) => match list.step(c, out) {
                Step::More => {}
                Step::Broken => {
                    out.malformed(&list.raw());
                    self.state = State::Malformed;
                }
                Step::Last | Step::Behind => {
                    self.state = State::Text(Seek::new(&[TAG]).after_call());
                    self.step(c, out);
                }
            },
            State::Text(seek) => {
                if seek.step(c, |text| out.content(text)).is_some() {
                    self.tagged();
                }
            }
            State::Malformed => out.malformed(c.encode_utf8(&mut [0; 4])),
        }
    }

    fn end(&mut self, out: &mut Out) {
        match &mut self.state {
            State::Start { held, .. } => out.content(held),
            State::Calls(list) if list.unfinished() => out.unfinished(&list.raw()),
            State::Calls(_) | State::Malformed => {}
            State::Text(seek) => seek.end(|text| out.content(text)),
        }
    }
}
