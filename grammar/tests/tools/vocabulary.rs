//! A small vocabulary and llguidance over it.

use std::sync::Arc;

use grammar::tools::{Answer, Context, Error, Family, grammar, plain_json};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId};
use llguidance::{Matcher, ParserFactory};

/// Markers that are special tokens in the vocabularies of some families.
pub const MARKERS: [&str; 10] = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "<|python_start|>",
    "<|python_end|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<think>",
    "</think>",
];

/// Tokens of more than one byte, so that a random model stumbles over markers and tokens straddle what the grammar knows.
const WORDS: [&str; 46] = [
    "<tool_call",
    "<tool_call>",
    "</tool_call>",
    "tool_calls>[",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<think>",
    "</think>",
    "</",
    "<function=",
    "</function>",
    "<parameter=",
    "</parameter>",
    "\n</parameter>\n",
    ">\n",
    "{\"",
    "\": ",
    "\": \"",
    "\", \"",
    "\"}",
    "{}",
    "}}",
    "\"}}",
    "[]",
    "[{\"name\": \"",
    "{\"name\": \"",
    "name",
    "arguments",
    "parameters",
    "\\u",
    "\\\"",
    "\\n",
    "\\ud83d",
    "\\ude42",
    "true",
    "null",
    "True",
    "None",
    "12",
    "0.5",
    ", ",
    "=\"",
    "\")",
    ")]",
    "é🙂",
];

pub struct Vocabulary {
    env: TokEnv,
    factory: ParserFactory,
    tokens: Vec<Vec<u8>>,
    pub end: TokenId,
}

impl Vocabulary {
    /// With or without the markers as special tokens.
    pub fn new(markers: bool) -> Self {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
        tokens.extend(WORDS.iter().map(|word| word.as_bytes().to_vec()));
        let special = |text: &str| [b"\xff", text.as_bytes()].concat();
        if markers {
            tokens.extend(MARKERS.iter().map(|marker| special(marker)));
        }
        tokens.push(special("<|end|>"));
        let end = tokens.len() as u32 - 1;
        let info = TokRxInfo::new(tokens.len() as u32, end);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &tokens)));
        let mut factory = ParserFactory::new_simple(&env).unwrap();
        factory.quiet();
        Self { env, factory, tokens, end }
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn special(&self, text: &str) -> Option<TokenId> {
        self.env.tok_trie().get_special_token(text)
    }

    /// A token's text as a parser gets it: special tokens are shown.
    pub fn text(&self, token: TokenId) -> &[u8] {
        let bytes = &self.tokens[token as usize];
        if bytes.len() > 1 && bytes[0] == 0xff { &bytes[1..] } else { bytes }
    }

    pub fn lark(&self, family: &dyn Family, answer: &Answer) -> Result<String, Error> {
        let special = |text: &str| self.special(text);
        grammar(family, answer, &Context { special: &special, schema: &plain_json })
    }

    pub fn matcher(&self, family: &dyn Family, answer: &Answer) -> Matcher {
        let lark = self.lark(family, answer).unwrap();
        let mut matcher = Matcher::new(self.factory.create_parser(TopLevelGrammar::from_lark(lark.clone())));
        assert!(!matcher.is_error(), "{}: {:?}\n{lark}", family.name(), matcher.get_error());
        matcher.compute_mask().unwrap_or_else(|e| panic!("{}: {e}\n{lark}", family.name()));
        matcher
    }

    /// The tokens of a text, markers as their tokens, everything else byte by byte or by the longest word.
    pub fn tokens(&self, text: &str, words: bool) -> Vec<TokenId> {
        let (mut tokens, mut at) = (Vec::new(), 0);
        let bytes = text.as_bytes();
        while at < bytes.len() {
            let marker = MARKERS.iter().find(|m| text.is_char_boundary(at) && text[at..].starts_with(**m));
            if let Some((marker, token)) = marker.and_then(|m| Some((m, self.special(m)?))) {
                tokens.push(token);
                at += marker.len();
                continue;
            }
            let longest = WORDS.iter().enumerate().filter(|(_, w)| words && bytes[at..].starts_with(w.as_bytes()));
            let longest = longest.max_by_key(|(_, w)| w.len());
            tokens.push(longest.map_or(bytes[at] as u32, |(index, _)| 256 + index as u32));
            at += longest.map_or(1, |(_, w)| w.len());
        }
        tokens
    }

    /// How far `text` is allowed, in bytes, and whether the answer may end there.
    pub fn follow(&self, matcher: &Matcher, text: &str, words: bool) -> (usize, bool) {
        let (mut matcher, mut bytes) = (matcher.deep_clone(), 0);
        for token in self.tokens(text, words) {
            let allowed = matcher.compute_mask_or_eos().unwrap_or_else(|e| panic!("{e} after {:?}", &text[..bytes]));
            if !allowed.is_allowed(token) {
                return (bytes, false);
            }
            matcher.consume_token(token).unwrap();
            bytes += self.text(token).len();
        }
        (bytes, matcher.is_accepting().unwrap())
    }

    pub fn accepts(&self, matcher: &Matcher, text: &str) -> bool {
        let by_bytes = self.follow(matcher, text, false);
        let by_words = self.follow(matcher, text, true);
        assert_eq!(by_bytes.1, by_words.1, "a text is allowed however it is tokenized: {text:?}");
        by_bytes.1
    }
}

pub fn allowed(mask: &SimpleVob, tokens: usize) -> impl Iterator<Item = TokenId> {
    (0..tokens as u32).filter(|token| mask.is_allowed(*token))
}
