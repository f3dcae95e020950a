//! Runs the reconciler, always, and keeps what it found.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billing::{EngineCounts, Extent, Reconciliation, reconcile};
use platform::units::{DAY_MS, HOUR_MS, now_ms};

use crate::error::ApiError;
use crate::state::Platform;

const EVERY: Duration = Duration::from_secs(60);
/// What began so long ago is looked at every time.
const RECENT_MS: i64 = 2 * HOUR_MS;
/// Every so many looks, the first among them, go back a day and cover everything.
const WHOLE_EVERY: u32 = 60;

#[derive(Debug, Default)]
pub struct Reconciler {
    pub engine: EngineCounts,
    found: Mutex<Found>,
}

/// What was found last.
#[derive(Debug, Default, Clone)]
pub struct Found {
    /// By any look.
    pub last: Option<Reconciliation>,
    /// By one that covered everything.
    pub whole: Option<Reconciliation>,
}

impl Found {
    /// Differences of either; what both have found counts once, as far as one of them has nothing else.
    pub fn differences(&self) -> u64 {
        [&self.last, &self.whole].into_iter().flatten().map(|found| found.differences).max().unwrap_or(0)
    }
}

impl Reconciler {
    pub fn found(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at all that began in the last days, and at everything that does not go by days.
    pub async fn look(&self, platform: &Platform, days: u16) -> Result<(), ApiError> {
        self.look_since(platform, now_ms() - i64::from(days) * DAY_MS, Extent::Whole).await
    }

    async fn look_since(&self, platform: &Platform, since_ms: i64, extent: Extent) -> Result<(), ApiError> {
        let found = reconcile(&platform.journal, &self.engine, since_ms, extent).await?;
        for difference in &found.listed {
            tracing::error!(?difference, "the books differ");
        }
        let mut kept = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if extent == Extent::Whole {
            kept.whole = Some(found.clone());
        }
        kept.last = Some(found);
        Ok(())
    }
}

/// Looks every minute as long as the platform lives.
pub fn run(platform: &Arc<Platform>) {
    let platform = Arc::downgrade(platform);
    tokio::spawn(async move {
        for look in 0_u32.. {
            tokio::time::sleep(EVERY).await;
            let Some(platform) = platform.upgrade() else { return };
            let looked = if look % WHOLE_EVERY == 0 {
                platform.reconciler.look(&platform, 1).await
            } else {
                platform.reconciler.look_since(&platform, now_ms() - RECENT_MS, Extent::Since).await
            };
            if let Err(error) = looked {
                tracing::warn!(?error, "the books could not be compared");
            }
        }
    });
}
