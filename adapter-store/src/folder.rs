//! An adapter folder's own files, read within bounds.

use std::path::{Path, PathBuf};

use crate::upload::{FILES, UPLOAD_BYTES, UploadFile};

/// A path that could not be read, or holds no adapter.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct FolderError {
    pub path: PathBuf,
    pub reason: String,
}

/// The plain files of a folder, by name.
pub fn files(folder: &Path) -> Result<Vec<UploadFile>, FolderError> {
    let about =
        |path: &Path, reason: &dyn std::fmt::Display| FolderError { path: path.to_owned(), reason: reason.to_string() };
    let mut files = Vec::new();
    let mut total = 0;
    for entry in std::fs::read_dir(folder).map_err(|e| about(folder, &e))? {
        let path = entry.map_err(|e| about(folder, &e))?.path();
        let (Some(name), true) = (path.file_name().and_then(|name| name.to_str()), path.is_file()) else { continue };
        if name.starts_with('.') {
            continue;
        }
        total += path.metadata().map_err(|e| about(&path, &e))?.len();
        if total > UPLOAD_BYTES as u64 || files.len() == FILES {
            return Err(about(folder, &format!("holds over {UPLOAD_BYTES} bytes or {FILES} files")));
        }
        files.push(UploadFile {
            name: name.to_owned(),
            bytes: std::fs::read(&path).map_err(|e| about(&path, &e))?.into(),
        });
    }
    if files.is_empty() {
        return Err(about(folder, &"holds no files; an adapter has adapter_config.json and adapter_model.safetensors"));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}
