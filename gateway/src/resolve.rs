//! What `model` names: a base model, or a version of an adapter.

use adapter_store::{AdapterRef, Version};
use platform::AccountName;

use crate::error::ApiError;
use crate::names::nearest_names;
use crate::state::{Platform, ServedModel};

/// Most of the caller's adapters that an error names, and that are looked through for a near name.
const NAMED: usize = 8;
const SEARCHED: u32 = 1000;

/// What a request runs on.
pub struct Target<'a> {
    pub model: &'a ServedModel,
    pub adapter: Option<Version>,
    pub chat_template: Option<String>,
}

/// Finds what the caller means. Base models' ids win; another account's adapter is as absent as one that never was.
pub async fn resolve<'a>(platform: &'a Platform, caller: &AccountName, name: &str) -> Result<Target<'a>, ApiError> {
    if let Some(model) = platform.model(name) {
        return Ok(Target { model, adapter: None, chat_template: None });
    }
    let Some(version) = find(platform, caller, name).await? else {
        return Err(not_found(platform, caller, name).await);
    };
    let Some(model) = platform.model(&version.base) else {
        let message = format!("{name} is an adapter of {}, which is not loaded here", version.base);
        return Err(ApiError::not_found(message).with_code("model_not_found"));
    };
    let chat_template = platform.store.chat_template(version.digest).await?;
    Ok(Target { model, adapter: Some(version), chat_template })
}

async fn find(platform: &Platform, caller: &AccountName, name: &str) -> Result<Option<Version>, ApiError> {
    let Some(reference) = AdapterRef::parse(name) else { return Ok(None) };
    let account = reference.account.unwrap_or_else(|| caller.clone());
    if account != *caller {
        return Ok(None);
    }
    Ok(platform.store.resolve(&account, &reference.name, &reference.selector).await?)
}

/// The one sentence for whatever cannot be found, with what could have been meant.
pub async fn not_found(platform: &Platform, caller: &AccountName, name: &str) -> ApiError {
    let own = match platform.store.list(caller, "", SEARCHED).await {
        Ok(own) => own,
        Err(error) => return error.into(),
    };
    let own: Vec<&str> = own.iter().map(|version| version.name.as_str()).collect();
    let bases = platform.models.iter().map(|model| &*model.id);
    let shown: String = name.chars().take(200).collect();
    let bare = shown.rsplit('/').next().unwrap_or_default().split('@').next().unwrap_or_default();
    let near = nearest_names(bare, own.iter().copied().chain(bases));
    let mut message = format!("model {shown:?} not found.");
    match near.first() {
        Some(nearest) if *nearest != shown => message.push_str(&format!(" Did you mean {nearest:?}?")),
        _ => {}
    }
    if !own.is_empty() {
        let named = own.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        let more = if own.len() > NAMED { format!(" and {} more", own.len() - NAMED) } else { String::new() };
        message.push_str(&format!(" Yours: {named}{more}."));
    }
    ApiError { param: Some("model".into()), ..ApiError::not_found(message).with_code("model_not_found") }
}
