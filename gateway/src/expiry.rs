//! Takes off what is left of grants whose time has come, as long as the platform lives.

use std::sync::{Arc, Weak};
use std::time::Duration;

use billing::Expired;
use platform::AccountName;
use platform::units::now_ms;
use serde_json::json;

use crate::audit::change;
use crate::error::ApiError;
use crate::state::Platform;

const EVERY: Duration = Duration::from_secs(2);

/// Several servers look at once: each part of a grant is taken off once.
pub fn run(platform: &Arc<Platform>) {
    tokio::spawn(follow(Arc::downgrade(platform)));
}

async fn follow(platform: Weak<Platform>) {
    while let Some(platform) = platform.upgrade() {
        if let Err(error) = look(&platform).await {
            tracing::warn!(%error, "credit that has expired could not be taken off; trying again");
        }
        drop(platform);
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(platform: &Platform) -> Result<(), ApiError> {
    let now_ms = now_ms();
    for account in platform.ledger.accounts_with_expired(now_ms).await? {
        expire(platform, &account, now_ms).await?;
    }
    Ok(())
}

async fn expire(platform: &Platform, account: &AccountName, now_ms: i64) -> Result<(), ApiError> {
    // What this server has set aside and does not need expires as well.
    platform.wallets.give_back(account).await?;
    let note = |expired: &Expired| {
        let detail = json!({ "kind": "expire", "amount_nano_usd": expired.amount, "grant": expired.grant });
        change(None, account, "account.credit_expired", &expired.id, detail)
    };
    for expired in platform.ledger.expire_due(account, now_ms, &note).await? {
        tracing::info!(%account, grant = expired.grant, amount = expired.amount, "credit has expired");
    }
    Ok(())
}
