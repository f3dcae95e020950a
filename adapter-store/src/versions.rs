//! What is stored, as it is read: versions, aliases, files.

use platform::{AccountName, AdapterName, DbRow, Digest};
use sqlx::Row;

use crate::StoreError;
use crate::reference::{DEFAULT_ALIAS, Selector};
use crate::store::{AdapterStore, Report};
use crate::upload::UploadFile;

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

/// What an adapter takes up, all its versions together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAdapter {
    pub account: AccountName,
    pub name: AdapterName,
    pub base: String,
    /// Of the files as they were uploaded.
    pub bytes: u64,
}

/// An alias and the version that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pub alias: String,
    pub version: u32,
    /// False only for a `default` that still follows the newest version.
    pub pinned: bool,
}

const SELECT: &str = "SELECT v.account, v.name, v.version, a.base, v.digest, v.report, v.created_ms \
     FROM adapter_versions v JOIN adapters a ON a.account = v.account AND a.name = v.name";

impl AdapterStore {
    pub(crate) async fn version(
        &self,
        account: &AccountName,
        name: &AdapterName,
        version: u32,
    ) -> Result<Version, StoreError> {
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

    /// What is stored now and was before `since_ms` (milliseconds since the Unix epoch), by account and adapter.
    pub async fn stored_since(&self, since_ms: i64) -> Result<Vec<StoredAdapter>, StoreError> {
        let rows = sqlx::query(
            "SELECT v.account, v.name, a.base, CAST(SUM(v.bytes) AS BIGINT) AS bytes \
             FROM adapter_versions v JOIN adapters a ON a.account = v.account AND a.name = v.name \
             WHERE v.created_ms <= $1 GROUP BY v.account, v.name, a.base ORDER BY v.account, v.name",
        );
        let rows = rows.bind(since_ms).fetch_all(self.db.pool()).await?;
        let stored = |row: &DbRow| {
            Ok(StoredAdapter {
                account: row.try_get::<String, _>("account")?.parse().map_err(|_| odd("account"))?,
                name: row.try_get::<String, _>("name")?.parse().map_err(|_| odd("name"))?,
                base: row.try_get("base")?,
                bytes: u64::try_from(row.try_get::<i64, _>("bytes")?).map_err(|_| odd("bytes"))?,
            })
        };
        rows.iter().map(stored).collect()
    }

    /// Whether the adapter was there and its owner has deleted it.
    pub async fn is_deleted(&self, account: &AccountName, name: &AdapterName) -> Result<bool, StoreError> {
        let query = "SELECT 1 FROM adapters WHERE account = $1 AND name = $2 AND deleted_ms IS NOT NULL";
        let row = sqlx::query(query).bind(account.as_str()).bind(name.as_str()).fetch_optional(self.db.pool()).await?;
        Ok(row.is_some())
    }

    /// A version with this digest: all of them answer the same.
    pub(crate) async fn any_version_of(&self, digest: Digest) -> Result<Version, StoreError> {
        let sql = format!("{SELECT} WHERE v.digest = $1 LIMIT 1");
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(digest.to_string());
        let row = query.fetch_optional(self.db.pool()).await?;
        row.map(|row| version_of(&row)).transpose()?.ok_or(StoreError::Gone(digest))
    }

    pub async fn aliases(&self, account: &AccountName, name: &AdapterName) -> Result<Vec<Alias>, StoreError> {
        let rows = sqlx::query(
            "SELECT alias, version, CAST(pinned AS INTEGER) AS pinned FROM adapter_aliases WHERE account = $1 AND name = $2 ORDER BY alias",
        )
        .bind(account.as_str())
        .bind(name.as_str())
        .fetch_all(self.db.pool())
        .await?;
        let alias = |row: &DbRow| {
            Ok(Alias {
                alias: row.try_get("alias")?,
                version: number(row, "version")?,
                pinned: row.try_get::<i64, _>("pinned")? != 0,
            })
        };
        rows.iter().map(alias).collect()
    }

    /// An adapter's own chat template.
    pub async fn chat_template(&self, digest: Digest) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT chat_template FROM adapter_versions WHERE digest = $1 LIMIT 1")
            .bind(digest.to_string())
            .fetch_optional(self.db.pool())
            .await?;
        Ok(row.ok_or(StoreError::Gone(digest))?.try_get("chat_template")?)
    }

    /// A version's files exactly as they were uploaded, by name.
    pub async fn files(&self, version: &Version) -> Result<Vec<UploadFile>, StoreError> {
        let rows = sqlx::query(
            "SELECT file, digest FROM adapter_files WHERE account = $1 AND name = $2 AND version = $3 ORDER BY file",
        )
        .bind(version.account.as_str())
        .bind(version.name.as_str())
        .bind(i64::from(version.version))
        .fetch_all(self.db.pool())
        .await?;
        let mut files = Vec::new();
        for row in rows {
            let (name, digest): (String, Digest) = (row.try_get("file")?, digest_of(&row)?);
            let bytes = self.blobs.get(&file_key(digest)).await?;
            if Digest::of(&bytes) != digest {
                return Err(StoreError::Unreadable(version.digest, format!("{name} is not what was uploaded")));
            }
            files.push(UploadFile { name, bytes });
        }
        Ok(files)
    }
}

/// Where a file's bytes lie: equal files of different adapters lie there once.
pub fn file_key(digest: Digest) -> String {
    format!("files/{digest}")
}

pub fn missing(account: &AccountName, name: &AdapterName) -> StoreError {
    StoreError::Missing { account: account.to_string(), name: name.to_string() }
}

pub fn missing_version(account: &AccountName, name: &AdapterName, version: u32) -> StoreError {
    StoreError::MissingVersion { account: account.to_string(), name: name.to_string(), version }
}

pub fn number(row: &DbRow, column: &str) -> Result<u32, StoreError> {
    let number: i64 = row.try_get(column)?;
    Ok(u32::try_from(number).map_err(|_| odd(column))?)
}

pub fn digest_of(row: &DbRow) -> Result<Digest, StoreError> {
    Ok(row.try_get::<String, _>("digest")?.parse().map_err(|_| odd("digest"))?)
}

fn odd(column: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the stored {column} is not what was written").into())
}

fn version_of(row: &DbRow) -> Result<Version, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(column);
    Ok(Version {
        account: text("account")?.parse().map_err(|_| odd("account"))?,
        name: text("name")?.parse().map_err(|_| odd("name"))?,
        version: number(row, "version")?,
        base: text("base")?,
        digest: digest_of(row)?,
        report: serde_json::from_str(&text("report")?).map_err(|_| odd("report"))?,
        created_ms: row.try_get("created_ms")?,
    })
}
