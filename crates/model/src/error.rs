//! What can be wrong with a model folder.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{path}: architecture {name} is not supported yet. Supported: {supported}")]
    Architecture { path: PathBuf, name: String, supported: String },
    #[error("{path}: {key} {reason}")]
    Config { path: PathBuf, key: String, reason: String },
    #[error("{folder}: tensor {name} is missing")]
    MissingTensor { folder: PathBuf, name: String },
    #[error("{folder}: tensor {name} is {found:?}; the configuration needs {needed:?}")]
    TensorShape { folder: PathBuf, name: String, found: Vec<usize>, needed: Vec<usize> },
    #[error("{folder}: tensor {name} has dtype {dtype}; F32, F16 and BF16 are supported")]
    TensorType { folder: PathBuf, name: String, dtype: String },
    #[error("{folder}: tensor {name} belongs to no part of the model")]
    UnknownTensor { folder: PathBuf, name: String },
    #[error("the KV cache would have {pages} pages; give it at least {needed_mib} MiB")]
    KvMemory { pages: u64, needed_mib: u64 },
}
