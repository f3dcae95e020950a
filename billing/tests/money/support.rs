//! What these tests begin with.

use platform::{AccountName, Db};

/// An account that the database has not seen.
pub async fn account(db: &Db, name: &str) -> AccountName {
    let insert = sqlx::query("INSERT INTO accounts (name, created_ms) VALUES ($1, 0)");
    insert.bind(name).execute(db.pool()).await.expect("the account is written");
    name.parse().expect("a name")
}
