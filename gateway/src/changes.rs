//! What servers hold in memory and another one may have changed: a counter in the database tells.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use platform::{Db, changes};
use sqlx::Row;

use crate::error::ApiError;
use crate::state::Platform;

/// How often it is asked whether keys have changed: one that another server revoked opens nothing a second later.
const KEYS_EVERY: Duration = Duration::from_millis(250);
/// How often the other counters are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// How often it is written down when keys were last used.
const LAST_USED_EVERY: Duration = Duration::from_secs(10);

/// Reads again what others have changed, as long as the platform lives. Nothing of this waits for the rest: however many prices and
/// limits there are to read, a key is revoked in time.
pub fn follow(platform: &Arc<Platform>, db: Db) {
    let platform = Arc::downgrade(platform);
    tokio::spawn(follow_keys(platform.clone(), db.clone()));
    tokio::spawn(follow_last_used(platform.clone(), db.clone()));
    tokio::spawn(follow_others(platform, db));
}

async fn follow_keys(platform: Weak<Platform>, db: Db) {
    while let Some(platform) = living(&platform, &db) {
        if let Err(error) = platform.accounts.catch_up().await {
            tracing::warn!(%error, "changes of keys by other servers could not be read");
        }
        drop(platform);
        tokio::time::sleep(KEYS_EVERY).await;
    }
}

async fn follow_last_used(platform: Weak<Platform>, db: Db) {
    while let Some(platform) = living(&platform, &db) {
        if let Err(error) = platform.accounts.write_last_used().await {
            tracing::warn!(%error, "when keys were last used could not be written");
        }
        drop(platform);
        tokio::time::sleep(LAST_USED_EVERY).await;
    }
}

async fn follow_others(platform: Weak<Platform>, db: Db) {
    let mut seen = HashMap::new();
    while let Some(platform) = living(&platform, &db) {
        if let Err(error) = read(&platform, &db, &mut seen).await {
            tracing::warn!(?error, "changes by other servers could not be read");
        }
        drop(platform);
        tokio::time::sleep(EVERY).await;
    }
}

fn living(platform: &Weak<Platform>, db: &Db) -> Option<Arc<Platform>> {
    platform.upgrade().filter(|_| !db.pool().is_closed())
}

async fn read(platform: &Platform, db: &Db, seen: &mut HashMap<String, i64>) -> Result<(), ApiError> {
    for row in sqlx::query("SELECT what, number FROM changes").fetch_all(db.pool()).await? {
        let (what, number): (String, i64) = (row.try_get("what")?, row.try_get("number")?);
        if seen.get(&what) == Some(&number) {
            continue;
        }
        match what.as_str() {
            changes::PRICES => platform.prices.reload().await?,
            changes::LIMITS => {
                platform.limits.reload().await?;
                platform.wallets.limits_changed().await?;
            }
            _ => {}
        }
        seen.insert(what, number);
    }
    Ok(())
}
