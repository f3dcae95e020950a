//! The database that a command works on without a server, named as `serve` names it.

use std::path::{Path, PathBuf};

use platform::Db;

use crate::cli::Database;
use crate::config::{self, ConfigError};
use crate::serve::data_dir::{DataDir, DataDirError};

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("there is no database at {0}; name the server's with --data DIR or --database URL")]
    Missing(PathBuf),
    #[error(
        "the database is of an older version and needs {0}; run `myriad migrate` first (with SQLite, stop the server before)"
    )]
    Old(String),
    #[error("a server is writing to the database; stop it first, or wait ten seconds if it was killed")]
    InUse,
    #[error("the database to copy into has {rows} rows in {table} already; name an empty one")]
    NotEmpty { table: String, rows: i64 },
    #[error(
        "nothing was copied: the database is damaged, as what the account {account} has {book} is {balance} and by its ledger it is {ledger}; \
         restore a backup in which both agree, or find out which is right"
    )]
    Damaged { account: String, book: String, ledger: String, balance: String },
    #[error("nothing was copied: {0} differs between the two databases")]
    Differs(String),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Billing(#[from] billing::BillingError),
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

/// Keeps servers away from an SQLite file as long as the result lives: they lock the folder that it is in.
pub fn lock(url: &str) -> Result<Option<DataDir>, DatabaseError> {
    let Some(file) = Db::sqlite_file(url) else { return Ok(None) };
    let Some(folder) = file.parent().filter(|folder| folder.join("lock").exists()) else { return Ok(None) };
    Ok(Some(DataDir::open(folder)?))
}

/// Opens it as it is: a server may be running on it.
pub async fn open_as_is(which: &Database) -> Result<Db, DatabaseError> {
    let db = Db::open_existing(&url(which)?).await?;
    let pending = db.pending().await?;
    if pending.is_empty() { Ok(db) } else { Err(DatabaseError::Old(pending.join(", "))) }
}
