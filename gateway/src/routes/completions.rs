//! Text completions: prompts as text or tokens, with echo and scores.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use actix_web::{HttpResponse, web};
use billing::NewRequest;
use platform::RequestId;
use serde_json::{Map, Value, json};

use super::reply::{self, Events, Frame, JsonObject};
use crate::accounts::Caller;
use crate::error::ApiError;
use crate::life::{self, Ending, Piece, ScoredToken};
use crate::prepare::{self, Prepared};
use crate::resolve::{Target, resolve};
use crate::state::Platform;
use crate::wire::{CompletionRequest, Fields, Prompt, sampling};

pub async fn create(
    platform: web::Data<Platform>,
    caller: Caller,
    JsonObject(json): JsonObject,
) -> Result<HttpResponse, ApiError> {
    let started = Instant::now();
    let platform = platform.into_inner();
    let name = sampling::model_name(&Fields::new(&json))?;
    let target = resolve(&platform, &caller.account, &name).await?;
    let request = CompletionRequest::parse(&json, &target.model.defaults, target.model.vocabulary)?;
    let prompts = prompts(&target, &request)?;
    let price = prepare::price(&platform, &caller, &target);
    let row = NewRequest {
        id: RequestId::fresh("cmpl"),
        account: caller.account.clone(),
        key_id: caller.key_id,
        endpoint: "completions",
        model: name,
        base: target.model.id.to_string(),
        adapter: prepare::adapter_name(&target),
        price_version: price.as_ref().map(|price| price.version),
        tag: request.common.tag.clone(),
        reservation: None,
    };
    let frame = Frame::new(&row, &target, "text_completion");
    let grammar = target.model.grammars.of(&target.model.text, request.common.structure.as_ref()).await?;
    let prepared = Prepared {
        tokens: prompts.iter().map(|(tokens, _)| tokens.clone()).collect(),
        max_tokens: Some(request.max_tokens),
        top_logprobs: request.logprobs,
        grammar,
        score_prompt: request.echo && request.logprobs.is_some(),
        param: "prompt",
    };
    let requests = prepare::requests(&platform, &target, &row, &request.common, prepared)?;
    let choices = request.common.choices as usize;
    let decoders = (0..prompts.len() * choices).map(|_| target.model.text.continuing_decoder()).collect();
    let model = target.model.id.clone();
    let (rates, length_given) = (price.map(|price| price.rates), true);
    let run =
        life::start(platform.clone(), life::Start { row, rates, requests, length_given, decoders, started }).await?;
    let mut response = HttpResponse::Ok();
    reply::head(&mut response, &run, started);
    let echoes: Vec<Echo> = match request.echo {
        true => prompts.into_iter().map(|(tokens, text)| Echo::new(&target, &tokens, text)).collect(),
        false => prompts.iter().map(|_| Echo::default()).collect(),
    };
    let writer = Writer {
        platform,
        model,
        frame,
        per_prompt: choices,
        offsets: echoes.iter().flat_map(|echo| vec![echo.text.chars().count(); choices]).collect(),
        echoes,
        logprobs: request.logprobs.is_some(),
        waits_for_scores: request.echo && request.logprobs.is_some(),
        include_usage: request.common.include_usage,
    };
    if request.common.stream {
        return Ok(reply::stream(run, response, writer));
    }
    let pieces = reply::collect(run.pieces).await?;
    Ok(response.json(writer.whole(pieces)))
}

/// Tokens and text of each prompt.
fn prompts(target: &Target<'_>, request: &CompletionRequest) -> Result<Vec<(Vec<u32>, String)>, ApiError> {
    let text = &target.model.text;
    let one = |prompt: &Prompt| match prompt {
        Prompt::Text(prompt) => {
            let tokens = text.encode(prompt).map_err(|e| ApiError::param("prompt", e.to_string()))?;
            Ok((tokens, prompt.clone()))
        }
        Prompt::Tokens(tokens) => Ok((tokens.clone(), text.decode(tokens))),
    };
    request.prompts.iter().map(one).collect()
}

/// The text that a prompt's answers begin with, and where in it each token of the prompt begins.
#[derive(Default)]
struct Echo {
    text: String,
    offsets: Vec<usize>,
}

impl Echo {
    fn new(target: &Target<'_>, tokens: &[u32], text: String) -> Self {
        Self { offsets: target.model.text.offsets(tokens, &text), text }
    }
}

/// Writes pieces in the shapes of text completions.
struct Writer {
    platform: Arc<Platform>,
    model: Arc<str>,
    frame: Frame,
    per_prompt: usize,
    /// Characters of each choice's text before the next token of its answer.
    offsets: Vec<usize>,
    /// What each prompt's answers begin with.
    echoes: Vec<Echo>,
    logprobs: bool,
    /// The echo is sent with the prompt's scores, not before.
    waits_for_scores: bool,
    include_usage: bool,
}

/// The four lists of scores that this endpoint has.
#[derive(Default)]
struct Scores {
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Scores {
    fn json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }

    fn append(&mut self, mut other: Self) {
        self.tokens.append(&mut other.tokens);
        self.token_logprobs.append(&mut other.token_logprobs);
        self.top_logprobs.append(&mut other.top_logprobs);
        self.text_offset.append(&mut other.text_offset);
    }
}

impl Writer {
    fn token_text(&self, id: u32) -> String {
        self.platform.model(&self.model).map(|model| model.text.token_text(id)).unwrap_or_default()
    }

    /// Scores of a prompt, which lie in its echo.
    fn prompt_scores(&self, prompt: usize, tokens: &[ScoredToken]) -> Scores {
        Scores { text_offset: self.echoes[prompt].offsets.clone(), ..self.scores_of(tokens) }
    }

    /// Scores of a part of an answer, which lie behind all that came before.
    fn scores(&mut self, index: usize, tokens: &[ScoredToken]) -> Scores {
        let mut scores = self.scores_of(tokens);
        for token in tokens {
            scores.text_offset.push(self.offsets[index]);
            self.offsets[index] +=
                self.platform.model(&self.model).map_or(0, |model| model.text.token_characters(token.id));
        }
        scores
    }

    fn scores_of(&self, tokens: &[ScoredToken]) -> Scores {
        let mut scores = Scores::default();
        for token in tokens {
            let text = self.token_text(token.id);
            // The drawn token is always among its alternatives, as at OpenAI.
            let mut top: BTreeMap<String, f32> =
                token.top.iter().map(|&(id, logprob)| (self.token_text(id), logprob)).collect();
            if let Some(logprob) = token.logprob {
                top.entry(text.clone()).or_insert(logprob);
            }
            let top: Map<String, Value> = top.into_iter().map(|(text, logprob)| (text, logprob.into())).collect();
            scores.tokens.push(text);
            scores.token_logprobs.push(json!(token.logprob));
            scores.top_logprobs.push(if token.logprob.is_some() { Value::Object(top) } else { Value::Null });
        }
        scores
    }

    fn choice(&self, index: usize, text: &str, scores: Option<Scores>, ending: Option<Ending>) -> Value {
        let logprobs = scores.filter(|_| self.logprobs).map_or(Value::Null, Scores::json);
        let mut choice =
            json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": ending.map(Ending::name) });
        if let Some(reason) = ending.and_then(Ending::stop_reason) {
            choice["stop_reason"] = reason.into();
        }
        choice
    }

    fn chunk(&self, choice: Value) -> Value {
        let mut chunk = self.frame.with(vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn of_prompt(&self, prompt: usize) -> std::ops::Range<usize> {
        prompt * self.per_prompt..(prompt + 1) * self.per_prompt
    }

    fn whole(mut self, pieces: Vec<Piece>) -> Value {
        let count = self.offsets.len();
        let mut texts: Vec<String> =
            (0..count).map(|index| self.echoes[index / self.per_prompt].text.clone()).collect();
        let mut scores: Vec<Scores> = (0..count).map(|_| Scores::default()).collect();
        let mut finishes = vec![Ending::Stop; count];
        let mut used = Value::Null;
        for piece in pieces {
            match piece {
                Piece::Prompt { prompt, tokens } => {
                    for index in self.of_prompt(prompt) {
                        scores[index].append(self.prompt_scores(prompt, &tokens));
                    }
                }
                Piece::Text { index, text, tokens } => {
                    texts[index].push_str(&text);
                    let own = self.scores(index, &tokens);
                    scores[index].append(own);
                }
                Piece::End { index, ending } => finishes[index] = ending,
                Piece::Done { usage, cost_nano_usd } => used = reply::usage(usage, cost_nano_usd),
                Piece::Failed(_) => {}
            }
        }
        let choices = texts.iter().zip(scores).zip(finishes).enumerate();
        let choices =
            choices.map(|(index, ((text, scores), ending))| self.choice(index, text, Some(scores), Some(ending)));
        let mut body = self.frame.with(choices.collect());
        body["usage"] = used;
        body
    }
}

impl Events for Writer {
    fn opening(&mut self) -> Vec<Value> {
        if self.waits_for_scores {
            return Vec::new();
        }
        let echo = |index: usize| &self.echoes[index / self.per_prompt].text;
        let echoed = (0..self.offsets.len()).filter(|&index| !echo(index).is_empty());
        echoed.map(|index| self.chunk(self.choice(index, echo(index), None, None))).collect()
    }

    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        match piece {
            Piece::Prompt { prompt, tokens } => {
                let chunk = |index| {
                    let scores = self.prompt_scores(prompt, &tokens);
                    self.chunk(self.choice(index, &self.echoes[prompt].text, Some(scores), None))
                };
                self.of_prompt(prompt).map(chunk).collect()
            }
            Piece::Text { index, text, tokens } => {
                let scores = self.scores(index, &tokens);
                vec![self.chunk(self.choice(index, &text, Some(scores), None))]
            }
            Piece::End { index, ending } => vec![self.chunk(self.choice(index, "", None, Some(ending)))],
            Piece::Done { usage, cost_nano_usd } if self.include_usage => {
                let mut last = self.frame.with(Vec::new());
                last["usage"] = reply::usage(usage, cost_nano_usd);
                vec![last]
            }
            Piece::Done { .. } | Piece::Failed(_) => Vec::new(),
        }
    }
}
