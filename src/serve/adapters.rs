//! Adapters that are there from the start: the built-in model's own, and every folder in `--adapters`.

use std::path::{Path, PathBuf};

use adapter_store::{UploadFile, Version};
use gateway::{Platform, Push};
use indicatif::{ProgressBar, ProgressStyle};
use platform::{AccountName, AdapterName};

use super::models::ModelSource;
use super::{ServeError, builtin};

/// Most adapters that the first screen needs to know of.
const LISTED: u32 = 1000;

/// Imports them under the first account. The same bytes again are the same version, so a restart adds nothing. Returns those
/// of the account's adapters whose base model is loaded.
pub async fn import(
    platform: &Platform,
    account: &AccountName,
    folders: &[PathBuf],
    sources: &[ModelSource],
) -> Result<Vec<Version>, ServeError> {
    if sources.iter().any(ModelSource::is_builtin) {
        import_builtin(platform, account).await?;
    }
    let paths = folders.iter().map(|folder| sub_folders(folder)).collect::<Result<Vec<_>, _>>()?.concat();
    // Drawn on a terminal only.
    let bar = ProgressBar::new(paths.len() as u64).with_style(bar_style());
    for path in &paths {
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        bar.set_message(name.clone());
        let files = adapter_store::folder::files(path).map_err(|error| ServeError::Adapters(error.to_string()))?;
        push(platform, account, &name, None, files).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let listed = platform.store.list(account, "", LISTED).await.map_err(|e| ServeError::Adapters(e.to_string()))?;
    Ok(listed.into_iter().filter(|version| platform.model(&version.base).is_some()).collect())
}

/// What its owner has deleted stays deleted.
async fn import_builtin(platform: &Platform, account: &AccountName) -> Result<(), ServeError> {
    for adapter in builtin::adapters() {
        let failed = |reason: String| ServeError::Adapters(format!("{}: {reason}", adapter.name));
        let name: AdapterName = adapter.name.parse().map_err(|e: platform::ids::IdError| failed(e.to_string()))?;
        if platform.store.is_deleted(account, &name).await.map_err(|e| failed(e.to_string()))? {
            continue;
        }
        let files = adapter.files.into_iter().map(|(name, bytes)| UploadFile { name, bytes }).collect();
        push(platform, account, &adapter.name, Some(builtin::ID), files).await?;
    }
    Ok(())
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("adapters [{bar:30}] {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

async fn push(
    platform: &Platform,
    account: &AccountName,
    name: &str,
    base: Option<&str>,
    files: Vec<UploadFile>,
) -> Result<(), ServeError> {
    let failed = |reason: String| ServeError::Adapters(format!("{name}: {reason}"));
    let adapter = name.parse().map_err(|error: platform::ids::IdError| failed(error.to_string()))?;
    let push = Push { account: account.clone(), name: adapter, base: base.map(str::to_owned), alias: None, files };
    gateway::push(platform, push).await.map_err(|error| failed(error.message))?;
    Ok(())
}

fn failed(path: &Path, reason: impl ToString) -> ServeError {
    ServeError::Adapters(format!("{}: {}", path.display(), reason.to_string()))
}

/// The folders in a folder, by name.
fn sub_folders(folder: &Path) -> Result<Vec<PathBuf>, ServeError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| failed(folder, e))? {
        let path = entry.map_err(|e| failed(folder, e))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
