//! `POST /v1/completions`.

use model::GenerationDefaults;
use serde_json::{Map, Value};

use super::{Common, Fields};
use crate::error::ApiError;

/// Most prompts of one request.
const PROMPTS: usize = 128;
/// OpenAI's default at this endpoint.
const MAX_TOKENS: u32 = 16;

#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Debug, Clone)]
pub struct CompletionRequest {
    pub common: Common,
    pub prompts: Vec<Prompt>,
    pub max_tokens: u32,
    pub echo: bool,
    pub logprobs: Option<u16>,
}

impl CompletionRequest {
    pub fn parse(
        json: &Map<String, Value>,
        defaults: &GenerationDefaults,
        vocabulary: usize,
    ) -> Result<Self, ApiError> {
        let fields = Fields::new(json);
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::param("suffix", "suffix is not supported: the models here only continue text"));
        }
        let common = Common::parse(&fields, defaults, vocabulary, 0)?;
        let best_of = fields.integer("best_of", 1..=128)?;
        if best_of.is_some_and(|best_of| best_of != i64::from(common.choices)) {
            return Err(ApiError::param("best_of", "best_of is not supported unless it equals n"));
        }
        let echo = fields.flag("echo")?;
        let max_tokens = common.max_tokens.unwrap_or(MAX_TOKENS);
        if max_tokens == 0 && !echo {
            return Err(ApiError::param("max_tokens", "max_tokens: 0 asks for nothing unless echo is set"));
        }
        Ok(Self {
            prompts: prompts(&fields, vocabulary)?,
            max_tokens,
            echo,
            logprobs: fields.integer("logprobs", 0..=20)?.map(|count| count as u16),
            common,
        })
    }
}

fn prompts(fields: &Fields<'_>, vocabulary: usize) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || {
        ApiError::param(
            "prompt",
            format!("prompt must be a string, an array of token ids, or at most {PROMPTS} of either"),
        )
    };
    let value = fields.get("prompt").ok_or_else(|| ApiError::param("prompt", "prompt is missing"))?;
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text.clone())]),
        Value::Array(list) if !list.is_empty() => list,
        _ => return Err(wrong()),
    };
    if list[0].is_number() {
        return Ok(vec![Prompt::Tokens(tokens(list, vocabulary)?)]);
    }
    if list.len() > PROMPTS {
        return Err(wrong());
    }
    let one = |value: &Value| match value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(list) if !list.is_empty() => Ok(Prompt::Tokens(tokens(list, vocabulary)?)),
        _ => Err(wrong()),
    };
    list.iter().map(one).collect()
}

fn tokens(list: &[Value], vocabulary: usize) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| {
        value.as_u64().filter(|&id| id < vocabulary as u64).map(|id| id as u32).ok_or_else(|| {
            ApiError::param(
                "prompt",
                format!("prompt: {value} is not a token id of this model, which has {vocabulary}"),
            )
        })
    };
    list.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn table_of_prompts() {
        let parsed = |prompt: Value| {
            let body = json!({ "model": "m", "prompt": prompt });
            let parsed = CompletionRequest::parse(body.as_object().unwrap(), &GenerationDefaults::default(), 10);
            parsed.map_or_else(|error| error.param.unwrap_or_default(), |request| format!("{:?}", request.prompts))
        };
        assert_eq!(parsed(json!("a")), r#"[Text("a")]"#);
        assert_eq!(parsed(json!(["a", "b"])), r#"[Text("a"), Text("b")]"#);
        assert_eq!(parsed(json!([1, 2])), "[Tokens([1, 2])]");
        assert_eq!(parsed(json!([[1], [2]])), "[Tokens([1]), Tokens([2])]");
        for wrong in [json!([]), json!([[]]), json!([10]), json!(7), json!([{}])] {
            assert_eq!(parsed(wrong.clone()), "prompt", "{wrong}");
        }
    }
}
