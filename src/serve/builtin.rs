//! The built-in toy model and its adapters: carried in the binary, unpacked into the data directory.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use platform::Digest;
use rust_embed::RustEmbed;

/// The built-in model's id.
pub const ID: &str = "myriad-mini";

#[derive(RustEmbed)]
#[folder = "models/myriad-mini"]
#[exclude = "training/*"]
#[exclude = "README.md"]
#[exclude = "adapters/*/README.md"]
struct Files;

/// An adapter that comes with the built-in model.
pub struct Adapter {
    pub name: String,
    pub files: Vec<(String, Bytes)>,
}

/// Unpacks the model's own files (the weights are mapped from disk) and returns their folder. The folder's name holds
/// their digest, so that a new binary never reads an old binary's files.
pub fn unpack(data: &Path) -> std::io::Result<PathBuf> {
    let files: Vec<(String, Bytes)> = read().filter(|(name, _)| !name.contains('/')).collect();
    let all: Vec<u8> = files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes]).flatten().copied().collect();
    let digest = Digest::of(&all).to_string();
    let models = data.join("models");
    let folder = models.join(format!("{ID}-{}", &digest[..16]));
    if folder.exists() {
        return Ok(folder);
    }
    let part = models.join(format!(".{ID}-{}.part", std::process::id()));
    std::fs::create_dir_all(&part)?;
    for (name, bytes) in &files {
        std::fs::write(part.join(name), bytes)?;
    }
    std::fs::rename(&part, &folder)?;
    Ok(folder)
}

/// The adapters in `adapters/NAME/`, by name.
pub fn adapters() -> Vec<Adapter> {
    let mut adapters: Vec<Adapter> = Vec::new();
    for (path, bytes) in read() {
        let Some((name, file)) = path.strip_prefix("adapters/").and_then(|rest| rest.split_once('/')) else { continue };
        match adapters.iter_mut().find(|adapter| adapter.name == name) {
            Some(adapter) => adapter.files.push((file.to_owned(), bytes)),
            None => adapters.push(Adapter { name: name.to_owned(), files: vec![(file.to_owned(), bytes)] }),
        }
    }
    adapters
}

fn read() -> impl Iterator<Item = (String, Bytes)> {
    Files::iter()
        .filter_map(|name| Files::get(&name).map(|file| (name.into_owned(), Bytes::from(file.data.into_owned()))))
}
