//! Blobs by key, opened by URL: `file:DIR` is the embedded default.
//!
//! A blob is written once and never changed: writers give the bytes whole, readers see all of them or nothing.

use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("blob store {url:?}: {reason}")]
    Open { url: String, reason: String },
    #[error("blob {key:?} is not a valid key")]
    Key { key: String },
    #[error("blob {key:?} does not exist")]
    Missing { key: String },
    #[error("blob {key:?}: {source}")]
    Io { key: String, source: std::io::Error },
}

/// A store of immutable blobs. Keys are relative paths of `[A-Za-z0-9._-]` segments.
#[derive(Debug, Clone)]
pub struct Blobs {
    root: PathBuf,
}

impl Blobs {
    pub async fn open(url: &str) -> Result<Self, BlobError> {
        let failed = |reason: String| BlobError::Open { url: url.to_owned(), reason };
        if url.starts_with("s3://") {
            return Err(failed("S3 is not built in yet; use file:DIR".into()));
        }
        let Some(path) = url.strip_prefix("file:") else {
            return Err(failed("unknown kind of blob store; use file:DIR".into()));
        };
        let root = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
        tokio::fs::create_dir_all(&root).await.map_err(|e| failed(e.to_string()))?;
        Ok(Self { root })
    }

    /// Stores `bytes` under `key`. Storing the same key again is a no-op: its bytes cannot differ.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), BlobError> {
        let path = self.path(key)?;
        let owned_key = key.to_owned();
        tokio::task::spawn_blocking(move || write_whole(&path, &bytes))
            .await
            .map_err(std::io::Error::other)
            .and_then(|written| written)
            .map_err(|source| BlobError::Io { key: owned_key, source })
    }

    pub async fn get(&self, key: &str) -> Result<Bytes, BlobError> {
        let path = self.path(key)?;
        match tokio::fs::read(&path).await {
            Ok(bytes) => Ok(bytes.into()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(BlobError::Missing { key: key.to_owned() }),
            Err(source) => Err(BlobError::Io { key: key.to_owned(), source }),
        }
    }

    pub async fn exists(&self, key: &str) -> Result<bool, BlobError> {
        let path = self.path(key)?;
        tokio::fs::try_exists(&path).await.map_err(|source| BlobError::Io { key: key.to_owned(), source })
    }

    /// Removes a blob; one that is not there is fine.
    pub async fn delete(&self, key: &str) -> Result<(), BlobError> {
        let path = self.path(key)?;
        match tokio::fs::remove_file(&path).await {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(BlobError::Io { key: key.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, key: &str) -> Result<PathBuf, BlobError> {
        let segment_is_plain = |segment: &str| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if key.len() <= 512 && key.split('/').all(segment_is_plain) {
            Ok(self.root.join(key))
        } else {
            Err(BlobError::Key { key: key.chars().take(80).collect() })
        }
    }
}

/// Writes a temporary file beside `path`, syncs it and renames it, so that a crash leaves all or nothing.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let temporary = folder.join(format!(".{:016x}.part", u64::from_be_bytes(random)));
    let written = std::fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(folder)?.sync_all()
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
