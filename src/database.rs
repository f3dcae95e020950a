//! The database that a command works on without a server, named as `serve` names it.

use std::path::{Path, PathBuf};

use platform::Db;

use crate::cli::Database;
use crate::config::{self, ConfigError};

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("there is no database at {0}; name the server's with --data DIR or --database URL")]
    Missing(PathBuf),
    #[error("the database is of an older version and needs {0}; stop the server and run `myriad migrate` first")]
    Old(String),
    #[error("{0}")]
    Name(#[from] platform::ids::IdError),
    #[error(transparent)]
    Db(#[from] platform::DbError),
    #[error(transparent)]
    Account(#[from] gateway::AccountError),
}

/// Where `serve` keeps its database in a data directory.
pub fn default_url(data: &Path) -> String {
    Db::sqlite_url(&file_in(data))
}

fn file_in(data: &Path) -> PathBuf {
    data.join("myriad.sqlite")
}

/// The URL that is meant; a data directory must hold a database.
pub fn url(which: &Database) -> Result<String, DatabaseError> {
    if let Some(url) = &which.database {
        return Ok(url.clone());
    }
    let data = config::data_dir(which.data.as_deref())?;
    let file = file_in(&data);
    if file.exists() { Ok(default_url(&data)) } else { Err(DatabaseError::Missing(file)) }
}

/// Opens it as it is: a server may be running on it.
pub async fn open_as_is(which: &Database) -> Result<Db, DatabaseError> {
    let db = Db::open_existing(&url(which)?).await?;
    let pending = db.pending().await?;
    if pending.is_empty() { Ok(db) } else { Err(DatabaseError::Old(pending.join(", "))) }
}
