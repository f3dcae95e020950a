//! `POST /v1/chat/completions`.

use model::GenerationDefaults;
use serde_json::{Map, Value};

use super::{Common, Fields};
use crate::error::ApiError;

/// Most messages and tools of one request.
const MESSAGES: usize = 4096;
const TOOLS: usize = 512;
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

#[derive(Debug, Clone)]
pub struct ChatRequest {
    pub common: Common,
    /// As the template reads them.
    pub messages: Value,
    pub tools: Option<Value>,
    pub template_values: Map<String, Value>,
    pub add_generation_prompt: bool,
    /// Alternatives per token; absent: no log-probabilities.
    pub top_logprobs: Option<u16>,
}

impl ChatRequest {
    pub fn parse(
        json: &Map<String, Value>,
        defaults: &GenerationDefaults,
        vocabulary: usize,
    ) -> Result<Self, ApiError> {
        let fields = Fields::new(json);
        refuse_what_is_not_there_yet(&fields)?;
        Ok(Self {
            common: Common::parse(&fields, defaults, vocabulary, 1)?,
            messages: messages(&fields)?,
            tools: tools(&fields)?,
            template_values: fields.object("chat_template_kwargs")?.cloned().unwrap_or_default(),
            add_generation_prompt: fields.get("add_generation_prompt").and_then(Value::as_bool).unwrap_or(true),
            top_logprobs: logprobs(&fields)?,
        })
    }
}

fn refuse_what_is_not_there_yet(fields: &Fields<'_>) -> Result<(), ApiError> {
    let not_yet = |name: &str, what: &str| Err(ApiError::param(name, format!("{name}: {what} is not supported yet")));
    match fields.get("tool_choice") {
        None => {}
        Some(Value::String(choice)) if choice == "auto" || choice == "none" => {}
        Some(_) => return not_yet("tool_choice", "forcing a tool"),
    }
    for name in ["functions", "function_call"] {
        if fields.get(name).is_some() {
            return Err(ApiError::param(name, format!("{name} is the old form; use tools and tool_choice")));
        }
    }
    if let Some(modalities) = fields.array("modalities")?
        && modalities.iter().any(|modality| modality != "text")
    {
        return not_yet("modalities", "anything but text");
    }
    for name in ["audio", "web_search_options"] {
        if fields.get(name).is_some() {
            return not_yet(name, "this");
        }
    }
    Ok(())
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<u16>, ApiError> {
    let top = fields.integer("top_logprobs", 0..=20)?;
    match (fields.flag("logprobs")?, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u16)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::param("top_logprobs", "top_logprobs needs logprobs: true")),
    }
}

fn tools(fields: &Fields<'_>) -> Result<Option<Value>, ApiError> {
    let Some(tools) = fields.array("tools")? else { return Ok(None) };
    if tools.len() > TOOLS {
        return Err(ApiError::param("tools", format!("tools may have at most {TOOLS} entries")));
    }
    for (index, tool) in tools.iter().enumerate() {
        if tool["function"]["name"].as_str().is_none_or(str::is_empty) {
            let param = format!("tools[{index}].function.name");
            return Err(ApiError::param(param.clone(), format!("{param} is missing")));
        }
    }
    let off = fields.get("tool_choice").is_some_and(|choice| choice == "none");
    Ok((!tools.is_empty() && !off).then(|| Value::Array(tools.clone())))
}

/// The messages as templates expect them: text content as a string, arguments of tool calls as objects.
fn messages(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let list = fields.array("messages")?.ok_or_else(|| ApiError::param("messages", "messages is missing"))?;
    if list.is_empty() || list.len() > MESSAGES {
        return Err(ApiError::param("messages", format!("messages must have 1 to {MESSAGES} entries")));
    }
    list.iter()
        .enumerate()
        .map(|(index, message)| one_message(index, message))
        .collect::<Result<_, _>>()
        .map(Value::Array)
}

fn one_message(index: usize, message: &Value) -> Result<Value, ApiError> {
    let wrong = |field: &str, reason: &str| {
        let param = format!("messages[{index}]{field}");
        ApiError::param(param.clone(), format!("{param} {reason}"))
    };
    let mut message = message.as_object().ok_or_else(|| wrong("", "must be an object"))?.clone();
    let role = message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !ROLES.contains(&role.as_str()) {
        return Err(wrong(".role", &format!("must be one of {}", ROLES.join(", "))));
    }
    if role == "developer" {
        // What newer clients call it; templates know the older name.
        message["role"] = "system".into();
    }
    let has_calls =
        message.get("tool_calls").is_some_and(|calls| calls.as_array().is_some_and(|calls| !calls.is_empty()));
    match message.get("content") {
        Some(Value::String(_)) => {}
        None | Some(Value::Null) if role == "assistant" && (has_calls || message.contains_key("refusal")) => {}
        None | Some(Value::Null) => return Err(wrong(".content", "is missing")),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| match part["type"].as_str() {
                Some("text" | "refusal") => {
                    part["text"].as_str().or_else(|| part["refusal"].as_str()).map(str::to_owned)
                }
                _ => None,
            };
            let texts: Option<Vec<String>> = parts.iter().map(text).collect();
            let joined = texts
                .ok_or_else(|| wrong(".content", "has a part that is not text; only text is supported"))?
                .join("\n");
            message["content"] = joined.into();
        }
        Some(_) => return Err(wrong(".content", "must be a string or an array of parts")),
    }
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        for call in calls {
            let parsed = call["function"]["arguments"].as_str().map(serde_json::from_str::<Value>);
            if let Some(parsed) = parsed {
                let arguments = parsed.map_err(|_| wrong(".tool_calls", "has arguments that are not JSON"))?;
                call["function"]["arguments"] = arguments;
            }
        }
    }
    Ok(Value::Object(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(change: Value) -> String {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        let parsed = ChatRequest::parse(body.as_object().unwrap(), &GenerationDefaults::default(), 100);
        parsed.map_or_else(|error| error.param.unwrap_or_default(), |_| "accepted".into())
    }

    #[test]
    fn table_of_refusals() {
        let cases = [
            (json!({}), "accepted"),
            (json!({ "temperature": null, "tools": null, "n": null, "stop": null }), "accepted"),
            (json!({ "n": 2.0, "seed": -1, "unheard_of": 1 }), "accepted"),
            (json!({ "temperature": "hot" }), "temperature"),
            (json!({ "top_logprobs": 3 }), "top_logprobs"),
            (json!({ "messages": [] }), "messages"),
            (json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
            (json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }), "messages[0].content"),
            (json!({ "logit_bias": { "100": 1 } }), "logit_bias"),
            (json!({ "stop": 7 }), "stop"),
            (json!({ "stream_options": {} }), "stream_options"),
            (json!({ "tool_choice": "required" }), "tool_choice"),
            (json!({ "response_format": { "type": "json_object" } }), "accepted"),
            (json!({ "response_format": { "type": "yaml" } }), "response_format"),
            (json!({ "response_format": { "type": "text" } }), "accepted"),
            (json!({ "tools": [{ "type": "function" }] }), "tools[0].function.name"),
        ];
        for (change, expected) in cases {
            assert_eq!(refused(change.clone()), expected, "{change}");
        }
    }
}
