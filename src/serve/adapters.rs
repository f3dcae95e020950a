//! Adapters that are there from the start: the built-in model's own, and every folder in `--adapters`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use adapter_store::{UploadFile, Version, folder};
use gateway::{ApiError, Platform, Push};
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
    for folder in folders {
        import_folder(platform, account, folder).await?;
    }
    let listed = platform.store.list(account, "", LISTED).await.map_err(|e| ServeError::Adapters(e.to_string()))?;
    Ok(listed.into_iter().filter(|version| platform.model(&version.base).is_some()).collect())
}

/// What its owner has deleted stays deleted.
async fn import_builtin(platform: &Platform, account: &AccountName) -> Result<(), ServeError> {
    for adapter in builtin::adapters() {
        let failed = |reason: String| ServeError::Adapters(format!("{}: {reason}", adapter.name));
        let name: AdapterName = adapter.name.parse().map_err(|e: platform::ids::IdError| failed(e.to_string()))?;
        if is_deleted(platform, account, &name).await? {
            continue;
        }
        let files = adapter.files.into_iter().map(|(name, bytes)| UploadFile { name, bytes }).collect();
        push(platform, account, name, Some(builtin::ID), files).await.map_err(|error| failed(error.message))?;
    }
    Ok(())
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("adapters [{bar:30}] {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Imports every sub-folder. One that cannot be used is left out, and said to be; a folder of nothing else is an error.
async fn import_folder(platform: &Platform, account: &AccountName, folder: &Path) -> Result<(), ServeError> {
    let paths = folder::sub_folders(folder).map_err(|error| ServeError::Adapters(error.to_string()))?;
    // Drawn on a terminal only.
    let bar = ProgressBar::new(paths.len() as u64).with_style(bar_style());
    let (mut names, mut refused) = (HashMap::new(), Vec::new());
    for path in &paths {
        bar.set_message(path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
        let left_out = import_one(platform, account, path, &mut names).await?;
        if let Some(LeftOut::Refused(reason) | LeftOut::Deleted(reason)) = &left_out {
            bar.suspend(|| eprintln!("left out {}: {reason}", path.display()));
        }
        if let Some(LeftOut::Refused(reason)) = left_out {
            refused.push(format!("{}: {reason}", path.display()));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if !paths.is_empty() && refused.len() == paths.len() {
        return Err(ServeError::Adapters(format!("{}: no folder in it could be used", folder.display())));
    }
    Ok(())
}

/// Why a folder is not offered.
enum LeftOut {
    Refused(String),
    /// Nothing is wrong with it: its owner took the name away.
    Deleted(String),
}

/// `names` are those that were taken, with their folders. An error is one of the server's own, whatever the folder.
async fn import_one(
    platform: &Platform,
    account: &AccountName,
    path: &Path,
    names: &mut HashMap<AdapterName, PathBuf>,
) -> Result<Option<LeftOut>, ServeError> {
    let refused = |reason: String| Ok(Some(LeftOut::Refused(reason)));
    let name = match folder::name(path) {
        Ok(name) => name,
        Err(error) => return refused(error.reason),
    };
    if let Some(other) = names.get(&name) {
        return refused(format!("{name} is already {}; rename one of the folders", other.display()));
    }
    if is_deleted(platform, account, &name).await? {
        return Ok(Some(LeftOut::Deleted(format!("{name} was deleted; push it to have it again"))));
    }
    let files = match folder::files(path) {
        Ok(files) => files,
        Err(error) => return refused(error.reason),
    };
    match push(platform, account, name.clone(), None, files).await {
        Ok(_) => {
            names.insert(name, path.to_owned());
            Ok(None)
        }
        Err(error) if error.status.is_client_error() => refused(error.message),
        Err(error) => Err(ServeError::Adapters(format!("{}: {}", path.display(), error.message))),
    }
}

async fn is_deleted(platform: &Platform, account: &AccountName, name: &AdapterName) -> Result<bool, ServeError> {
    let deleted = platform.store.is_deleted(account, name).await;
    deleted.map_err(|error| ServeError::Adapters(format!("{name}: {error}")))
}

async fn push(
    platform: &Platform,
    account: &AccountName,
    name: AdapterName,
    base: Option<&str>,
    files: Vec<UploadFile>,
) -> Result<Version, ApiError> {
    let push = Push { account: account.clone(), name, base: base.map(str::to_owned), alias: None, files, by: None };
    gateway::push(platform, push).await
}
