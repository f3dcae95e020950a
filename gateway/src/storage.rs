//! Charges the storage of adapters, hour by hour, as long as the platform lives; the hours in which nothing ran at the next start.

use std::sync::{Arc, Weak};
use std::time::Duration;

use billing::Stored;
use platform::units::{HOUR_MS, now_ms};

use crate::error::ApiError;
use crate::state::Platform;

const EVERY: Duration = Duration::from_secs(30);
/// Hours that a start looks back: a week. What is older is free.
const CATCH_UP_HOURS: i64 = 7 * 24;

/// Charges what there is to charge, now and at each hour's end. Several servers do it at once: each hour is charged once.
pub fn run(platform: &Arc<Platform>) {
    tokio::spawn(follow(Arc::downgrade(platform)));
}

async fn follow(platform: Weak<Platform>) {
    let mut next_hour = None;
    while let Some(platform) = platform.upgrade() {
        if let Err(error) = look(&platform, &mut next_hour).await {
            tracing::warn!(%error, hour = next_hour, "storage could not be charged; trying again");
        }
        drop(platform);
        tokio::time::sleep(EVERY).await;
    }
}

/// Charges the hours that are over, in their order. `next_hour` (since the Unix epoch) is the first that this server has not done.
async fn look(platform: &Platform, next_hour: &mut Option<i64>) -> Result<(), ApiError> {
    let this_hour = now_ms() / HOUR_MS;
    let first = match *next_hour {
        Some(hour) => hour,
        // Of the last one, a server that died may have charged a part.
        None => platform.storage.last_hour().await?.unwrap_or(0).max(this_hour - CATCH_UP_HOURS),
    };
    for hour in first..this_hour {
        charge(platform, hour).await?;
        *next_hour = Some(hour + 1);
    }
    Ok(())
}

/// Charges an hour that is over, for what was stored from its beginning on and still is.
async fn charge(platform: &Platform, hour: i64) -> Result<(), ApiError> {
    if !platform.storage.has_prices() {
        return Ok(());
    }
    let stored: Vec<Stored> = platform
        .store
        .stored_since(hour * HOUR_MS)
        .await?
        .into_iter()
        .map(|stored| Stored {
            adapter: format!("{}/{}", stored.account, stored.name),
            account: stored.account,
            base: stored.base,
            bytes: stored.bytes,
        })
        .collect();
    for stored in stored.chunk_by(|one, next| one.account == next.account) {
        let account = &stored[0].account;
        let due = platform.storage.due(hour, stored).await?;
        if due.is_empty() {
            continue;
        }
        // What this server has set aside and does not need can pay for it.
        platform.wallets.give_back(account).await?;
        let charged = platform.storage.charge(account, &due).await?;
        tracing::debug!(%account, hour, charged, "storage was charged");
    }
    Ok(())
}
