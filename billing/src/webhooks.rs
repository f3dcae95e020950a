//! Where accounts want to be told of something.

use platform::audit::{Change, Note};
use platform::units::now_ms;
use platform::{AccountName, Db, DbRow, RequestId};
use sqlx::Row;

use crate::BillingError;

/// Most webhooks of one account.
pub const MOST_WEBHOOKS: usize = 20;

#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    pub id: String,
    pub account: AccountName,
    pub url: String,
    /// What is sent is signed with it. Never logged and shown once.
    pub secret: String,
    pub created_ms: i64,
}

#[derive(Debug, Clone)]
pub struct Webhooks {
    db: Db,
}

impl Webhooks {
    pub const fn new(db: Db) -> Self {
        Self { db }
    }

    /// `note`: what the audit log says of it.
    pub async fn add(
        &self,
        account: &AccountName,
        url: &str,
        secret: &str,
        note: &Note<'_, Webhook>,
    ) -> Result<Webhook, BillingError> {
        let mut transaction = self.db.write(&format!("webhooks {account}")).await?;
        let count = sqlx::query("SELECT COUNT(*) AS count FROM webhooks WHERE account = $1").bind(account.as_str());
        if count.fetch_one(&mut *transaction).await?.try_get::<i64, _>("count")? as usize >= MOST_WEBHOOKS {
            return Err(BillingError::TooManyWebhooks);
        }
        let webhook = Webhook {
            id: RequestId::fresh("webhook").to_string(),
            account: account.clone(),
            url: url.to_owned(),
            secret: secret.to_owned(),
            created_ms: now_ms(),
        };
        sqlx::query("INSERT INTO webhooks (id, account, url, secret, created_ms) VALUES ($1, $2, $3, $4, $5)")
            .bind(&webhook.id)
            .bind(account.as_str())
            .bind(url)
            .bind(secret)
            .bind(webhook.created_ms)
            .execute(&mut *transaction)
            .await?;
        note(&webhook).write(&mut transaction).await?;
        transaction.commit().await?;
        Ok(webhook)
    }

    /// An account's webhooks, oldest first.
    pub async fn of(&self, account: &AccountName) -> Result<Vec<Webhook>, BillingError> {
        let rows = sqlx::query(
            "SELECT id, account, url, secret, created_ms FROM webhooks WHERE account = $1 ORDER BY created_ms, id",
        )
        .bind(account.as_str())
        .fetch_all(self.db.pool())
        .await?;
        rows.iter().map(webhook_of).collect()
    }

    /// All accounts' webhooks.
    pub async fn all(&self) -> Result<Vec<Webhook>, BillingError> {
        let rows = sqlx::query("SELECT id, account, url, secret, created_ms FROM webhooks ORDER BY account, id")
            .fetch_all(self.db.pool())
            .await?;
        rows.iter().map(webhook_of).collect()
    }

    pub async fn get(&self, id: &str) -> Result<Option<Webhook>, BillingError> {
        let row = sqlx::query("SELECT id, account, url, secret, created_ms FROM webhooks WHERE id = $1")
            .bind(id)
            .fetch_optional(self.db.pool())
            .await?;
        row.as_ref().map(webhook_of).transpose()
    }

    /// Removes a webhook; what was still to be delivered to it no longer is. False where the account has no such one.
    pub async fn remove(&self, account: &AccountName, id: &str, change: &Change) -> Result<bool, BillingError> {
        let mut transaction = self.db.begin().await?;
        let removed =
            sqlx::query("DELETE FROM webhooks WHERE account = $1 AND id = $2").bind(account.as_str()).bind(id);
        if removed.execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(false);
        }
        let given_up = "UPDATE outbox SET next_ms = NULL, failure = 'the webhook was removed' \
             WHERE kind = 'webhook' AND target = $1 AND next_ms IS NOT NULL";
        sqlx::query(given_up).bind(id).execute(&mut *transaction).await?;
        change.write(&mut transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

fn webhook_of(row: &DbRow) -> Result<Webhook, BillingError> {
    let account: String = row.try_get("account")?;
    Ok(Webhook {
        id: row.try_get("id")?,
        account: account.parse().map_err(|_| sqlx::Error::Decode("the stored account is no name".into()))?,
        url: row.try_get("url")?,
        secret: row.try_get("secret")?,
        created_ms: row.try_get("created_ms")?,
    })
}
