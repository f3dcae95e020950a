//! Names, versions and aliases: the rows that lead to an adapter's files.

use platform::units::now_ms;
use platform::{AccountName, AdapterName, Digest};
use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};

use crate::StoreError;
use crate::reference::{DEFAULT_ALIAS, Selector, check_alias};
use crate::store::{AdapterStore, Canary, Checked, Report};

/// One version of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    pub account: AccountName,
    pub name: AdapterName,
    pub version: u32,
    pub base: String,
    pub digest: Digest,
    pub report: Report,
    pub created_ms: i64,
}

/// An alias and the version that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pub alias: String,
    pub version: u32,
}

const SELECT: &str = "SELECT v.account, v.name, v.version, a.base, v.digest, v.report, v.created_ms \
     FROM adapter_versions v JOIN adapters a ON a.account = v.account AND a.name = v.name";

impl AdapterStore {
    /// Stores an upload and gives it a version: durable when this returns. The same adapter again is the same version.
    pub async fn publish(
        &self,
        checked: &Checked,
        canary: Option<Canary>,
        alias: Option<&str>,
    ) -> Result<Version, StoreError> {
        alias.map(check_alias).transpose()?;
        let _writing = self.writing.lock().await;
        self.store_files(checked).await?;
        let report = Report { canary, ..checked.report.clone() };
        let mut transaction = self.db.pool().begin_with("BEGIN IMMEDIATE").await?;
        claim_name(&mut transaction, checked).await?;
        let version = next_version(&mut transaction, checked, &report).await?;
        let (account, name) = (checked.account.as_str(), checked.name.as_str());
        sqlx::query(
            "INSERT INTO adapter_aliases (account, name, alias, version, pinned) VALUES ($1, $2, $3, $4, FALSE) \
             ON CONFLICT (account, name, alias) DO UPDATE SET version = excluded.version WHERE NOT adapter_aliases.pinned",
        )
        .bind(account)
        .bind(name)
        .bind(DEFAULT_ALIAS)
        .bind(i64::from(version))
        .execute(&mut *transaction)
        .await?;
        if let Some(alias) = alias {
            point(&mut transaction, (account, name), alias, version).await?;
        }
        transaction.commit().await?;
        self.version(&checked.account, &checked.name, version).await
    }

    async fn version(&self, account: &AccountName, name: &AdapterName, version: u32) -> Result<Version, StoreError> {
        let found = self.resolve(account, name, &Selector::Version(version)).await?;
        found.ok_or_else(|| missing_version(account, name, version))
    }

    /// The version that a reference leads to.
    pub async fn resolve(
        &self,
        account: &AccountName,
        name: &AdapterName,
        selector: &Selector,
    ) -> Result<Option<Version>, StoreError> {
        let (condition, alias, number) = match selector {
            Selector::Version(version) => ("v.version = $3", None, Some(i64::from(*version))),
            Selector::Default => (BY_ALIAS, Some(DEFAULT_ALIAS), None),
            Selector::Alias(alias) => (BY_ALIAS, Some(alias.as_str()), None),
        };
        const BY_ALIAS: &str =
            "v.version = (SELECT version FROM adapter_aliases WHERE account = $1 AND name = $2 AND alias = $3)";
        let sql = format!("{SELECT} WHERE v.account = $1 AND v.name = $2 AND {condition}");
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str()).bind(name.as_str());
        let query = match alias {
            Some(alias) => query.bind(alias),
            None => query.bind(number),
        };
        query.fetch_optional(self.db.pool()).await?.map(|row| version_of(&row)).transpose()
    }

    /// The account's adapters by name, after `after`: of each, the version that its default answers with.
    pub async fn list(&self, account: &AccountName, after: &str, limit: u32) -> Result<Vec<Version>, StoreError> {
        let sql = format!(
            "{SELECT} JOIN adapter_aliases d ON d.account = v.account AND d.name = v.name AND d.version = v.version \
             WHERE v.account = $1 AND d.alias = $2 AND v.name > $3 ORDER BY v.name LIMIT $4"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str()).bind(DEFAULT_ALIAS);
        let rows = query.bind(after).bind(i64::from(limit)).fetch_all(self.db.pool()).await?;
        rows.iter().map(version_of).collect()
    }

    /// All versions of an adapter, newest first.
    pub async fn versions(&self, account: &AccountName, name: &AdapterName) -> Result<Vec<Version>, StoreError> {
        let sql = format!("{SELECT} WHERE v.account = $1 AND v.name = $2 ORDER BY v.version DESC");
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str()).bind(name.as_str());
        let rows = query.fetch_all(self.db.pool()).await?;
        if rows.is_empty() {
            return Err(missing(account, name));
        }
        rows.iter().map(version_of).collect()
    }

    pub async fn aliases(&self, account: &AccountName, name: &AdapterName) -> Result<Vec<Alias>, StoreError> {
        let rows =
            sqlx::query("SELECT alias, version FROM adapter_aliases WHERE account = $1 AND name = $2 ORDER BY alias")
                .bind(account.as_str())
                .bind(name.as_str())
                .fetch_all(self.db.pool())
                .await?;
        let alias = |row: &SqliteRow| Ok(Alias { alias: row.try_get("alias")?, version: number(row, "version")? });
        rows.iter().map(alias).collect()
    }

    /// Points an alias at a version, where it stays: also `default` no longer follows the newest.
    pub async fn set_alias(
        &self,
        account: &AccountName,
        name: &AdapterName,
        alias: &str,
        version: u32,
    ) -> Result<Version, StoreError> {
        check_alias(alias)?;
        let found = self.version(account, name, version).await?;
        let mut transaction = self.db.pool().begin_with("BEGIN IMMEDIATE").await?;
        point(&mut transaction, (account.as_str(), name.as_str()), alias, version).await?;
        transaction.commit().await?;
        Ok(found)
    }

    /// Removes an adapter with all its versions. Returns the digests that no adapter has any more.
    pub async fn delete(&self, account: &AccountName, name: &AdapterName) -> Result<Vec<Digest>, StoreError> {
        let _writing = self.writing.lock().await;
        let digests: Vec<Digest> =
            self.versions(account, name).await?.into_iter().map(|version| version.digest).collect();
        sqlx::query("DELETE FROM adapters WHERE account = $1 AND name = $2")
            .bind(account.as_str())
            .bind(name.as_str())
            .execute(self.db.pool())
            .await?;
        self.collect(digests).await
    }

    /// Removes one version; not while an alias leads to it.
    pub async fn delete_version(
        &self,
        account: &AccountName,
        name: &AdapterName,
        version: u32,
    ) -> Result<Vec<Digest>, StoreError> {
        let _writing = self.writing.lock().await;
        let found = self.version(account, name, version).await?;
        let aliases = self.aliases(account, name).await?;
        let leading: Vec<String> =
            aliases.into_iter().filter(|alias| alias.version == version).map(|alias| alias.alias).collect();
        if !leading.is_empty() {
            return Err(StoreError::InUse { version, aliases: leading.join(", ") });
        }
        sqlx::query("DELETE FROM adapter_versions WHERE account = $1 AND name = $2 AND version = $3")
            .bind(account.as_str())
            .bind(name.as_str())
            .bind(i64::from(version))
            .execute(self.db.pool())
            .await?;
        self.collect(vec![found.digest]).await
    }

    /// Removes the files of digests that no version has.
    async fn collect(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, StoreError> {
        let mut gone = Vec::new();
        for digest in digests {
            let used = sqlx::query("SELECT 1 FROM adapter_versions WHERE digest = $1 LIMIT 1")
                .bind(digest.to_string())
                .fetch_optional(self.db.pool())
                .await?;
            if used.is_none() {
                self.remove_files(digest).await?;
                gone.push(digest);
            }
        }
        Ok(gone)
    }
}

type Tx = Transaction<'static, Sqlite>;

/// The name is the adapter's for good, and so is its base.
async fn claim_name(transaction: &mut Tx, checked: &Checked) -> Result<(), StoreError> {
    let (account, name) = (checked.account.as_str(), checked.name.as_str());
    sqlx::query(
        "INSERT INTO adapters (account, name, base, created_ms) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
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

async fn next_version(transaction: &mut Tx, checked: &Checked, report: &Report) -> Result<u32, StoreError> {
    let (account, name) = (checked.account.as_str(), checked.name.as_str());
    let known = sqlx::query("SELECT version FROM adapter_versions WHERE account = $1 AND name = $2 AND digest = $3")
        .bind(account)
        .bind(name)
        .bind(checked.digest.to_string())
        .fetch_optional(&mut **transaction)
        .await?;
    if let Some(row) = known {
        return number(&row, "version");
    }
    let last = sqlx::query(
        "SELECT COALESCE(MAX(version), 0) AS version FROM adapter_versions WHERE account = $1 AND name = $2",
    )
    .bind(account)
    .bind(name)
    .fetch_one(&mut **transaction)
    .await?;
    let version = number(&last, "version")? + 1;
    sqlx::query(
        "INSERT INTO adapter_versions (account, name, version, digest, bytes, rank, tensors, report, created_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(account)
    .bind(name)
    .bind(i64::from(version))
    .bind(checked.digest.to_string())
    .bind(report.bytes as i64)
    .bind(report.rank as i64)
    .bind(report.tensors as i64)
    .bind(serde_json::to_string(report).expect("a report is plain data"))
    .bind(now_ms())
    .execute(&mut **transaction)
    .await?;
    Ok(version)
}

async fn point(
    transaction: &mut Tx,
    (account, name): (&str, &str),
    alias: &str,
    version: u32,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO adapter_aliases (account, name, alias, version, pinned) VALUES ($1, $2, $3, $4, TRUE) \
         ON CONFLICT (account, name, alias) DO UPDATE SET version = excluded.version, pinned = TRUE",
    )
    .bind(account)
    .bind(name)
    .bind(alias)
    .bind(i64::from(version))
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

fn missing(account: &AccountName, name: &AdapterName) -> StoreError {
    StoreError::Missing { account: account.to_string(), name: name.to_string() }
}

fn missing_version(account: &AccountName, name: &AdapterName, version: u32) -> StoreError {
    StoreError::MissingVersion { account: account.to_string(), name: name.to_string(), version }
}

fn number(row: &SqliteRow, column: &str) -> Result<u32, StoreError> {
    let number: i64 = row.try_get(column)?;
    Ok(u32::try_from(number).unwrap_or(0))
}

fn version_of(row: &SqliteRow) -> Result<Version, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let odd = |what: &str| sqlx::Error::Decode(format!("adapter_versions.{what} is not what was written").into());
    Ok(Version {
        account: text("account")?.parse().map_err(|_| odd("account"))?,
        name: text("name")?.parse().map_err(|_| odd("name"))?,
        version: number(row, "version")?,
        base: text("base")?,
        digest: text("digest")?.parse().map_err(|_| odd("digest"))?,
        report: serde_json::from_str(&text("report")?).map_err(|_| odd("report"))?,
        created_ms: row.try_get("created_ms")?,
    })
}
