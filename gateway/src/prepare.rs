//! From a request that was understood to the engine's own.

use std::num::NonZeroU32;
use std::sync::Arc;

use billing::{NewRequest, Price};
use grammar::Grammar;
use serving_engine::{Lane, Request};
use sha2::{Digest, Sha256};

use crate::accounts::Caller;
use crate::error::ApiError;
use crate::resolve::Target;
use crate::state::Platform;
use crate::wire::Common;

/// What an endpoint asks the engine for.
pub struct Prepared {
    /// One list of tokens for each prompt.
    pub tokens: Vec<Vec<u32>>,
    /// Absent: as long as the context allows.
    pub max_tokens: Option<u32>,
    pub top_logprobs: Option<u16>,
    pub score_prompt: bool,
    /// What the answer must be.
    pub grammar: Option<Arc<Grammar>>,
    /// The field that holds the prompt, for errors.
    pub param: &'static str,
}

/// `account/name` and version, for the journal.
pub fn adapter_name(target: &Target<'_>) -> Option<(String, u32)> {
    let version = target.adapter.as_ref()?;
    Some((format!("{}/{}", version.account, version.name), version.version))
}

/// What the request will be charged at.
pub fn price(platform: &Platform, caller: &Caller, target: &Target<'_>) -> Option<Price> {
    let adapter = adapter_name(target).map(|(name, _)| name);
    platform.prices.in_force(caller.account.as_str(), &target.model.id, adapter.as_deref())
}

/// One engine request for each prompt.
pub fn requests(
    platform: &Platform,
    target: &Target<'_>,
    row: &NewRequest,
    common: &Common,
    prepared: Prepared,
) -> Result<Vec<Request>, ApiError> {
    let model = target.model;
    let mut stop_tokens = model.defaults.eos_token_ids.clone();
    stop_tokens.extend(model.text.eos_token_id());
    stop_tokens.extend(&common.stop_tokens);
    stop_tokens.sort_unstable();
    stop_tokens.dedup();
    let stop_tokens: Arc<[u32]> = stop_tokens.into();
    let account = account_hash(platform, row.account.as_str());
    let one = |tokens: Vec<u32>| {
        let max_tokens = fit(model.context, tokens.len(), prepared.max_tokens, prepared.param)?;
        Ok(Request {
            id: row.id.clone(),
            base: model.id.clone(),
            adapter: target.adapter.as_ref().map(|version| version.digest),
            lane: Lane(account.1),
            weight: NonZeroU32::MIN,
            cache_salt: account.0,
            tokens: tokens.into(),
            sampling: common.sampling.clone(),
            seed: common.seed,
            choices: common.choices,
            max_tokens,
            allowance: None,
            min_tokens: common.min_tokens.min(max_tokens),
            stop: common.stop.clone(),
            stop_tokens: stop_tokens.clone(),
            grammar: prepared.grammar.clone(),
            ignore_eos: common.ignore_eos,
            include_stop: common.include_stop,
            speculation: common.speculation,
            top_logprobs: prepared.top_logprobs,
            score_prompt: prepared.score_prompt,
        })
    };
    prepared.tokens.into_iter().map(one).collect()
}

/// How many tokens the answer may have. Clients match on the wording of the refusal.
fn fit(context: usize, prompt: usize, asked: Option<u32>, param: &'static str) -> Result<u32, ApiError> {
    let answer = asked.map_or(1, |n| n as usize);
    if prompt == 0 {
        return Err(ApiError::param(param, "the prompt has no tokens"));
    }
    if prompt + answer > context {
        let message = format!(
            "This model's maximum context length is {context} tokens, but {} were asked for: {prompt} in the prompt and {answer} \
             for the answer. Shorten the prompt or lower max_tokens.",
            prompt + answer
        );
        return Err(ApiError::param(param, message).with_code("context_length_exceeded"));
    }
    Ok(asked.unwrap_or_else(|| u32::try_from(context - prompt).unwrap_or(u32::MAX)))
}

/// (cache salt, lane) of an account: keyed, so that nobody outside can know or choose a salt.
fn account_hash(platform: &Platform, account: &str) -> (u64, u64) {
    let hash: [u8; 32] = Sha256::new().chain_update(platform.cache_secret).chain_update(account).finalize().into();
    let word = |at: usize| u64::from_le_bytes(hash[at..at + 8].try_into().unwrap_or_default());
    (word(0), word(8))
}
