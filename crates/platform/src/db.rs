//! The relational database, opened by URL: SQLite or PostgreSQL behind one face.
//!
//! `sqlite:PATH` is the embedded default, `postgres://USER:PASSWORD@HOST/DATABASE` the one for several processes. Statements are
//! run-time queries in the part of SQL that both understand, with `$1` for parameters, so that each is written once. What the
//! driver for both cannot carry must not stand in a statement's result: sums need `CAST(... AS BIGINT)` and a truth value
//! `CAST(... AS INTEGER)`.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Once;
use std::time::Duration;

use sqlx::any::{Any, AnyArguments, AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, Arguments, Connection, Encode, Executor, Type};

/// A row of a result, from whichever database.
pub type DbRow = sqlx::any::AnyRow;
/// A transaction, in whichever database.
pub type DbTransaction = sqlx::Transaction<'static, sqlx::Any>;

/// Connections to an SQLite file: one writer at a time, readers beside it.
const SQLITE_CONNECTIONS: u32 = 4;
const POSTGRES_CONNECTIONS: u32 = 16;
/// How long a statement waits for a connection before the database counts as gone.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// `busy_timeout`: how long a statement waits for another one's write lock. `FULL`: a committed row survives a power cut, not only
/// a killed process.
const SQLITE_SETTINGS: &str =
    "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON";
/// A statement that hangs, or a client that died in a transaction, must not hold locks for ever.
const POSTGRES_SETTINGS: &str = "SET statement_timeout = '60s'; SET idle_in_transaction_session_timeout = '60s'; \
     SET synchronous_commit = on; SET application_name = 'myriad'";

static DRIVERS: Once = Once::new();

#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("database {url:?}: {reason}")]
    Open { url: String, reason: String },
    #[error("database: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("database: {0}")]
    Copy(String),
    #[error("database migration: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error(
        "a newer myriad has brought this database up to date: it has migration {found:04}, and this myriad knows those up to \
         {known:04}; run the newer one. Migrations go forward only, so the way back is a backup from before"
    )]
    Newer { found: i64, known: i64 },
    #[error(
        "{what} was given up after {seconds} s: it needs a table for an instant and never got it, because of {holders}. Wait until \
         those transactions end, or end them (SELECT pg_terminate_backend(PROCESS)), and start again; what ran before stays"
    )]
    Held { what: String, seconds: u64, holders: String },
}

impl DbError {
    /// Whether the same statement may succeed a little later: the connection broke, the server restarts, somebody holds a lock.
    pub fn is_passing(&self) -> bool {
        let Self::Sql(error) = self else { return false };
        match error {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
            // What a connection says that breaks in the middle of a message.
            sqlx::Error::Protocol(_) => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| is_passing_code(&code)),
            _ => false,
        }
    }

    /// Whether a text was refused that only SQLite would store: one with the character U+0000.
    pub fn is_nul_text(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| code == "22021")
    }
}

/// SQLSTATE classes of PostgreSQL (its manual, appendix A) and result codes of SQLite (https://sqlite.org/rescode.html), of which
/// the low byte is the primary one.
fn is_passing_code(code: &str) -> bool {
    const POSTGRES: [&str; 7] = ["08", "53", "40001", "40P01", "55P03", "57P0", "57014"];
    const SQLITE: [u32; 5] = [5, 6, 10, 13, 14]; // busy, locked, I/O, full, cannot open
    if code.len() == 5 && POSTGRES.iter().any(|class| code.starts_with(class)) {
        return true;
    }
    code.len() != 5 && code.parse::<u32>().is_ok_and(|code| SQLITE.contains(&(code & 0xff)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DbKind {
    Sqlite,
    Postgres,
}

/// What becomes of an SQLite file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Refuse,
}

/// An open database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: sqlx::AnyPool,
    kind: DbKind,
    /// There is one connection, which is the database: in memory.
    single: bool,
}

/// A connection out of the pool's turns.
pub enum DbConnection {
    /// Kept by whoever has it.
    Own(Box<AnyConnection>),
    /// The only one there is: goes back when it is dropped.
    Lent(sqlx::pool::PoolConnection<sqlx::Any>),
}

impl std::ops::Deref for DbConnection {
    type Target = AnyConnection;
    fn deref(&self) -> &AnyConnection {
        match self {
            Self::Own(connection) => connection,
            Self::Lent(connection) => connection,
        }
    }
}

impl std::ops::DerefMut for DbConnection {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        match self {
            Self::Own(connection) => connection,
            Self::Lent(connection) => connection,
        }
    }
}

impl Db {
    /// Opens the database that `url` names, creates it where it may, and brings its tables up to date.
    pub async fn open(url: &str) -> Result<Self, DbError> {
        let db = Self::connect(url, Missing::Create).await?;
        db.migrate().await?;
        Ok(db)
    }

    /// Opens the database that `url` names, where there is one, and leaves its tables as they are.
    pub async fn open_existing(url: &str) -> Result<Self, DbError> {
        Self::connect(url, Missing::Refuse).await
    }

    async fn connect(url: &str, missing: Missing) -> Result<Self, DbError> {
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let failed = |reason: String| DbError::Open { url: without_password(url), reason };
        let kind = kind_of(url).ok_or_else(|| {
            failed("unknown kind of database; use sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE".into())
        })?;
        let memory = url.contains(":memory:");
        let (address, settings) = match kind {
            DbKind::Sqlite if memory || url.contains("mode=") => (url.to_owned(), SQLITE_SETTINGS),
            DbKind::Sqlite => {
                let mode = if missing == Missing::Create { "rwc" } else { "rw" };
                (format!("{url}{}mode={mode}", if url.contains('?') { '&' } else { '?' }), SQLITE_SETTINGS)
            }
            DbKind::Postgres => (url.to_owned(), POSTGRES_SETTINGS),
        };
        if let Some(file) = Self::sqlite_file(url) {
            keep_private(&file, missing).map_err(|e| failed(e.to_string()))?;
        }
        let options = AnyConnectOptions::from_str(&address).map_err(|e| failed(e.to_string()))?;
        let connections = match kind {
            // Each connection to `:memory:` would be a database of its own.
            DbKind::Sqlite if memory => 1,
            DbKind::Sqlite => SQLITE_CONNECTIONS,
            DbKind::Postgres => POSTGRES_CONNECTIONS,
        };
        let pool = AnyPoolOptions::new()
            .max_connections(connections)
            .min_connections(u32::from(memory))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |connection: &mut AnyConnection, _| {
                Box::pin(async move { connection.execute(settings).await.map(drop) })
            })
            // SQLite ends a transaction by itself where the disk is full or cannot be read. The driver then still counts it, and
            // could begin no other on that connection, for ever.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options)
            .await
            .map_err(|e| failed(e.to_string()))?;
        Ok(Self { pool, kind, single: memory })
    }

    /// The URL of an SQLite file; its path may have any characters.
    pub fn sqlite_url(path: &Path) -> String {
        let path = path.to_string_lossy().replace('%', "%25").replace('?', "%3F").replace('#', "%23");
        format!("sqlite:{path}")
    }

    /// The file that an SQLite URL names; none for another kind, and for a database in memory.
    pub fn sqlite_file(url: &str) -> Option<PathBuf> {
        let path = url.strip_prefix("sqlite:").filter(|path| !path.contains(":memory:"))?;
        let path = path.strip_prefix("//").unwrap_or(path).split('?').next().unwrap_or_default();
        let plain = path.replace("%3F", "?").replace("%23", "#").replace("%25", "%");
        Some(PathBuf::from(plain))
    }

    pub fn pool(&self) -> &sqlx::AnyPool {
        &self.pool
    }

    pub fn kind(&self) -> DbKind {
        self.kind
    }

    /// A connection for a task that writes all the time. The pool asks a connection whether it is alive before it lends it, and
    /// SQLite reads its pages again where another connection has written since.
    pub async fn connection(&self) -> Result<DbConnection, sqlx::Error> {
        let connection = self.pool.acquire().await?;
        Ok(if self.single { DbConnection::Lent(connection) } else { DbConnection::Own(Box::new(connection.detach())) })
    }

    /// Begins a transaction that will write.
    pub async fn begin(&self) -> Result<DbTransaction, sqlx::Error> {
        self.pool.begin_with(self.begin_sql()).await
    }

    /// How a transaction that will write begins.
    pub const fn begin_sql(&self) -> &'static str {
        match self.kind {
            // Takes the write lock now: a reader that becomes a writer later can be refused.
            DbKind::Sqlite => "BEGIN IMMEDIATE",
            DbKind::Postgres => "BEGIN",
        }
    }

    /// Begins a transaction that will write to `what`: of those that name the same, one runs at a time. It sees what the one
    /// before has committed.
    pub async fn write(&self, what: &str) -> Result<DbTransaction, sqlx::Error> {
        let mut transaction = self.begin().await?;
        if self.kind == DbKind::Postgres {
            let lock = sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))").bind(what);
            lock.execute(&mut *transaction).await?;
        }
        Ok(transaction)
    }

    /// Begins a transaction that only reads: all its statements see what was committed before its first one.
    pub async fn snapshot(&self) -> Result<DbTransaction, sqlx::Error> {
        match self.kind {
            DbKind::Sqlite => self.pool.begin_with("BEGIN").await,
            DbKind::Postgres => self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await,
        }
    }

    /// The database's own clock in milliseconds since the Unix epoch, as an expression: what several servers compare must not
    /// come from the clock of each.
    pub const fn now_sql(&self) -> &'static str {
        match self.kind {
            DbKind::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
            DbKind::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }

    /// Waits for running statements and closes the connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Statements that change rows and that are run one after the other: by SQLite as one, since each takes a turn of its thread.
/// Parameters are those of [`DbKind::values`].
pub struct Statements {
    kind: DbKind,
    statements: Vec<(String, AnyArguments)>,
}

impl Statements {
    pub const fn new(kind: DbKind) -> Self {
        Self { kind, statements: Vec::new() }
    }

    /// Adds a statement; what is bound from now on is its own.
    pub fn add(&mut self, sql: &str) {
        match self.statements.last_mut() {
            Some((all, _)) if self.kind == DbKind::Sqlite => {
                all.push_str("; ");
                all.push_str(sql);
            }
            _ => self.statements.push((sql.to_owned(), AnyArguments::default())),
        }
    }

    /// The next parameter of the statement that was added last.
    pub fn bind<T: 'static + Send + for<'q> Encode<'q, Any> + Type<Any>>(
        &mut self,
        value: T,
    ) -> Result<(), sqlx::Error> {
        let Some((_, arguments)) = self.statements.last_mut() else { return Ok(()) };
        arguments.add(value).map_err(sqlx::Error::Encode)
    }

    /// Runs them, kept prepared. Returns how many rows they changed, all together.
    pub async fn execute(self, connection: &mut AnyConnection) -> Result<u64, sqlx::Error> {
        let mut changed = 0;
        for (sql, arguments) in self.statements {
            let query = sqlx::query_with(sqlx::AssertSqlSafe(sql), arguments);
            changed += query.execute(&mut *connection).await?.rows_affected();
        }
        Ok(changed)
    }
}

impl DbKind {
    /// Parameters of a statement on many rows: `VALUES ($1, $2), ($3, $4)` for two rows of two columns, bound row by row. In the
    /// result of `FROM (VALUES ...) AS v` both databases name the columns `column1`, `column2`...
    ///
    /// For SQLite they have no numbers, so the statement has no other parameters: it looks numbers up one by one.
    pub fn values(self, rows: usize, columns: usize) -> String {
        let parameter = |number: usize| match self {
            Self::Sqlite => "?".to_owned(),
            Self::Postgres => format!("${number}"),
        };
        let row = |row: usize| {
            let row: Vec<String> = (1..=columns).map(|column| parameter(row * columns + column)).collect();
            format!("({})", row.join(", "))
        };
        format!("VALUES {}", (0..rows).map(row).collect::<Vec<_>>().join(", "))
    }
}

/// The file holds secrets of webhooks and answers that are kept, so it is made for its user only, before SQLite would make it for
/// everyone, and one that every local user may read is closed. SQLite gives its `-wal` and `-shm` the mode of the file.
fn keep_private(file: &Path, missing: Missing) -> std::io::Result<()> {
    if missing == Missing::Create {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    for suffix in ["", "-wal", "-shm"] {
        let mut path = file.as_os_str().to_owned();
        path.push(suffix);
        // It is opened in a moment, which says what is wrong with it.
        let Ok(found) = std::fs::metadata(&path) else { continue };
        // A group may have been let in on purpose.
        if !found.is_file() || found.permissions().mode() & 0o007 == 0 {
            continue;
        }
        match std::fs::set_permissions(&path, Permissions::from_mode(0o600)) {
            Ok(()) => tracing::warn!("every local user could read {}; its mode is 0600 now", path.display()),
            // It is another user's.
            Err(error) => {
                tracing::warn!(%error, "every local user may read {}; its owner should: chmod 600", path.display());
            }
        }
    }
    Ok(())
}

fn kind_of(url: &str) -> Option<DbKind> {
    match url.split_once(':')?.0 {
        "sqlite" => Some(DbKind::Sqlite),
        "postgres" | "postgresql" => Some(DbKind::Postgres),
        _ => None,
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

    #[tokio::test]
    async fn a_path_may_have_characters_that_mean_something_in_a_url() {
        let folder = std::env::temp_dir().join(format!("myriad db #{} 100%? {}", std::process::id(), 1));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a%41 b.sqlite");
        let url = Db::sqlite_url(&path);
        let db = Db::open(&url).await.unwrap();
        db.close().await;
        assert!(path.exists());
        assert_eq!(Db::sqlite_file(&url), Some(path));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[tokio::test]
    async fn only_its_user_may_read_an_sqlite_file_also_one_that_was_there() {
        let folder = std::env::temp_dir().join(format!("myriad modes {}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("myriad.sqlite");
        let url = Db::sqlite_url(&file);
        let modes = || {
            let mode = |suffix: &str| {
                let path = folder.join(format!("myriad.sqlite{suffix}"));
                std::fs::metadata(path).unwrap().permissions().mode() & 0o777
            };
            ["", "-wal", "-shm"].map(mode)
        };
        let open = Db::open(&url).await.unwrap();
        assert_eq!(modes(), [0o600; 3]);
        let loose = |mode| {
            for suffix in ["", "-wal", "-shm"] {
                let path = folder.join(format!("myriad.sqlite{suffix}"));
                std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            }
        };
        for (was, becomes) in [(0o644, 0o600), (0o640, 0o640)] {
            loose(was);
            let again = Db::open_existing(&url).await.unwrap();
            assert_eq!(modes(), [becomes; 3]);
            again.close().await;
        }
        open.close().await;
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn parameters_are_numbered_row_by_row() {
        assert_eq!(DbKind::Postgres.values(2, 3), "VALUES ($1, $2, $3), ($4, $5, $6)");
        assert_eq!(DbKind::Sqlite.values(2, 3), "VALUES (?, ?, ?), (?, ?, ?)");
    }

    #[tokio::test]
    async fn another_kind_of_database_is_refused_with_those_that_are_known() {
        let error = Db::open("mysql://root:secret@h/db").await.unwrap_err().to_string();
        assert!(error.contains("postgres://") && !error.contains("secret"), "{error}");
    }
}
