//! What a server holds in memory of keys, members' roles and suspensions, so that no request waits for the database: all that
//! opens something, brought up to date by what has changed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures::TryStreamExt;
use platform::changes::{self, Counter};
use platform::units::now_ms;
use platform::{AccountName, Db, DbRow};
use sqlx::Row;

use crate::access::{Role, Scopes};
use crate::accounts::{Caller, KeyRefusal, scopes_of};

/// SHA-256 of a key.
type Hash = [u8; 32];

/// A key that is not revoked.
#[derive(Debug)]
struct Key {
    /// With the scopes of the key alone; its member's role bounds them.
    caller: Caller,
    last_used_ms: AtomicI64,
    /// What the database has of that.
    written_ms: AtomicI64,
}

#[derive(Debug, Default)]
struct Held {
    keys: HashMap<Hash, Arc<Key>>,
    /// A member that is removed may stay here: all its keys are revoked with it.
    roles: HashMap<AccountName, HashMap<String, Role>>,
    suspended: HashSet<AccountName>,
}

/// A row as it was read, on its way into memory.
enum Found {
    Key(Hash, Option<Box<Key>>),
    Role(AccountName, String, Role),
    Suspended(AccountName, bool),
}

/// When a key was used, as far as it is not written down.
pub struct Use {
    key: Arc<Key>,
    pub at_ms: i64,
}

impl Use {
    pub fn key_id(&self) -> &str {
        &self.key.caller.key_id
    }

    pub fn is_written(&self) {
        self.key.written_ms.store(self.at_ms, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
pub struct Keyring {
    held: RwLock<Held>,
    /// What is in memory. Held from reading to holding: an older read must not replace a newer one.
    seen: tokio::sync::Mutex<Option<Counter>>,
}

impl Keyring {
    /// Reads what has changed since the last time; everything the first time, and where a change has marked no rows.
    pub async fn catch_up(&self, db: &Db) -> Result<(), sqlx::Error> {
        let mut seen = self.seen.lock().await;
        let now = changes::counter(db, changes::KEYS).await?;
        match *seen {
            Some(seen) if seen == now => return Ok(()),
            Some(seen) if seen.unmarked == now.unmarked && seen.revision < now.revision => {
                let found = read(db, &changed_since(seen.revision)).await?;
                let mut held = self.write();
                found.into_iter().for_each(|found| held.take(found));
            }
            _ => {
                let mut fresh = Held::default();
                read(db, &ALL).await?.into_iter().for_each(|found| fresh.take(found));
                let mut held = self.write();
                for (hash, key) in &fresh.keys {
                    if let Some(known) = held.keys.get(hash) {
                        key.keep_use_of(known);
                    }
                }
                *held = fresh;
            }
        }
        *seen = Some(now);
        Ok(())
    }

    /// Whose key has this hash, and what it may do.
    pub fn verify(&self, hash: &Hash) -> Result<Caller, KeyRefusal> {
        let held = self.read();
        let key = held.keys.get(hash).ok_or(KeyRefusal::Unknown)?;
        let now = now_ms();
        if key.caller.expires_ms.is_some_and(|expires| expires <= now) {
            return Err(KeyRefusal::Expired);
        }
        let bound = match &key.caller.member {
            None => Scopes::ALL,
            Some(member) => {
                let role = held.roles.get(&key.caller.account).and_then(|roles| roles.get(member));
                role.ok_or(KeyRefusal::Unknown)?.scopes()
            }
        };
        if held.suspended.contains(&key.caller.account) {
            return Err(KeyRefusal::Suspended);
        }
        key.last_used_ms.store(now, Ordering::Relaxed);
        Ok(Caller { scopes: key.caller.scopes.and(bound), ..key.caller.clone() })
    }

    /// Keys that were used since that was last written down, by their ids.
    pub fn used(&self) -> Vec<Use> {
        let used = |key: &Arc<Key>| {
            let at_ms = key.last_used_ms.load(Ordering::Relaxed);
            (at_ms > key.written_ms.load(Ordering::Relaxed)).then(|| Use { key: key.clone(), at_ms })
        };
        self.read().keys.values().filter_map(used).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(|p| p.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(|p| p.into_inner())
    }
}

impl Held {
    fn take(&mut self, found: Found) {
        match found {
            Found::Key(hash, None) => drop(self.keys.remove(&hash)),
            Found::Key(hash, Some(key)) => {
                if let Some(known) = self.keys.get(&hash) {
                    key.keep_use_of(known);
                }
                self.keys.insert(hash, key.into());
            }
            Found::Role(account, member, role) => {
                self.roles.entry(account).or_default().insert(member, role);
            }
            Found::Suspended(account, true) => drop(self.suspended.insert(account)),
            Found::Suspended(account, false) => drop(self.suspended.remove(&account)),
        }
    }
}

impl Key {
    /// What is known here of its use and not yet in the database.
    fn keep_use_of(&self, known: &Self) {
        self.last_used_ms.fetch_max(known.last_used_ms.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Which rows of keys, members and accounts are read.
type Conditions = [(&'static str, Option<i64>); 3];

/// What opens something, and what bounds it.
const ALL: Conditions = [("revoked_ms IS NULL", None), ("1 = 1", None), ("suspended_ms IS NOT NULL", None)];

const fn changed_since(revision: i64) -> Conditions {
    [("revision > $1", Some(revision)); 3]
}

/// Keys before their members, so that none is held whose member is not.
async fn read(db: &Db, [keys, members, accounts]: &Conditions) -> Result<Vec<Found>, sqlx::Error> {
    const KEYS: &str = "SELECT id, account, hash, scopes, member, expires_ms, last_used_ms, revoked_ms FROM api_keys";
    let mut found = Vec::new();
    for (select, (condition, revision), of_row) in [
        (KEYS, keys, key as fn(&DbRow) -> Result<Option<Found>, sqlx::Error>),
        ("SELECT account, name, role FROM members", members, role),
        ("SELECT name, suspended_ms FROM accounts", accounts, suspended),
    ] {
        let sql = format!("{select} WHERE {condition}");
        let query = sqlx::query(sqlx::AssertSqlSafe(sql));
        let query = if let Some(revision) = revision { query.bind(*revision) } else { query };
        // One by one: what the driver needs for a row is many times what is kept of it.
        let mut rows = query.fetch(db.pool());
        while let Some(row) = rows.try_next().await? {
            found.extend(of_row(&row)?);
        }
    }
    Ok(found)
}

fn key(row: &DbRow) -> Result<Option<Found>, sqlx::Error> {
    let (hash, account): (String, String) = (row.try_get("hash")?, row.try_get("account")?);
    let (Ok(hash), Ok(account)) = (hash.parse::<platform::Digest>(), account.parse()) else { return Ok(None) };
    if row.try_get::<Option<i64>, _>("revoked_ms")?.is_some() {
        return Ok(Some(Found::Key(*hash.as_bytes(), None)));
    }
    let used = row.try_get::<Option<i64>, _>("last_used_ms")?.unwrap_or(0);
    let caller = Caller {
        account,
        key_id: row.try_get("id")?,
        scopes: scopes_of(row)?,
        member: row.try_get("member")?,
        expires_ms: row.try_get("expires_ms")?,
    };
    let key = Key { caller, last_used_ms: used.into(), written_ms: used.into() };
    Ok(Some(Found::Key(*hash.as_bytes(), Some(key.into()))))
}

fn role(row: &DbRow) -> Result<Option<Found>, sqlx::Error> {
    let (account, role): (String, String) = (row.try_get("account")?, row.try_get("role")?);
    let (Ok(account), Some(role)) = (account.parse(), Role::named(&role)) else { return Ok(None) };
    Ok(Some(Found::Role(account, row.try_get("name")?, role)))
}

fn suspended(row: &DbRow) -> Result<Option<Found>, sqlx::Error> {
    let (name, since): (String, Option<i64>) = (row.try_get("name")?, row.try_get("suspended_ms")?);
    Ok(name.parse().ok().map(|name| Found::Suspended(name, since.is_some())))
}
