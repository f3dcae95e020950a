//! A model folder's tokenizer and chat template.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::template::{self, ChatInput};
use crate::vocabulary::TokenBytes;
use crate::{StreamDecoder, TextError};

/// Largest tokenizer.json, in bytes.
const TOKENIZER_BYTES: u64 = 256 << 20;
/// Largest of the small files beside it, in bytes.
const CONFIG_BYTES: u64 = 16 << 20;

/// Everything that turns text into tokens and back, for one base model.
pub struct Text {
    tokenizer: Arc<Tokenizer>,
    bytes: Arc<TokenBytes>,
    /// Special tokens by the names that templates use.
    special: Map<String, Value>,
    template: Option<String>,
    strip_space: bool,
    digest: [u8; 32],
}

impl Text {
    pub fn load(folder: &Path) -> Result<Self, TextError> {
        let path = folder.join("tokenizer.json");
        let source = read(&path, TOKENIZER_BYTES)?.ok_or_else(|| TextError::File {
            path: path.clone(),
            reason: "is missing; a tokenizer in another form is converted with AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)".into(),
        })?;
        let wrong = |reason: String| TextError::File { path: path.clone(), reason };
        let tokenizer = Tokenizer::from_bytes(source.as_bytes()).map_err(|e| wrong(e.to_string()))?;
        let json: Value = serde_json::from_str(&source).map_err(|e| wrong(e.to_string()))?;
        let config = object(&folder.join("tokenizer_config.json"))?;
        let kind = Kind::of(&json["decoder"]);
        Ok(Self {
            bytes: Arc::new(kind.table(&tokenizer)),
            strip_space: kind == Kind::SentencePiece { strip_space: true },
            special: special_tokens(&config),
            template: find_template(folder, &config)?,
            digest: Sha256::digest(source.as_bytes()).into(),
            tokenizer: Arc::new(tokenizer),
        })
    }

    /// Tokens of plain text, with the marker that the tokenizer puts before it, if it does.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_with(text, true)
    }

    /// Tokens of a rendered chat template, which has written its markers itself.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding =
            self.tokenizer.encode_fast(text, add_special_tokens).map_err(|e| TextError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Special tokens and their names.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        let added = self.tokenizer.get_added_tokens_decoder();
        let mut special: Vec<_> =
            added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect();
        special.sort_unstable();
        special
    }

    /// Tokens of a text in the middle of another; none where it cannot be encoded.
    pub fn encoder(&self) -> impl Fn(&str) -> Vec<u32> + Send + Sync + use<> {
        let tokenizer = self.tokenizer.clone();
        move |text| tokenizer.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    }

    pub fn token_bytes(&self) -> Arc<TokenBytes> {
        self.bytes.clone()
    }

    /// One token as people read it: its text, or the name of a special token. A piece of a character is written as OpenAI
    /// writes it, `bytes:\xf0\x9f`, so that no two tokens look the same.
    pub fn token_text(&self, token: u32) -> String {
        let bytes = self.bytes.get(token);
        match std::str::from_utf8(bytes) {
            Ok("") => self.tokenizer.id_to_token(token).unwrap_or_default(),
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold("bytes:".into(), |text, byte| format!("{text}\\x{byte:02x}")),
        }
    }

    /// Where each of a prompt's tokens begins in the text that shows the prompt, in characters. A special token has a place
    /// where the text names it; one that the tokenizer has added takes none.
    pub fn offsets(&self, tokens: &[u32], text: &str) -> Vec<usize> {
        let (mut rest, mut passed) = (text, 0);
        let offset = |&token: &u32| {
            let shown = self.token_text(token);
            let (skipped, characters) = match self.bytes.get(token) {
                [] => found(rest, &shown).unwrap_or((0, 0)),
                _ => found(rest, &shown).unwrap_or((0, self.token_characters(token))),
            };
            let begin = passed + skipped;
            passed = begin + characters;
            rest = after(rest, skipped + characters);
            begin
        };
        tokens.iter().map(offset).collect()
    }

    /// How many characters of the answer begin in this token.
    pub fn token_characters(&self, token: u32) -> usize {
        self.bytes.get(token).iter().filter(|&byte| byte & 0xc0 != 0x80).count()
    }

    /// Decoder of an answer that begins a text of its own.
    pub fn decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.bytes.clone(), self.strip_space)
    }

    /// Decoder of an answer that goes on in the middle of a text.
    pub fn continuing_decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.bytes.clone(), false)
    }

    /// Tokens as text, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut decoder = self.decoder();
        let shown: String = tokens.iter().map(|&token| decoder.push(token, 0)).collect();
        shown + &decoder.finish(u64::MAX)
    }

    /// SHA-256 of tokenizer.json: who has the same can share what depends on it.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Id of a token that ends an answer, as the tokenizer's configuration names it.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.tokenizer.token_to_id(self.special.get("eos_token")?.as_str()?)
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The prompt of a conversation, as text.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TextError> {
        let source = input.template.or(self.template.as_deref()).ok_or(TextError::NoTemplate)?;
        template::render(source, input, &self.special, now)
    }
}

/// How many blanks stand before `shown` at the beginning of `rest`, and how many characters of `rest` it is: some special tokens
/// swallow the blanks around them, and some tokenizers put a blank before the first word that the text does not have.
fn found(rest: &str, shown: &str) -> Option<(usize, usize)> {
    let bare = shown.trim_start();
    if bare.is_empty() || rest.starts_with(shown) {
        return rest.starts_with(shown).then(|| (0, shown.chars().count()));
    }
    let word = rest.trim_start();
    let blanks = rest[..rest.len() - word.len()].chars().count();
    word.starts_with(bare).then(|| (blanks, bare.chars().count()))
}

/// The text behind its first `count` characters.
fn after(text: &str, count: usize) -> &str {
    text.char_indices().nth(count).map_or("", |(at, _)| &text[at..])
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn read(path: &Path, limit: u64) -> Result<Option<String>, TextError> {
    let failed = |reason: String| TextError::File { path: path.to_owned(), reason };
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e.to_string())),
        Ok(meta) if meta.len() > limit => return Err(failed(format!("is over {limit} bytes"))),
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(|e| failed(e.to_string()))
}

fn object(path: &Path) -> Result<Map<String, Value>, TextError> {
    let Some(text) = read(path, CONFIG_BYTES)? else { return Ok(Map::new()) };
    serde_json::from_str(&text).map_err(|e| TextError::File { path: path.to_owned(), reason: e.to_string() })
}

/// `bos_token` and its like: strings, or objects with the string as `content`.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(Value::from);
    let named = config.iter().filter(|(name, _)| name.ends_with("_token"));
    named.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}

/// The template in `chat_template.jinja`, else the configuration's `chat_template`: a string, or a list of named ones.
fn find_template(folder: &Path, config: &Map<String, Value>) -> Result<Option<String>, TextError> {
    let path = folder.join("chat_template.jinja");
    if let Some(template) = read(&path, CONFIG_BYTES)? {
        return sound(path, template).map(Some);
    }
    let path = folder.join("chat_template.json");
    let (path, found) = match object(&path)?.remove("chat_template") {
        Some(found) => (path, Some(found)),
        None => (folder.join("tokenizer_config.json"), config.get("chat_template").cloned()),
    };
    let template = match found {
        Some(Value::String(template)) => Some(template),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"] == "default").or(named.first());
            default.and_then(|entry| entry["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    };
    template.map(|template| sound(path, template)).transpose()
}

/// A template that can be read; what it does with a conversation shows when there is one.
fn sound(path: PathBuf, template: String) -> Result<String, TextError> {
    match template::fault(&template) {
        None => Ok(template),
        Some((line, reason)) => {
            let reason = format!("line {line} of the chat template: {reason}; put it right, or remove the template");
            Err(TextError::File { path, reason })
        }
    }
}

/// How a tokenizer writes bytes in its vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Each byte is one of 256 printable characters (GPT-2's table).
    ByteLevel,
    /// `▁` is a space, `<0x0A>` a byte.
    SentencePiece {
        strip_space: bool,
    },
    Plain,
}

impl Kind {
    fn of(decoder: &Value) -> Self {
        let mut parts = vec![decoder];
        parts.extend(decoder["decoders"].as_array().into_iter().flatten());
        let has = |kind: &str| parts.iter().any(|part| part["type"] == kind);
        if has("ByteLevel") {
            return Self::ByteLevel;
        }
        if has("ByteFallback") || has("Metaspace") {
            let prepends = |part: &&&Value| {
                let strips = part["type"] == "Strip" && part["start"].as_u64().unwrap_or(0) > 0;
                let metaspace = part["type"] == "Metaspace" && part["prepend_scheme"] != "never";
                strips || metaspace
            };
            return Self::SentencePiece { strip_space: parts.iter().any(|part| prepends(&part)) };
        }
        Self::Plain
    }

    fn table(self, tokenizer: &Tokenizer) -> TokenBytes {
        let added = tokenizer.get_added_tokens_decoder();
        let size = tokenizer.get_vocab(true).into_values().max().map_or(0, |largest| largest + 1);
        let tokens: Vec<Vec<u8>> = (0..size)
            .map(|id| match (added.get(&id), tokenizer.id_to_token(id)) {
                (Some(token), _) if token.special => Vec::new(),
                (Some(token), _) => token.content.clone().into_bytes(),
                (None, Some(token)) => self.bytes(&token),
                (None, None) => Vec::new(),
            })
            .collect();
        TokenBytes::new(tokens.iter().map(Vec::as_slice))
    }

    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => token.chars().flat_map(byte_of).collect(),
            Self::SentencePiece { .. } => match byte_fallback(token) {
                Some(byte) => vec![byte],
                None => token.replace('\u{2581}', " ").into_bytes(),
            },
            Self::Plain => token.as_bytes().to_vec(),
        }
    }
}

fn byte_fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// GPT-2's table backwards: printable Latin-1 characters are their own byte, the other bytes are numbered from U+0100 on.
fn byte_of(character: char) -> Vec<u8> {
    let own = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = character as u32;
    if let Some(byte) = u8::try_from(code).ok().filter(|&byte| own(byte)) {
        return vec![byte];
    }
    let number = code.wrapping_sub(0x100) as usize;
    match (0..=u8::MAX).filter(|&byte| !own(byte)).nth(number) {
        Some(byte) if code >= 0x100 => vec![byte],
        _ => character.to_string().into_bytes(),
    }
}
