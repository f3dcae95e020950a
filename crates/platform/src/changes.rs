//! Counters in the database of what servers hold in memory: one that sees another number than before reads it again.

use sqlx::Row;

use crate::{Db, DbTransaction};

pub const KEYS: &str = "keys";
pub const PRICES: &str = "prices";
pub const LIMITS: &str = "limits";

/// Where a counter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// The revision of the last change that marks its rows.
    pub revision: i64,
    /// Changes that mark none, as servers of before make them: who sees another number than before reads everything.
    pub unmarked: i64,
}

/// Tells other servers of a change, in the transaction that makes it.
pub async fn note(transaction: &mut DbTransaction, what: &'static str) -> Result<(), sqlx::Error> {
    let noted = sqlx::query("UPDATE changes SET number = number + 1 WHERE what = $1").bind(what);
    noted.execute(&mut **transaction).await.map(drop)
}

/// Tells other servers of a change whose rows carry the revision that this returns.
///
/// The counter's row is locked until the transaction ends, so revisions become visible in their order: who sees one sees all
/// before it. Ask for it before the rows are changed: all that change them then wait for each other here, and in no circle.
pub async fn revision(transaction: &mut DbTransaction, what: &'static str) -> Result<i64, sqlx::Error> {
    let sql = "UPDATE changes SET number = number + 1, revision = revision + 1 WHERE what = $1 RETURNING revision";
    sqlx::query(sql).bind(what).fetch_one(&mut **transaction).await?.try_get("revision")
}

/// Waits for all that change the rows, and keeps them waiting until the transaction ends, without a change to tell of.
pub async fn lock(transaction: &mut DbTransaction, what: &'static str) -> Result<(), sqlx::Error> {
    let locked = sqlx::query("UPDATE changes SET number = number WHERE what = $1").bind(what);
    locked.execute(&mut **transaction).await.map(drop)
}

/// Read it before the rows: then they are at least as new.
pub async fn counter(db: &Db, what: &'static str) -> Result<Counter, sqlx::Error> {
    let found = sqlx::query("SELECT number, revision FROM changes WHERE what = $1").bind(what);
    let row = found.fetch_one(db.pool()).await?;
    let (number, revision): (i64, i64) = (row.try_get("number")?, row.try_get("revision")?);
    Ok(Counter { revision, unmarked: number - revision })
}
