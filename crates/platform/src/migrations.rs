//! Brings a database up to date: `migrations/`, in the order of their numbers, each once.
//!
//! SQLite's run as sqlx runs them. PostgreSQL's run so on an empty database; on one that may be in use `live` runs them.

mod live;
mod statements;

use sqlx::AnyConnection;
use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migration, Migrator};

use crate::{Db, DbError, DbKind};
use statements::{About, Index};

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");
/// Where it stands which of them ran: sqlx's own table.
const TABLE: &str = "_sqlx_migrations";

/// What was done to bring a database up to date.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Names of the migrations that ran.
    pub migrations: Vec<String>,
    /// Names of the indexes that were built on tables in use.
    pub indexes: Vec<String>,
}

impl Db {
    /// Brings the tables up to date.
    pub async fn migrate(&self) -> Result<Migrated, DbError> {
        match self.kind() {
            DbKind::Sqlite => {
                let migrations = self.pending().await?;
                MIGRATIONS.run(self.pool()).await.map_err(in_words)?;
                Ok(Migrated { migrations, indexes: Vec::new() })
            }
            DbKind::Postgres => live::migrate(self, live::Patience::default()).await,
        }
    }

    /// Names of the migrations that have not run yet.
    pub async fn pending(&self) -> Result<Vec<String>, DbError> {
        let mut connection = self.pool().acquire().await?;
        let applied = applied(self.kind(), &mut connection).await?;
        Ok(missing(&applied).map(name).collect())
    }
}

fn name(migration: &Migration) -> String {
    format!("{:04} {}", migration.version, migration.description)
}

/// The migrations that ran; none on an empty database.
async fn applied(kind: DbKind, connection: &mut AnyConnection) -> Result<Vec<AppliedMigration>, DbError> {
    let table = match kind {
        DbKind::Sqlite => "SELECT 1 FROM sqlite_master WHERE name = $1",
        DbKind::Postgres => {
            "SELECT 1 FROM information_schema.tables WHERE table_name = $1 AND table_schema = current_schema()"
        }
    };
    if sqlx::query(table).bind(TABLE).fetch_optional(&mut *connection).await?.is_none() {
        return Ok(Vec::new());
    }
    connection.list_applied_migrations(TABLE).await.map_err(in_words)
}

fn missing(applied: &[AppliedMigration]) -> impl Iterator<Item = &'static Migration> {
    MIGRATIONS.iter().filter(|migration| !applied.iter().any(|ran| ran.version == migration.version))
}

/// Refuses a database whose migrations are not those of this binary, as sqlx does.
fn check(applied: &[AppliedMigration]) -> Result<(), DbError> {
    for ran in applied {
        let known = MIGRATIONS.iter().find(|migration| migration.version == ran.version);
        match known {
            None => return Err(in_words(MigrateError::VersionMissing(ran.version))),
            Some(known) if known.checksum != ran.checksum => {
                return Err(in_words(MigrateError::VersionMismatch(ran.version)));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn in_words(error: MigrateError) -> DbError {
    match error {
        MigrateError::VersionMissing(found) => {
            DbError::Newer { found, known: MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0) }
        }
        other => DbError::Migrate(other),
    }
}

/// The indexes that a database has which is up to date, but for those of primary keys and other constraints.
fn indexes() -> Vec<Index> {
    let mut indexes: Vec<Index> = Vec::new();
    for statement in MIGRATIONS.iter().flat_map(|migration| statements::split(migration.sql.as_str())) {
        match statements::about(&statement) {
            About::CreateIndex(index) => indexes.push(index),
            About::DropIndex(name) => indexes.retain(|index| index.name != name),
            About::DropTable(name) => indexes.retain(|index| index.table != name),
            About::CreateTable(_) | About::Other => {}
        }
    }
    indexes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_migration_has_a_number_of_its_own() {
        let versions: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert!(versions.is_sorted_by(|one, next| one < next), "{versions:?}");
    }

    /// `live` does not run what is not here: who needs more teaches it.
    #[test]
    fn each_statement_of_a_migration_is_one_that_a_live_database_takes() {
        for migration in MIGRATIONS.iter() {
            assert!(!migration.no_tx, "{} asks for no transaction, which only sqlx's own way heeds", name(migration));
            for statement in statements::split(migration.sql.as_str()) {
                let plain =
                    ["ALTER TABLE", "INSERT INTO", "UPDATE", "DELETE FROM", "DROP INDEX IF EXISTS", "DROP TABLE"];
                let known = match statements::about(&statement) {
                    About::CreateIndex(_) | About::CreateTable(_) => true,
                    _ => plain.iter().any(|start| statement.starts_with(start)) && !statement.contains(" RENAME "),
                };
                assert!(known, "{}: {statement}", name(migration));
            }
        }
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused_in_words() {
        for db in crate::testing::databases().await {
            let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                         SELECT 9999, 'later', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1";
            sqlx::query(newer).execute(db.pool()).await.unwrap();
            let error = db.migrate().await.unwrap_err().to_string();
            assert!(error.contains("newer myriad") && error.contains("9999"), "{error}");
            db.close().await;
        }
    }
}
