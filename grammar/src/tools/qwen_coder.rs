//! Qwen3-Coder and its kin: `<tool_call>`, `<function=f>`, `<parameter=k>`, the value on lines of its own, and the closing tags.
//! Strings stand there raw, everything else as JSON.
//!
//! A string that contains `</parameter>` cannot be written in this family; `raw` says how values are read.

use serde_json::Value;

use super::kinds::Kinds;
use super::lark::{one_of, quote};
use super::literal::{self, Dialect, Literal, escape};
use super::object::Extent;
use super::parameters::{Parameters, Types, sequence};
use super::raw;
use super::seek::Seek;
use super::{Answer, Either, Error, Family, Lark, Machine, Out, Rules, Tool};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

pub struct QwenCoder;

impl Family for QwenCoder {
    fn name(&self) -> &'static str {
        "qwen-coder"
    }

    fn speaks(&self, template: &str) -> bool {
        template.contains(FUNCTION) && template.contains(PARAMETER)
    }

    fn rules(&self, answer: &Answer, lark: &mut Lark) -> Result<Rules, Error> {
        let (open, close) = (lark.marker(OPEN), lark.marker(CLOSE));
        let mut functions = Vec::new();
        for tool in answer.tools() {
            let parameters = parameters(tool, self.name(), lark)?;
            let head = quote(&format!("\n{FUNCTION}{}>\n", tool.name));
            functions.push(lark.rule(&format!("{head} {parameters}")));
        }
        let tail = quote(&format!("{FUNCTION_END}\n"));
        let rest = lark.rule(&format!("{} {tail} {close}", one_of(&functions)));
        let more = if answer.parallel() { format!("(\"\\n\"? {open} {rest})*") } else { String::new() };
        let gap = if lark.gap.is_empty() { "" } else { "\"\\n\"? \"\\n\"?" };
        let text_to_call = lark.text_to(OPEN, &[FUNCTION]);
        Ok(Rules {
            text: lark.text_without(&[OPEN, FUNCTION]),
            calls: lark.rule(&format!("{gap} {open} {rest} {more}")),
            opened: lark.rule(&format!("{text_to_call} {rest} {more}")),
        })
    }

    fn machine(&self, answer: &Answer) -> Box<dyn Machine> {
        let tools = answer.tools().iter().map(|tool| (tool.name.clone(), Types::of(tool))).collect();
        Either::wrap(
            answer,
            OPEN,
            Box::new(Tags { tools, tool: 0, state: text(), raw: String::new(), comma: false, block: false }),
        )
    }
}

fn writable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['<', '>', '\n', '\r']) && name.trim() == name
}

/// The rule of a function's parameters.
fn parameters(tool: &Tool, family: &'static str, lark: &mut Lark) -> Result<String, Error> {
    let refuse = |name: &str, reason: String| Error::Parameters {
        tool: tool.name.clone(),
        family,
        pointer: format!("/properties/{name}"),
        reason,
    };
    match Parameters::of(tool, family, writable)? {
        Parameters::Open(schema) => {
            let value = raw::value(&schema, PARAMETER_END, lark)?.map_err(|reason| refuse("*", reason))?;
            let name = r"/[^<>\s]([^<>\n\r]*[^<>\s])?/";
            Ok(lark.rule(&format!("({} {name} \">\\n\" {value})*", quote(PARAMETER))))
        }
        Parameters::Listed(listed) => {
            let mut items = Vec::new();
            for parameter in &listed {
                let value = raw::value(&parameter.schema, PARAMETER_END, lark)?
                    .map_err(|reason| refuse(&parameter.name, reason))?;
                let head = quote(&format!("{PARAMETER}{}>\n", parameter.name));
                items.push((lark.rule(&format!("{head} {value}")), parameter.required));
            }
            Ok(sequence(&items, "", lark))
        }
    }
}

fn text() -> State {
    State::Text(Seek::new(&[OPEN, FUNCTION]))
}

enum State {
    Text(Seek),
    /// After the block's marker, up to the function's.
    Opening(String),
    /// A function's name.
    Name(String),
    /// Between parameters.
    Tag(String),
    /// A parameter's name.
    Key(String),
    /// A string, passed on as it comes.
    Raw {
        seek: Seek,
        first: bool,
    },
    /// Before a value that is no string.
    Begin(Kinds),
    /// An object or array, passed on as it comes.
    Nested(Literal),
    /// A value that is read when it is complete. `extent` knows whether an end stands inside a JSON string.
    Whole {
        text: String,
        kinds: Kinds,
        extent: Option<Extent>,
    },
    /// After a nested value.
    Rest(Seek),
    /// After a function.
    Behind(Seek),
    Bad(Seek),
}

struct Tags {
    tools: Vec<(String, Types)>,
    /// The one whose call is being read.
    tool: usize,
    state: State,
    /// What was read of a call and not told.
    raw: String,
    comma: bool,
    /// Whether the function stands in a block.
    block: bool,
}

impl Tags {
    /// After a marker and the white space before it.
    fn opened(&mut self, found: usize, space: &str) {
        self.block = found == 0;
        self.raw = if self.block { OPEN.into() } else { format!("{space}{FUNCTION}") };
        self.state = if self.block { State::Opening(String::new()) } else { State::Name(String::new()) };
    }

    fn broken(&mut self, out: &mut Out) {
        let raw = std::mem::take(&mut self.raw);
        if !self.block && matches!(self.state, State::Name(_)) {
            // Without a block around it, only a declared name makes it a call.
            out.content(&raw);
            self.state = text();
            return;
        }
        let mut seek = Seek::new(&[CLOSE, OPEN]).verbatim();
        let rest = raw.strip_prefix(OPEN).unwrap_or(&raw);
        out.malformed(&raw[..raw.len() - rest.len()]);
        self.state = State::Bad(Seek::new(&[]));
        for c in rest.chars() {
            if let Some(found) = seek.step(c, |text| out.malformed(text)) {
                out.malformed([CLOSE, OPEN][found]);
            }
        }
        self.state = State::Bad(seek);
    }

    fn name(&mut self, out: &mut Out) {
        let State::Name(name) = &self.state else { return };
        let Some(tool) = self.tools.iter().position(|(declared, _)| declared == name.trim()) else {
            return self.broken(out);
        };
        self.tool = tool;
        self.comma = false;
        self.raw.clear();
        out.call(&self.tools[tool].0);
        out.arguments("{");
        self.state = State::Tag(String::new());
    }

    fn key(&mut self, out: &mut Out) {
        let State::Key(key) = &self.state else { return };
        let key = key.trim();
        let kinds = self.tools[self.tool].1.get(key);
        out.arguments(&format!("{}{}: ", if self.comma { ", " } else { "" }, Value::from(key)));
        self.comma = true;
        self.raw.clear();
        if kinds == Kinds::STRING {
            out.arguments("\"");
            let seek = Seek::new(&[&format!("\n{PARAMETER_END}"), PARAMETER_END]).verbatim();
            self.state = State::Raw { seek, first: true };
        } else {
            self.state = State::Begin(kinds);
        }
    }

    fn tag(&mut self, out: &mut Out) {
        let State::Tag(tag) = &mut self.state else { return };
        let end = |tag: &str, out: &mut Out| {
            out.arguments("}");
            out.done();
            if tag == CLOSE { text_after() } else { State::Behind(Seek::new(&[CLOSE, OPEN, FUNCTION]).after_call()) }
        };
        match tag.trim_start() {
            PARAMETER => self.state = State::Key(String::new()),
            tag @ (FUNCTION_END | CLOSE) => {
                self.state = end(tag, out);
                self.raw.clear();
            }
            begun if [PARAMETER, FUNCTION_END, CLOSE].iter().any(|tag| tag.starts_with(begun)) => {}
            _ => self.broken(out),
        }
    }

    /// Reads on in a value that is no plain string.
    fn value(&mut self, c: char, out: &mut Out) {
        match &mut self.state {
            State::Begin(_) if c.is_whitespace() => {}
            State::Begin(kinds) => {
                let kinds = *kinds;
                if matches!(c, '{' | '[') && !kinds.any(Kinds::STRING) {
                    self.state = State::Nested(Literal::new(Dialect::Json));
                    return self.value(c, out);
                }
                let nests = kinds.any(Kinds::OBJECT) || kinds.any(Kinds::ARRAY);
                let extent = (nests && matches!(c, '{' | '[')).then(Extent::default);
                // What was skipped belongs to a string, but for the line break after the tag.
                let skipped = self.raw.strip_suffix(c).unwrap_or_default();
                let text = skipped.strip_prefix('\n').unwrap_or(skipped).to_string();
                self.state = State::Whole { text, kinds, extent };
                self.value(c, out);
            }
            State::Nested(literal) => {
                let mut json = String::new();
                let step = literal.step(c, &mut json);
                out.arguments(&json);
                match step {
                    literal::Step::More => {}
                    literal::Step::Last => self.state = State::Rest(Seek::new(&[PARAMETER_END]).after_call()),
                    literal::Step::Behind | literal::Step::Broken => self.broken(out),
                }
            }
            State::Whole { text, kinds, extent } => {
                text.push(c);
                let inside = extent.as_mut().is_some_and(|extent| {
                    extent.step(c);
                    extent.in_string()
                });
                if let Some(value) = text.strip_suffix(PARAMETER_END)
                    && !inside
                {
                    let value = value.strip_suffix('\n').unwrap_or(value);
                    out.arguments(&raw::read(value, *kinds));
                    self.state = State::Tag(String::new());
                    self.raw.clear();
                }
            }
            _ => {}
        }
    }

    /// Reads on in a string that is passed on as it comes.
    fn string(&mut self, c: char, out: &mut Out) {
        let State::Raw { seek, first } = &mut self.state else { return };
        // The line break after the tag is not the value's.
        if std::mem::take(first) && c == '\n' {
            return;
        }
        let mut json = String::new();
        let end = seek.step(c, |text| text.chars().for_each(|c| escape(c, &mut json))).is_some();
        out.arguments(&json);
        if end {
            out.arguments("\"");
            self.state = State::Tag(String::new());
        }
    }

    /// After a function, or in a block that holds none.
    fn behind(&mut self, c: char, out: &mut Out) {
        let block = self.block;
        match &mut self.state {
            State::Behind(seek) => {
                match seek.step(c, |text| if block { out.malformed(text) } else { out.content(text) }) {
                    Some(0) => self.state = text_after(),
                    Some(found) => self.opened(found - 1, ""),
                    None => {}
                }
            }
            State::Bad(seek) => match seek.step(c, |text| out.malformed(text)) {
                Some(0) => {
                    out.malformed(CLOSE);
                    self.state = text_after();
                }
                Some(_) => self.opened(0, ""),
                None => {}
            },
            _ => {}
        }
    }
}

fn text_after() -> State {
    State::Text(Seek::new(&[OPEN, FUNCTION]).after_call())
}

impl Machine for Tags {
    fn step(&mut self, c: char, out: &mut Out) {
        if matches!(
            self.state,
            State::Opening(_)
                | State::Name(_)
                | State::Tag(_)
                | State::Key(_)
                | State::Begin(_)
                | State::Nested(_)
                | State::Whole { .. }
        ) {
            self.raw.push(c);
        }
        match &mut self.state {
            State::Text(seek) => {
                if let Some(found) = seek.step(c, |text| out.content(text)) {
                    let space = seek.dropped();
                    self.opened(found, &space);
                }
            }
            State::Opening(tag) => {
                tag.push(c);
                match tag.trim_start() {
                    FUNCTION => self.state = State::Name(String::new()),
                    begun if FUNCTION.starts_with(begun) => {}
                    _ => self.broken(out),
                }
            }
            State::Name(name) => match c {
                '>' => self.name(out),
                '<' | '\n' => self.broken(out),
                _ => name.push(c),
            },
            State::Tag(tag) => {
                tag.push(c);
                self.tag(out);
            }
            State::Key(key) => match c {
                '>' => self.key(out),
                '<' | '\n' => self.broken(out),
                _ => key.push(c),
            },
            State::Raw { .. } => self.string(c, out),
            State::Begin(_) | State::Nested(_) | State::Whole { .. } => self.value(c, out),
            State::Rest(seek) => {
                if seek.step(c, |text| out.malformed(text)).is_some() {
                    self.raw.clear();
                    self.state = State::Tag(String::new());
                }
            }
            State::Behind(_) | State::Bad(_) => self.behind(c, out),
        }
    }

    fn end(&mut self, out: &mut Out) {
        match &mut self.state {
            State::Text(seek) => seek.end(|text| out.content(text)),
            State::Opening(_) | State::Name(_) => out.unfinished(&self.raw),
            State::Raw { seek, .. } => {
                let mut json = String::new();
                seek.end(|text| text.chars().for_each(|c| escape(c, &mut json)));
                out.arguments(&json);
            }
            State::Behind(seek) if !self.block => seek.end(|text| out.content(text)),
            State::Bad(seek) => seek.end(|text| out.malformed(text)),
            _ => {}
        }
    }
}
