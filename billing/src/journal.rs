//! A request's row: opened before its first byte, marked while it runs, settled once.

use platform::units::now_ms;
use platform::{AccountName, Db, RequestId};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::BillingError;

/// What a request used. The engine's count, never an estimate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantities {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
    Cancelled,
    Error,
}

impl Finish {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
        }
    }
}

/// A request that is about to run.
#[derive(Debug, Clone)]
pub struct NewRequest {
    pub id: RequestId,
    pub account: AccountName,
    pub key_id: String,
    pub endpoint: &'static str,
    /// As the request named it.
    pub model: String,
    pub base: String,
    /// `account/name` and version.
    pub adapter: Option<(String, u32)>,
    /// Of the price in force; none: it is free.
    pub price_version: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    pub id: String,
    pub key_id: String,
    pub endpoint: String,
    pub model: String,
    pub base: String,
    pub adapter: Option<String>,
    pub adapter_version: Option<i64>,
    pub started_ms: i64,
    pub finished_ms: Option<i64>,
    pub quantities: Quantities,
    pub price_version: Option<i64>,
    pub finish: String,
}

/// The journal of requests.
#[derive(Debug, Clone)]
pub struct Journal {
    db: Db,
}

impl Journal {
    /// Opens the journal. What was running when the last process died is closed as `interrupted`, with the counts of its
    /// last mark; returns how many there were.
    pub async fn open(db: Db) -> Result<(Self, u64), BillingError> {
        let closed =
            sqlx::query("UPDATE requests SET finish = 'interrupted', finished_ms = $1 WHERE finish = 'running'")
                .bind(now_ms())
                .execute(db.pool())
                .await?
                .rows_affected();
        Ok((Self { db }, closed))
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    /// Writes the row: durable when this returns.
    pub async fn begin(&self, request: &NewRequest) -> Result<(), BillingError> {
        let (adapter, version) = match &request.adapter {
            Some((adapter, version)) => (Some(adapter.as_str()), Some(i64::from(*version))),
            None => (None, None),
        };
        sqlx::query(
            "INSERT INTO requests (id, account, key_id, endpoint, model, base, adapter, adapter_version, started_ms, price_version, finish) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'running')",
        )
        .bind(request.id.as_str())
        .bind(request.account.as_str())
        .bind(&request.key_id)
        .bind(request.endpoint)
        .bind(&request.model)
        .bind(&request.base)
        .bind(adapter)
        .bind(version)
        .bind(now_ms())
        .bind(request.price_version)
        .execute(self.db.pool())
        .await?;
        Ok(())
    }

    /// Notes what has been delivered so far: what a killed process leaves behind is settled at it.
    pub async fn mark(&self, id: &RequestId, quantities: Quantities) -> Result<(), BillingError> {
        sqlx::query(
            "UPDATE requests SET prompt_tokens = $2, cached_tokens = $3, completion_tokens = $4 \
             WHERE id = $1 AND finish = 'running'",
        )
        .bind(id.as_str())
        .bind(quantities.prompt_tokens as i64)
        .bind(quantities.cached_tokens as i64)
        .bind(quantities.completion_tokens as i64)
        .execute(self.db.pool())
        .await?;
        Ok(())
    }

    /// Closes the row: durable when this returns. True the first time; a repeat changes nothing.
    pub async fn settle(&self, id: &RequestId, quantities: Quantities, finish: Finish) -> Result<bool, BillingError> {
        let settled = sqlx::query(
            "UPDATE requests SET prompt_tokens = $2, cached_tokens = $3, completion_tokens = $4, finish = $5, finished_ms = $6 \
             WHERE id = $1 AND finish = 'running'",
        )
        .bind(id.as_str())
        .bind(quantities.prompt_tokens as i64)
        .bind(quantities.cached_tokens as i64)
        .bind(quantities.completion_tokens as i64)
        .bind(finish.name())
        .bind(now_ms())
        .execute(self.db.pool())
        .await?;
        if settled.rows_affected() == 1 {
            return Ok(true);
        }
        let known = sqlx::query("SELECT 1 FROM requests WHERE id = $1").bind(id.as_str());
        match known.fetch_optional(self.db.pool()).await? {
            Some(_) => Ok(false),
            None => Err(BillingError::Missing(id.clone())),
        }
    }

    /// The account's requests, newest first, after the one with id `after`.
    pub async fn list(
        &self,
        account: &AccountName,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<RequestRow>, BillingError> {
        let rows = sqlx::query(
            "SELECT * FROM requests WHERE account = $1 AND ($2 IS NULL OR (started_ms, id) < \
             (SELECT started_ms, id FROM requests WHERE id = $2 AND account = $1)) \
             ORDER BY started_ms DESC, id DESC LIMIT $3",
        )
        .bind(account.as_str())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(self.db.pool())
        .await?;
        rows.iter().map(row_of).collect()
    }
}

fn row_of(row: &SqliteRow) -> Result<RequestRow, BillingError> {
    let count = |column: &str| row.try_get::<i64, _>(column).map(|count| u64::try_from(count).unwrap_or(0));
    Ok(RequestRow {
        id: row.try_get("id")?,
        key_id: row.try_get("key_id")?,
        endpoint: row.try_get("endpoint")?,
        model: row.try_get("model")?,
        base: row.try_get("base")?,
        adapter: row.try_get("adapter")?,
        adapter_version: row.try_get("adapter_version")?,
        started_ms: row.try_get("started_ms")?,
        finished_ms: row.try_get("finished_ms")?,
        quantities: Quantities {
            prompt_tokens: count("prompt_tokens")?,
            cached_tokens: count("cached_tokens")?,
            completion_tokens: count("completion_tokens")?,
        },
        price_version: row.try_get("price_version")?,
        finish: row.try_get("finish")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn journal(db: &Db) -> (Journal, u64) {
        sqlx::query("INSERT INTO accounts (name, created_ms) VALUES ('acme', 0) ON CONFLICT DO NOTHING")
            .execute(db.pool())
            .await
            .unwrap();
        Journal::open(db.clone()).await.unwrap()
    }

    fn request() -> NewRequest {
        NewRequest {
            id: RequestId::fresh("chatcmpl"),
            account: "acme".parse().unwrap(),
            key_id: "key".into(),
            endpoint: "chat.completions",
            model: "sql@prod".into(),
            base: "mini".into(),
            adapter: Some(("acme/sql".into(), 3)),
            price_version: None,
        }
    }

    const TEN: Quantities = Quantities { prompt_tokens: 5, cached_tokens: 2, completion_tokens: 10 };

    #[tokio::test]
    async fn a_request_is_settled_once_and_what_came_later_changes_nothing() {
        let db = Db::open("sqlite::memory:").await.unwrap();
        let (journal, _) = journal(&db).await;
        let request = request();
        journal.begin(&request).await.unwrap();
        assert!(journal.settle(&request.id, TEN, Finish::Stop).await.unwrap());
        assert!(!journal.settle(&request.id, Quantities::default(), Finish::Error).await.unwrap());
        journal.mark(&request.id, Quantities::default()).await.unwrap();
        let rows = journal.list(&request.account, None, 10).await.unwrap();
        assert_eq!((rows.len(), rows[0].quantities, rows[0].finish.as_str()), (1, TEN, "stop"));
        assert!(journal.settle(&RequestId::fresh("x"), TEN, Finish::Stop).await.is_err());
    }

    #[tokio::test]
    async fn what_ran_when_the_process_died_is_closed_at_its_last_mark() {
        let db = Db::open("sqlite::memory:").await.unwrap();
        let (first, _) = journal(&db).await;
        let request = request();
        first.begin(&request).await.unwrap();
        first.mark(&request.id, TEN).await.unwrap();
        let (second, closed) = journal(&db).await;
        let rows = second.list(&request.account, None, 10).await.unwrap();
        assert_eq!((closed, rows[0].quantities, rows[0].finish.as_str()), (1, TEN, "interrupted"));
    }

    #[tokio::test]
    async fn pages_of_the_list_follow_each_other_without_gap() {
        let db = Db::open("sqlite::memory:").await.unwrap();
        let (journal, _) = journal(&db).await;
        for _ in 0..5 {
            journal.begin(&request()).await.unwrap();
        }
        let account: AccountName = "acme".parse().unwrap();
        let all = journal.list(&account, None, 10).await.unwrap();
        let first = journal.list(&account, None, 2).await.unwrap();
        let rest = journal.list(&account, Some(&first[1].id), 10).await.unwrap();
        assert_eq!([first, rest].concat(), all);
        let other: AccountName = "other".parse().unwrap();
        assert!(journal.list(&other, None, 10).await.unwrap().is_empty());
    }
}
