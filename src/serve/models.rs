//! Base models: what `--model` names, as folders.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use super::builtin;

#[derive(Debug, thiserror::Error)]
pub enum ModelSourceError {
    #[error(
        "--model {0:?} is neither a folder nor ORG/NAME on the hub; the built-in model is {builtin:?}",
        builtin = builtin::ID
    )]
    Unknown(String),
    #[error("--model {0:?} is named twice")]
    Twice(String),
    #[error("unpacking the built-in model: {0}")]
    Builtin(#[from] std::io::Error),
    #[error(transparent)]
    Hub(#[from] hub::HubError),
}

/// A base model's id and the folder that holds it.
#[derive(Debug, Clone)]
pub struct ModelSource {
    pub id: String,
    pub folder: PathBuf,
}

impl ModelSource {
    pub fn is_builtin(&self) -> bool {
        self.id == builtin::ID
    }
}

/// Finds each model, fetching from the hub what is not here.
pub fn locate(named: &[String], data: &Path) -> Result<Vec<ModelSource>, ModelSourceError> {
    let default = [builtin::ID.to_owned()];
    let named = if named.is_empty() { &default } else { named };
    let mut sources: Vec<ModelSource> = Vec::new();
    for name in named {
        let source = locate_one(name, data)?;
        if sources.iter().any(|known| known.id == source.id) {
            return Err(ModelSourceError::Twice(source.id));
        }
        sources.push(source);
    }
    Ok(sources)
}

fn locate_one(name: &str, data: &Path) -> Result<ModelSource, ModelSourceError> {
    let path = Path::new(name);
    if name == builtin::ID {
        return Ok(ModelSource { id: name.into(), folder: builtin::unpack(data)? });
    }
    if path.is_dir() {
        let folder = path.canonicalize()?;
        let id = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let id = id.ok_or_else(|| ModelSourceError::Unknown(name.into()))?;
        return Ok(ModelSource { id, folder });
    }
    let id = name.split('@').next().unwrap_or(name);
    let is_reference = id.split('/').count() == 2 && !name.starts_with(['.', '/']);
    if !is_reference {
        return Err(ModelSourceError::Unknown(name.into()));
    }
    Ok(ModelSource {
        id: id.into(),
        folder: hub::fetch(name, &hub::HubConfig::from_env(std::io::stderr().is_terminal()))?,
    })
}
