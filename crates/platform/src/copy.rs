//! Copies what one database holds into another one, of whichever kind.
//!
//! Tables, columns and the order in which rows may be inserted are read from an empty database that the migrations have just made:
//! a table that a later migration adds cannot be forgotten here.

use futures::TryStreamExt;
use sqlx::Row;

use crate::{Db, DbError, DbKind, DbRow, DbTransaction};

/// Rows, parameters and bytes of text of one statement. SQLite takes 32766 parameters, PostgreSQL 65535.
const BATCH_ROWS: usize = 500;
const BATCH_PARAMETERS: usize = 30_000;
const BATCH_BYTES: usize = 4 << 20;

/// A table as the migrations leave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    /// Rows that the migrations have put into it.
    pub seeded: i64,
    columns: Vec<(String, Kind)>,
}

/// What a column holds; migrations use no other types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Real,
    Boolean,
}

#[derive(Debug)]
enum Cell {
    Text(Option<String>),
    Integer(Option<i64>),
    Real(Option<f64>),
    Boolean(Option<bool>),
}

impl Kind {
    fn of(declared: &str) -> Option<Self> {
        match declared.to_ascii_uppercase().as_str() {
            "TEXT" => Some(Self::Text),
            "BIGINT" | "INTEGER" => Some(Self::Integer),
            "DOUBLE PRECISION" | "REAL" => Some(Self::Real),
            "BOOLEAN" => Some(Self::Boolean),
            _ => None,
        }
    }

    fn read(self, row: &DbRow, index: usize) -> Result<Cell, sqlx::Error> {
        Ok(match self {
            Self::Text => Cell::Text(row.try_get(index)?),
            Self::Integer => Cell::Integer(row.try_get(index)?),
            Self::Real => Cell::Real(row.try_get(index)?),
            Self::Boolean => Cell::Boolean(row.try_get::<Option<i64>, _>(index)?.map(|truth| truth != 0)),
        })
    }
}

/// All tables, those first that others refer to.
pub async fn tables() -> Result<Vec<Table>, DbError> {
    let db = Db::open("sqlite::memory:").await?;
    let listed = sqlx::query(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' \
         AND name <> '_sqlx_migrations' ORDER BY name",
    );
    let mut waiting = Vec::new();
    for row in listed.fetch_all(db.pool()).await? {
        let table = table(&db, row.try_get("name")?).await?;
        let refers =
            sqlx::query("SELECT DISTINCT \"table\" AS name FROM pragma_foreign_key_list($1)").bind(&table.name);
        let refers = refers.fetch_all(db.pool()).await?;
        let refers = refers.iter().map(|row| row.try_get("name")).collect::<Result<Vec<String>, _>>()?;
        waiting.push((table, refers));
    }
    db.close().await;
    let mut ordered: Vec<Table> = Vec::new();
    while !waiting.is_empty() {
        let is_there =
            |name: &String, own: &Table| *name == own.name || ordered.iter().any(|table| table.name == *name);
        let free = waiting.iter().position(|(table, refers)| refers.iter().all(|name| is_there(name, table)));
        let free = free.ok_or_else(|| DbError::Copy("the tables refer to each other in a circle".into()))?;
        ordered.push(waiting.remove(free).0);
    }
    Ok(ordered)
}

async fn table(db: &Db, name: String) -> Result<Table, DbError> {
    let described = sqlx::query("SELECT name, type AS declared FROM pragma_table_info($1) ORDER BY cid").bind(&name);
    let mut columns = Vec::new();
    for row in described.fetch_all(db.pool()).await? {
        let (column, declared): (String, String) = (row.try_get("name")?, row.try_get("declared")?);
        let kind = Kind::of(&declared);
        let kind = kind.ok_or_else(|| DbError::Copy(format!("{name}.{column} has the unknown type {declared}")))?;
        columns.push((column, kind));
    }
    let mut transaction = db.begin().await?;
    let table = Table { name, seeded: 0, columns };
    Ok(Table { seeded: table.rows(&mut transaction).await?, ..table })
}

impl Table {
    /// How many rows the table has.
    pub async fn rows(&self, transaction: &mut DbTransaction) -> Result<i64, DbError> {
        let sql = format!("SELECT COUNT(*) AS rows FROM {}", self.name);
        Ok(sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&mut **transaction).await?.try_get("rows")?)
    }

    /// Puts the rows of `from` into the same table of `to`, in place of those of the migrations. `on_rows` is told how many are
    /// through.
    pub async fn copy(
        &self,
        from: &mut DbTransaction,
        to: &mut DbTransaction,
        mut on_rows: impl FnMut(usize),
    ) -> Result<(), DbError> {
        if self.seeded > 0 {
            sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM {}", self.name))).execute(&mut **to).await?;
        }
        let most = BATCH_ROWS.min(BATCH_PARAMETERS / self.columns.len().max(1));
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(self.select())).fetch(&mut **from);
        while let Some(row) = rows.try_next().await? {
            for (index, (_, kind)) in self.columns.iter().enumerate() {
                let cell = kind.read(&row, index)?;
                bytes += if let Cell::Text(Some(text)) = &cell { text.len() } else { 0 };
                batch.push(cell);
            }
            if batch.len() >= most * self.columns.len() || bytes >= BATCH_BYTES {
                on_rows(self.insert(to, &mut batch).await?);
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            on_rows(self.insert(to, &mut batch).await?);
        }
        Ok(())
    }

    fn select(&self) -> String {
        let column = |(name, kind): &(String, Kind)| match kind {
            // What the driver for both databases can carry of a truth value.
            Kind::Boolean => format!("CAST({name} AS INTEGER) AS {name}"),
            _ => name.clone(),
        };
        format!("SELECT {} FROM {}", self.columns.iter().map(column).collect::<Vec<_>>().join(", "), self.name)
    }

    async fn insert(&self, to: &mut DbTransaction, batch: &mut Vec<Cell>) -> Result<usize, DbError> {
        let rows = batch.len() / self.columns.len();
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        // Numbered parameters are understood by both.
        let values = DbKind::Postgres.values(rows, self.columns.len());
        let sql = format!("INSERT INTO {} ({}) {values}", self.name, names.join(", "));
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(rows == BATCH_ROWS);
        for cell in batch.drain(..) {
            query = match cell {
                Cell::Text(text) => query.bind(text),
                Cell::Integer(number) => query.bind(number),
                Cell::Real(number) => query.bind(number),
                Cell::Boolean(truth) => query.bind(truth),
            };
        }
        query.execute(&mut **to).await?;
        Ok(rows)
    }
}

/// Takes off the limit on how long a statement may run: sums over all that was copied may take longer than a request may.
pub async fn be_patient(db: &Db, transaction: &mut DbTransaction) -> Result<(), DbError> {
    if db.kind() == DbKind::Postgres {
        sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut **transaction).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::databases;

    #[tokio::test]
    async fn a_table_comes_after_those_that_it_refers_to() {
        let tables = tables().await.unwrap();
        let at = |name: &str| tables.iter().position(|table| table.name == name).unwrap_or_else(|| panic!("no {name}"));
        for (first, second) in [
            ("accounts", "api_keys"),
            ("prices", "requests"),
            ("adapters", "adapter_versions"),
            ("adapter_versions", "adapter_aliases"),
            ("ledger_transactions", "ledger_entries"),
        ] {
            assert!(at(first) < at(second), "{second} comes before {first}");
        }
        assert!(tables[at("changes")].seeded > 0 && tables[at("accounts")].seeded == 0);
        assert!(!tables.iter().any(|table| table.name.starts_with('_') || table.name.starts_with("sqlite")));
    }

    #[tokio::test]
    async fn every_kind_of_cell_arrives_as_it_was_between_any_two_databases() {
        let (sources, targets) = (databases().await, databases().await);
        for from in &sources {
            fill(from).await;
        }
        for (index, to) in targets.iter().enumerate() {
            // Across the kinds where there are two.
            let from = &sources[sources.len() - 1 - index];
            let (mut reading, mut writing) = (from.snapshot().await.unwrap(), to.begin().await.unwrap());
            let mut through = 0;
            for table in tables().await.unwrap() {
                table.copy(&mut reading, &mut writing, |rows| through += rows).await.unwrap();
                let (left, right) = (table.rows(&mut reading).await.unwrap(), table.rows(&mut writing).await.unwrap());
                assert_eq!(left, right, "{}", table.name);
            }
            assert!(through > 1204);
            writing.commit().await.unwrap();
            let sql = "SELECT name, CAST(SUM(CAST(pinned AS INTEGER)) AS BIGINT) AS pinned, CAST(COUNT(*) AS BIGINT) AS aliases \
                       FROM adapter_aliases GROUP BY name";
            let row = sqlx::query(sql).fetch_one(to.pool()).await.unwrap();
            let shown = (row.get::<String, _>("name"), row.get::<i64, _>("pinned"), row.get::<i64, _>("aliases"));
            assert_eq!(shown, ("it's \"a\" ä 🦀".into(), 1, 2));
            let sql =
                "SELECT COUNT(*) AS requests, COUNT(finished_ms) AS finished, MAX(started_ms) AS latest FROM requests";
            let row = sqlx::query(sql).fetch_one(to.pool()).await.unwrap();
            assert_eq!((row.get::<i64, _>("requests"), row.get::<i64, _>("finished")), (1200, 600));
            assert_eq!(row.get::<i64, _>("latest"), i64::MAX);
        }
    }

    async fn fill(db: &Db) {
        for sql in [
            "INSERT INTO accounts (name, created_ms) VALUES ('acme', 1)",
            "INSERT INTO adapters VALUES ('acme', 'it''s \"a\" ä 🦀', 'base', 1, 2, NULL)",
            "INSERT INTO adapter_versions VALUES ('acme', 'it''s \"a\" ä 🦀', 1, 'd', 1, 1, 1, '{}', NULL, 2)",
            "INSERT INTO adapter_aliases VALUES ('acme', 'it''s \"a\" ä 🦀', 'one', 1, TRUE), \
             ('acme', 'it''s \"a\" ä 🦀', 'two', 1, FALSE)",
            "UPDATE changes SET number = 9 WHERE what = 'keys'",
        ] {
            sqlx::query(sql).execute(db.pool()).await.unwrap();
        }
        for number in 0..1200i64 {
            sqlx::query(
                "INSERT INTO requests (id, account, key_id, endpoint, model, base, started_ms, finished_ms, finish) \
                 VALUES ($1, 'acme', 'k', 'e', 'm', 'b', $2, $3, 'stop')",
            )
            .bind(number.to_string())
            .bind(i64::MAX - number)
            .bind((number % 2 == 0).then_some(number))
            .execute(db.pool())
            .await
            .unwrap();
        }
    }
}
