//! Migrations of a PostgreSQL database that others use meanwhile.
//!
//! A statement that waits for a table's lock makes all who come after it wait too. So each migration is one short transaction that
//! gives up after [`Patience::lock`] and is tried again after a pause, in which those others get through. Indexes on tables that were
//! there before take no such lock, but cannot be built in a transaction: they are built after it, concurrently. What decides whether
//! that is done is the database's own list of indexes, so that it does not matter where a process died.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use sqlx::migrate::{AppliedMigration, Migrate, Migration};
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor, Row};

use super::statements::{self, About, Index};
use super::{MIGRATIONS, Migrated, TABLE};
use crate::{Db, DbError, DbKind};

/// How long others are held up, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long the statements of a transaction wait for locks, all together.
    pub lock: Duration,
    /// From one attempt to the next.
    pub pause: Duration,
    /// From the first attempt to an error.
    pub most: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { lock: Duration::from_millis(500), pause: Duration::from_secs(2), most: Duration::from_secs(300) }
    }
}

/// What is left for a statement after a slow one, for which nobody had to wait.
const LOCK_LEAST: Duration = Duration::from_millis(50);
/// PostgreSQL stops an autovacuum only for who has waited for `deadlock_timeout`: every so many attempts one waits longer than that.
const LONG_ATTEMPT: u32 = 4;
/// How often it is seen what a statement waits for; shorter than it waits.
const LOOK: Duration = Duration::from_millis(250);
/// From one line of the log to the next.
const LOG: Duration = Duration::from_secs(3);
/// How often the lock of migrations is asked for.
const LOCK_POLL: Duration = Duration::from_millis(200);
/// An index of a large table takes long, and a transaction may wait for many rows, but none of them may stand idle with its locks.
const SETTINGS: &str = "SET statement_timeout = 0; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = '10s'; SET application_name = 'myriad migrate'";

pub async fn migrate(db: &Db, patience: Patience) -> Result<Migrated, DbError> {
    let mut lent = db.pool().acquire().await?;
    let state = State::read(&mut lent).await?;
    drop(lent);
    if state.is_current() {
        return Ok(Migrated::default());
    }
    let mut session = Session::begin(db, patience).await?;
    session.lock().await?;
    session.migrate().await
}

/// What a database has of what it should have.
struct State {
    applied: Vec<AppliedMigration>,
    /// Missing, or left unfinished by whoever built it.
    indexes: Vec<Index>,
}

impl State {
    async fn read(connection: &mut AnyConnection) -> Result<Self, DbError> {
        let applied = super::applied(DbKind::Postgres, connection).await?;
        super::check(&applied)?;
        let mut indexes = super::indexes();
        let valid = "SELECT CAST(c.relname AS TEXT) AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND i.indisvalid";
        for row in sqlx::query(valid).fetch_all(connection).await? {
            let name: String = row.try_get("name")?;
            indexes.retain(|index| index.name != name);
        }
        Ok(Self { applied, indexes })
    }

    fn is_new(&self) -> bool {
        self.applied.is_empty()
    }

    fn is_current(&self) -> bool {
        self.indexes.is_empty() && super::missing(&self.applied).next().is_none()
    }
}

/// A connection of its own, which has the lock of migrations until it closes.
struct Session<'a> {
    db: &'a Db,
    connection: AnyConnection,
    process: i32,
    deadlock_timeout: Duration,
    patience: Patience,
}

impl<'a> Session<'a> {
    async fn begin(db: &'a Db, patience: Patience) -> Result<Self, DbError> {
        let mut connection = db.pool().acquire().await?.detach();
        connection.execute(SETTINGS).await?;
        let known = "SELECT pg_backend_pid() AS process, CAST(setting AS BIGINT) AS deadlock_ms FROM pg_settings \
                     WHERE name = 'deadlock_timeout'";
        let known = sqlx::query(known).fetch_one(&mut connection).await?;
        let deadlock_ms = u64::try_from(known.try_get::<i64, _>("deadlock_ms")?).unwrap_or(0);
        let process = known.try_get("process")?;
        Ok(Self { db, connection, process, deadlock_timeout: Duration::from_millis(deadlock_ms), patience })
    }

    /// One process migrates at a time. Asked for again and again: a statement that waits for it would be one more that the building of
    /// an index waits for. Without an end: whoever has it ends by itself, and may build a large index.
    async fn lock(&mut self) -> Result<(), DbError> {
        let mut waiting = Waiting::new("bringing the database up to date".into());
        waiting.holders = Some("another process, which does so already".into());
        loop {
            let lock = "SELECT CAST(pg_try_advisory_lock(hashtextextended('migrations', 0)) AS INTEGER) AS locked";
            let row = sqlx::query(lock).fetch_one(&mut self.connection).await?;
            if row.try_get::<i32, _>("locked")? == 1 {
                return Ok(());
            }
            waiting.log();
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    async fn migrate(mut self) -> Result<Migrated, DbError> {
        // Again: whoever had the lock before may have done it all.
        let state = State::read(&mut self.connection).await?;
        let mut done =
            Migrated { migrations: super::missing(&state.applied).map(super::name).collect(), ..Migrated::default() };
        if state.is_new() {
            MIGRATIONS.run_direct(None, &mut self.connection, false).await.map_err(super::in_words)?;
        } else {
            for migration in super::missing(&state.applied) {
                self.run(migration).await?;
            }
        }
        for index in State::read(&mut self.connection).await?.indexes {
            self.build(&index).await?;
            done.indexes.push(index.name);
        }
        self.connection.close().await?;
        Ok(done)
    }

    /// Runs a migration but for its indexes on tables that were there before, and notes that it ran.
    async fn run(&mut self, migration: &'static Migration) -> Result<(), DbError> {
        let statements = in_transaction(migration);
        let mut waiting = Waiting::new(format!("migration {}", super::name(migration)));
        let mut attempts = 0;
        loop {
            attempts += 1;
            let longer = if attempts % LONG_ATTEMPT == 0 { self.deadlock_timeout } else { Duration::ZERO };
            let run = transaction(&mut self.connection, migration, &statements, self.patience.lock + longer);
            match watched(self.db, self.process, &mut waiting, run).await {
                Err(error) if is_about_locks(&error) => self.pause(&waiting).await?,
                done => return done,
            }
        }
    }

    /// Builds an index, in place of what is left of it if its building was broken off. Waits without an end for transactions that have
    /// begun before: nobody waits for it.
    async fn build(&mut self, index: &Index) -> Result<(), DbError> {
        let mut waiting = Waiting::new(format!("index {} on {}", index.name, index.table));
        loop {
            let build = concurrently(&mut self.connection, index);
            match watched(self.db, self.process, &mut waiting, build).await {
                // Two who wait for each other's transactions.
                Err(error) if is_about_locks(&error) => self.pause(&waiting).await?,
                done => return done,
            }
        }
    }

    async fn pause(&self, waiting: &Waiting) -> Result<(), DbError> {
        let waited = waiting.since.elapsed();
        if waited >= self.patience.most {
            let holders = waiting.holders.clone().unwrap_or_else(|| "others, one after the other".into());
            return Err(DbError::Held { what: waiting.what.clone(), seconds: waited.as_secs(), holders });
        }
        tokio::time::sleep(self.patience.pause).await;
        Ok(())
    }
}

/// The statements of a migration but for those that build an index on a table that it has not made itself.
fn in_transaction(migration: &Migration) -> Vec<String> {
    let mut made = Vec::new();
    let mut statements = statements::split(migration.sql.as_str());
    statements.retain(|statement| match statements::about(statement) {
        About::CreateTable(table) => {
            made.push(table);
            true
        }
        About::CreateIndex(index) => made.contains(&index.table),
        _ => true,
    });
    statements
}

async fn transaction(
    connection: &mut AnyConnection,
    migration: &Migration,
    statements: &[String],
    lock: Duration,
) -> Result<(), DbError> {
    let begun = Instant::now();
    let mut transaction = connection.begin().await?;
    for statement in statements {
        let left = lock.saturating_sub(begun.elapsed()).max(LOCK_LEAST).as_millis();
        transaction.execute(AssertSqlSafe(format!("SET LOCAL lock_timeout = {left}"))).await?;
        transaction.execute(AssertSqlSafe(statement.clone())).await?;
    }
    transaction.skip(TABLE, migration).await.map_err(super::in_words)?;
    Ok(transaction.commit().await?)
}

async fn concurrently(connection: &mut AnyConnection, index: &Index) -> Result<(), DbError> {
    connection.execute(AssertSqlSafe(format!("DROP INDEX CONCURRENTLY IF EXISTS {}", index.name))).await?;
    connection.execute(AssertSqlSafe(index.concurrently())).await?;
    Ok(())
}

/// `lock_not_available`, `deadlock_detected`.
fn is_about_locks(error: &DbError) -> bool {
    let DbError::Sql(sqlx::Error::Database(error)) = error else { return false };
    error.code().is_some_and(|code| code == "55P03" || code == "40P01")
}

/// What is waited for, and since when.
struct Waiting {
    what: String,
    since: Instant,
    logged: Instant,
    /// Who had what was waited for, when it was last seen.
    holders: Option<String>,
}

impl Waiting {
    fn new(what: String) -> Self {
        let now = Instant::now();
        Self { what, since: now, logged: now, holders: None }
    }

    fn log(&mut self) {
        if self.logged.elapsed() < LOG {
            return;
        }
        self.logged = Instant::now();
        let seconds = self.since.elapsed().as_secs();
        match &self.holders {
            Some(holders) => tracing::warn!("{} has taken {seconds} s and waits for {holders}", self.what),
            None => tracing::warn!("{} has taken {seconds} s and goes on", self.what),
        }
    }
}

/// Does `work` on the connection of `process`, and sees meanwhile what it waits for.
async fn watched<T>(db: &Db, process: i32, waiting: &mut Waiting, work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        never = watch(db, process, waiting) => match never {},
    }
}

async fn watch(db: &Db, process: i32, waiting: &mut Waiting) -> Infallible {
    let holders = "SELECT string_agg(CAST(b.pid AS TEXT) || COALESCE(' (' || NULLIF(a.application_name, '') || ')', '') \
         || COALESCE(', in a transaction for ' || FLOOR(EXTRACT(EPOCH FROM clock_timestamp() - a.xact_start)) || ' s', ''), '; ') \
         AS holders FROM unnest(pg_blocking_pids($1)) AS b (pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid";
    loop {
        tokio::time::sleep(LOOK).await;
        let seen = sqlx::query(holders).bind(process).fetch_one(db.pool()).await;
        // Whatever fails here fails for the statement itself as well.
        let seen = seen.and_then(|row| row.try_get::<Option<String>, _>("holders")).unwrap_or_default();
        waiting.holders = seen.map(|seen| format!("PostgreSQL's process {seen}"));
        waiting.log();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PostgreSQL database in which the migrations up to a number have run.
    async fn older(version: i64) -> Option<Db> {
        let db = Db::open_existing(&crate::testing::postgres().await?).await.unwrap();
        MIGRATIONS.run_to(version, db.pool()).await.unwrap();
        Some(db)
    }

    /// Every column, index and constraint, and what each is.
    async fn schema(db: &Db) -> Vec<String> {
        let all = "SELECT CONCAT_WS(' ', table_name, ordinal_position, column_name, data_type, is_nullable, column_default) AS what \
                   FROM information_schema.columns WHERE table_schema = current_schema() \
                   UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() \
                   UNION ALL SELECT CONCAT_WS(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint \
                   WHERE connamespace = to_regnamespace(current_schema()) ORDER BY 1";
        let rows = sqlx::query(all).fetch_all(db.pool()).await.unwrap();
        rows.iter().map(|row| row.try_get("what").unwrap()).collect()
    }

    #[tokio::test]
    async fn an_older_database_becomes_what_a_new_one_is() {
        let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap();
        let Some(new) = older(newest).await else { return };
        let expected = schema(&new).await;
        assert_eq!(new.migrate().await.unwrap(), Migrated::default());
        for version in [1, 5, 9, newest - 1] {
            let db = older(version).await.unwrap();
            db.pool().execute("INSERT INTO accounts (name, created_ms) VALUES ('acme', 1)").await.unwrap();
            let pending = db.pending().await.unwrap();
            let done = db.migrate().await.unwrap();
            assert_eq!((done.migrations, schema(&db).await), (pending, expected.clone()), "from {version}");
            assert_eq!(db.migrate().await.unwrap(), Migrated::default(), "from {version}");
            db.close().await;
        }
        new.close().await;
    }

    #[tokio::test]
    async fn processes_that_start_together_migrate_once() {
        let Some(db) = older(9).await else { return };
        let (one, two, three) = tokio::join!(db.migrate(), db.migrate(), db.migrate());
        let mut built: Vec<String> = [one, two, three].into_iter().flat_map(|done| done.unwrap().indexes).collect();
        built.sort();
        assert!(
            built.contains(&"requests_by_finish".to_owned()) && built.is_sorted_by(|one, next| one < next),
            "{built:?}"
        );
        db.close().await;
    }

    #[tokio::test]
    async fn who_never_gets_a_lock_is_told_who_has_it() {
        let Some(db) = older(5).await else { return };
        let mut holder = db.begin().await.unwrap();
        holder
            .execute("SET LOCAL application_name = 'a backup'; LOCK TABLE accounts IN ACCESS SHARE MODE")
            .await
            .unwrap();
        let patience = Patience { pause: Duration::ZERO, most: Duration::ZERO, ..Patience::default() };
        let error = migrate(&db, patience).await.unwrap_err();
        assert!(matches!(&error, DbError::Held { what, .. } if what == "migration 0006 ledger"), "{error}");
        assert!(error.to_string().contains("(a backup), in a transaction for 0 s"), "{error}");
        holder.rollback().await.unwrap();
        assert!(db.migrate().await.unwrap().migrations.contains(&"0006 ledger".to_owned()));
        db.close().await;
    }
}
