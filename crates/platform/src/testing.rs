//! Databases for tests: every store is tested on each kind.

use serde_json::json;

use crate::Db;
use crate::audit::Change;

/// Address of a PostgreSQL server on which the tests may make databases: `postgres://USER:PASSWORD@HOST:PORT`.
pub const POSTGRES: &str = "MYRIAD_TEST_POSTGRES";

/// An empty SQLite database, and an empty PostgreSQL one where there is a server for it.
pub async fn databases() -> Vec<Db> {
    let mut databases = vec![Db::open("sqlite::memory:").await.expect("an SQLite database in memory opens")];
    if let Some(url) = postgres().await {
        databases.push(Db::open(&url).await.expect("the new PostgreSQL database opens"));
    }
    databases
}

/// URL of a PostgreSQL database that was made just now.
pub async fn postgres() -> Option<String> {
    let server = std::env::var(POSTGRES).ok()?;
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).expect("the operating system has randomness");
    let name = format!("test_{}", u64::from_le_bytes(random));
    sqlx::any::install_default_drivers();
    let pool = sqlx::AnyPool::connect(&format!("{server}/postgres")).await.expect("the PostgreSQL server answers");
    let create = format!("CREATE DATABASE {name} TEMPLATE template0");
    sqlx::query(sqlx::AssertSqlSafe(create)).execute(&pool).await.expect("the tests may make databases");
    pool.close().await;
    Some(format!("{server}/{name}"))
}

/// What tests write down where it does not matter what it is.
pub fn change() -> Change {
    let account = "acme".parse().expect("a name");
    Change { account, by: None, action: "test", subject: "it".into(), detail: json!({}) }
}

/// The same, of anything.
pub fn noted<T>(_: &T) -> Change {
    change()
}
