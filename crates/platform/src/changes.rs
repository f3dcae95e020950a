//! Counters in the database of what servers hold in memory: one that sees another number than before reads it again.

use crate::DbTransaction;

pub const KEYS: &str = "keys";
pub const PRICES: &str = "prices";
pub const LIMITS: &str = "limits";

/// Tells other servers of a change, in the transaction that makes it.
pub async fn note(transaction: &mut DbTransaction, what: &'static str) -> Result<(), sqlx::Error> {
    let noted = sqlx::query("UPDATE changes SET number = number + 1 WHERE what = $1").bind(what);
    noted.execute(&mut **transaction).await.map(drop)
}
