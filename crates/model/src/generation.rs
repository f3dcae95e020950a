//! `generation_config.json`: where an answer ends, and the sampling that the model's makers suggest.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::read_object;
use crate::error::ModelError;

const GENERATION_CONFIG_BYTES: u64 = 1 << 20;

/// Defaults for requests that do not say otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// All tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// From `generation_config.json`, with the end-of-sequence ids of `config.json` where that has none.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("generation_config.json");
        let json = if path.exists() { read_object(&path, GENERATION_CONFIG_BYTES)? } else { Map::new() };
        let config = read_object(&folder.join("config.json"), GENERATION_CONFIG_BYTES * 4)?;
        let mut eos_token_ids = ids(&json);
        if eos_token_ids.is_empty() {
            eos_token_ids = ids(&config);
        }
        let real = |key: &str| json.get(key).and_then(Value::as_f64).map(|real| real as f32);
        // Sampling values stand in the file even where `do_sample` turns them off.
        let greedy = json.get("do_sample").and_then(Value::as_bool) == Some(false);
        Ok(Self {
            eos_token_ids,
            temperature: if greedy { Some(0.0) } else { real("temperature") },
            top_p: real("top_p"),
            top_k: json.get("top_k").and_then(Value::as_u64).and_then(|k| u32::try_from(k).ok()),
            min_p: real("min_p"),
            repetition_penalty: real("repetition_penalty"),
        })
    }
}

fn ids(json: &Map<String, Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match json.get("eos_token_id") {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(single) => id(single).into_iter().collect(),
        None => Vec::new(),
    }
}
