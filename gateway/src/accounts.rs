//! Accounts and their API keys. A key is stored as its hash and shown once.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use platform::units::now_ms;
use platform::{AccountName, Db};
use sha2::{Digest, Sha256};
use sqlx::Row;

use crate::error::ApiError;

const PREFIX: &str = "sk-myriad-";
/// Random characters of a key: 43 of 62 are over 256 bits.
const SECRET_CHARS: usize = 43;
/// Longest key that is looked at, and the shortest that an operator may choose.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=256;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Who sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub account: AccountName,
    pub key_id: String,
}

/// A key as it is listed: without its secret.
#[derive(Debug, Clone)]
pub struct KeyRow {
    pub id: String,
    pub name: String,
    pub hint: String,
    pub created_ms: i64,
    pub revoked_ms: Option<i64>,
}

#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("an API key begins with {PREFIX} and has {} to {} characters", KEY_BYTES.start(), KEY_BYTES.end())]
    KeyForm,
    #[error(transparent)]
    Db(#[from] platform::DbError),
}

impl From<sqlx::Error> for AccountError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// Keys are few and read at every request, so all that are valid are held by their hash; every change goes through here.
#[derive(Clone)]
pub struct Accounts {
    db: Db,
    valid: Arc<RwLock<HashMap<[u8; 32], Caller>>>,
}

impl Accounts {
    pub async fn open(db: Db) -> Result<Self, AccountError> {
        let rows =
            sqlx::query("SELECT id, account, hash FROM api_keys WHERE revoked_ms IS NULL").fetch_all(db.pool()).await?;
        let mut valid = HashMap::new();
        for row in rows {
            let hash: String = row.try_get("hash")?;
            let account: String = row.try_get("account")?;
            if let (Ok(hash), Ok(account)) = (hash.parse::<platform::Digest>(), account.parse()) {
                valid.insert(*hash.as_bytes(), Caller { account, key_id: row.try_get("id")? });
            }
        }
        Ok(Self { db, valid: Arc::new(RwLock::new(valid)) })
    }

    /// Makes the first account and its key. `given` is a key of the operator's choice. Returns a key that was made just now.
    pub async fn bootstrap(&self, account: &AccountName, given: Option<&str>) -> Result<Option<String>, AccountError> {
        let made = sqlx::query("INSERT INTO accounts (name, created_ms) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(account.as_str())
            .bind(now_ms())
            .execute(self.db.pool())
            .await?
            .rows_affected();
        if let Some(key) = given {
            check_form(key)?;
            if self.verify(key).is_none() {
                self.insert(account, "bootstrap", key).await?;
            }
            return Ok(None);
        }
        if made == 0 {
            return Ok(None);
        }
        let key = fresh_key();
        self.insert(account, "first", &key).await?;
        Ok(Some(key))
    }

    /// Makes a key; its text is not kept.
    pub async fn create_key(&self, account: &AccountName, name: &str) -> Result<(String, String), AccountError> {
        let key = fresh_key();
        let id = self.insert(account, name, &key).await?;
        Ok((id, key))
    }

    async fn insert(&self, account: &AccountName, name: &str, key: &str) -> Result<String, AccountError> {
        let id = platform::RequestId::fresh("key").to_string();
        let hint = &key[key.len() - 4..];
        sqlx::query("INSERT INTO api_keys (id, account, name, hash, hint, created_ms) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(&id)
            .bind(account.as_str())
            .bind(name)
            .bind(platform::Digest::from_bytes(hash(key)).to_string())
            .bind(hint)
            .bind(now_ms())
            .execute(self.db.pool())
            .await?;
        let caller = Caller { account: account.clone(), key_id: id.clone() };
        self.valid.write().unwrap_or_else(|p| p.into_inner()).insert(hash(key), caller);
        Ok(id)
    }

    /// Who the key belongs to. The lookup is by hash, so its time tells nothing of a key's characters.
    pub fn verify(&self, key: &str) -> Option<Caller> {
        if !KEY_BYTES.contains(&key.len()) || !key.starts_with(PREFIX) {
            return None;
        }
        self.valid.read().unwrap_or_else(|p| p.into_inner()).get(&hash(key)).cloned()
    }

    pub async fn keys(&self, account: &AccountName) -> Result<Vec<KeyRow>, AccountError> {
        let rows = sqlx::query("SELECT * FROM api_keys WHERE account = $1 ORDER BY created_ms, id")
            .bind(account.as_str())
            .fetch_all(self.db.pool())
            .await?;
        let key = |row: &sqlx::sqlite::SqliteRow| {
            Ok(KeyRow {
                id: row.try_get("id")?,
                name: row.try_get("name")?,
                hint: row.try_get("hint")?,
                created_ms: row.try_get("created_ms")?,
                revoked_ms: row.try_get("revoked_ms")?,
            })
        };
        rows.iter().map(key).collect()
    }

    pub async fn exists(&self, account: &AccountName) -> Result<bool, AccountError> {
        let found = sqlx::query("SELECT 1 FROM accounts WHERE name = $1").bind(account.as_str());
        Ok(found.fetch_optional(self.db.pool()).await?.is_some())
    }

    /// Ends a key at once. False where the account has no such key.
    pub async fn revoke(&self, account: &AccountName, id: &str) -> Result<bool, AccountError> {
        let revoked =
            sqlx::query("UPDATE api_keys SET revoked_ms = COALESCE(revoked_ms, $3) WHERE account = $1 AND id = $2")
                .bind(account.as_str())
                .bind(id)
                .bind(now_ms())
                .execute(self.db.pool())
                .await?
                .rows_affected();
        self.valid
            .write()
            .unwrap_or_else(|p| p.into_inner())
            .retain(|_, caller| caller.key_id != id || caller.account != *account);
        Ok(revoked > 0)
    }
}

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> Self {
        match error {
            AccountError::KeyForm => Self::param("key", error.to_string()),
            AccountError::Db(_) => Self::internal(error),
        }
    }
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn check_form(key: &str) -> Result<(), AccountError> {
    let plain = key.bytes().all(|b| b.is_ascii_graphic());
    if key.starts_with(PREFIX) && KEY_BYTES.contains(&key.len()) && plain { Ok(()) } else { Err(AccountError::KeyForm) }
}

/// `sk-myriad-`, the secret, and six characters of checksum, so that a scanner can tell a key from a look-alike.
fn fresh_key() -> String {
    let mut secret = String::new();
    while secret.len() < SECRET_CHARS {
        let mut bytes = [0u8; 64];
        getrandom::fill(&mut bytes).expect("the operating system has no randomness to give");
        // 248 is the largest multiple of 62 in a byte: what is above would make some characters likelier.
        let drawn = bytes.iter().filter(|&&byte| byte < 248).map(|&byte| BASE62[usize::from(byte) % 62] as char);
        secret.extend(drawn.take(SECRET_CHARS - secret.len()));
    }
    let sum = hash(&secret);
    let mut number = u64::from_be_bytes([0, 0, 0, sum[0], sum[1], sum[2], sum[3], sum[4]]);
    let checksum: String = (0..6)
        .map(|_| {
            let digit = BASE62[(number % 62) as usize] as char;
            number /= 62;
            digit
        })
        .collect();
    format!("{PREFIX}{secret}{checksum}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_made_once_verified_and_revoked_at_once() {
        let db = Db::open("sqlite::memory:").await.unwrap();
        let account: AccountName = "local".parse().unwrap();
        let accounts = Accounts::open(db.clone()).await.unwrap();
        let key = accounts.bootstrap(&account, None).await.unwrap().unwrap();
        assert_eq!(accounts.bootstrap(&account, None).await.unwrap(), None);
        let caller = accounts.verify(&key).unwrap();
        assert_eq!(caller.account, account);
        let again = Accounts::open(db.clone()).await.unwrap();
        assert_eq!(again.verify(&key), Some(caller.clone()));
        assert!(accounts.revoke(&account, &caller.key_id).await.unwrap());
        assert_eq!(accounts.verify(&key), None);
        let rows = sqlx::query("SELECT hash, hint FROM api_keys").fetch_all(db.pool()).await.unwrap();
        let stored: String = rows.iter().map(|row| row.get::<String, _>("hash") + row.get::<&str, _>("hint")).collect();
        assert!(!stored.contains(&key[10..40]), "the key itself is stored");
    }

    #[tokio::test]
    async fn an_operators_key_must_look_like_one() {
        let db = Db::open("sqlite::memory:").await.unwrap();
        let accounts = Accounts::open(db).await.unwrap();
        let account: AccountName = "local".parse().unwrap();
        assert!(accounts.bootstrap(&account, Some("hunter2")).await.is_err());
        let key = "sk-myriad-of-the-operators-choice";
        accounts.bootstrap(&account, Some(key)).await.unwrap();
        accounts.bootstrap(&account, Some(key)).await.unwrap();
        assert_eq!(accounts.keys(&account).await.unwrap().len(), 1);
    }
}
