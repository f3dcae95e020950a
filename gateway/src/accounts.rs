//! Accounts and their API keys. A key is stored as its hash and shown once.

use std::sync::Arc;

use actix_web::http::StatusCode;
use billing::Credit;
use platform::units::now_ms;
use platform::{AccountName, Db, DbRow, DbTransaction, Digest, changes};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::Row;

use crate::access::{Role, Scopes};
use crate::audit::change;
use crate::authority::{self, BoundedKey};
use crate::error::ApiError;
use crate::keyring::{Keyring, Use};

const PREFIX: &str = "sk-myriad-";
/// Random characters of a key: 43 of 62 are over 256 bits.
const SECRET_CHARS: usize = 43;
/// Longest key that is looked at, and the shortest that an operator may choose.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=256;
/// Keys whose use is written down in one transaction.
const USES: usize = 500;
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

/// What has become of the first account's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstKey {
    Made(String),
    /// At an earlier start, or by another server.
    MadeBefore,
    /// By the operator, whose choice it is.
    Given(GivenKey),
}

/// What a key of the operator's choice opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivenKey {
    Opens,
    /// Nothing, and it stays like that.
    Revoked,
    Expired,
    /// It is a key of this account.
    OfAnother(AccountName),
}

/// Accounts in the database, and their keys in memory as well: these are read at every request. A change here is seen at once, one on
/// another server a moment later.
#[derive(Clone)]
pub struct Accounts {
    db: Db,
    keyring: Arc<Keyring>,
}

impl Accounts {
    pub async fn open(db: Db) -> Result<Self, AccountError> {
        let accounts = Self { db, keyring: Arc::default() };
        accounts.catch_up().await?;
        Ok(accounts)
    }

    /// Reads what has changed of keys, members and suspensions.
    pub async fn catch_up(&self) -> Result<(), AccountError> {
        Ok(self.keyring.catch_up(&self.db).await?)
    }

    /// Makes the first account and its key. `given` is a key of the operator's choice: it is made once, and never again after it was
    /// revoked.
    pub async fn bootstrap(&self, account: &AccountName, given: Option<&str>) -> Result<FirstKey, AccountError> {
        let made = self.insert_account(account, Credit::Unlimited, None).await?;
        if self.suspended_ms(account).await?.is_some() {
            return Err(AccountError::Suspended(account.to_string()));
        }
        if let Some(key) = given {
            check_form(key)?;
            let given = self.insert_given(account, key).await?;
            // Also where another server has made it a moment ago.
            self.catch_up().await?;
            return Ok(FirstKey::Given(given));
        }
        if !made {
            return Ok(FirstKey::MadeBefore);
        }
        let key = fresh_key();
        self.insert_own(account, "first", &key, None).await?;
        Ok(FirstKey::Made(key))
    }

    async fn insert_given(&self, account: &AccountName, key: &str) -> Result<GivenKey, AccountError> {
        // Several servers may start at once with the same key.
        let mut transaction = self.db.write("bootstrap key").await?;
        let found = sqlx::query("SELECT account, expires_ms, revoked_ms FROM api_keys WHERE hash = $1");
        let found = found.bind(Digest::from_bytes(hash(key)).to_string()).fetch_optional(&mut *transaction).await?;
        let Some(row) = found else {
            insert(&mut transaction, account, &BoundedKey::of_the_account("bootstrap"), key, None).await?;
            transaction.commit().await?;
            return Ok(GivenKey::Opens);
        };
        if row.try_get::<Option<i64>, _>("revoked_ms")?.is_some() {
            return Ok(GivenKey::Revoked);
        }
        if row.try_get::<Option<i64>, _>("expires_ms")?.is_some_and(|expires| expires <= now_ms()) {
            return Ok(GivenKey::Expired);
        }
        let of: String = row.try_get("account")?;
        let of: AccountName = of.parse().map_err(|_| odd("account"))?;
        Ok(if of == *account { GivenKey::Opens } else { GivenKey::OfAnother(of) })
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
            change(by, account, "account.created", account.as_str(), detail).write(&mut transaction).await?;
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
        self.catch_up().await?;
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
        self.catch_up().await
    }

    /// Who the key belongs to. The lookup is by hash, so its time tells nothing of a key's characters.
    pub fn verify(&self, key: &str) -> Result<Caller, KeyRefusal> {
        if !KEY_BYTES.contains(&key.len()) || !key.starts_with(PREFIX) {
            return Err(KeyRefusal::Unknown);
        }
        self.keyring.verify(&hash(key))
    }

    /// Writes down when keys were last used, as far as it is not written yet.
    pub async fn write_last_used(&self) -> Result<(), AccountError> {
        for uses in self.keyring.used().chunks(USES) {
            self.write_uses(uses).await?;
        }
        Ok(())
    }

    async fn write_uses(&self, uses: &[Use]) -> Result<(), AccountError> {
        let sql = format!(
            "UPDATE api_keys SET last_used_ms = v.column2 FROM ({}) AS v \
             WHERE api_keys.id = v.column1 AND COALESCE(api_keys.last_used_ms, 0) < v.column2",
            self.db.kind().values(uses.len(), 2)
        );
        let mut update = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(uses.len() == USES);
        for one in uses {
            update = update.bind(one.key_id()).bind(one.at_ms);
        }
        let mut transaction = self.db.begin().await?;
        // Two servers that write down the use of the same keys, or one that revokes some, could wait for each other's rows.
        changes::lock(&mut transaction, changes::KEYS).await?;
        update.execute(&mut *transaction).await?;
        transaction.commit().await?;
        uses.iter().for_each(Use::is_written);
        Ok(())
    }

    pub async fn keys(&self, account: &AccountName) -> Result<Vec<KeyRow>, AccountError> {
        self.write_last_used().await?;
        let rows = sqlx::query(
            "SELECT id, name, hint, scopes, member, created_ms, expires_ms, last_used_ms, revoked_ms FROM api_keys \
             WHERE account = $1 ORDER BY created_ms, id",
        )
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
        let revision = changes::revision(&mut transaction, changes::KEYS).await?;
        let updated = sqlx::query(
            "UPDATE accounts SET suspended_ms = $2, revision = $3 WHERE name = $1 AND (suspended_ms IS NULL) <> ($2 IS NULL)",
        );
        let updated = updated.bind(account.as_str()).bind(suspended.then(now_ms)).bind(revision);
        let changed = updated.execute(&mut *transaction).await?.rows_affected() > 0;
        if changed {
            change(by, account, action, account.as_str(), json!({})).write(&mut transaction).await?;
        }
        transaction.commit().await?;
        self.catch_up().await?;
        Ok(changed)
    }

    /// Ends a key at once; one that has ended stays as it is. False where the account has no such key.
    pub async fn revoke(&self, account: &AccountName, id: &str, by: Option<&Caller>) -> Result<bool, AccountError> {
        let mut transaction = self.db.write(&members_lock(account)).await?;
        let found = sqlx::query(
            "SELECT k.member, k.revoked_ms, m.role FROM api_keys k \
             LEFT JOIN members m ON m.account = k.account AND m.name = k.member WHERE k.account = $1 AND k.id = $2",
        );
        let found = found.bind(account.as_str()).bind(id).fetch_optional(&mut *transaction).await?;
        let Some(row) = found else { return Ok(false) };
        let (member, role): (Option<String>, Option<String>) = (row.try_get("member")?, row.try_get("role")?);
        // Keys of the account itself can do what an owner's can.
        let is_owners = member.is_none() || role.as_deref() == Some(Role::Owner.name());
        if is_owners && !authority::is_owner(&mut transaction, account, by).await? {
            return Err(AccountError::OwnersOnly("revoke an owner's key, or one of the account itself"));
        }
        if row.try_get::<Option<i64>, _>("revoked_ms")?.is_some() {
            return Ok(true);
        }
        let revision = changes::revision(&mut transaction, changes::KEYS).await?;
        let revoked = sqlx::query("UPDATE api_keys SET revoked_ms = $2, revision = $3 WHERE id = $1");
        revoked.bind(id).bind(now_ms()).bind(revision).execute(&mut *transaction).await?;
        change(by, account, "key.revoked", id, json!({})).write(&mut transaction).await?;
        transaction.commit().await?;
        self.catch_up().await?;
        Ok(true)
    }

    pub async fn members(&self, account: &AccountName) -> Result<Vec<Member>, AccountError> {
        let rows = sqlx::query("SELECT name, role, created_ms FROM members WHERE account = $1 ORDER BY name")
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
        let revision = changes::revision(&mut transaction, changes::KEYS).await?;
        sqlx::query(
            "INSERT INTO members (account, name, role, created_ms, revision) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (account, name) DO UPDATE SET role = excluded.role, revision = excluded.revision",
        )
        .bind(account.as_str())
        .bind(name)
        .bind(role.name())
        .bind(now_ms())
        .bind(revision)
        .execute(&mut *transaction)
        .await?;
        if role != Role::Owner && !has_an_owner(&mut transaction, account).await? {
            let name = name.to_owned();
            return Err(if was.is_none() { AccountError::FirstMember(name) } else { AccountError::LastOwner(name) });
        }
        let detail = json!({ "role": role.name() });
        change(by, account, "member.set", name, detail).write(&mut transaction).await?;
        transaction.commit().await?;
        self.catch_up().await
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
        let revision = changes::revision(&mut transaction, changes::KEYS).await?;
        let keys = sqlx::query(
            "UPDATE api_keys SET revoked_ms = $3, revision = $4 WHERE account = $1 AND member = $2 AND revoked_ms IS NULL",
        );
        let keys = keys.bind(account.as_str()).bind(name).bind(now_ms()).bind(revision);
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
            change(by, account, "member.removed", name, detail).write(&mut transaction).await?;
        }
        transaction.commit().await?;
        self.catch_up().await?;
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
    let revision = changes::revision(transaction, changes::KEYS).await?;
    sqlx::query(
        "INSERT INTO api_keys (id, account, name, hash, hint, created_ms, scopes, expires_ms, member, revision) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(&id)
    .bind(account.as_str())
    .bind(&new.name)
    .bind(Digest::from_bytes(hash(key)).to_string())
    .bind(hint)
    .bind(now_ms())
    .bind(new.scopes.names().join(" "))
    .bind(new.expires_ms)
    .bind(&new.member)
    .bind(revision)
    .execute(&mut **transaction)
    .await?;
    let expires_at = new.expires_ms.map(|ms| ms / 1000);
    let detail = json!({
        "name": new.name, "scopes": new.scopes.names(), "member": new.member, "expires_at": expires_at,
    });
    change(by, account, "key.created", &id, detail).write(transaction).await?;
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

pub fn scopes_of(row: &DbRow) -> Result<Scopes, sqlx::Error> {
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
            AccountError::Db(error) => error.into(),
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
            let FirstKey::Made(key) = accounts.bootstrap(&account, None).await.unwrap() else { panic!("no key") };
            assert_eq!(accounts.bootstrap(&account, None).await.unwrap(), FirstKey::MadeBefore);
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
            for _ in 0..2 {
                let given = accounts.bootstrap(&account, Some(key)).await.unwrap();
                assert_eq!(given, FirstKey::Given(GivenKey::Opens));
            }
            let rows = accounts.keys(&account).await.unwrap();
            assert_eq!(rows.len(), 1);

            let other = "other".parse().unwrap();
            let given = accounts.bootstrap(&other, Some(key)).await.unwrap();
            assert_eq!(given, FirstKey::Given(GivenKey::OfAnother(account.clone())));
            assert!(accounts.revoke(&account, &rows[0].id, None).await.unwrap());
            let given = accounts.bootstrap(&account, Some(key)).await.unwrap();
            assert_eq!(given, FirstKey::Given(GivenKey::Revoked), "a start brings a revoked key back");
            assert_eq!(accounts.verify(key), Err(KeyRefusal::Unknown));
            let ended = NewKey { expires_ms: Some(now_ms() - 1), ..NewKey::named("ended") };
            let ended = accounts.create_key(&account, &ended, None).await.unwrap().secret;
            let given = accounts.bootstrap(&account, Some(&ended)).await.unwrap();
            assert_eq!(given, FirstKey::Given(GivenKey::Expired));
            assert_eq!(accounts.verify(&ended), Err(KeyRefusal::Expired));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn servers_that_start_at_once_with_one_key_make_it_once() {
        for db in platform::testing::databases().await {
            let account: AccountName = "local".parse().unwrap();
            let key = "sk-myriad-of-the-operators-choice";
            let start = || {
                let (db, account) = (db.clone(), account.clone());
                tokio::spawn(async move {
                    let accounts = Accounts::open(db).await.unwrap();
                    let given = accounts.bootstrap(&account, Some(key)).await.unwrap();
                    assert_eq!(given, FirstKey::Given(GivenKey::Opens));
                    assert!(accounts.verify(key).is_ok());
                })
            };
            let starts: Vec<_> = (0..8).map(|_| start()).collect();
            for started in starts {
                started.await.unwrap();
            }
            let accounts = Accounts::open(db).await.unwrap();
            assert_eq!(accounts.keys(&account).await.unwrap().len(), 1);
        }
    }

    #[tokio::test]
    async fn what_another_server_changes_is_read_and_what_it_did_not_change_is_not() {
        for db in platform::testing::databases().await {
            let acme: AccountName = "acme".parse().unwrap();
            let (one, two) = (Accounts::open(db.clone()).await.unwrap(), Accounts::open(db.clone()).await.unwrap());
            let first = one.create(&acme, Credit::Prepaid, None).await.unwrap().unwrap();
            one.set_member(&acme, "bob", Role::Owner, None).await.unwrap();
            one.set_member(&acme, "ann", Role::Owner, None).await.unwrap();
            let anns = NewKey { member: Some("ann".into()), ..NewKey::named("ann's") };
            let anns = one.create_key(&acme, &anns, None).await.unwrap();
            assert_eq!(two.verify(&first), Err(KeyRefusal::Unknown), "nothing was read yet");
            two.catch_up().await.unwrap();
            assert!(two.verify(&first).is_ok() && two.verify(&anns.secret).is_ok());

            one.set_member(&acme, "ann", Role::Developer, None).await.unwrap();
            two.catch_up().await.unwrap();
            assert_eq!(two.verify(&anns.secret).unwrap().scopes, Role::Developer.scopes());
            for (suspended, opens) in [(true, Err(KeyRefusal::Suspended)), (false, Ok(()))] {
                one.set_suspended(&acme, suspended, None).await.unwrap();
                two.catch_up().await.unwrap();
                assert_eq!(two.verify(&first).map(drop), opens);
            }
            // A row that is changed without a revision is not read for the sake of another one's.
            let revoke = "UPDATE api_keys SET revoked_ms = 1 WHERE name = 'first'";
            sqlx::query(revoke).execute(db.pool()).await.unwrap();
            one.remove_member(&acme, "ann", None).await.unwrap();
            two.catch_up().await.unwrap();
            assert_eq!(two.verify(&anns.secret), Err(KeyRefusal::Unknown));
            assert!(two.verify(&first).is_ok(), "all keys were read again");
            // As a server tells of it that knows no revisions.
            let note = "UPDATE changes SET number = number + 1 WHERE what = 'keys'";
            sqlx::query(note).execute(db.pool()).await.unwrap();
            two.catch_up().await.unwrap();
            assert_eq!(two.verify(&first), Err(KeyRefusal::Unknown));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_server_that_reads_while_others_change_keys_misses_none() {
        for db in platform::testing::databases().await {
            let reader = Accounts::open(db.clone()).await.unwrap();
            let change = |number: usize| {
                let db = db.clone();
                tokio::spawn(async move {
                    let account: AccountName = format!("account-{number}").parse().unwrap();
                    let accounts = Accounts::open(db).await.unwrap();
                    let mut keys = vec![accounts.create(&account, Credit::Prepaid, None).await.unwrap().unwrap()];
                    for round in 0..20 {
                        let made = accounts.create_key(&account, &NewKey::named("key"), None).await.unwrap();
                        if round % 2 == 0 {
                            assert!(accounts.revoke(&account, &made.id, None).await.unwrap());
                        }
                        keys.push(made.secret);
                    }
                    keys
                })
            };
            let changes: Vec<_> = (0..6).map(change).collect();
            while !changes.iter().all(tokio::task::JoinHandle::is_finished) {
                reader.catch_up().await.unwrap();
            }
            reader.catch_up().await.unwrap();
            for change in changes {
                let opens: Vec<bool> = change.await.unwrap().iter().map(|key| reader.verify(key).is_ok()).collect();
                let expected: Vec<bool> = (0..21).map(|number| number % 2 == 0).collect();
                assert_eq!(opens, expected);
            }
        }
    }

    #[tokio::test]
    async fn when_keys_were_used_is_written_for_many_at_once_and_survives_their_changes() {
        for db in platform::testing::databases().await {
            let acme: AccountName = "acme".parse().unwrap();
            let accounts = Accounts::open(db.clone()).await.unwrap();
            let first = accounts.create(&acme, Credit::Prepaid, None).await.unwrap().unwrap();
            let id = accounts.verify(&first).unwrap().key_id;
            // A change reads the key's row again, in which its use does not stand yet.
            let touch = "UPDATE api_keys SET revision = (SELECT revision + 1 FROM changes WHERE what = 'keys')";
            sqlx::query(touch).execute(db.pool()).await.unwrap();
            let mut made = vec![id];
            for _ in 0..3 {
                let new = accounts.create_key(&acme, &NewKey::named("key"), None).await.unwrap();
                accounts.verify(&new.secret).unwrap();
                made.push(new.id);
            }
            accounts.write_last_used().await.unwrap();
            let rows = Accounts::open(db).await.unwrap().keys(&acme).await.unwrap();
            assert!(rows.len() == made.len() && rows.iter().all(|row| row.last_used_ms.is_some()), "{rows:?}");
        }
    }

    #[tokio::test]
    async fn a_key_that_is_revoked_twice_is_revoked_once() {
        for db in platform::testing::databases().await {
            let acme: AccountName = "acme".parse().unwrap();
            let accounts = Accounts::open(db.clone()).await.unwrap();
            accounts.create(&acme, Credit::Prepaid, None).await.unwrap();
            let key = accounts.create_key(&acme, &NewKey::named("key"), None).await.unwrap();
            assert!(accounts.revoke(&acme, &key.id, None).await.unwrap());
            let first = accounts.keys(&acme).await.unwrap();
            assert!(accounts.revoke(&acme, &key.id, None).await.unwrap());
            let again = accounts.keys(&acme).await.unwrap();
            assert_eq!(format!("{first:?}"), format!("{again:?}"));
            let rows = "SELECT 1 FROM audit_log WHERE action = 'key.revoked'";
            assert_eq!(sqlx::query(rows).fetch_all(db.pool()).await.unwrap().len(), 1);
        }
    }
}
