//! What a request asks its answer to be, as it travels from the gateway to the engine.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::GrammarError;
use crate::limits::{CHOICES, GRAMMAR_TEXT_BYTES, REGEX_BYTES, SOURCE_BYTES, SOURCE_DEPTH};

/// A grammar before it is compiled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A document of this JSON Schema.
    JsonSchema {
        schema: Value,
        #[serde(default)]
        options: SchemaOptions,
    },
    /// A text that the whole regular expression matches.
    Regex(String),
    /// A grammar in the dialect of Lark that llguidance reads.
    Lark(String),
    /// A grammar in llama.cpp's form.
    Gbnf(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// How documents of a schema are written and read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SchemaOptions {
    pub whitespace: Whitespace,
    /// `format` says nothing about which documents are valid, as the standard has it; otherwise the formats of the standard that we
    /// know are enforced.
    pub annotate_formats: bool,
    /// Properties may come in any order, in objects of few; otherwise in the schema's.
    pub any_order: bool,
}

/// The blanks between the parts of a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whitespace {
    /// None.
    #[default]
    Compact,
    /// At most one, after each comma and colon.
    OneSpace,
}

impl Source {
    pub fn schema(schema: Value) -> Self {
        Self::JsonSchema { schema, options: SchemaOptions::default() }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema { .. } => "schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) | Self::Gbnf(_) => "grammar",
            Self::Choice(_) => "choice",
        }
    }

    /// Refuses what is too large to look at.
    pub(crate) fn check(&self) -> Result<(), GrammarError> {
        match self {
            Self::JsonSchema { schema, .. } => {
                within("the nesting of the schema", depth(schema), SOURCE_DEPTH)?;
                within("the schema's JSON, in bytes,", schema.to_string().len(), SOURCE_BYTES)
            }
            Self::Regex(text) => {
                within("the regular expression, in bytes,", text.len(), REGEX_BYTES)?;
                within("the nesting of the regular expression", brackets(text), SOURCE_DEPTH)
            }
            Self::Lark(text) | Self::Gbnf(text) => {
                within("the grammar, in bytes,", text.len(), GRAMMAR_TEXT_BYTES)?;
                within("the nesting of the grammar", brackets(text), SOURCE_DEPTH)
            }
            Self::Choice(texts) => {
                within("the number of choices", texts.len(), CHOICES)?;
                within("the choices, in bytes,", texts.iter().map(String::len).sum(), SOURCE_BYTES)
            }
        }
    }
}

fn within(what: &'static str, size: usize, limit: usize) -> Result<(), GrammarError> {
    if size > limit { Err(GrammarError::Limit { what, limit }) } else { Ok(()) }
}

/// The deepest nesting of a value.
fn depth(value: &Value) -> usize {
    let (mut deepest, mut open) = (0, vec![(value, 1)]);
    while let Some((value, level)) = open.pop() {
        deepest = deepest.max(level);
        if level > SOURCE_DEPTH {
            return level;
        }
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, level + 1))),
            Value::Object(members) => open.extend(members.values().map(|member| (member, level + 1))),
            _ => {}
        }
    }
    deepest
}

/// The deepest nesting of brackets, whatever they mean: what parsers by recursive descent would go down to.
fn brackets(text: &str) -> usize {
    let (mut deepest, mut level) = (0usize, 0usize);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => level += 1,
            b')' | b']' | b'}' => level = level.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(level);
    }
    deepest
}
