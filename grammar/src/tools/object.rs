//! Reads one call written as a JSON object, `{"name": "f", "arguments": {...}}`, character by character, and passes the
//! arguments on as they are written. Keys may come in any order; unknown keys are skipped.

use std::sync::Arc;

use super::event::Out;

/// Finds where a JSON value ends. It counts brackets and knows strings, and leaves everything else to the reader of the value:
/// arguments are passed on verbatim, not repaired.
#[derive(Debug, Default)]
pub struct Extent {
    depth: usize,
    string: bool,
    escape: bool,
}

/// Where a character stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    Inside,
    /// It is the value's last.
    Last,
    /// The value, a bare word or number, ended before it.
    Behind,
}

impl Extent {
    /// Whether the next character stands inside a string.
    pub fn in_string(&self) -> bool {
        self.string
    }

    pub fn step(&mut self, c: char) -> Place {
        if self.string {
            match c {
                _ if self.escape => self.escape = false,
                '\\' => self.escape = true,
                '"' => {
                    self.string = false;
                    if self.depth == 0 {
                        return Place::Last;
                    }
                }
                _ => {}
            }
            return Place::Inside;
        }
        match c {
            '"' => self.string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' | ',' if self.depth == 0 => return Place::Behind,
            '}' | ']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Place::Last;
                }
            }
            _ if c.is_whitespace() && self.depth == 0 => return Place::Behind,
            _ => {}
        }
        Place::Inside
    }
}

/// What `CallObject::step` says about the character that it was given.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    More,
    /// The object is closed by it.
    Done,
    /// With it the object cannot be a call; `raw` ends with it.
    Broken,
}

enum State {
    Open,
    Key,
    InKey,
    Colon,
    Value,
    InName,
    InType,
    /// Arguments as an object.
    Arguments(Extent),
    /// Arguments as a string that holds JSON, as models write that were trained on OpenAI's shape.
    Quoted(Extent),
    /// Arguments as `null`.
    Null,
    Skip(Extent),
    After,
    Closed,
}

/// One call. Nothing is told before the name is known to be declared and the arguments have begun.
pub struct CallObject {
    names: Arc<[String]>,
    /// Whether only the exact beginning of a call counts (`{"name": "f"`, or `"type": "function"` before it): there is no marker
    /// that says that a call comes, and every other object is content.
    exact: bool,
    state: State,
    raw: String,
    text: String,
    name: Option<String>,
    arguments: String,
    complete: bool,
    told: bool,
}

impl CallObject {
    pub fn new(names: Arc<[String]>) -> Self {
        Self {
            names,
            exact: false,
            state: State::Open,
            raw: String::new(),
            text: String::new(),
            name: None,
            arguments: String::new(),
            complete: false,
            told: false,
        }
    }

    pub fn exact(names: Arc<[String]>) -> Self {
        Self { exact: true, ..Self::new(names) }
    }

    /// Whether it is certain that this is meant as a call.
    pub fn committed(&self) -> bool {
        !self.exact || self.name.is_some()
    }

    /// Whether the call has been told.
    pub fn told(&self) -> bool {
        self.told
    }

    /// What was read and not told.
    pub fn raw(&mut self) -> String {
        std::mem::take(&mut self.raw)
    }

    pub fn step(&mut self, c: char, out: &mut Out) -> Step {
        if !self.told || self.complete {
            self.raw.push(c);
        }
        if self.advance(c, out).is_none() {
            return Step::Broken;
        }
        if self.complete && self.told {
            self.raw.clear();
        }
        if matches!(self.state, State::Closed) { Step::Done } else { Step::More }
    }

    fn advance(&mut self, c: char, out: &mut Out) -> Option<()> {
        let space = c.is_ascii_whitespace();
        match &mut self.state {
            State::Open | State::Key | State::Colon | State::Value if space => {}
            State::Open if c == '{' => self.state = State::Key,
            State::Key if c == '"' => {
                self.text.clear();
                self.state = State::InKey;
            }
            State::Key if c == '}' => self.close(out)?,
            State::InKey => {
                if self.string(c)? {
                    self.state = State::Colon;
                    let allowed = ["name", "type"].contains(&self.text.as_str()) || self.name.is_some();
                    (!self.exact || allowed).then_some(())?;
                }
            }
            State::Colon if c == ':' => self.state = State::Value,
            State::Value => self.value(c, out)?,
            State::InName => {
                if self.string(c)? {
                    self.names.contains(&self.text).then_some(())?;
                    self.name = Some(std::mem::take(&mut self.text));
                    self.state = State::After;
                    self.tell(out);
                }
            }
            State::InType => {
                if self.string(c)? {
                    (self.text == "function").then_some(())?;
                    self.state = State::After;
                }
            }
            State::Arguments(extent) => {
                let place = extent.step(c);
                self.argument(c, out);
                if place == Place::Last {
                    self.finish(out);
                }
            }
            State::Quoted(extent) => {
                self.text.push(c);
                if extent.step(c) == Place::Last {
                    self.quoted(out)?;
                }
            }
            State::Null => {
                self.text.push(c);
                "null".starts_with(&self.text).then_some(())?;
                if self.text == "null" {
                    self.empty(out);
                }
            }
            State::Skip(extent) => match extent.step(c) {
                Place::Inside => {}
                Place::Last => self.state = State::After,
                Place::Behind => {
                    self.state = State::After;
                    return self.advance(c, out);
                }
            },
            State::After if space => {}
            State::After if c == ',' => self.state = State::Key,
            State::After if c == '}' => self.close(out)?,
            _ => return None,
        }
        Some(())
    }

    /// Reads on in a string; true at its end, with the decoded text in `text`.
    fn string(&mut self, c: char) -> Option<bool> {
        let open = self.text.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 0;
        if c == '"' && open {
            if self.text.contains('\\') {
                self.text = serde_json::from_str(&format!("\"{}\"", self.text)).ok()?;
            }
            return Some(true);
        }
        // A trigger that is told apart from content by its very characters has no escapes.
        (!self.exact || self.name.is_some() || c != '\\').then_some(())?;
        self.text.push(c);
        Some(false)
    }

    fn value(&mut self, c: char, out: &mut Out) -> Option<()> {
        let key = std::mem::take(&mut self.text);
        match (key.as_str(), c) {
            ("name", '"') if self.name.is_none() => self.state = State::InName,
            ("type", '"') if self.exact && self.name.is_none() => self.state = State::InType,
            ("type", _) if self.exact && self.name.is_none() => return None,
            ("arguments" | "parameters", _) if self.complete || !self.arguments.is_empty() => return None,
            ("arguments" | "parameters", '{') => {
                let mut extent = Extent::default();
                extent.step(c);
                self.state = State::Arguments(extent);
                self.arguments.clear();
                self.argument(c, out);
            }
            ("arguments" | "parameters", '"') => {
                let mut extent = Extent::default();
                extent.step(c);
                self.text.push(c);
                self.state = State::Quoted(extent);
            }
            ("arguments" | "parameters", 'n') => {
                self.text.push(c);
                self.state = State::Null;
            }
            ("name" | "arguments" | "parameters", _) => return None,
            _ => {
                let mut extent = Extent::default();
                match extent.step(c) {
                    Place::Inside => self.state = State::Skip(extent),
                    Place::Last | Place::Behind => return None,
                }
            }
        }
        Some(())
    }

    fn argument(&mut self, c: char, out: &mut Out) {
        if self.name.is_some() && !self.told {
            self.announce(out);
        }
        if self.told {
            out.arguments(c.encode_utf8(&mut [0; 4]));
        } else {
            self.arguments.push(c);
        }
    }

    fn quoted(&mut self, out: &mut Out) -> Option<()> {
        let inner: String = serde_json::from_str(&self.text).ok()?;
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&inner).ok()?;
        self.arguments = inner.trim().to_string();
        self.finish(out);
        Some(())
    }

    fn empty(&mut self, out: &mut Out) {
        self.arguments = "{}".into();
        self.finish(out);
    }

    fn finish(&mut self, out: &mut Out) {
        self.complete = true;
        self.text.clear();
        self.state = State::After;
        if self.told {
            out.done();
        } else {
            self.tell(out);
        }
    }

    /// Tells what waited for the name.
    fn tell(&mut self, out: &mut Out) {
        if self.name.is_some() && self.complete && !self.told {
            self.announce(out);
            out.done();
        }
    }

    fn announce(&mut self, out: &mut Out) {
        self.told = true;
        self.raw.clear();
        out.call(self.name.as_deref().unwrap_or_default());
        out.arguments(&std::mem::take(&mut self.arguments));
    }

    fn close(&mut self, out: &mut Out) -> Option<()> {
        self.name.as_ref()?;
        if !self.complete {
            self.empty(out);
        }
        self.state = State::Closed;
        Some(())
    }
}
