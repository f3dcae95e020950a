//! Who changed what. A row is written in the transaction of its change: neither is ever there without the other, whatever is killed in
//! between. Rows are only ever added; they hold no secret.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::{AccountName, DbTransaction, RequestId};

/// Whose key asked for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    pub account: AccountName,
    pub key_id: String,
}

/// A change, as it is written down.
#[derive(Debug, Clone)]
pub struct Change {
    /// Whose affair it is.
    pub account: AccountName,
    /// None: the server itself, or who has its database.
    pub by: Option<Actor>,
    pub action: &'static str,
    /// What was changed: a key's or a transaction's id, a member's name.
    pub subject: String,
    pub detail: Value,
}

/// What is written down of a change of which only its transaction knows what became of it.
pub type Note<'a, T> = dyn Fn(&T) -> Change + Send + Sync + 'a;

impl Change {
    /// Writes it down, in the transaction that makes it.
    pub async fn write(&self, transaction: &mut DbTransaction) -> Result<(), sqlx::Error> {
        // Ids sort as the changes came, also within a millisecond.
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        let id = RequestId::fresh(&format!("audit-{micros:014x}")).to_string();
        sqlx::query(
            "INSERT INTO audit_log (id, account, actor_account, actor_key, action, subject, detail, created_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(id)
        .bind(self.account.as_str())
        .bind(self.by.as_ref().map(|actor| actor.account.to_string()))
        .bind(self.by.as_ref().map(|actor| actor.key_id.clone()))
        .bind(self.action)
        .bind(&self.subject)
        .bind(self.detail.to_string())
        .bind(micros / 1000)
        .execute(&mut **transaction)
        .await
        .map(drop)
    }
}
