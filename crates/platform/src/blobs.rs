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
    create_folders(folder)?;
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let temporary = folder.join(format!(".{:016x}.part", u64::from_be_bytes(random)));
    let written = std::fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_folder(folder)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Creates `folder` and what is missing above it. A new folder survives a power cut once its parent is synced too.
fn create_folders(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_folders(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(parent),
    }
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn in_folder(name: &str) -> (Blobs, PathBuf) {
        let folder = std::env::temp_dir().join(format!("myriad-blobs-{}-{name}", std::process::id()));
        (Blobs::open(&format!("file:{}", folder.display())).await.unwrap(), folder)
    }

    #[tokio::test]
    async fn a_blob_is_what_was_put_first_until_it_is_deleted() {
        let (blobs, folder) = in_folder("kept").await;
        assert!(matches!(blobs.get("a/b/c").await, Err(BlobError::Missing { .. })));
        blobs.put("a/b/c", Bytes::from_static(b"one")).await.unwrap();
        blobs.put("a/b/c", Bytes::from_static(b"two")).await.unwrap();
        assert_eq!(blobs.get("a/b/c").await.unwrap(), "one");
        let left: Vec<_> = std::fs::read_dir(folder.join("a/b")).unwrap().collect();
        assert_eq!(left.len(), 1, "a temporary file stayed");
        blobs.delete("a/b/c").await.unwrap();
        blobs.delete("a/b/c").await.unwrap();
        assert!(!blobs.exists("a/b/c").await.unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_key_cannot_leave_the_folder_or_meet_a_temporary_file() {
        let (blobs, folder) = in_folder("keys").await;
        for key in
            ["", "/a", "a/", "a//b", "..", "a/../b", ".part", "a/.hidden", "a b", "a\0", "a\\b", &"a".repeat(600)]
        {
            assert!(matches!(blobs.get(key).await, Err(BlobError::Key { .. })), "{key:?} was taken");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
