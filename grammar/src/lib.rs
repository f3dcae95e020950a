//! What an answer may look like: JSON Schema, regular expressions, grammars and tool calls, as sets of allowed next tokens, and the
//! parsers that take tool calls out of an answer's text.

pub mod tools;
