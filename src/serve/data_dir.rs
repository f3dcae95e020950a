//! The data directory: made on first use, held by one process at a time, and nobody else's to read: it has the database with the
//! secrets of webhooks and the answers that are kept, and the tenants' adapters.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data directory {path}: {source}; choose another with --data DIR")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "data directory {path} is in use by another myriad process{owner}; stop it, or choose another with --data DIR"
    )]
    InUse { path: PathBuf, owner: String },
}

/// A data directory that is ours until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    // The operating system frees the lock when the file is closed, a kill -9 included.
    _lock: File,
}

impl DataDir {
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { path: path.to_owned(), source };
        create(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let lock_path = path.join("lock");
        let failed = |source| DataDirError::Io { path: path.clone(), source };
        tighten(&path).map_err(failed)?;
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&lock_path).unwrap_or_default();
                let owner = pid.trim().parse::<u32>().map(|pid| format!(" (process {pid})")).unwrap_or_default();
                return Err(DataDirError::InUse { path, owner });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn create(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// Closes a data directory that every local user may read. One that is closed to them stays as it is: a group may have been let in on
/// purpose. So does a folder that has other things in it and never was a data directory.
fn tighten(path: &Path) -> std::io::Result<()> {
    let mode = std::fs::metadata(path)?.permissions().mode();
    let is_ours =
        || -> std::io::Result<bool> { Ok(path.join("lock").exists() || std::fs::read_dir(path)?.next().is_none()) };
    if mode & 0o007 == 0 || !is_ours()? {
        return Ok(());
    }
    match std::fs::set_permissions(path, Permissions::from_mode(0o700)) {
        Ok(()) => tracing::warn!("every local user could read {}; its mode is 0700 now", path.display()),
        // It is another user's.
        Err(error) => {
            tracing::warn!(%error, "every local user may read {}; its owner should: chmod 700", path.display())
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_user_may_read_it_and_a_folder_of_other_things_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let path = folder.path().join("parent/data");
        drop(DataDir::open(&path).unwrap());
        assert_eq!(mode(&path), 0o700);
        for (was, becomes) in [(0o755, 0o700), (0o750, 0o750)] {
            set(&path, was);
            drop(DataDir::open(&path).unwrap());
            assert_eq!(mode(&path), becomes);
        }
        let shared = folder.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::write(shared.join("letter"), "").unwrap();
        set(&shared, 0o755);
        drop(DataDir::open(&shared).unwrap());
        assert_eq!(mode(&shared), 0o755);
    }

    #[test]
    fn a_second_holder_is_told_who_has_it_and_a_freed_one_can_be_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let error = DataDir::open(&path).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        DataDir::open(&path).unwrap();
    }
}
