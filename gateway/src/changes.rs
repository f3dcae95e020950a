//! What servers hold in memory and another one may have changed: a counter in the database tells.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use platform::{Db, changes};
use sqlx::Row;

use crate::error::ApiError;
use crate::state::Platform;

/// How often the counters are looked at. A key that another server revoked opens nothing a second later.
const EVERY: Duration = Duration::from_millis(500);
/// How often it is written down when keys were last used, in looks.
const LAST_USED_EVERY: u32 = 20;

/// Reads again what others have changed, as long as the platform lives.
pub fn follow(platform: &Arc<Platform>, db: Db) {
    let platform = Arc::downgrade(platform);
    tokio::spawn(async move {
        let mut seen = HashMap::new();
        let mut looks = 0u32;
        while let Some(answer) = look(&platform, &db, &mut seen).await {
            if let Err(error) = answer {
                tracing::warn!(?error, "changes by other servers could not be read");
            }
            looks += 1;
            if looks.is_multiple_of(LAST_USED_EVERY)
                && let Some(platform) = platform.upgrade()
                && let Err(error) = platform.accounts.write_last_used().await
            {
                tracing::warn!(%error, "when keys were last used could not be written");
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}

async fn look(platform: &Weak<Platform>, db: &Db, seen: &mut HashMap<String, i64>) -> Option<Result<(), ApiError>> {
    let platform = platform.upgrade()?;
    if db.pool().is_closed() {
        return None;
    }
    Some(read(&platform, db, seen).await)
}

async fn read(platform: &Platform, db: &Db, seen: &mut HashMap<String, i64>) -> Result<(), ApiError> {
    for row in sqlx::query("SELECT what, number FROM changes").fetch_all(db.pool()).await? {
        let (what, number): (String, i64) = (row.try_get("what")?, row.try_get("number")?);
        if seen.get(&what) == Some(&number) {
            continue;
        }
        match what.as_str() {
            changes::KEYS => platform.accounts.reload().await?,
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
