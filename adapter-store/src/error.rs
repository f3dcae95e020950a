//! What can be wrong with an upload or a name.

use platform::{BlobError, DbError, Digest};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The upload is not an adapter that can be served; the sentence names the file, key or tensor.
    #[error("{0} Nothing was stored.")]
    Refused(String),
    /// The upload is over a bound.
    #[error("{0} Nothing was stored.")]
    TooLarge(String),
    #[error("{0:?} is not an alias: use a-z, 0-9, '.', '_' and '-', starting with a letter")]
    Alias(String),
    #[error("adapter {account}/{name} does not exist")]
    Missing { account: String, name: String },
    #[error("adapter {account}/{name} has no version {version}")]
    MissingVersion { account: String, name: String, version: u32 },
    #[error("adapter {account}/{name} has no alias {alias}")]
    MissingAlias { account: String, name: String, alias: String },
    #[error("version {version} is what {aliases} answers with; point that elsewhere first")]
    InUse { version: u32, aliases: String },
    #[error("version {version} is the only one of {account}/{name}; delete the adapter instead")]
    OnlyVersion { account: String, name: String, version: u32 },
    #[error("{account}/{name} is an adapter of {was}; push one for {base} under another name. Nothing was stored.")]
    OtherBase { account: String, name: String, was: String, base: String },
    /// It was deleted between being resolved and being read.
    #[error("adapter {0} is not stored any more")]
    Gone(Digest),
    #[error("adapter {0} is stored, but cannot be read: {1}")]
    Unreadable(Digest, String),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// A refusal, as a sentence.
pub fn refused(reason: impl Into<String>) -> StoreError {
    StoreError::Refused(reason.into())
}
