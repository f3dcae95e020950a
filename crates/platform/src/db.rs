//! The relational database, opened by URL.
//!
//! `sqlite:PATH` (or `sqlite::memory:` in tests) is the embedded default. Statements are run-time queries, so that a
//! second dialect needs no second copy of its callers.

use std::str::FromStr;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

/// Connections to an SQLite file: one writer at a time, readers beside it.
const SQLITE_CONNECTIONS: u32 = 4;
/// How long a statement waits for another one's write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("database {url:?}: {reason}")]
    Open { url: String, reason: String },
    #[error("database: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("database migration: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

/// An open, migrated database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: sqlx::SqlitePool,
}

impl Db {
    /// Opens the database that `url` names, creates it where it may, and brings its tables up to date.
    pub async fn open(url: &str) -> Result<Self, DbError> {
        let failed = |reason: String| DbError::Open { url: without_password(url), reason };
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Err(failed("PostgreSQL is not built in yet; use sqlite:PATH".into()));
        }
        if !url.starts_with("sqlite:") {
            return Err(failed("unknown kind of database; use sqlite:PATH".into()));
        }
        let memory = url.contains(":memory:");
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|e| failed(e.to_string()))?
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL: a committed row survives a power cut, not only a killed process.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        // Each connection to `:memory:` would be a database of its own.
        let connections = if memory { 1 } else { SQLITE_CONNECTIONS };
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .min_connections(u32::from(memory))
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(|e| failed(e.to_string()))?;
        sqlx::migrate!("../../migrations").run(&pool).await?;
        Ok(Self { pool })
    }

    pub fn pool(&self) -> &sqlx::SqlitePool {
        &self.pool
    }

    /// Waits for running statements and closes the files.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// The URL as it may be shown: whatever stands before `@` is dropped.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}://***{}", &url[..scheme], &url[at..])
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_hides_its_password() {
        assert_eq!(without_password("postgres://u:secret@h/db"), "postgres://***@h/db");
        assert_eq!(without_password("sqlite:/tmp/x"), "sqlite:/tmp/x");
    }
}
