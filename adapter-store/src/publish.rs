//! Writing: an upload becomes a version, an alias is moved.
//!
//! Blobs come first and rows last, in one transaction: whatever stops in between leaves nothing that can be seen.

use platform::audit::{Change, Note};
use platform::units::now_ms;
use platform::{AccountName, AdapterName, DbTransaction, Digest};
use sqlx::Row;

use crate::StoreError;
use crate::reference::{DEFAULT_ALIAS, check_alias};
use crate::store::{AdapterStore, Canary, Checked, Report};
use crate::versions::{Version, file_key, number};

impl AdapterStore {
    /// Stores an upload and gives it a version: durable when this returns. The same adapter again is the same version, with the
    /// files that it came with first. `note`: what the audit log says of it under its number, where that or its alias is new.
    pub async fn publish(
        &self,
        checked: &Checked,
        canary: Option<Canary>,
        alias: Option<&str>,
        note: Box<Note<'static, u32>>,
    ) -> Result<Version, StoreError> {
        alias.map(check_alias).transpose()?;
        let (store, alias) = (self.clone(), alias.map(str::to_owned));
        let checked = Checked { report: Report { canary, ..checked.report.clone() }, ..checked.clone() };
        let digest = checked.digest;
        // On a task of its own: a caller who goes away must not leave half of it.
        let written = tokio::spawn(async move { store.write(&checked, alias.as_deref(), &note).await });
        written.await.map_err(|e| StoreError::Unreadable(digest, e.to_string()))?
    }

    async fn write(&self, checked: &Checked, alias: Option<&str>, note: &Note<'_, u32>) -> Result<Version, StoreError> {
        let files: Vec<Digest> = checked.files.iter().map(|(_, digest)| *digest).collect();
        let held = self.locks.hold(files.iter().copied().chain([checked.digest])).await;
        let written = match self.write_blobs(checked).await {
            Ok(()) => self.write_rows(checked, alias, note).await,
            Err(error) => Err(error),
        };
        drop(held);
        // What no version needs in the end: all of it where writing failed, and new files beside weights that were known.
        if let Err(error) = self.collect(&[checked.digest], &files).await {
            tracing::warn!(%error, "blobs that no adapter needs could not be removed");
        }
        let version = self.version(&checked.account, &checked.name, written?).await?;
        self.images().insert(checked.image.clone());
        Ok(version)
    }

    async fn write_blobs(&self, checked: &Checked) -> Result<(), StoreError> {
        for (file, digest) in &checked.files {
            self.blobs.put(&file_key(*digest), file.bytes.clone()).await?;
        }
        self.store_image(&checked.image).await
    }

    async fn write_rows(
        &self,
        checked: &Checked,
        alias: Option<&str>,
        note: &Note<'_, u32>,
    ) -> Result<u32, StoreError> {
        let name = (checked.account.as_str(), checked.name.as_str());
        let mut transaction = self.db.write(&lock_name(name)).await?;
        claim_name(&mut transaction, checked).await?;
        let known = known_version(&mut transaction, checked).await?;
        let version = match known {
            Some(version) => version,
            None => add_version(&mut transaction, checked).await?,
        };
        follow_newest(&mut transaction, name).await?;
        let moved = match alias {
            Some(alias) => point(&mut transaction, name, alias, version).await?,
            None => false,
        };
        if known.is_none() || moved {
            note(&version).write(&mut transaction).await?;
        }
        transaction.commit().await?;
        Ok(version)
    }

    /// Points an alias at a version, where it stays: also `default` no longer follows the newest.
    pub async fn set_alias(
        &self,
        account: &AccountName,
        name: &AdapterName,
        alias: &str,
        version: u32,
        change: &Change,
    ) -> Result<Version, StoreError> {
        check_alias(alias)?;
        let found = self.version(account, name, version).await?;
        point_in(self, (account.as_str(), name.as_str()), alias, version, change).await.map_err(
            |error| match error {
                // The version was deleted in between.
                StoreError::Db(platform::DbError::Sql(sqlx::Error::Database(e))) if e.is_foreign_key_violation() => {
                    crate::versions::missing_version(account, name, version)
                }
                error => error,
            },
        )?;
        Ok(found)
    }
}

async fn point_in(
    store: &AdapterStore,
    name: (&str, &str),
    alias: &str,
    version: u32,
    change: &Change,
) -> Result<(), StoreError> {
    let mut transaction = store.db.write(&lock_name(name)).await?;
    if point(&mut transaction, name, alias, version).await? {
        change.write(&mut transaction).await?;
    }
    Ok(transaction.commit().await?)
}

/// What a transaction names that changes an adapter's rows: such run one after the other.
pub fn lock_name((account, name): (&str, &str)) -> String {
    format!("adapter {account}/{name}")
}

/// The name is the adapter's as long as it exists, and so is its base.
async fn claim_name(transaction: &mut DbTransaction, checked: &Checked) -> Result<(), StoreError> {
    let (account, name) = (checked.account.as_str(), checked.name.as_str());
    sqlx::query(
        "INSERT INTO adapters (account, name, base, last_version, created_ms) VALUES ($1, $2, $3, 0, $4) \
         ON CONFLICT (account, name) DO UPDATE \
         SET base = excluded.base, created_ms = excluded.created_ms, deleted_ms = NULL WHERE adapters.deleted_ms IS NOT NULL",
    )
    .bind(account)
    .bind(name)
    .bind(&checked.base)
    .bind(now_ms())
    .execute(&mut **transaction)
    .await?;
    let was: String = sqlx::query("SELECT base FROM adapters WHERE account = $1 AND name = $2")
        .bind(account)
        .bind(name)
        .fetch_one(&mut **transaction)
        .await?
        .try_get("base")?;
    if was == checked.base {
        return Ok(());
    }
    Err(StoreError::OtherBase { account: account.into(), name: name.into(), was, base: checked.base.clone() })
}

async fn known_version(transaction: &mut DbTransaction, checked: &Checked) -> Result<Option<u32>, StoreError> {
    let known = sqlx::query("SELECT version FROM adapter_versions WHERE account = $1 AND name = $2 AND digest = $3")
        .bind(checked.account.as_str())
        .bind(checked.name.as_str())
        .bind(checked.digest.to_string())
        .fetch_optional(&mut **transaction)
        .await?;
    known.map(|row| number(&row, "version")).transpose()
}

async fn add_version(transaction: &mut DbTransaction, checked: &Checked) -> Result<u32, StoreError> {
    let (account, name, report) = (checked.account.as_str(), checked.name.as_str(), &checked.report);
    let row = sqlx::query(
        "UPDATE adapters SET last_version = last_version + 1 WHERE account = $1 AND name = $2 \
         RETURNING last_version AS version",
    )
    .bind(account)
    .bind(name)
    .fetch_one(&mut **transaction)
    .await?;
    let version = number(&row, "version")?;
    sqlx::query(
        "INSERT INTO adapter_versions \
         (account, name, version, digest, bytes, rank, tensors, report, chat_template, created_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(account)
    .bind(name)
    .bind(i64::from(version))
    .bind(checked.digest.to_string())
    .bind(report.bytes as i64)
    .bind(report.rank as i64)
    .bind(report.tensors as i64)
    .bind(serde_json::to_string(report).expect("a report is plain data"))
    .bind(&checked.chat_template)
    .bind(now_ms())
    .execute(&mut **transaction)
    .await?;
    for (file, digest) in &checked.files {
        sqlx::query(
            "INSERT INTO adapter_files (account, name, version, file, digest, bytes) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(account)
        .bind(name)
        .bind(i64::from(version))
        .bind(&file.name)
        .bind(digest.to_string())
        .bind(file.bytes.len() as i64)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(version)
}

/// Points `default` at the newest version, unless it is pinned.
pub async fn follow_newest(transaction: &mut DbTransaction, (account, name): (&str, &str)) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO adapter_aliases (account, name, alias, version, pinned) \
         SELECT account, name, $3, MAX(version), FALSE FROM adapter_versions \
         WHERE account = $1 AND name = $2 GROUP BY account, name \
         ON CONFLICT (account, name, alias) DO UPDATE SET version = excluded.version WHERE NOT adapter_aliases.pinned",
    )
    .bind(account)
    .bind(name)
    .bind(DEFAULT_ALIAS)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// False where the alias is there already.
async fn point(
    transaction: &mut DbTransaction,
    (account, name): (&str, &str),
    alias: &str,
    version: u32,
) -> Result<bool, StoreError> {
    let pointed = sqlx::query(
        "INSERT INTO adapter_aliases (account, name, alias, version, pinned) VALUES ($1, $2, $3, $4, TRUE) \
         ON CONFLICT (account, name, alias) DO UPDATE SET version = excluded.version, pinned = TRUE \
         WHERE adapter_aliases.version <> excluded.version OR NOT adapter_aliases.pinned",
    )
    .bind(account)
    .bind(name)
    .bind(alias)
    .bind(i64::from(version));
    Ok(pointed.execute(&mut **transaction).await?.rows_affected() > 0)
}
