//! The audit log: what a change says in it, and how it is read. Its rows are written with the changes: see [`platform::audit`].

use platform::audit::{Actor, Change};
use platform::{AccountName, Db, DbRow};
use serde_json::Value;
use sqlx::Row;

use crate::accounts::Caller;

/// A change of an account's affairs. `by`: whose key asked for it; none: the server itself, or who has its database.
pub fn change<'a>(
    by: impl Into<Option<&'a Caller>>,
    account: &AccountName,
    action: &'static str,
    subject: &str,
    detail: Value,
) -> Change {
    let actor = |by: &Caller| Actor { account: by.account.clone(), key_id: by.key_id.clone() };
    Change { account: account.clone(), by: by.into().map(actor), action, subject: subject.to_owned(), detail }
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

/// The log, as it is read.
#[derive(Debug, Clone)]
pub struct Audit {
    db: Db,
}

impl Audit {
    pub const fn new(db: Db) -> Self {
        Self { db }
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
            "SELECT id, account, actor_account, actor_key, action, subject, detail, created_ms FROM audit_log \
             WHERE ($1 IS NULL OR account = $1) AND ($2 IS NULL OR (created_ms, id) < \
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
