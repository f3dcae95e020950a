//! Reads calls written as JSON objects one after another, in an array or bare.

use std::sync::Arc;

use super::event::Out;
use super::object::{self, CallObject};

/// Of a list: `Last` closes the array, a bare one ended before `Behind` or before the white space that it follows, and `raw` ends with
/// the character that is `Broken`.
pub use super::literal::Step;

enum State {
    Bracket,
    Object(CallObject),
    Between,
}

pub struct List {
    names: Arc<[String]>,
    array: bool,
    state: State,
    /// What was read before the first object.
    raw: String,
    /// Whether a separator came and an object must follow.
    separated: bool,
    committed: bool,
}

impl List {
    /// Objects in brackets, with commas between.
    pub fn array(names: Arc<[String]>, exact: bool) -> Self {
        Self { names, array: true, state: State::Bracket, raw: String::new(), separated: !exact, committed: !exact }
    }

    /// Objects with `;`, `,` or white space between.
    pub fn bare(names: Arc<[String]>, exact: bool) -> Self {
        let first = if exact { CallObject::exact(names.clone()) } else { CallObject::new(names.clone()) };
        Self {
            names,
            array: false,
            state: State::Object(first),
            raw: String::new(),
            separated: false,
            committed: !exact,
        }
    }

    /// The list stands after this marker, which is told with what was not read.
    pub fn after(mut self, marker: &str) -> Self {
        self.raw = marker.into();
        self
    }

    /// Whether it is certain that calls are meant.
    pub fn committed(&self) -> bool {
        self.committed || matches!(&self.state, State::Object(object) if object.committed())
    }

    /// What was read of a call that has not been told.
    pub fn raw(&mut self) -> String {
        let mut raw = std::mem::take(&mut self.raw);
        if let State::Object(object) = &mut self.state {
            raw.push_str(&object.raw());
        }
        raw
    }

    /// Whether a call was begun that has not been told.
    pub fn unfinished(&self) -> bool {
        match &self.state {
            State::Object(object) => !object.told(),
            State::Bracket => true,
            State::Between => false,
        }
    }

    pub fn step(&mut self, c: char, out: &mut Out) -> Step {
        match &mut self.state {
            State::Bracket => {
                self.raw.push(c);
                match c {
                    '[' => {
                        let exact = !self.committed;
                        let first = if exact { CallObject::exact } else { CallObject::new };
                        self.state = State::Object(first(self.names.clone()));
                    }
                    _ if c.is_ascii_whitespace() => {}
                    _ => return Step::Broken,
                }
                Step::More
            }
            State::Object(object) => {
                let step = object.step(c, out);
                self.committed |= object.committed();
                if object.told() {
                    self.raw.clear();
                }
                match step {
                    object::Step::More => Step::More,
                    object::Step::Broken => Step::Broken,
                    object::Step::Done => {
                        self.state = State::Between;
                        self.separated = false;
                        Step::More
                    }
                }
            }
            State::Between => self.between(c, out),
        }
    }

    fn between(&mut self, c: char, out: &mut Out) -> Step {
        match c {
            _ if c.is_ascii_whitespace() => Step::More,
            ',' | ';' if !self.separated && (c == ',' || !self.array) => {
                self.separated = true;
                Step::More
            }
            ']' if self.array => Step::Last,
            '{' if self.separated || !self.array => {
                self.state = State::Object(CallObject::new(self.names.clone()));
                self.step(c, out)
            }
            _ if self.array => {
                self.raw.push(c);
                Step::Broken
            }
            _ => Step::Behind,
        }
    }
}
