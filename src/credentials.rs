//! The credentials file: which servers this user knows, and a key for each. Written by `serve`, read by the client.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::config_home;

/// Largest credentials file, in bytes.
const FILE_BYTES: u64 = 1 << 20;
/// Most servers that are remembered; with the longest paths they still fit the file.
const SERVERS: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("credentials file {path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("neither HOME nor XDG_CONFIG_HOME is set, so there is no place for credentials; set MYRIAD_API_KEY")]
    NoHome,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub base_url: String,
    /// The data directory of a server on this machine: its address may change, its key does not.
    pub data: Option<PathBuf>,
    pub key: String,
}

/// The file's content: the server that started last comes first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    #[serde(default, rename = "server")]
    pub servers: Vec<Entry>,
}

/// Where the file is: `myriad/credentials` in the XDG configuration home.
pub fn path() -> Result<PathBuf, CredentialsError> {
    config_home().map(|home| home.join("myriad/credentials")).ok_or(CredentialsError::NoHome)
}

impl Credentials {
    /// A file that is not there holds no servers.
    pub fn load(path: &Path) -> Result<Self, CredentialsError> {
        let failed = |reason: String| CredentialsError::File { path: path.to_owned(), reason };
        match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(failed(e.to_string())),
            Ok(meta) if meta.len() > FILE_BYTES => return Err(failed(format!("is over {FILE_BYTES} bytes"))),
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        // The parser's own message quotes the line, and the line may hold a key.
        toml::from_str(&text)
            .map_err(|_| failed("is not in the expected form; remove it and start the server again".into()))
    }

    /// Puts `entry` first, in place of what was known of the same data directory. Another data directory that served at this
    /// address keeps its key, which nobody can make again; the address itself belongs to who served there last.
    pub fn remember(&mut self, entry: Entry) {
        self.servers.retain(|known| match &known.data {
            Some(_) => known.data != entry.data,
            None => known.base_url != entry.base_url,
        });
        self.servers.insert(0, entry);
        self.servers.truncate(SERVERS);
    }

    pub fn of_data(&self, data: &Path) -> Option<&Entry> {
        self.servers.iter().find(|entry| entry.data.as_deref() == Some(data))
    }

    /// The server that was last at this address.
    pub fn of_url(&self, base_url: &str) -> Option<&Entry> {
        self.servers.iter().find(|entry| entry.base_url == base_url)
    }

    /// Writes the file for its owner's eyes only, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), CredentialsError> {
        let failed = |reason: String| CredentialsError::File { path: path.to_owned(), reason };
        let text = toml::to_string(self).map_err(|e| failed(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| failed(e.to_string()))?;
        let temporary = path.with_extension(format!("part-{}", std::process::id()));
        write_private(&temporary, text.as_bytes())
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(|e| failed(e.to_string()))
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(url: &str, data: Option<&str>, key: &str) -> Entry {
        Entry { base_url: url.into(), data: data.map(PathBuf::from), key: key.into() }
    }

    #[test]
    fn a_server_that_moved_keeps_one_entry_and_comes_first() {
        let mut known = Credentials::default();
        known.remember(entry("http://a:8000", Some("/data/1"), "k1"));
        known.remember(entry("http://a:8001", Some("/data/2"), "k2"));
        known.remember(entry("http://a:8002", Some("/data/1"), "k1"));
        let urls: Vec<_> = known.servers.iter().map(|e| e.base_url.as_str()).collect();
        assert_eq!(urls, ["http://a:8002", "http://a:8001"]);
    }

    #[test]
    fn data_directories_that_take_turns_at_one_address_keep_their_keys() {
        let mut known = Credentials::default();
        known.remember(entry("http://a:8000", Some("/data/1"), "k1"));
        known.remember(entry("http://a:8000", Some("/data/2"), "k2"));
        assert_eq!(known.of_data(Path::new("/data/1")).unwrap().key, "k1");
        assert_eq!(known.of_url("http://a:8000").unwrap().key, "k2");
        known.remember(entry("http://a:8000", Some("/data/1"), "k1"));
        assert_eq!(known.of_url("http://a:8000").unwrap().key, "k1");
        assert_eq!(known.servers.len(), 2);
    }

    #[test]
    #[cfg(unix)]
    fn the_file_is_private_and_reads_back() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("myriad/credentials");
        let mut known = Credentials::load(&path).unwrap();
        known.remember(entry("http://a:8000", Some("/data"), "secret"));
        known.save(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Credentials::load(&path).unwrap(), known);
        std::fs::write(&path, "server = 'secret-key").unwrap();
        let error = Credentials::load(&path).unwrap_err().to_string();
        assert!(!error.contains("secret-key"), "{error}");
    }
}
