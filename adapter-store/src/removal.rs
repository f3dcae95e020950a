//! Deleting: rows first, then the blobs that no row leads to any more.

use std::collections::BTreeSet;

use platform::audit::Change;
use platform::units::now_ms;
use platform::{AccountName, AdapterName, DbTransaction, Digest};
use sqlx::Row;

use crate::StoreError;
use crate::publish::{follow_newest, lock_name};
use crate::reference::{DEFAULT_ALIAS, check_alias};
use crate::store::AdapterStore;
use crate::versions::{digest_of, file_key, missing, missing_version};

/// What deleted rows led to.
#[derive(Default)]
struct Deleted {
    digests: Vec<Digest>,
    files: Vec<Digest>,
}

impl AdapterStore {
    /// Removes an adapter with all its versions. Returns the digests that no adapter has any more.
    ///
    /// Its row stays, so that a number once given never means another version in someone's records.
    pub async fn delete(
        &self,
        account: &AccountName,
        name: &AdapterName,
        change: &Change,
    ) -> Result<Vec<Digest>, StoreError> {
        let mut transaction = self.db.write(&lock_name((account.as_str(), name.as_str()))).await?;
        let deleted = Deleted::of(&mut transaction, (account, name), None).await?;
        if deleted.digests.is_empty() {
            return Err(missing(account, name));
        }
        sqlx::query("DELETE FROM adapter_versions WHERE account = $1 AND name = $2")
            .bind(account.as_str())
            .bind(name.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE adapters SET deleted_ms = $3 WHERE account = $1 AND name = $2")
            .bind(account.as_str())
            .bind(name.as_str())
            .bind(now_ms())
            .execute(&mut *transaction)
            .await?;
        change.write(&mut transaction).await?;
        transaction.commit().await?;
        self.collect(&deleted.digests, &deleted.files).await
    }

    /// Removes one version; not the only one, and not while someone's alias leads to it. A `default` that follows the newest
    /// version goes on to the one before.
    pub async fn delete_version(
        &self,
        account: &AccountName,
        name: &AdapterName,
        version: u32,
        change: &Change,
    ) -> Result<Vec<Digest>, StoreError> {
        let mut transaction = self.db.write(&lock_name((account.as_str(), name.as_str()))).await?;
        let deleted = Deleted::of(&mut transaction, (account, name), Some(version)).await?;
        if deleted.digests.is_empty() {
            return Err(missing_version(account, name, version));
        }
        refuse_in_use(&mut transaction, (account, name), version).await?;
        sqlx::query("DELETE FROM adapter_versions WHERE account = $1 AND name = $2 AND version = $3")
            .bind(account.as_str())
            .bind(name.as_str())
            .bind(i64::from(version))
            .execute(&mut *transaction)
            .await?;
        follow_newest(&mut transaction, (account.as_str(), name.as_str())).await?;
        change.write(&mut transaction).await?;
        transaction.commit().await?;
        self.collect(&deleted.digests, &deleted.files).await
    }

    /// Removes an alias. Removing `default` unpins it: it follows the newest version again.
    pub async fn remove_alias(
        &self,
        account: &AccountName,
        name: &AdapterName,
        alias: &str,
        change: &Change,
    ) -> Result<(), StoreError> {
        check_alias(alias)?;
        let mut transaction = self.db.write(&lock_name((account.as_str(), name.as_str()))).await?;
        let removed = sqlx::query("DELETE FROM adapter_aliases WHERE account = $1 AND name = $2 AND alias = $3")
            .bind(account.as_str())
            .bind(name.as_str())
            .bind(alias)
            .execute(&mut *transaction)
            .await?;
        if removed.rows_affected() == 0 {
            let (account, name) = (account.to_string(), name.to_string());
            return Err(StoreError::MissingAlias { account, name, alias: alias.to_owned() });
        }
        follow_newest(&mut transaction, (account.as_str(), name.as_str())).await?;
        change.write(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Removes, of these adapters and files, what no version has. Returns the adapters that are gone.
    pub(crate) async fn collect(&self, digests: &[Digest], files: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        for &file in files.iter().collect::<BTreeSet<_>>() {
            let _held = self.locks.hold([file]).await;
            if !self.is_used("SELECT 1 FROM adapter_files WHERE digest = $1 LIMIT 1", file).await? {
                self.blobs.delete(&file_key(file)).await?;
            }
        }
        let mut gone = Vec::new();
        for &digest in digests.iter().collect::<BTreeSet<_>>() {
            let _held = self.locks.hold([digest]).await;
            if !self.is_used("SELECT 1 FROM adapter_versions WHERE digest = $1 LIMIT 1", digest).await? {
                self.remove_images(digest).await?;
                gone.push(digest);
            }
        }
        Ok(gone)
    }

    async fn is_used(&self, sql: &'static str, digest: Digest) -> Result<bool, StoreError> {
        let row = sqlx::query(sql).bind(digest.to_string()).fetch_optional(self.db.pool()).await?;
        Ok(row.is_some())
    }
}

impl Deleted {
    /// What an adapter's rows lead to, all of them or those of one version.
    async fn of(
        transaction: &mut DbTransaction,
        (account, name): (&AccountName, &AdapterName),
        version: Option<u32>,
    ) -> Result<Self, StoreError> {
        let mut deleted = Self::default();
        let tables = [
            (
                "SELECT digest FROM adapter_versions WHERE account = $1 AND name = $2 AND ($3 IS NULL OR version = $3)",
                &mut deleted.digests,
            ),
            (
                "SELECT digest FROM adapter_files WHERE account = $1 AND name = $2 AND ($3 IS NULL OR version = $3)",
                &mut deleted.files,
            ),
        ];
        for (sql, found) in tables {
            let query = sqlx::query(sql).bind(account.as_str()).bind(name.as_str()).bind(version.map(i64::from));
            let rows = query.fetch_all(&mut **transaction).await?;
            *found = rows.iter().map(digest_of).collect::<Result<_, _>>()?;
        }
        Ok(deleted)
    }
}

async fn refuse_in_use(
    transaction: &mut DbTransaction,
    (account, name): (&AccountName, &AdapterName),
    version: u32,
) -> Result<(), StoreError> {
    let leading = sqlx::query(
        "SELECT alias FROM adapter_aliases WHERE account = $1 AND name = $2 AND version = $3 \
         AND (pinned OR alias <> $4) ORDER BY alias",
    )
    .bind(account.as_str())
    .bind(name.as_str())
    .bind(i64::from(version))
    .bind(DEFAULT_ALIAS)
    .fetch_all(&mut **transaction)
    .await?;
    let aliases: Vec<String> = leading.iter().map(|row| row.try_get("alias")).collect::<Result<_, _>>()?;
    if !aliases.is_empty() {
        return Err(StoreError::InUse { version, aliases: aliases.join(", ") });
    }
    let others =
        sqlx::query("SELECT 1 FROM adapter_versions WHERE account = $1 AND name = $2 AND version <> $3 LIMIT 1")
            .bind(account.as_str())
            .bind(name.as_str())
            .bind(i64::from(version))
            .fetch_optional(&mut **transaction)
            .await?;
    match others {
        Some(_) => Ok(()),
        None => Err(StoreError::OnlyVersion { account: account.to_string(), name: name.to_string(), version }),
    }
}
