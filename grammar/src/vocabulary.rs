//! The vocabulary of a model as grammars see it: the bytes of each token, which tokens are special, which ones end an answer.
//!
//! A token whose bytes no grammar can use (none, or too many for the trie) exists and is never allowed.

use std::collections::HashMap;
use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::GrammarError;
use crate::limits::{TOKEN_BYTES, VOCABULARY_TOKENS};

/// Tokens of a text as the model's tokenizer writes it, special tokens not recognised.
pub type Encode = Arc<dyn Fn(&str) -> Vec<u32> + Send + Sync>;

/// What a vocabulary is made of.
pub struct VocabularyParts<'a> {
    /// The bytes of each token by its id; special tokens may be empty.
    pub tokens: Vec<&'a [u8]>,
    /// Special tokens and their names.
    pub special: Vec<(u32, String)>,
    /// All tokens that end an answer (`generation_config`), at least one.
    pub ends: Vec<u32>,
    /// Rows of the model's output, at least as many as tokens.
    pub rows: usize,
    /// How the tokenizer writes forced text; without it nothing is forced.
    pub encode: Option<Encode>,
    /// Who has the same digest has the same tokens.
    pub digest: [u8; 32],
}

/// A vocabulary, made once per model and shared.
#[derive(Clone)]
pub struct Vocabulary {
    environment: TokEnv,
    special: Arc<HashMap<String, u32>>,
    rows: usize,
    digest: [u8; 32],
}

impl Vocabulary {
    pub fn new(parts: VocabularyParts<'_>) -> Result<Self, GrammarError> {
        let wrong = |reason: String| Err(GrammarError::Vocabulary(reason));
        if parts.rows > VOCABULARY_TOKENS || parts.tokens.len() > parts.rows {
            return wrong(format!(
                "{} tokens for {} rows of output (at most {VOCABULARY_TOKENS})",
                parts.tokens.len(),
                parts.rows
            ));
        }
        if parts.ends.is_empty() {
            return wrong("no token ends an answer".into());
        }
        let known = |&id: &u32| (id as usize) < parts.rows;
        if let Some(id) = parts.ends.iter().chain(parts.special.iter().map(|(id, _)| id)).find(|id| !known(id)) {
            return wrong(format!("special token {id} is outside its {} rows", parts.rows));
        }
        let words = words(&parts);
        let rows = u32::try_from(parts.rows).expect("bounded above");
        let trie = TokTrie::from(&TokRxInfo::new(rows, parts.ends[0]), &words).with_eos_tokens(&parts.ends);
        let environment = Environment { trie, encode: parts.encode };
        Ok(Self {
            environment: Arc::new(environment),
            special: Arc::new(parts.special.into_iter().map(|(id, name)| (name, id)).collect()),
            rows: parts.rows,
            digest: parts.digest,
        })
    }

    /// Rows of the model's output: the number of bits of a mask.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Words of a mask's row.
    pub fn mask_words(&self) -> usize {
        self.rows.div_ceil(32)
    }

    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The special token of this name.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.special.get(name).copied()
    }

    /// All tokens that end an answer.
    pub fn ends(&self) -> &[u32] {
        self.environment.tok_trie().eos_tokens()
    }

    /// Bytes of a token as the trie holds them; a special token begins with 0xff.
    pub fn token(&self, token: u32) -> &[u8] {
        self.environment.tok_trie().token(token)
    }

    /// The longest tokens that spell a text; not what a tokenizer would write.
    pub fn greedy(&self, text: &[u8]) -> Vec<u32> {
        self.environment.tok_trie().greedy_tokenize(text)
    }

    /// The view that llguidance takes.
    pub fn environment(&self) -> &TokEnv {
        &self.environment
    }
}

/// The bytes of each row as the trie wants them: special tokens marked, unusable ones empty.
fn words(parts: &VocabularyParts<'_>) -> Vec<Vec<u8>> {
    const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    let mut words: Vec<Vec<u8>> = parts.tokens.iter().map(|bytes| bytes.to_vec()).collect();
    words.resize(parts.rows, Vec::new());
    for word in &mut words {
        // No text has the byte 0xff, and the trie would take what follows for a special token.
        if word.len() > TOKEN_BYTES || word.first() == Some(&MARKER) {
            word.clear();
        }
    }
    let mut mark = |id: u32, name: &str| {
        let named = name.len() < TOKEN_BYTES && !name.is_empty();
        let name = if named { name.to_owned() } else { format!("<special {id}>") };
        words[id as usize] = [&[MARKER], name.as_bytes()].concat();
    };
    for (id, name) in &parts.special {
        mark(*id, name);
    }
    let unnamed = parts.ends.iter().filter(|end| !parts.special.iter().any(|(id, _)| id == *end));
    unnamed.for_each(|&id| mark(id, &format!("<end {id}>")));
    words
}

struct Environment {
    trie: TokTrie,
    encode: Option<Encode>,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// The tokenizer's own tokens where they spell the text exactly (a tokenizer may normalise or add a blank), else the longest
    /// ones. Forced bytes may end inside a character: only its whole characters are the tokenizer's.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let whole = match std::str::from_utf8(bytes) {
            Ok(_) => bytes.len(),
            Err(e) => e.valid_up_to(),
        };
        let text = std::str::from_utf8(&bytes[..whole]).unwrap_or_default();
        let mut tokens = self.encode.as_ref().map(|encode| encode(text)).unwrap_or_default();
        if !self.spells(&tokens, text.as_bytes()) {
            tokens = self.trie.greedy_tokenize(text.as_bytes());
        }
        tokens.extend(self.trie.greedy_tokenize(&bytes[whole..]));
        tokens
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.encode.is_some()
    }
}

impl Environment {
    fn spells(&self, tokens: &[TokenId], text: &[u8]) -> bool {
        let mut rest = text;
        for &token in tokens {
            if token as usize >= self.trie.vocab_size() {
                return false;
            }
            match rest.strip_prefix(self.trie.token(token)) {
                Some(after) if after.len() < rest.len() => rest = after,
                _ => return false,
            }
        }
        rest.is_empty()
    }
}
