//! An adapter's folder on this machine's disk: where its files are, read within bounds, and the name that it gives the adapter.

use std::path::{Path, PathBuf};

use platform::AdapterName;

use crate::upload::{FILES, UPLOAD_BYTES, UploadFile};

/// A path that could not be read, or holds no adapter.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct FolderError {
    pub path: PathBuf,
    pub reason: String,
}

/// How deep below a folder its adapter is looked for, and in how many folders.
const DEPTH: usize = 3;
const FOLDERS: usize = 1000;
const CONFIG: &str = "adapter_config.json";

fn about(path: &Path, reason: impl std::fmt::Display) -> FolderError {
    FolderError { path: path.to_owned(), reason: reason.to_string() }
}

/// The plain files of the adapter in a folder, by name: the folder's own, or those of the only folder below it that is one.
pub fn files(folder: &Path) -> Result<Vec<UploadFile>, FolderError> {
    read(&adapter_folder(folder)?)
}

/// The folder nearest to the top with an `adapter_config.json`, as in an archive; `folder` itself where there is none.
fn adapter_folder(folder: &Path) -> Result<PathBuf, FolderError> {
    let (mut level, mut seen) = (vec![folder.to_owned()], 0);
    for _ in 0..=DEPTH {
        let mut found: Vec<PathBuf> = level.iter().filter(|path| path.join(CONFIG).is_file()).cloned().collect();
        if found.len() > 1 {
            found.sort();
            let below = found.iter().map(|path| path.strip_prefix(folder).unwrap_or(path).display().to_string());
            let names = below.collect::<Vec<_>>().join(", ");
            return Err(about(folder, format!("holds several adapters: {names}; name one of these folders")));
        }
        if let Some(only) = found.pop() {
            return Ok(only);
        }
        let mut next = Vec::new();
        for path in &level {
            next.extend(sub_folders(path)?);
        }
        seen += next.len();
        if next.is_empty() || seen > FOLDERS {
            break;
        }
        level = next;
    }
    Ok(folder.to_owned())
}

/// The folders in a folder, by name; hidden ones are somebody's own business.
pub fn sub_folders(folder: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| about(folder, e))? {
        let path = entry.map_err(|e| about(folder, e))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The name of the adapter in a folder where nobody gives it another: the nearest to the folder's own.
pub fn name(folder: &Path) -> Result<AdapterName, FolderError> {
    let whole = folder.canonicalize().map_err(|e| about(folder, e))?;
    let name = whole.file_name().and_then(|name| AdapterName::nearest(&name.to_string_lossy()));
    name.ok_or_else(|| about(folder, "its name has nothing that an adapter's name may have (a-z, 0-9)"))
}

fn read(folder: &Path) -> Result<Vec<UploadFile>, FolderError> {
    let mut files = Vec::new();
    let mut total = 0;
    for entry in std::fs::read_dir(folder).map_err(|e| about(folder, e))? {
        let path = entry.map_err(|e| about(folder, e))?.path();
        let (Some(name), true) = (path.file_name().and_then(|name| name.to_str()), path.is_file()) else { continue };
        if name.starts_with('.') {
            continue;
        }
        total += path.metadata().map_err(|e| about(&path, e))?.len();
        if total > UPLOAD_BYTES as u64 || files.len() == FILES {
            return Err(about(folder, format!("holds over {UPLOAD_BYTES} bytes or {FILES} files")));
        }
        files.push(UploadFile {
            name: name.to_owned(),
            bytes: std::fs::read(&path).map_err(|e| about(&path, e))?.into(),
        });
    }
    if files.is_empty() {
        return Err(about(folder, "holds no files; an adapter has adapter_config.json and adapter_model.safetensors"));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        files(folder).unwrap().into_iter().map(|file| file.name).collect()
    }

    #[test]
    fn the_adapter_nearest_to_the_top_is_taken_and_two_are_named() {
        let home = tempfile::tempdir().unwrap();
        let run = home.path().join("run");
        let put = |name: &str| {
            let path = run.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{}").unwrap();
        };
        put("notes.txt");
        assert_eq!(names(&run), ["notes.txt"]);
        put("out/checkpoint-100/adapter_config.json");
        put("out/checkpoint-100/adapter_model.safetensors");
        put(".cache/adapter_config.json");
        assert_eq!(names(&run), [CONFIG, "adapter_model.safetensors"]);
        put("out/checkpoint-200/adapter_config.json");
        let said = files(&run).unwrap_err().to_string();
        assert!(said.contains("out/checkpoint-100, out/checkpoint-200"), "{said}");
        put(CONFIG);
        assert_eq!(names(&run), [CONFIG, "notes.txt"]);
    }
}
