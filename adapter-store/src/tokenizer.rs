//! What an adapter brings beside its weights: its own chat template, and a tokenizer that must be the base's.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::StoreError;
use crate::error::refused;
use crate::store::Base;
use crate::upload::UploadFile;

/// Largest chat template of an adapter, in bytes.
const TEMPLATE_BYTES: usize = 256 << 10;
/// Largest `tokenizer.json` (the biggest vocabularies take 35 MB) and largest `tokenizer_config.json`.
const TOKENIZER_BYTES: usize = 64 << 20;
const TOKENIZER_CONFIG_BYTES: usize = 8 << 20;

/// The adapter's own template: `chat_template.jinja`, else the one in `tokenizer_config.json`.
pub fn chat_template(files: &[UploadFile]) -> Result<Option<String>, StoreError> {
    let template = match find(files, "chat_template.jinja") {
        Some(file) => {
            let text = std::str::from_utf8(&file.bytes).map_err(|_| refused("chat_template.jinja is not text."))?;
            Some(text.to_owned())
        }
        None => tokenizer_config(files)?.and_then(|config| template_in(&config)),
    };
    match template {
        Some(template) if template.len() > TEMPLATE_BYTES => {
            Err(StoreError::TooLarge(format!("the chat template is over {TEMPLATE_BYTES} bytes.")))
        }
        template => Ok(template),
    }
}

/// One template, or several by name, of which `default` is the one for conversations.
fn template_in(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|template| template["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// Tokens beyond the base's would need rows of the embedding that are not there. Prompts are tokenised by the base's own
/// tokenizer; the adapter's is only looked at for this.
pub fn refuse_other_vocabulary(files: &[UploadFile], base: &Base) -> Result<(), StoreError> {
    let largest = [added_tokens(files)?, in_tokenizer(files)?, in_tokenizer_config(files)?];
    let beyond = largest.into_iter().flatten().find(|largest| largest.id >= base.shape.vocabulary as u64);
    match beyond {
        Some(Largest { file, id }) => Err(refused(format!(
            "{file} has a token with id {id}; {}'s vocabulary has {}. Added tokens are not served yet; train without them.",
            base.id, base.shape.vocabulary
        ))),
        None => Ok(()),
    }
}

/// The largest token id of a file.
struct Largest {
    file: &'static str,
    id: u64,
}

fn find<'a>(files: &'a [UploadFile], name: &str) -> Option<&'a UploadFile> {
    files.iter().find(|file| file.name == name)
}

fn parse<'a, T: Deserialize<'a>>(
    files: &'a [UploadFile],
    name: &str,
    largest_bytes: usize,
) -> Result<Option<T>, StoreError> {
    let Some(file) = find(files, name) else { return Ok(None) };
    if file.bytes.len() > largest_bytes {
        return Err(StoreError::TooLarge(format!("{name} is over {largest_bytes} bytes.")));
    }
    serde_json::from_slice(&file.bytes).map(Some).map_err(|e| refused(format!("{name}: {e}.")))
}

fn tokenizer_config(files: &[UploadFile]) -> Result<Option<Value>, StoreError> {
    parse(files, "tokenizer_config.json", TOKENIZER_CONFIG_BYTES)
}

fn added_tokens(files: &[UploadFile]) -> Result<Option<Largest>, StoreError> {
    const FILE: &str = "added_tokens.json";
    let ids = parse::<LargestId>(files, FILE, TOKENIZER_CONFIG_BYTES)?;
    Ok(ids.and_then(|ids| ids.0).map(|id| Largest { file: FILE, id }))
}

fn in_tokenizer_config(files: &[UploadFile]) -> Result<Option<Largest>, StoreError> {
    let config = tokenizer_config(files)?;
    let tokens = config.as_ref().and_then(|config| config.get("added_tokens_decoder")?.as_object());
    let id = tokens.and_then(|tokens| tokens.keys().filter_map(|id| id.parse().ok()).max());
    Ok(id.map(|id| Largest { file: "tokenizer_config.json", id }))
}

fn in_tokenizer(files: &[UploadFile]) -> Result<Option<Largest>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Tokenizer {
        #[serde(default)]
        added_tokens: Vec<Added>,
        model: Option<TokenizerModel>,
    }
    #[derive(serde::Deserialize)]
    struct Added {
        id: u64,
    }
    #[derive(serde::Deserialize)]
    struct TokenizerModel {
        vocab: Option<LargestId>,
    }
    const FILE: &str = "tokenizer.json";
    let Some(tokenizer) = parse::<Tokenizer>(files, FILE, TOKENIZER_BYTES)? else { return Ok(None) };
    let vocabulary = tokenizer.model.and_then(|model| model.vocab?.0);
    let id = tokenizer.added_tokens.into_iter().map(|added| added.id).chain(vocabulary).max();
    Ok(id.map(|id| Largest { file: FILE, id }))
}

/// The largest id of a vocabulary, read without keeping it: a table of ids by token, or a list whose places are the ids.
struct LargestId(Option<u64>);

impl<'de> Deserialize<'de> for LargestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Ids)
    }
}

struct Ids;

impl<'de> Visitor<'de> for Ids {
    type Value = LargestId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut tokens: M) -> Result<LargestId, M::Error> {
        let mut largest = None;
        while let Some((_, id)) = tokens.next_entry::<IgnoredAny, u64>()? {
            largest = largest.max(Some(id));
        }
        Ok(LargestId(largest))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut tokens: S) -> Result<LargestId, S::Error> {
        let mut count = 0u64;
        while tokens.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(LargestId(count.checked_sub(1)))
    }
}
