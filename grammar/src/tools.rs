//! Tool calls: what a family of models writes, as a grammar and as a parser.
//!
//! 1. A family is chosen: [`detect`] from the model's chat template, or [`by_name`].
//! 2. [`Answer`] says what the request allows: its tools, the choice between them, the response format, reasoning.
//! 3. [`grammar`] writes the answer's grammar as Lark for llguidance. What it lets through, the parser reads back as calls of
//!    declared tools with arguments that their schemas accept.
//! 4. [`Parser`] takes the answer's text in pieces of any size and gives back content, reasoning and calls as [`Event`]s.
//!
//! A parser expects text in which special tokens are shown (a marker like `<tool_call>` may be one), without the tokens that end
//! an answer. It reads one character at a time, so its output cannot depend on how the text was cut; an answer that is not
//! streamed is the same parser fed once.
//!
//! After a call, the grammars allow nothing but further calls. Parsers also read models that run without a grammar: text between
//! and after calls is content, and what began as a call but is none is [`Event::Malformed`], verbatim.

mod event;
mod finite;
mod generic;
mod hermes;
mod kinds;
mod lark;
mod list;
mod literal;
mod llama;
mod mistral;
mod object;
mod parameters;
mod pattern;
mod pythonic;
mod qwen_coder;
mod raw;
mod reasoning;
mod seek;
mod values;

use std::sync::Arc;

use seek::HELD_SPACE;
use serde_json::{Value, json};

pub use event::{Event, Out};
pub use lark::{Context, Lark, plain_json};
pub use reasoning::Reasoning;

/// Why an answer's grammar cannot be made.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    #[error("no tool is named '{0}': name one of the request's tools")]
    UnknownTool(String),
    #[error("two tools are named '{0}': give each a name of its own")]
    RepeatedTool(String),
    #[error("the tool name '{0}' is not 1 to 64 letters, digits, '_', '-', '.', ':' or '/'")]
    BadName(String),
    #[error("the tool choice asks for a call and the request has no tools")]
    NoTools,
    #[error("no family of tool calls is named '{0}': use one of {names}", names = names())]
    UnknownFamily(String),
    #[error(
        "the parameters of '{tool}' cannot be enforced for models that write calls as '{family}': {pointer}: {reason}"
    )]
    Parameters { tool: String, family: &'static str, pointer: String, reason: String },
    #[error("{0}")]
    Schema(String),
}

/// One function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// The JSON Schema of the arguments object.
    pub parameters: Value,
    /// Whether the schema is enforced; where not, any object is taken. OpenAI's `strict: false` turns it off.
    pub strict: bool,
}

/// OpenAI's `tool_choice`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    None,
    Auto,
    Required,
    /// One call of this function.
    Named(String),
    /// `auto` or `required` over some of the tools (`allowed_tools`).
    Allowed {
        names: Vec<String>,
        required: bool,
    },
}

/// Whether an answer has calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    Never,
    Maybe,
    Always,
}

/// What an answer may be.
#[derive(Debug, Clone)]
pub struct Answer {
    tools: Vec<Tool>,
    calls: Calls,
    parallel: bool,
    content: Option<String>,
    reasoning: Option<Reasoning>,
}

const NAME_LENGTH: usize = 64;

impl Answer {
    /// `parallel`: whether there may be more than one call (`parallel_tool_calls`).
    pub fn new(tools: &[Tool], choice: &Choice, parallel: bool) -> Result<Self, Error> {
        for (index, tool) in tools.iter().enumerate() {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
            if tool.name.is_empty() || tool.name.len() > NAME_LENGTH || !tool.name.chars().all(allowed) {
                return Err(Error::BadName(tool.name.clone()));
            }
            if tools[..index].iter().any(|earlier| earlier.name == tool.name) {
                return Err(Error::RepeatedTool(tool.name.clone()));
            }
        }
        let named = |names: &[String]| -> Result<Vec<Tool>, Error> {
            let find = |name: &String| tools.iter().find(|t| t.name == *name).ok_or(Error::UnknownTool(name.clone()));
            // In the request's order, once each.
            names.iter().try_for_each(|name| find(name).map(drop))?;
            Ok(tools.iter().filter(|tool| names.contains(&tool.name)).cloned().collect())
        };
        let (tools, calls, parallel) = match choice {
            Choice::None => (tools.to_vec(), Calls::Never, parallel),
            Choice::Auto => (tools.to_vec(), Calls::Maybe, parallel),
            Choice::Required => (tools.to_vec(), Calls::Always, parallel),
            Choice::Named(name) => (named(std::slice::from_ref(name))?, Calls::Always, false),
            Choice::Allowed { names, required } => {
                (named(names)?, if *required { Calls::Always } else { Calls::Maybe }, parallel)
            }
        };
        let calls = match calls {
            Calls::Always if tools.is_empty() => return Err(Error::NoTools),
            _ if tools.is_empty() => Calls::Never,
            calls => calls,
        };
        Ok(Self { tools, calls, parallel, content: None, reasoning: None })
    }

    /// With a response format, as an expression of the grammar: content is exactly this. It must not be able to begin as a call
    /// does; JSON cannot, in any family.
    pub fn with_content(self, expression: &str) -> Self {
        Self { content: Some(expression.into()), ..self }
    }

    /// With a reasoning block before everything else.
    pub fn with_reasoning(self, reasoning: Reasoning) -> Self {
        Self { reasoning: Some(reasoning), ..self }
    }

    /// The tools that may be called.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// Whether there may be more than one call.
    pub fn parallel(&self) -> bool {
        self.parallel
    }

    /// Whether anything is asked of the answer at all; where not, it needs no grammar.
    pub fn is_bound(&self) -> bool {
        !self.tools.is_empty() || self.content.is_some()
    }

    fn names(&self) -> Arc<[String]> {
        self.tools.iter().map(|tool| tool.name.clone()).collect()
    }

    /// Whether a call that looks like JSON needs a marker before it, because content is JSON too.
    fn marked(&self) -> bool {
        self.content.is_some()
    }
}

impl Tool {
    /// The schema that the arguments are held to.
    fn schema(&self) -> Value {
        match &self.parameters {
            Value::Object(keywords) if self.strict && !keywords.is_empty() => {
                let mut keywords = keywords.clone();
                // Arguments are an object whether the schema says it or not.
                keywords.entry("type").or_insert(json!("object"));
                Value::Object(keywords)
            }
            _ => json!({"type": "object"}),
        }
    }
}

/// The names of the rules that a family writes.
pub struct Rules {
    /// A whole answer without calls. The parser must read it as content and nothing else.
    pub text: String,
    /// Calls, from the answer's first character on.
    pub calls: String,
    /// Calls after free text, or `calls` where the family has none.
    pub opened: String,
}

/// How one family of models writes tool calls. Adding one is one file and a line in [`families`].
pub trait Family: Sync {
    /// What it is called in settings.
    fn name(&self) -> &'static str;

    /// Whether a chat template is of this family.
    fn speaks(&self, template: &str) -> bool;

    /// Writes the rules of answers. The grammar lets no call through that the family's machine does not read as one of
    /// `answer`'s tools with arguments that its schema takes.
    fn rules(&self, answer: &Answer, lark: &mut Lark) -> Result<Rules, Error>;

    /// Reads an answer, without its reasoning.
    fn machine(&self, answer: &Answer) -> Box<dyn Machine>;
}

/// Reads an answer's characters, one at a time.
pub trait Machine: Send {
    fn step(&mut self, c: char, out: &mut Out);
    /// The answer ends here. What was held back goes out.
    fn end(&mut self, out: &mut Out);
}

/// All families. A template is of the first that speaks it.
pub fn families() -> &'static [&'static dyn Family] {
    &[
        &qwen_coder::QwenCoder,
        &mistral::MISTRAL_NAMED,
        &mistral::MISTRAL,
        &pythonic::Pythonic,
        &hermes::Hermes,
        &llama::Llama,
        &generic::Generic,
    ]
}

fn names() -> String {
    families().iter().map(|family| family.name()).collect::<Vec<_>>().join(", ")
}

/// The family of a chat template. One that knows no tools, or writes calls in a way of its own, is served by the generic one.
pub fn detect(template: &str) -> &'static dyn Family {
    families().iter().copied().find(|family| family.speaks(template)).unwrap_or(&generic::Generic)
}

pub fn by_name(name: &str) -> Result<&'static dyn Family, Error> {
    families().iter().copied().find(|family| family.name() == name).ok_or(Error::UnknownFamily(name.into()))
}

/// The grammar of an answer, as Lark text with the rule `start`.
pub fn grammar(family: &dyn Family, answer: &Answer, context: &Context) -> Result<String, Error> {
    let mut lark = Lark::new(context);
    let mut start = String::new();
    if let Some(reasoning) = &answer.reasoning {
        start = reasoning.block(&mut lark);
        lark.gap = r"\n{0,2}";
    }
    let content = answer.content.as_ref().map(|expression| lark.rule(expression));
    let body = match (answer.calls, content) {
        (Calls::Never, Some(content)) => content,
        (Calls::Never, None) => family.rules(answer, &mut lark)?.text,
        (Calls::Maybe, Some(content)) => format!("({content} | {})", family.rules(answer, &mut lark)?.calls),
        (Calls::Maybe, None) => {
            let rules = family.rules(answer, &mut lark)?;
            format!("({} | {})", rules.text, rules.opened)
        }
        (Calls::Always, _) => family.rules(answer, &mut lark)?.calls,
    };
    lark.named("start", &format!("{start} {body}"));
    Ok(lark.finish())
}

/// The parser of one answer.
pub struct Parser {
    reasoning: Option<reasoning::Splitter>,
    machine: Box<dyn Machine>,
    out: Out,
}

impl Parser {
    /// `answer` is what the answer's grammar was made from, or would have been.
    pub fn new(family: &dyn Family, answer: &Answer) -> Self {
        let machine = if answer.calls == Calls::Never { Box::new(Plain) } else { family.machine(answer) };
        Self { reasoning: answer.reasoning.as_ref().map(reasoning::Splitter::new), machine, out: Out::default() }
    }

    /// The events that `text` makes certain.
    pub fn push(&mut self, text: &str) -> Vec<Event> {
        for c in text.chars() {
            match &mut self.reasoning {
                Some(splitter) => splitter.step(c, &mut self.out, |c, out| self.machine.step(c, out)),
                None => self.machine.step(c, &mut self.out),
            }
        }
        self.out.take()
    }

    /// The events that were held back. Nothing may be pushed after it.
    pub fn finish(&mut self) -> Vec<Event> {
        if let Some(splitter) = &mut self.reasoning {
            splitter.end(&mut self.out, |c, out| self.machine.step(c, out));
        }
        self.machine.end(&mut self.out);
        self.out.take()
    }
}

/// An answer that is content as a whole or calls from its first marker on. A response format's strings may contain markers.
struct Either {
    marker: &'static str,
    held: String,
    /// What reads calls, while they are possible.
    calls: Option<Box<dyn Machine>>,
    decided: bool,
}

impl Either {
    /// `calls` itself, where content is free text.
    fn wrap(answer: &Answer, marker: &'static str, calls: Box<dyn Machine>) -> Box<dyn Machine> {
        if !answer.marked() {
            return calls;
        }
        Box::new(Self { marker, held: String::new(), calls: Some(calls), decided: false })
    }
}

impl Machine for Either {
    fn step(&mut self, c: char, out: &mut Out) {
        if self.decided {
            return match &mut self.calls {
                Some(calls) => calls.step(c, out),
                None => out.content(c.encode_utf8(&mut [0; 4])),
            };
        }
        self.held.push(c);
        let begun = self.held.trim_start();
        if begun != self.marker && self.marker.starts_with(begun) && self.held.len() - begun.len() < HELD_SPACE {
            return;
        }
        self.decided = true;
        if begun != self.marker {
            self.calls = None;
        }
        std::mem::take(&mut self.held).chars().for_each(|c| self.step(c, out));
    }

    fn end(&mut self, out: &mut Out) {
        out.content(&std::mem::take(&mut self.held));
        if let Some(calls) = &mut self.calls {
            calls.end(out);
        }
    }
}

/// An answer without calls.
struct Plain;

impl Machine for Plain {
    fn step(&mut self, c: char, out: &mut Out) {
        out.content(c.encode_utf8(&mut [0; 4]));
    }

    fn end(&mut self, _out: &mut Out) {}
}
