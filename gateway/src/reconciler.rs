//! Runs the reconciler, always, and keeps what it found.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billing::{EngineCounts, Reconciliation, reconcile};
use platform::units::{DAY_MS, now_ms};

use crate::error::ApiError;
use crate::state::Platform;

const EVERY: Duration = Duration::from_secs(60);
/// Days that the running check looks back; more on demand.
const DAYS: i64 = 1;

#[derive(Debug, Default)]
pub struct Reconciler {
    pub engine: EngineCounts,
    last: Mutex<Option<Reconciliation>>,
}

impl Reconciler {
    pub fn last(&self) -> Option<Reconciliation> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub async fn look(&self, platform: &Platform, days: i64) -> Result<Reconciliation, ApiError> {
        let found = reconcile(&platform.journal, &self.engine, now_ms() - days * DAY_MS).await?;
        for difference in &found.listed {
            tracing::error!(?difference, "the books differ");
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
        Ok(found)
    }
}

/// Looks every minute as long as the platform lives.
pub fn run(platform: &Arc<Platform>) {
    let platform = Arc::downgrade(platform);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(platform) = platform.upgrade() else { return };
            if let Err(error) = platform.reconciler.look(&platform, DAYS).await {
                tracing::warn!(?error, "the books could not be compared");
            }
        }
    });
}
