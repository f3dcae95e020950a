//! Chat completions: a conversation in, an answer out, whole or as it comes.

use std::sync::Arc;
use std::time::Instant;

use actix_web::{HttpResponse, web};
use billing::NewRequest;
use platform::RequestId;
use serde_json::{Value, json};
use text::ChatInput;

use super::reply::{self, Events, Frame, JsonObject};
use crate::accounts::Caller;
use crate::error::ApiError;
use crate::life::{self, Ending, Piece, ScoredToken};
use crate::prepare::{self, Prepared};
use crate::resolve::{Target, resolve};
use crate::state::Platform;
use crate::wire::{ChatRequest, Fields, sampling};

pub async fn create(
    platform: web::Data<Platform>,
    caller: Caller,
    JsonObject(json): JsonObject,
) -> Result<HttpResponse, ApiError> {
    let started = Instant::now();
    let platform = platform.into_inner();
    let name = sampling::model_name(&Fields::new(&json))?;
    let target = resolve(&platform, &caller.account, &name).await?;
    let request = ChatRequest::parse(&json, &target.model.defaults, target.model.vocabulary)?;
    let tokens = prompt(&target, &request)?;
    let price = prepare::price(&platform, &caller, &target);
    let row = NewRequest {
        id: RequestId::fresh("chatcmpl"),
        account: caller.account.clone(),
        key_id: caller.key_id,
        endpoint: "chat.completions",
        model: name,
        base: target.model.id.to_string(),
        adapter: prepare::adapter_name(&target),
        price_version: price.as_ref().map(|price| price.version),
        tag: request.common.tag.clone(),
        reservation: None,
    };
    let frame =
        Frame::new(&row, &target, if request.common.stream { "chat.completion.chunk" } else { "chat.completion" });
    let grammar = target.model.grammars.of(&target.model.text, request.common.structure.as_ref()).await?;
    let prepared = Prepared {
        tokens: vec![tokens],
        max_tokens: request.common.max_tokens,
        top_logprobs: request.top_logprobs,
        grammar,
        score_prompt: false,
        param: "messages",
    };
    let requests = prepare::requests(&platform, &target, &row, &request.common, prepared)?;
    let decoders = (0..request.common.choices).map(|_| target.model.text.decoder()).collect();
    let model = target.model.id.clone();
    let (rates, length_given) = (price.map(|price| price.rates), request.common.max_tokens.is_some());
    let run =
        life::start(platform.clone(), life::Start { row, rates, requests, length_given, decoders, started }).await?;
    let mut response = HttpResponse::Ok();
    reply::head(&mut response, &run, started);
    let writer = Writer {
        platform,
        model,
        frame,
        choices: request.common.choices as usize,
        logprobs: request.top_logprobs.is_some(),
        include_usage: request.common.include_usage,
    };
    if request.common.stream {
        return Ok(reply::stream(run, response, writer));
    }
    let pieces = reply::collect(run.pieces).await?;
    Ok(response.json(writer.whole(pieces)))
}

fn prompt(target: &Target<'_>, request: &ChatRequest) -> Result<Vec<u32>, ApiError> {
    let text = &target.model.text;
    let rendered = text.render(&ChatInput {
        messages: &request.messages,
        tools: request.tools.as_ref(),
        add_generation_prompt: request.add_generation_prompt,
        template: target.chat_template.as_deref(),
        extra: &request.template_values,
    })?;
    Ok(text.encode_rendered(&rendered)?)
}

/// Writes pieces in the shapes of chat completions.
struct Writer {
    platform: Arc<Platform>,
    model: Arc<str>,
    frame: Frame,
    choices: usize,
    logprobs: bool,
    include_usage: bool,
}

impl Writer {
    fn scores(&self, tokens: &[ScoredToken]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let content: Vec<Value> = tokens.iter().map(|token| self.score(token)).collect();
        json!({ "content": content, "refusal": null })
    }

    fn score(&self, token: &ScoredToken) -> Value {
        let one = |id: u32, logprob: Option<f32>| {
            let model = self.platform.model(&self.model);
            let (text, bytes) = match model {
                Some(model) => (model.text.token_text(id), model.text.token_bytes().get(id).to_vec()),
                None => Default::default(),
            };
            json!({ "token": text, "logprob": logprob, "bytes": bytes })
        };
        let mut score = one(token.id, token.logprob);
        score["top_logprobs"] = token.top.iter().map(|&(id, logprob)| one(id, Some(logprob))).collect();
        score
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        let mut chunk = self.frame.with(vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn whole(&self, pieces: Vec<Piece>) -> Value {
        let mut texts = vec![(String::new(), Vec::new(), Ending::Stop); self.choices];
        let mut used = Value::Null;
        for piece in pieces {
            match piece {
                Piece::Text { index, text, tokens } => {
                    texts[index].0.push_str(&text);
                    texts[index].1.extend(tokens);
                }
                Piece::End { index, ending } => texts[index].2 = ending,
                Piece::Done { usage, cost_nano_usd } => used = reply::usage(usage, cost_nano_usd),
                Piece::Prompt { .. } | Piece::Failed(_) => {}
            }
        }
        let choice = |(index, (text, tokens, ending)): (usize, (String, Vec<ScoredToken>, Ending))| {
            let mut choice = json!({
                "index": index,
                "message": { "role": "assistant", "content": text, "refusal": null },
                "logprobs": self.scores(&tokens),
                "finish_reason": ending.name(),
            });
            if let Some(reason) = ending.stop_reason() {
                choice["stop_reason"] = reason.into();
            }
            choice
        };
        let mut body = self.frame.with(texts.into_iter().enumerate().map(choice).collect());
        body["usage"] = used;
        body
    }
}

impl Events for Writer {
    fn opening(&mut self) -> Vec<Value> {
        let first = |index| self.chunk(index, json!({ "role": "assistant", "content": "" }), Value::Null, None);
        (0..self.choices).map(first).collect()
    }

    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        match piece {
            Piece::Text { index, text, tokens } => {
                let scores = self.scores(&tokens);
                vec![self.chunk(index, json!({ "content": text }), scores, None)]
            }
            Piece::End { index, ending } => {
                let mut chunk = self.chunk(index, json!({}), Value::Null, Some(ending.name()));
                if let Some(reason) = ending.stop_reason() {
                    chunk["choices"][0]["stop_reason"] = reason.into();
                }
                vec![chunk]
            }
            Piece::Done { usage, cost_nano_usd } if self.include_usage => {
                let mut last = self.frame.with(Vec::new());
                last["usage"] = reply::usage(usage, cost_nano_usd);
                vec![last]
            }
            Piece::Done { .. } | Piece::Prompt { .. } | Piece::Failed(_) => Vec::new(),
        }
    }
}
