//! Who changed what. Rows are only ever added, with the change itself where it has a transaction; they hold no secret.

use std::time::{SystemTime, UNIX_EPOCH};

use platform::{AccountName, Db, DbRow, DbTransaction, RequestId};
use serde_json::Value;
use sqlx::Row;

use crate::accounts::Caller;

/// A change.
pub struct Change<'a> {
    /// Whose affair it is.
    pub account: &'a AccountName,
    pub action: &'static str,
    /// What was changed: a key's or a transaction's id, a member's name.
    pub subject: &'a str,
    pub detail: Value,
}

/// A change as it is listed.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    pub id: String,
    pub account: String,
    /// None: the server itself, or who has its database.
    pub actor_account: Option<String>,
    pub actor_key: Option<String>,
    pub action: String,
    pub subject: String,
    pub detail: Value,
    pub created_ms: i64,
}

/// Writes a change down. `by`: whose key asked for it.
pub async fn note(
    transaction: &mut DbTransaction,
    by: Option<&Caller>,
    change: &Change<'_>,
) -> Result<(), sqlx::Error> {
    // Ids sort as the changes came, also within a millisecond.
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
    let id = RequestId::fresh(&format!("audit-{micros:014x}")).to_string();
    sqlx::query(
        "INSERT INTO audit_log (id, account, actor_account, actor_key, action, subject, detail, created_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(id)
    .bind(change.account.as_str())
    .bind(by.map(|caller| caller.account.to_string()))
    .bind(by.map(|caller| caller.key_id.clone()))
    .bind(change.action)
    .bind(change.subject)
    .bind(change.detail.to_string())
    .bind(micros / 1000)
    .execute(&mut **transaction)
    .await
    .map(drop)
}

/// The log, as it is read; and written for changes whose transaction is another crate's.
#[derive(Debug, Clone)]
pub struct Audit {
    db: Db,
}

impl Audit {
    pub const fn new(db: Db) -> Self {
        Self { db }
    }

    /// Writes down what was done just now. Where that fails the change is done all the same, and the answer must not say
    /// otherwise: who repeats a credit for that would give it twice. `by`: whose key asked for it; none: the server itself.
    pub async fn add(&self, by: impl Into<Option<&Caller>>, change: &Change<'_>) {
        if let Err(error) = self.try_add(by.into(), change).await {
            let (account, action, subject, detail) = (change.account, change.action, change.subject, &change.detail);
            tracing::error!(%error, %account, action, subject, %detail, "a change could not be written to the audit log");
        }
    }

    async fn try_add(&self, by: Option<&Caller>, change: &Change<'_>) -> Result<(), sqlx::Error> {
        let mut transaction = self.db.begin().await?;
        note(&mut transaction, by, change).await?;
        transaction.commit().await
    }

    /// Whether there is a change with this id, of one account or of any.
    pub async fn has(&self, account: Option<&str>, id: &str) -> Result<bool, sqlx::Error> {
        let found = sqlx::query("SELECT 1 FROM audit_log WHERE id = $1 AND ($2 IS NULL OR account = $2)");
        Ok(found.bind(id).bind(account).fetch_optional(self.db.pool()).await?.is_some())
    }

    /// Changes of one account, or of all, newest first, after the one with id `after`.
    pub async fn list(
        &self,
        account: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<AuditRow>, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT * FROM audit_log WHERE ($1 IS NULL OR account = $1) AND ($2 IS NULL OR (created_ms, id) < \
             (SELECT created_ms, id FROM audit_log WHERE id = $2)) ORDER BY created_ms DESC, id DESC LIMIT $3",
        )
        .bind(account)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(self.db.pool())
        .await?;
        rows.iter().map(row_of).collect()
    }
}

fn row_of(row: &DbRow) -> Result<AuditRow, sqlx::Error> {
    let detail: String = row.try_get("detail")?;
    Ok(AuditRow {
        id: row.try_get("id")?,
        account: row.try_get("account")?,
        actor_account: row.try_get("actor_account")?,
        actor_key: row.try_get("actor_key")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        detail: serde_json::from_str(&detail).unwrap_or_default(),
        created_ms: row.try_get("created_ms")?,
    })
}
