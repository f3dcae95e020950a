//! Fetches model folders from the Hugging Face hub, into the cache that its own tools share.
//!
//! `HF_HOME` says where the cache is, `HF_TOKEN` (or the token that the hub's own login wrote) who asks, `HF_ENDPOINT` which
//! hub, `HF_HUB_OFFLINE=1` that only the cache is read. An interrupted download goes on where it broke off.

use std::path::PathBuf;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

/// How often a file is tried again.
const RETRIES: usize = 3;
/// Longest reference, in bytes.
const REFERENCE_BYTES: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("{0:?} is not a model on the hub; write ORG/NAME or ORG/NAME@REVISION")]
    Reference(String),
    #[error("{0} is gated: accept its licence, then set HF_TOKEN")]
    Gated(String),
    #[error("{0} is not on the hub, or it is private: check the name and the revision, or set HF_TOKEN")]
    Missing(String),
    #[error("{0} is not in the cache, and HF_HUB_OFFLINE is set; fetch it once without, or name a folder")]
    Offline(String),
    #[error("{0} has no .safetensors files on the hub; other formats are not read")]
    NoWeights(String),
    #[error("{model} could not be fetched from {hub}: {reason}; what has arrived is kept: start again to go on")]
    Fetch { model: String, hub: String, reason: String },
}

/// Where the hub is and what is known of the caller.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The hub's own address where absent.
    pub endpoint: Option<String>,
    pub token: Option<String>,
    /// The hub's cache folder.
    pub cache: PathBuf,
    pub offline: bool,
    pub progress: bool,
}

impl HubConfig {
    pub fn from_env(progress: bool) -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = Cache::from_env();
        Self {
            endpoint: set("HF_ENDPOINT"),
            token: set("HF_TOKEN").or_else(|| cache.token()),
            cache: set("HF_HUB_CACHE").map_or_else(|| cache.path().clone(), PathBuf::from),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.as_str(), "0" | "false")),
            progress,
        }
    }
}

/// A model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub model: String,
    pub revision: String,
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.model),
            revision => write!(f, "{}@{revision}", self.model),
        }
    }
}

impl Reference {
    /// Reads `ORG/NAME[@REVISION]`.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let wrong = || HubError::Reference(text.chars().take(80).collect());
        let (model, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let (organisation, name) = model.split_once('/').ok_or_else(wrong)?;
        let revision_fits = revision.split('/').all(plain);
        if text.len() <= REFERENCE_BYTES && plain(organisation) && plain(name) && revision_fits {
            Ok(Self { model: model.to_owned(), revision: revision.to_owned() })
        } else {
            Err(wrong())
        }
    }
}

/// Fetches what is needed to serve a model and returns its folder.
pub fn fetch(reference: &str, config: &HubConfig) -> Result<PathBuf, HubError> {
    let reference = Reference::parse(reference)?;
    if config.offline {
        return cached(&reference, config).ok_or(HubError::Offline(reference.model));
    }
    let repo = api(config, &reference)?.repo(repo(&reference));
    let files = match repo.info() {
        Ok(info) => {
            info.siblings.into_iter().map(|file| file.rfilename).filter(|name| is_needed(name)).collect::<Vec<_>>()
        }
        // Without the hub, what was fetched before is as good.
        Err(error) if status(&error).is_none() => {
            return cached(&reference, config).ok_or_else(|| explain(&reference, config, &error));
        }
        // To those who may not see a model the hub says 401, whether it exists or not.
        Err(error) => {
            return Err(match status(&error) {
                Some(401) => HubError::Missing(reference.to_string()),
                _ => explain(&reference, config, &error),
            });
        }
    };
    if !files.iter().any(|name| name.ends_with(".safetensors")) {
        return Err(HubError::NoWeights(reference.model));
    }
    let mut folder = None;
    for name in &files {
        // From the cache, else downloaded, going on where an earlier try broke off.
        let path = repo.get(name).map_err(|error| explain(&reference, config, &error))?;
        folder = path.parent().map(PathBuf::from).or(folder);
    }
    folder.ok_or(HubError::NoWeights(reference.model))
}

fn api(config: &HubConfig, reference: &Reference) -> Result<Api, HubError> {
    let mut builder = ApiBuilder::from_cache(Cache::new(config.cache.clone()))
        .with_token(config.token.clone())
        .with_progress(config.progress)
        .with_retries(RETRIES);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    builder.build().map_err(|error| explain(reference, config, &error))
}

fn repo(reference: &Reference) -> Repo {
    Repo::with_revision(reference.model.clone(), RepoType::Model, reference.revision.clone())
}

/// The folder of a model that was fetched before, where all that its configuration promises is there.
fn cached(reference: &Reference, config: &HubConfig) -> Option<PathBuf> {
    let known = Cache::new(config.cache.clone()).repo(repo(reference));
    let folder = known.get("config.json")?.parent()?.to_owned();
    let whole = known.get("model.safetensors").is_some() || known.get("model.safetensors.index.json").is_some();
    whole.then_some(folder)
}

fn is_needed(name: &str) -> bool {
    const EXACT: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
    ];
    let weights = name.ends_with(".safetensors") || name == "model.safetensors.index.json";
    // Copies in other formats lie in folders and under other names.
    let own = !name.contains('/') && !name.starts_with("consolidated");
    EXACT.contains(&name) || (weights && own)
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

fn explain(reference: &Reference, config: &HubConfig, error: &ApiError) -> HubError {
    match status(error) {
        Some(401 | 403) => HubError::Gated(reference.model.clone()),
        Some(404) => HubError::Missing(reference.to_string()),
        _ => HubError::Fetch {
            model: reference.to_string(),
            hub: config.endpoint.clone().unwrap_or_else(|| "the hub".into()),
            reason: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_references() {
        let parsed = |text: &str| Reference::parse(text).ok().map(|r| (r.model, r.revision));
        let both = |model: &str, revision: &str| Some((model.to_owned(), revision.to_owned()));
        assert_eq!(parsed("Qwen/Qwen3-0.6B"), both("Qwen/Qwen3-0.6B", "main"));
        assert_eq!(parsed("a/b@refs/pr/1"), both("a/b", "refs/pr/1"));
        for wrong in ["a", "a/b/c", "../b", "a/..", "a/b@", "a/b@../x", "a b/c", ""] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }
}
