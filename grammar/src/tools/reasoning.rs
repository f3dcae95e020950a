//! Reasoning blocks: the part of an answer before it begins in earnest, outside the grammar of calls.

use super::event::Out;
use super::lark::{Lark, escape};
use super::seek::{HELD_SPACE, Seek};

/// How a model marks its reasoning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reasoning {
    pub open: String,
    pub close: String,
    /// Whether the prompt has already opened the block (templates that end with `<think>`).
    pub begun: bool,
}

impl Reasoning {
    /// The blocks of the template's family, if its models reason. `begun` is the caller's to set: it depends on the prompt.
    pub fn detect(template: &str) -> Option<Self> {
        [("<think>", "</think>"), ("[THINK]", "[/THINK]")]
            .iter()
            .find(|(open, close)| template.contains(open) && template.contains(close))
            .map(|(open, close)| Self { open: open.to_string(), close: close.to_string(), begun: false })
    }

    /// The rule of the block, for the beginning of an answer.
    pub(super) fn block(&self, lark: &mut Lark) -> String {
        let inside = lark.text_to(&self.close, &[]);
        if self.begun {
            return inside;
        }
        let open = lark.marker(&self.open);
        // Text that spells the marker out would be read as reasoning.
        lark.not_first = Some(format!(r"\s*{}", escape(&self.open)));
        lark.rule(&format!("({open} {inside})?"))
    }
}

enum State {
    Before,
    Inside,
    After,
}

/// Splits reasoning from the answer. White space around the block is dropped.
pub struct Splitter {
    state: State,
    open: String,
    held: String,
    close: Seek,
    first: bool,
}

impl Splitter {
    pub fn new(reasoning: &Reasoning) -> Self {
        let mut close = Seek::new(&[&reasoning.close]);
        close.trim();
        Self {
            state: if reasoning.begun { State::Inside } else { State::Before },
            open: reasoning.open.clone(),
            held: String::new(),
            close,
            first: true,
        }
    }

    /// Passes on to `answer` what is not reasoning.
    pub fn step(&mut self, c: char, out: &mut Out, mut answer: impl FnMut(char, &mut Out)) {
        match self.state {
            State::Before => {
                self.held.push(c);
                let begun = self.held.trim_start();
                if begun == self.open {
                    self.held.clear();
                    self.state = State::Inside;
                } else if !self.open.starts_with(begun) || self.held.len() > HELD_SPACE {
                    self.state = State::After;
                    self.first = false;
                    std::mem::take(&mut self.held).chars().for_each(|c| answer(c, out));
                }
            }
            State::Inside => {
                if self.close.step(c, |text| out.reasoning(text)).is_some() {
                    self.state = State::After;
                }
            }
            State::After if self.first && c.is_whitespace() => {}
            State::After => {
                self.first = false;
                answer(c, out);
            }
        }
    }

    pub fn end(&mut self, out: &mut Out, mut answer: impl FnMut(char, &mut Out)) {
        match self.state {
            State::Before => std::mem::take(&mut self.held).chars().for_each(|c| answer(c, out)),
            State::Inside => self.close.end(|text| out.reasoning(text)),
            State::After => {}
        }
    }
}
