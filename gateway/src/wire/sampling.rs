//! The fields that both endpoints share: sampling, stops, limits, streaming.

use std::sync::Arc;

use model::{GenerationDefaults, Sampling};
use serde_json::Value;

use super::Fields;
use super::structure::{Structure, structure};
use crate::error::ApiError;

/// Most stop strings of a request, and the longest, in bytes.
const STOPS: usize = 16;
const STOP_BYTES: usize = 1024;
/// Most entries of `logit_bias` and `stop_token_ids`.
const BIASES: usize = 1024;
/// Longest tag, in bytes.
const TAG_BYTES: usize = 128;
/// Most choices of one request.
const CHOICES: i64 = 128;

/// How answers are drawn, where they end, and how they are sent.
#[derive(Debug, Clone)]
pub struct Common {
    pub sampling: Arc<Sampling>,
    pub seed: u64,
    pub choices: u32,
    /// Absent: as long as the context allows, or the endpoint's own default.
    pub max_tokens: Option<u32>,
    pub min_tokens: u32,
    pub stop: Vec<Vec<u8>>,
    pub stop_tokens: Vec<u32>,
    /// What the answer must be.
    pub structure: Option<Structure>,
    pub ignore_eos: bool,
    pub include_stop: bool,
    pub speculation: bool,
    pub stream: bool,
    pub include_usage: bool,
    /// `metadata.tag`: what the caller sorts its requests by.
    pub tag: Option<String>,
}

/// The name of the base or adapter, which must be known before the rest can be read.
pub fn model_name(fields: &Fields<'_>) -> Result<String, ApiError> {
    let name = fields
        .text("model")?
        .ok_or_else(|| ApiError::param("model", "model is missing: name a base model or an adapter"))?;
    Ok(name.to_owned())
}

impl Common {
    /// `fewest_tokens` is the smallest `max_tokens` that makes sense at this endpoint.
    pub fn parse(
        fields: &Fields<'_>,
        defaults: &GenerationDefaults,
        vocabulary: usize,
        fewest_tokens: i64,
    ) -> Result<Self, ApiError> {
        let max = |name| fields.integer(name, fewest_tokens..=i64::from(u32::MAX));
        let max_tokens = max("max_completion_tokens")?.or(max("max_tokens")?).map(|n| n as u32);
        let stream = fields.flag("stream")?;
        let options = fields.object("stream_options")?;
        if options.is_some() && !stream {
            return Err(ApiError::param("stream_options", "stream_options is only allowed with stream: true"));
        }
        let include_usage = match options {
            Some(options) => Fields::new(options).flag("include_usage")?,
            None => false,
        };
        Ok(Self {
            sampling: Arc::new(sampling(fields, defaults, vocabulary)?),
            seed: match fields.integer("seed", i64::MIN..=i64::MAX)? {
                Some(seed) => seed as u64,
                None => random_seed(),
            },
            choices: fields.integer("n", 1..=CHOICES)?.unwrap_or(1) as u32,
            max_tokens,
            min_tokens: fields.integer("min_tokens", 0..=i64::from(u32::MAX))?.unwrap_or(0) as u32,
            stop: stops(fields)?,
            stop_tokens: stop_tokens(fields, vocabulary)?,
            structure: structure(fields)?,
            ignore_eos: fields.flag("ignore_eos")?,
            include_stop: fields.flag("include_stop_str_in_output")?,
            speculation: fields.truth("speculation")?.unwrap_or(true),
            stream,
            include_usage,
            tag: tag(fields)?,
        })
    }
}

fn tag(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let Some(metadata) = fields.object("metadata")? else { return Ok(None) };
    match Fields::new(metadata).text("tag").map_err(|_| ApiError::param("metadata", "metadata.tag must be a string"))? {
        Some(tag) if tag.is_empty() || tag.len() > TAG_BYTES || tag.chars().any(char::is_control) => {
            Err(ApiError::param("metadata", format!("metadata.tag must have 1 to {TAG_BYTES} bytes, all printable")))
        }
        tag => Ok(tag.map(str::to_owned)),
    }
}

fn sampling(fields: &Fields<'_>, defaults: &GenerationDefaults, vocabulary: usize) -> Result<Sampling, ApiError> {
    let plain = Sampling::default();
    let top_k = match fields.integer("top_k", -1..=i64::from(u32::MAX))? {
        Some(-1) => Some(0),
        given => given.map(|k| k as u32),
    };
    Ok(Sampling {
        temperature: fields.real("temperature", 0.0..=2.0)?.or(defaults.temperature).unwrap_or(plain.temperature),
        top_p: fields.real("top_p", 0.0..=1.0)?.or(defaults.top_p).unwrap_or(plain.top_p),
        top_k: top_k.or(defaults.top_k).unwrap_or(plain.top_k),
        min_p: fields.real("min_p", 0.0..=1.0)?.or(defaults.min_p).unwrap_or(plain.min_p),
        repetition_penalty: fields
            .real("repetition_penalty", 0.01..=10.0)?
            .or(defaults.repetition_penalty)
            .unwrap_or(plain.repetition_penalty),
        presence_penalty: fields.real("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.real("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(fields, vocabulary)?,
    })
}

fn logit_bias(fields: &Fields<'_>, vocabulary: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let wrong = |reason: String| ApiError::param("logit_bias", reason);
    if map.len() > BIASES {
        return Err(wrong(format!("logit_bias may have at most {BIASES} entries")));
    }
    let one = |(token, bias): (&String, &Value)| {
        let id = token.parse::<u32>().ok().filter(|&id| (id as usize) < vocabulary);
        let id =
            id.ok_or_else(|| wrong(format!("logit_bias: {:?} is not a token id of this model", shortened(token))))?;
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let bias = bias.ok_or_else(|| wrong(format!("logit_bias of {id} must be a number from -100 to 100")))?;
        Ok((id, bias as f32))
    };
    map.iter().map(one).collect()
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

fn stops(fields: &Fields<'_>) -> Result<Vec<Vec<u8>>, ApiError> {
    let wrong = || {
        ApiError::param(
            "stop",
            format!("stop must be a string, or at most {STOPS} strings of at most {STOP_BYTES} bytes"),
        )
    };
    let list = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(Value::as_str).collect::<Option<Vec<_>>>().ok_or_else(wrong)?,
        Some(single) => vec![single.as_str().ok_or_else(wrong)?],
    };
    if list.len() > STOPS || list.iter().any(|stop| stop.len() > STOP_BYTES) {
        return Err(wrong());
    }
    Ok(list.into_iter().filter(|stop| !stop.is_empty()).map(|stop| stop.as_bytes().to_vec()).collect())
}

fn stop_tokens(fields: &Fields<'_>, vocabulary: usize) -> Result<Vec<u32>, ApiError> {
    let Some(list) = fields.array("stop_token_ids")? else { return Ok(Vec::new()) };
    let wrong = || {
        ApiError::param("stop_token_ids", format!("stop_token_ids must be at most {BIASES} token ids of this model"))
    };
    if list.len() > BIASES {
        return Err(wrong());
    }
    let id = |value: &Value| value.as_u64().filter(|&id| id < vocabulary as u64).map(|id| id as u32).ok_or_else(wrong);
    list.iter().map(id).collect()
}

fn random_seed() -> u64 {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).expect("the operating system has no randomness to give");
    u64::from_le_bytes(bytes)
}
