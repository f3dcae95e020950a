//! An upload on its way to being live: checked, tried by the canary, published.

use std::num::NonZeroU32;
use std::sync::Arc;

use actix_web::http::StatusCode;
use adapter_store::{Canary, Checked, Upload, UploadFile, Version};
use model::Sampling;
use platform::{AccountName, AdapterName, Digest, RequestId};
use serde_json::{Map, json};
use serving_engine::{Event, Lane, NOT_NUMBERS, Request, Token};
use text::ChatInput;

use crate::accounts::Caller;
use crate::audit::change;
use crate::error::ApiError;
use crate::state::{Platform, ServedModel};

/// What the canary says to both models. Neutral on purpose: an adapter for anything should move at least one of them.
const PROMPTS: [&str; 4] =
    ["Hello! Who are you?", "Please help me with this:", "The meeting is on Friday at 10.", "1 2 3 4"];
/// Alternatives per position that the divergence is computed over.
const TOP: u16 = 64;

/// What is uploaded, by whom.
pub struct Push {
    pub account: AccountName,
    pub name: AdapterName,
    pub base: Option<String>,
    pub alias: Option<String>,
    pub files: Vec<UploadFile>,
    /// Whose key asked for it; none: the server itself.
    pub by: Option<Caller>,
}

/// Checks, tries and publishes an adapter. Whatever fails, nothing is stored.
pub async fn push(platform: &Platform, push: Push) -> Result<Version, ApiError> {
    if let Some(alias) = &push.alias {
        adapter_store::check_alias(alias)?;
    }
    refuse_a_bases_name(platform, &push)?;
    let (by, alias) = (push.by, push.alias);
    let upload = Upload { account: push.account, name: push.name, base: push.base, files: push.files };
    let store = platform.store.clone();
    let checked = tokio::task::spawn_blocking(move || store.check(upload)).await.map_err(ApiError::internal)??;
    let _staged = platform.store.stage(&checked);
    let tried = canary(platform, &checked).await;
    let published = match tried {
        Ok(canary) => {
            let mut checked = checked.clone();
            if canary.as_ref().is_some_and(|canary| canary.kl == 0.0) && checked.report.warnings.is_empty() {
                checked.report.warnings.push("the canary saw no difference to the base model".into());
            }
            publish(platform, &checked, canary, alias.as_deref(), by.as_ref()).await
        }
        Err(error) => Err(error),
    };
    if published.is_err() {
        platform.engine.forget(checked.digest);
    }
    published
}

/// Makes it visible, and writes down who did; what was there already and stays as it is leaves no row.
async fn publish(
    platform: &Platform,
    checked: &Checked,
    canary: Option<Canary>,
    alias: Option<&str>,
    by: Option<&Caller>,
) -> Result<Version, ApiError> {
    let (account, name, by) = (checked.account.clone(), checked.name.clone(), by.cloned());
    let detail = json!({ "base": checked.base, "digest": checked.digest, "alias": alias });
    let note = move |version: &u32| {
        let subject = format!("{account}/{name}@{version}");
        change(by.as_ref(), &account, "adapter.pushed", &subject, detail.clone())
    };
    Ok(platform.store.publish(checked, canary, alias, Box::new(note)).await?)
}

/// A base model's name is always the base model: an adapter under it could never be asked.
fn refuse_a_bases_name(platform: &Platform, push: &Push) -> Result<(), ApiError> {
    let full = format!("{}/{}", push.account, push.name);
    match platform.model(push.name.as_str()).or(platform.model(&full)) {
        Some(model) => Err(ApiError::new(
            StatusCode::CONFLICT,
            format!(
                "{} is a base model that is loaded here; give the adapter another name. Nothing was stored.",
                model.id
            ),
        )),
        None => Ok(()),
    }
}

/// Mean divergence between base and adapter over the canary's prompts; unbilled, and unknown to the journal.
async fn canary(platform: &Platform, checked: &Checked) -> Result<Option<Canary>, ApiError> {
    let Some(model) = platform.model(&checked.base) else { return Ok(None) };
    let (mut divergences, mut heard) = (Vec::new(), Vec::new());
    for prompt in PROMPTS {
        let tokens: Arc<[u32]> = prompt_tokens(model, checked, prompt)?.into();
        if tokens.len() < 2 || tokens.len() > model.context {
            continue;
        }
        let base = scores(platform, model, None, &tokens).await?;
        let adapted = scores(platform, model, Some(checked.digest), &tokens).await?;
        divergences.extend(base.iter().zip(&adapted).map(|(base, adapted)| divergence(&base.top, &adapted.top)));
        heard.extend(adapted.iter().flat_map(|token| token.logprob.to_le_bytes()));
    }
    if divergences.is_empty() {
        return Ok(None);
    }
    let kl = divergences.iter().sum::<f64>() / divergences.len() as f64;
    if !kl.is_finite() {
        return Err(overflows());
    }
    Ok(Some(Canary { prompts: PROMPTS.len(), kl, fingerprint: Digest::of(&heard).to_string() }))
}

/// The weights are numbers, and what the model makes of them is not.
fn overflows() -> ApiError {
    let message = "with this adapter the model's logits overflow: its weights, or its scale (lora_alpha), are too large. \
                   Nothing was stored.";
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message)
}

fn prompt_tokens(model: &ServedModel, checked: &Checked, prompt: &str) -> Result<Vec<u32>, ApiError> {
    if !model.text.has_template() && checked.chat_template.is_none() {
        return Ok(model.text.encode(prompt)?);
    }
    let messages = json!([{ "role": "user", "content": prompt }]);
    let rendered = model.text.render(&ChatInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        template: checked.chat_template.as_deref(),
        extra: &Map::new(),
    });
    match (rendered, &checked.chat_template) {
        (Ok(rendered), _) => Ok(model.text.encode_rendered(&rendered)?),
        (Err(error), Some(_)) => {
            let message = format!("chat_template.jinja cannot render a plain message: {error}. Nothing was stored.");
            Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message))
        }
        // The base's template wants something that the canary does not say; its words will do without.
        (Err(_), None) => Ok(model.text.encode(prompt)?),
    }
}

/// The scores of a prompt's tokens, and of the one that would follow.
async fn scores(
    platform: &Platform,
    model: &ServedModel,
    adapter: Option<Digest>,
    tokens: &Arc<[u32]>,
) -> Result<Vec<Token>, ApiError> {
    let request = Request {
        allowance: None,
        id: RequestId::fresh("canary"),
        base: model.id.clone(),
        adapter,
        lane: Lane(0),
        weight: NonZeroU32::MIN,
        cache_salt: 0,
        tokens: tokens.clone(),
        sampling: Arc::new(Sampling { temperature: 0.0, ..Sampling::default() }),
        seed: 0,
        choices: 1,
        max_tokens: u32::from(tokens.len() < model.context),
        min_tokens: 0,
        stop: Vec::new(),
        stop_tokens: Arc::new([]),
        grammar: None,
        ignore_eos: false,
        include_stop: false,
        speculation: false,
        top_logprobs: Some(TOP),
        score_prompt: true,
    };
    let mut reply = platform.engine.submit(request)?;
    let mut scores = Vec::new();
    while let Some(event) = reply.next().await {
        match event {
            Event::Prompt(tokens) => scores.extend(tokens),
            Event::Token { token, .. } => scores.push(token),
            Event::Started { .. } | Event::Choice { .. } => {}
            Event::Finished(finished) => {
                return match finished.error {
                    None => Ok(scores),
                    Some(error) if error == NOT_NUMBERS && adapter.is_some() => Err(overflows()),
                    Some(error) => Err(ApiError::internal(format!("the canary failed: {error}"))),
                };
            }
        }
    }
    Err(ApiError::internal("the canary was not finished"))
}

/// Kullback-Leibler divergence of two next-token distributions, in nats, from their most probable tokens: the base's tokens one
/// by one, and the rest of either as one more. By the data processing inequality never more than the true one.
fn divergence(base: &[(u32, f32)], adapted: &[(u32, f32)]) -> f64 {
    let (mut sum, mut base_rest, mut adapted_rest) = (0.0, 1.0, 1.0);
    for &(token, log_p) in base {
        let Some(&(_, log_q)) = adapted.iter().find(|(other, _)| *other == token) else { continue };
        let (p, q) = (f64::from(log_p).exp(), f64::from(log_q).exp());
        sum += p * f64::from(log_p - log_q);
        base_rest -= p;
        adapted_rest -= q;
    }
    // Below a millionth the difference is rounding of the two sums.
    if base_rest > 1e-6 && adapted_rest > 1e-9 {
        sum += base_rest * (base_rest / adapted_rest).ln();
    }
    if base == adapted { 0.0 } else { sum.max(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_zero_for_equals_and_the_formula_otherwise() {
        let half = 0.5f32.ln();
        let (quarter, rest) = (0.25f32.ln(), 0.75f32.ln());
        assert_eq!(divergence(&[(1, half), (2, half)], &[(1, half), (2, half)]), 0.0);
        let expected = 0.5 * 2.0f64.ln() + 0.5 * (0.5f64 / 0.75).ln();
        let all = divergence(&[(1, half), (2, half)], &[(1, quarter), (2, rest)]);
        let cut = divergence(&[(1, half)], &[(1, quarter)]);
        assert!((all - expected).abs() < 1e-6 && (cut - expected).abs() < 1e-6, "{all} {cut} {expected}");
    }
}
