//! Accounts and their API keys. A key is stored as its hash and shown once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, RwLock};

use actix_web::http::StatusCode;
use billing::Credit;
use platform::units::now_ms;
use platform::{AccountName, Db, DbRow, DbTransaction, changes};
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::Row;

use crate::access::{Role, Scopes};
use crate::audit::{self, Change};
use crate::authority::{self, BoundedKey};
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
    pub scopes: Scopes,
    /// Whose key it is; none: the account's own.
    pub member: Option<String>,
    pub expires_ms: Option<i64>,
}

/// A key to be, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    pub name: String,
    /// All that its maker and its member have, where absent.
    pub scopes: Option<Scopes>,
    /// With its maker's key, where absent.
    pub expires_ms: Option<i64>,
    /// Its maker's, where absent.
    pub member: Option<String>,
}

impl NewKey {
    #[cfg(test)]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), scopes: None, expires_ms: None, member: None }
    }
}

/// A key that was made: the only time that its secret is there.
#[derive(Debug, Clone)]
pub struct MadeKey {
    pub id: String,
    pub secret: String,
    pub key: BoundedKey,
}

/// A key as it is listed: without its secret.
#[derive(Debug, Clone)]
pub struct KeyRow {
    pub id: String,
    pub name: String,
    pub hint: String,
    pub scopes: Scopes,
    pub member: Option<String>,
    pub created_ms: i64,
    pub expires_ms: Option<i64>,
    pub last_used_ms: Option<i64>,
    pub revoked_ms: Option<i64>,
}

/// A person of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub role: Role,
    pub created_ms: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("an API key begins with {PREFIX} and has {} to {} characters", KEY_BYTES.start(), KEY_BYTES.end())]
    KeyForm,
    #[error("there is no account {name}; there are {known}")]
    NoAccount { name: String, known: String },
    #[error("the account {0} is suspended and cannot run a server; name another with --account")]
    Suspended(String),
    #[error("the account has no member {0:?}")]
    NoMember(String),
    #[error("a key of a member who is {role} cannot have the scopes {scopes}")]
    RoleExceeded { role: &'static str, scopes: String },
    #[error("a key can only pass on scopes that it has itself: {0}")]
    MakerExceeded(String),
    #[error("a key that ends makes none that outlives it: expires_at can be at most {0}")]
    EndExceeded(i64),
    #[error("your role may not make keys for {member:?}, who is {role}")]
    MayNotName { member: String, role: &'static str },
    #[error("only an owner of the account may {0}")]
    OwnersOnly(&'static str),
    #[error("{0:?} is the only owner; make somebody else one first")]
    LastOwner(String),
    #[error(
        "the account has no members yet, and its first one must be an owner: `myriad members set NAME owner` makes one, then add {0:?}"
    )]
    FirstMember(String),
    #[error(transparent)]
    Db(#[from] platform::DbError),
}

impl From<sqlx::Error> for AccountError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// Why a key opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRefusal {
    Unknown,
    Expired,
    /// Its account is.
    Suspended,
}

/// A key that is not revoked.
#[derive(Debug)]
struct Valid {
    caller: Caller,
    /// Its account is.
    suspended: bool,
    last_used_ms: AtomicI64,
    /// What the database has of that.
    written_ms: AtomicI64,
}

type ValidKeys = HashMap<[u8; 32], Arc<Valid>>;

/// Keys are few and read at every request, so all that are valid are held by their hash. A change here or on another server is
/// seen at once or half a second later.
#[derive(Clone)]
pub struct Accounts {
    db: Db,
    valid: Arc<RwLock<ValidKeys>>,
    /// Held from reading the keys to holding them: an older read must not replace a newer one.
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl Accounts {
    pub async fn open(db: Db) -> Result<Self, AccountError> {
        let accounts = Self { db, valid: Arc::default(), reading: Arc::default() };
        accounts.reload().await?;
        Ok(accounts)
    }

    /// Reads all keys again.
    pub async fn reload(&self) -> Result<(), AccountError> {
        let _reading = self.reading.lock().await;
        let rows = sqlx::query(
            "SELECT k.*, m.role, a.suspended_ms FROM api_keys k JOIN accounts a ON a.name = k.account \
             LEFT JOIN members m ON m.account = k.account AND m.name = k.member WHERE k.revoked_ms IS NULL",
        )
        .fetch_all(self.db.pool())
        .await?;
        let mut valid = ValidKeys::new();
        for row in rows {
            let hash: String = row.try_get("hash")?;
            let account: String = row.try_get("account")?;
            let (Ok(hash), Ok(account)) = (hash.parse::<platform::Digest>(), account.parse()) else { continue };
            let role: Option<String> = row.try_get("role")?;
            let member: Option<String> = row.try_get("member")?;
            let bound = match (&member, role.as_deref().and_then(Role::named)) {
                (None, _) => Scopes::ALL,
                (Some(_), Some(role)) => role.scopes(),
                // Its member is gone.
                (Some(_), None) => continue,
            };
            let scopes = scopes_of(&row)?.and(bound);
            let used = row.try_get::<Option<i64>, _>("last_used_ms")?.unwrap_or(0);
            let caller =
                Caller { account, key_id: row.try_get("id")?, scopes, member, expires_ms: row.try_get("expires_ms")? };
            let suspended = row.try_get::<Option<i64>, _>("suspended_ms")?.is_some();
            let key = Valid { caller, suspended, last_used_ms: used.into(), written_ms: used.into() };
            valid.insert(*hash.as_bytes(), Arc::new(key));
        }
        let mut held = self.valid.write().unwrap_or_else(|p| p.into_inner());
        for (hash, key) in &valid {
            if let Some(known) = held.get(hash) {
                key.last_used_ms.fetch_max(known.last_used_ms.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        *held = valid;
        Ok(())
    }

    /// Makes the first account and its key. `given` is a key of the operator's choice. Returns a key that was made just now.
    pub async fn bootstrap(&self, account: &AccountName, given: Option<&str>) -> Result<Option<String>, AccountError> {
        let made = self.insert_account(account, Credit::Unlimited, None).await?;
        if self.suspended_ms(account).await?.is_some() {
            return Err(AccountError::Suspended(account.to_string()));
        }
        if let Some(key) = given {
            check_form(key)?;
            if self.verify(key).is_err() {
                self.insert_own(account, "bootstrap", key, None).await?;
            }
            return Ok(None);
        }
        if !made {
            return Ok(None);
        }
        let key = fresh_key();
        self.insert_own(account, "first", &key, None).await?;
        Ok(Some(key))
    }

    /// Makes a key that can do everything, for who has lost all others and has the database.
    pub async fn recover(&self, account: &AccountName) -> Result<String, AccountError> {
        if !self.exists(account).await? {
            let known = self.names().await?.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(AccountError::NoAccount { name: account.to_string(), known });
        }
        let key = fresh_key();
        self.insert_own(account, "recovered", &key, None).await?;
        Ok(key)
    }

    /// Makes an account and its first key; nothing where the account is there already.
    pub async fn create(
        &self,
        account: &AccountName,
        credit: Credit,
        by: Option<&Caller>,
    ) -> Result<Option<String>, AccountError> {
        if !self.insert_account(account, credit, by).await? {
            return Ok(None);
        }
        let key = fresh_key();
        self.insert_own(account, "first", &key, by).await?;
        Ok(Some(key))
    }

    async fn insert_account(
        &self,
        account: &AccountName,
        credit: Credit,
        by: Option<&Caller>,
    ) -> Result<bool, AccountError> {
        let mut transaction = self.db.begin().await?;
        let made =
            sqlx::query("INSERT INTO accounts (name, created_ms, credit) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(account.as_str())
                .bind(now_ms())
                .bind(credit.name())
                .execute(&mut *transaction)
                .await?
                .rows_affected()
                > 0;
        if made {
            let detail = json!({ "credit": credit.name() });
            let change = Change { account, action: "account.created", subject: account.as_str(), detail };
            audit::note(&mut transaction, by, &change).await?;
        }
        transaction.commit().await?;
        Ok(made)
    }

    /// All accounts by name.
    pub async fn names(&self) -> Result<Vec<AccountName>, AccountError> {
        let rows = sqlx::query("SELECT name FROM accounts ORDER BY name").fetch_all(self.db.pool()).await?;
        let name = |row: &DbRow| Ok(row.try_get::<String, _>("name")?.parse().map_err(|_| odd("name"))?);
        rows.iter().map(name).collect()
    }

    /// Makes a key; its text is not kept. It is bounded by what `by` has: see [`BoundedKey`].
    pub async fn create_key(
        &self,
        account: &AccountName,
        new: &NewKey,
        by: Option<&Caller>,
    ) -> Result<MadeKey, AccountError> {
        let secret = fresh_key();
        // Of what names the members one runs at a time, so that none makes a key while its member is removed.
        let mut transaction = self.db.write(&members_lock(account)).await?;
        let key = BoundedKey::new(&mut transaction, account, new, by).await?;
        let id = insert(&mut transaction, account, &key, &secret, by).await?;
        transaction.commit().await?;
        self.reload().await?;
        Ok(MadeKey { id, secret, key })
    }

    /// Writes down a key of the account itself.
    async fn insert_own(
        &self,
        account: &AccountName,
        name: &str,
        secret: &str,
        by: Option<&Caller>,
    ) -> Result<(), AccountError> {
        let mut transaction = self.db.begin().await?;
        insert(&mut transaction, account, &BoundedKey::of_the_account(name), secret, by).await?;
        transaction.commit().await?;
        self.reload().await
    }

    /// Who the key belongs to. The lookup is by hash, so its time tells nothing of a key's characters.
    pub fn verify(&self, key: &str) -> Result<Caller, KeyRefusal> {
        if !KEY_BYTES.contains(&key.len()) || !key.starts_with(PREFIX) {
            return Err(KeyRefusal::Unknown);
        }
        let valid = self.valid.read().unwrap_or_else(|p| p.into_inner()).get(&hash(key)).cloned();
        let key = valid.ok_or(KeyRefusal::Unknown)?;
        let now = now_ms();
        if key.caller.expires_ms.is_some_and(|expires| expires <= now) {
            return Err(KeyRefusal::Expired);
        }
        if key.suspended {
            return Err(KeyRefusal::Suspended);
        }
        key.last_used_ms.store(now, Ordering::Relaxed);
        Ok(key.caller.clone())
    }

    /// Writes down when keys were last used, as far as it is not written yet.
    pub async fn write_last_used(&self) -> Result<(), AccountError> {
        let keys: Vec<Arc<Valid>> = self.valid.read().unwrap_or_else(|p| p.into_inner()).values().cloned().collect();
        for key in keys {
            let used = key.last_used_ms.load(Ordering::Relaxed);
            if used <= key.written_ms.load(Ordering::Relaxed) {
                continue;
            }
            sqlx::query("UPDATE api_keys SET last_used_ms = $2 WHERE id = $1 AND COALESCE(last_used_ms, 0) < $2")
                .bind(&key.caller.key_id)
                .bind(used)
                .execute(self.db.pool())
                .await?;
            key.written_ms.store(used, Ordering::Relaxed);
        }
        Ok(())
    }

    pub async fn keys(&self, account: &AccountName) -> Result<Vec<KeyRow>, AccountError> {
        self.write_last_used().await?;
        let rows = sqlx::query("SELECT * FROM api_keys WHERE account = $1 ORDER BY created_ms, id")
            .bind(account.as_str())
            .fetch_all(self.db.pool())
            .await?;
        let key = |row: &DbRow| {
            Ok(KeyRow {
                id: row.try_get("id")?,
                name: row.try_get("name")?,
                hint: row.try_get("hint")?,
                scopes: scopes_of(row)?,
                member: row.try_get("member")?,
                created_ms: row.try_get("created_ms")?,
                expires_ms: row.try_get("expires_ms")?,
                last_used_ms: row.try_get("last_used_ms")?,
                revoked_ms: row.try_get("revoked_ms")?,
            })
        };
        rows.iter().map(key).collect()
    }

    pub async fn exists(&self, account: &AccountName) -> Result<bool, AccountError> {
        let found = sqlx::query("SELECT 1 FROM accounts WHERE name = $1").bind(account.as_str());
        Ok(found.fetch_optional(self.db.pool()).await?.is_some())
    }

    /// Since when the account is suspended, if it is.
    pub async fn suspended_ms(&self, account: &AccountName) -> Result<Option<i64>, AccountError> {
        let found = sqlx::query("SELECT suspended_ms FROM accounts WHERE name = $1").bind(account.as_str());
        let row = found.fetch_optional(self.db.pool()).await?;
        Ok(row.map(|row| row.try_get("suspended_ms")).transpose()?.flatten())
    }

    /// Closes the account to its keys, or opens it again. What runs ends as it began. False where it is like that already.
    pub async fn set_suspended(
        &self,
        account: &AccountName,
        suspended: bool,
        by: Option<&Caller>,
    ) -> Result<bool, AccountError> {
        let action = if suspended { "account.suspended" } else { "account.resumed" };
        let mut transaction = self.db.write(&members_lock(account)).await?;
        let updated = sqlx::query(
            "UPDATE accounts SET suspended_ms = $2 WHERE name = $1 AND (suspended_ms IS NULL) <> ($2 IS NULL)",
        );
        let updated = updated.bind(account.as_str()).bind(suspended.then(now_ms));
        let changed = updated.execute(&mut *transaction).await?.rows_affected() > 0;
        if changed {
            let change = Change { account, action, subject: account.as_str(), detail: json!({}) };
            audit::note(&mut transaction, by, &change).await?;
            changes::note(&mut transaction, changes::KEYS).await?;
        }
        transaction.commit().await?;
        self.reload().await?;
        Ok(changed)
    }

    /// Ends a key at once. False where the account has no such key.
    pub async fn revoke(&self, account: &AccountName, id: &str, by: Option<&Caller>) -> Result<bool, AccountError> {
        let mut transaction = self.db.write(&members_lock(account)).await?;
        let owners = sqlx::query(
            "SELECT 1 FROM api_keys k JOIN members m ON m.account = k.account AND m.name = k.member \
             WHERE k.account = $1 AND k.id = $2 AND m.role = 'owner'",
        );
        let owners = owners.bind(account.as_str()).bind(id).fetch_optional(&mut *transaction).await?;
        if owners.is_some() && !authority::is_owner(&mut transaction, account, by).await? {
            return Err(AccountError::OwnersOnly("revoke an owner's key"));
        }
        let revoked =
            sqlx::query("UPDATE api_keys SET revoked_ms = COALESCE(revoked_ms, $3) WHERE account = $1 AND id = $2")
                .bind(account.as_str())
                .bind(id)
                .bind(now_ms())
                .execute(&mut *transaction)
                .await?
                .rows_affected();
        if revoked > 0 {
            let change = Change { account, action: "key.revoked", subject: id, detail: json!({}) };
            audit::note(&mut transaction, by, &change).await?;
        }
        changes::note(&mut transaction, changes::KEYS).await?;
        transaction.commit().await?;
        self.reload().await?;
        Ok(revoked > 0)
    }

    pub async fn members(&self, account: &AccountName) -> Result<Vec<Member>, AccountError> {
        let rows = sqlx::query("SELECT * FROM members WHERE account = $1 ORDER BY name")
            .bind(account.as_str())
            .fetch_all(self.db.pool())
            .await?;
        let member = |row: &DbRow| {
            let role: String = row.try_get("role")?;
            Ok(Member {
                name: row.try_get("name")?,
                role: Role::named(&role).ok_or_else(|| odd("role"))?,
                created_ms: row.try_get("created_ms")?,
            })
        };
        rows.iter().map(member).collect()
    }

    /// Adds a member or changes its role: its keys can do what its role can from then on.
    pub async fn set_member(
        &self,
        account: &AccountName,
        name: &str,
        role: Role,
        by: Option<&Caller>,
    ) -> Result<(), AccountError> {
        let mut transaction = self.db.write(&members_lock(account)).await?;
        let was = authority::role_of(&mut transaction, account, name).await?;
        let of_owners = role == Role::Owner || was == Some(Role::Owner);
        if of_owners && !authority::is_owner(&mut transaction, account, by).await? {
            return Err(AccountError::OwnersOnly("make an owner, or give an owner another role"));
        }
        sqlx::query(
            "INSERT INTO members (account, name, role, created_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (account, name) DO UPDATE SET role = excluded.role",
        )
        .bind(account.as_str())
        .bind(name)
        .bind(role.name())
        .bind(now_ms())
        .execute(&mut *transaction)
        .await?;
        if role != Role::Owner && !has_an_owner(&mut transaction, account).await? {
            let name = name.to_owned();
            return Err(if was.is_none() { AccountError::FirstMember(name) } else { AccountError::LastOwner(name) });
        }
        let detail = json!({ "role": role.name() });
        audit::note(&mut transaction, by, &Change { account, action: "member.set", subject: name, detail }).await?;
        changes::note(&mut transaction, changes::KEYS).await?;
        transaction.commit().await?;
        self.reload().await
    }

    /// Removes a member and revokes its keys. False where there is none.
    pub async fn remove_member(
        &self,
        account: &AccountName,
        name: &str,
        by: Option<&Caller>,
    ) -> Result<bool, AccountError> {
        let mut transaction = self.db.write(&members_lock(account)).await?;
        if authority::role_of(&mut transaction, account, name).await? == Some(Role::Owner)
            && !authority::is_owner(&mut transaction, account, by).await?
        {
            return Err(AccountError::OwnersOnly("remove an owner"));
        }
        let keys = "UPDATE api_keys SET revoked_ms = $3 WHERE account = $1 AND member = $2 AND revoked_ms IS NULL";
        let keys = sqlx::query(keys).bind(account.as_str()).bind(name).bind(now_ms());
        let keys = keys.execute(&mut *transaction).await?.rows_affected();
        let removed = sqlx::query("DELETE FROM members WHERE account = $1 AND name = $2")
            .bind(account.as_str())
            .bind(name)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
        if removed > 0 {
            if !has_an_owner(&mut transaction, account).await? {
                return Err(AccountError::LastOwner(name.to_owned()));
            }
            let detail = json!({ "keys_revoked": keys });
            audit::note(&mut transaction, by, &Change { account, action: "member.removed", subject: name, detail })
                .await?;
        }
        changes::note(&mut transaction, changes::KEYS).await?;
        transaction.commit().await?;
        self.reload().await?;
        Ok(removed > 0)
    }
}

/// What a transaction names that decides on an account's members and on whose its keys are.
fn members_lock(account: &AccountName) -> String {
    format!("members {account}")
}

async fn insert(
    transaction: &mut DbTransaction,
    account: &AccountName,
    new: &BoundedKey,
    key: &str,
    by: Option<&Caller>,
) -> Result<String, AccountError> {
    let id = platform::RequestId::fresh("key").to_string();
    let hint = &key[key.len() - 4..];
    sqlx::query(
        "INSERT INTO api_keys (id, account, name, hash, hint, created_ms, scopes, expires_ms, member) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&id)
    .bind(account.as_str())
    .bind(&new.name)
    .bind(platform::Digest::from_bytes(hash(key)).to_string())
    .bind(hint)
    .bind(now_ms())
    .bind(new.scopes.names().join(" "))
    .bind(new.expires_ms)
    .bind(&new.member)
    .execute(&mut **transaction)
    .await?;
    let expires_at = new.expires_ms.map(|ms| ms / 1000);
    let detail = json!({
        "name": new.name, "scopes": new.scopes.names(), "member": new.member, "expires_at": expires_at,
    });
    let change = Change { account, action: "key.created", subject: &id, detail };
    audit::note(transaction, by, &change).await?;
    changes::note(transaction, changes::KEYS).await?;
    Ok(id)
}

/// An account with members must have an owner among them.
async fn has_an_owner(transaction: &mut DbTransaction, account: &AccountName) -> Result<bool, AccountError> {
    let counted = sqlx::query(
        "SELECT COUNT(*) AS members, COUNT(CASE WHEN role = 'owner' THEN 1 END) AS owners FROM members WHERE account = $1",
    )
    .bind(account.as_str())
    .fetch_one(&mut **transaction)
    .await?;
    let (members, owners): (i64, i64) = (counted.try_get("members")?, counted.try_get("owners")?);
    Ok(members == 0 || owners > 0)
}

fn scopes_of(row: &DbRow) -> Result<Scopes, sqlx::Error> {
    let names: String = row.try_get("scopes")?;
    Scopes::parse(names.split_whitespace()).map_err(|_| odd("scopes"))
}

fn odd(column: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the stored {column} is not what was written").into())
}

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> Self {
        match error {
            AccountError::KeyForm => Self::param("key", error.to_string()),
            AccountError::NoAccount { .. } => Self::not_found(error.to_string()),
            AccountError::NoMember(_) => Self::param("member", error.to_string()),
            AccountError::RoleExceeded { .. } | AccountError::MakerExceeded(_) => {
                Self::param("scopes", error.to_string())
            }
            AccountError::EndExceeded(_) => Self::param("expires_at", error.to_string()),
            AccountError::MayNotName { .. } | AccountError::OwnersOnly(_) => {
                Self::new(StatusCode::FORBIDDEN, error.to_string())
            }
            AccountError::LastOwner(_) | AccountError::FirstMember(_) | AccountError::Suspended(_) => {
                Self::new(StatusCode::CONFLICT, error.to_string())
            }
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
        for db in platform::testing::databases().await {
            let account: AccountName = "local".parse().unwrap();
            let accounts = Accounts::open(db.clone()).await.unwrap();
            let key = accounts.bootstrap(&account, None).await.unwrap().unwrap();
            assert_eq!(accounts.bootstrap(&account, None).await.unwrap(), None);
            let caller = accounts.verify(&key).unwrap();
            assert_eq!((&caller.account, caller.scopes), (&account, Scopes::ALL));
            let again = Accounts::open(db.clone()).await.unwrap();
            assert_eq!(again.verify(&key), Ok(caller.clone()));
            assert!(accounts.keys(&account).await.unwrap()[0].last_used_ms.is_some());
            assert!(accounts.revoke(&account, &caller.key_id, None).await.unwrap());
            assert_eq!(accounts.verify(&key), Err(KeyRefusal::Unknown));
            let rows = sqlx::query("SELECT hash, hint FROM api_keys").fetch_all(db.pool()).await.unwrap();
            let stored: String =
                rows.iter().map(|row| row.get::<String, _>("hash") + row.get::<&str, _>("hint")).collect();
            assert!(!stored.contains(&key[10..40]), "the key itself is stored");
        }
    }

    #[tokio::test]
    async fn a_key_can_do_what_its_scopes_its_member_and_its_time_allow() {
        for db in platform::testing::databases().await {
            let account: AccountName = "acme".parse().unwrap();
            let accounts = Accounts::open(db).await.unwrap();
            let first = accounts.create(&account, Credit::Prepaid, None).await.unwrap().unwrap();
            assert_eq!(accounts.create(&account, Credit::Prepaid, None).await.unwrap(), None);
            assert_eq!(accounts.verify(&first).unwrap().scopes, Scopes::ALL);
            let late = NewKey { expires_ms: Some(now_ms() - 1), ..NewKey::named("late") };
            let late = accounts.create_key(&account, &late, None).await.unwrap().secret;
            assert_eq!(accounts.verify(&late), Err(KeyRefusal::Expired));

            let developer = Role::Developer.scopes();
            let anns = NewKey { member: Some("ann".into()), scopes: Some(developer), ..NewKey::named("ann's") };
            assert!(matches!(accounts.create_key(&account, &anns, None).await, Err(AccountError::NoMember(_))));
            assert!(matches!(
                accounts.set_member(&account, "ann", Role::Developer, None).await,
                Err(AccountError::FirstMember(_))
            ));
            accounts.set_member(&account, "bob", Role::Owner, None).await.unwrap();
            accounts.set_member(&account, "ann", Role::Developer, None).await.unwrap();
            let key = accounts.create_key(&account, &anns, None).await.unwrap().secret;
            assert_eq!(accounts.verify(&key).unwrap().scopes, developer);
            let all = NewKey { scopes: Some(Scopes::ALL), ..anns };
            assert!(matches!(accounts.create_key(&account, &all, None).await, Err(AccountError::RoleExceeded { .. })));
            accounts.set_member(&account, "ann", Role::Billing, None).await.unwrap();
            assert!(accounts.verify(&key).unwrap().scopes.names().is_empty(), "the role does not bound the key");
            assert!(matches!(accounts.remove_member(&account, "bob", None).await, Err(AccountError::LastOwner(_))));
            assert!(accounts.remove_member(&account, "ann", None).await.unwrap());
            assert_eq!(accounts.verify(&key), Err(KeyRefusal::Unknown));
            assert!(!accounts.remove_member(&account, "ann", None).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_suspended_account_opens_nothing_until_it_is_resumed_and_runs_no_server() {
        for db in platform::testing::databases().await {
            let accounts = Accounts::open(db.clone()).await.unwrap();
            let [acme, local]: [AccountName; 2] = ["acme", "local"].map(|name| name.parse().unwrap());
            let key = accounts.create(&acme, Credit::Prepaid, None).await.unwrap().unwrap();
            let other = accounts.create(&local, Credit::Prepaid, None).await.unwrap().unwrap();
            assert!(accounts.set_suspended(&acme, true, None).await.unwrap());
            assert!(!accounts.set_suspended(&acme, true, None).await.unwrap(), "it is already");
            assert_eq!(accounts.verify(&key), Err(KeyRefusal::Suspended));
            let made = accounts.create_key(&acme, &NewKey::named("spare"), None).await.unwrap().secret;
            assert_eq!(accounts.verify(&made), Err(KeyRefusal::Suspended));
            assert!(accounts.verify(&other).is_ok());
            assert!(matches!(accounts.bootstrap(&acme, None).await, Err(AccountError::Suspended(_))));
            let again = Accounts::open(db).await.unwrap();
            assert_eq!(again.verify(&key), Err(KeyRefusal::Suspended));
            assert!(again.set_suspended(&acme, false, None).await.unwrap());
            assert!(!again.set_suspended(&acme, false, None).await.unwrap());
            assert!(again.verify(&key).is_ok() && again.bootstrap(&acme, None).await.is_ok());
        }
    }

    #[tokio::test]
    async fn an_operators_key_must_look_like_one() {
        for db in platform::testing::databases().await {
            let accounts = Accounts::open(db).await.unwrap();
            let account: AccountName = "local".parse().unwrap();
            assert!(accounts.bootstrap(&account, Some("hunter2")).await.is_err());
            let key = "sk-myriad-of-the-operators-choice";
            accounts.bootstrap(&account, Some(key)).await.unwrap();
            accounts.bootstrap(&account, Some(key)).await.unwrap();
            assert_eq!(accounts.keys(&account).await.unwrap().len(), 1);
        }
    }
}
