//! Removes what nobody needs any more, as long as the platform lives.

use std::sync::Arc;
use std::time::Duration;

use billing::{Purge, Purged};
use platform::Db;

use crate::state::Platform;

const EVERY: Duration = Duration::from_secs(3600);

/// Looks every hour. Deliveries are kept for so long after they arrived.
pub fn run(platform: &Arc<Platform>, db: Db, keep_deliveries: Duration) {
    let (platform, purge) = (Arc::downgrade(platform), Purge::new(db));
    let keep_ms = i64::try_from(keep_deliveries.as_millis()).unwrap_or(i64::MAX);
    tokio::spawn(async move {
        while platform.strong_count() > 0 {
            match purge.run(keep_ms).await {
                Ok(purged) if purged == Purged::default() => {}
                Ok(Purged { deliveries, usage }) => {
                    tracing::info!(deliveries, usage, "old deliveries are removed, and old sums of usage folded");
                }
                Err(error) => tracing::warn!(%error, "what is old could not be removed"),
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}
