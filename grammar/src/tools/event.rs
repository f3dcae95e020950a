//! What a parser tells: content, reasoning and tool calls, in the order in which they become certain.

/// A piece of an answer. Pieces of one kind that follow each other belong together: where they are cut says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Text for the user.
    Content(String),
    /// What the model wrote in its reasoning block.
    Reasoning(String),
    /// A call begins. Calls of an answer are numbered from 0; the name is sent once, before any arguments.
    Call { index: usize, name: String },
    /// More of the call's arguments: JSON text, to be appended to what came before.
    Arguments { index: usize, delta: String },
    /// The call's arguments are complete. A call without it was cut off.
    Done { index: usize },
    /// Text that began as a call and cannot be one (an undeclared name, broken syntax), verbatim with its markers. Only a
    /// model that runs without the grammar writes it.
    Malformed(String),
    /// The beginning of a call that the end of the answer cut off before its name was certain, verbatim.
    Unfinished(String),
}

/// Where a parser's machines write to: joins neighbours of one kind and numbers the calls.
#[derive(Debug, Default)]
pub struct Out {
    events: Vec<Event>,
    calls: usize,
}

impl Out {
    pub fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    pub fn content(&mut self, text: &str) {
        match self.events.last_mut() {
            Some(Event::Content(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.events.push(Event::Content(text.into())),
        }
    }

    pub fn reasoning(&mut self, text: &str) {
        match self.events.last_mut() {
            Some(Event::Reasoning(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.events.push(Event::Reasoning(text.into())),
        }
    }

    pub fn malformed(&mut self, text: &str) {
        match self.events.last_mut() {
            Some(Event::Malformed(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.events.push(Event::Malformed(text.into())),
        }
    }

    pub fn unfinished(&mut self, text: &str) {
        if !text.is_empty() {
            self.events.push(Event::Unfinished(text.into()));
        }
    }

    pub fn call(&mut self, name: &str) {
        self.events.push(Event::Call { index: self.calls, name: name.into() });
        self.calls += 1;
    }

    /// More arguments of the newest call.
    pub fn arguments(&mut self, delta: &str) {
        let current = self.calls - 1;
        match self.events.last_mut() {
            Some(Event::Arguments { index, delta: last }) if *index == current => last.push_str(delta),
            _ if delta.is_empty() => {}
            _ => self.events.push(Event::Arguments { index: current, delta: delta.into() }),
        }
    }

    /// The newest call is complete.
    pub fn done(&mut self) {
        self.events.push(Event::Done { index: self.calls - 1 });
    }
}
