//! Puts a message into the outbox where spending has reached an alert: once for each alert, period and webhook, in whichever
//! server sees it first.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use billing::{DeliveryKind, Limit, LimitKind, Nano, NewDelivery};
use platform::AccountName;
use platform::units::{now_ms, second_of};
use serde_json::json;

use crate::error::ApiError;
use crate::routes::{dollars, shown_limit};
use crate::state::Platform;

const EVERY: Duration = Duration::from_secs(2);

/// Looks as long as the platform lives.
pub fn run(platform: &Arc<Platform>) {
    tokio::spawn(follow(Arc::downgrade(platform)));
}

async fn follow(platform: Weak<Platform>) {
    let mut told = HashSet::new();
    while let Some(platform) = platform.upgrade() {
        if let Err(error) = look(&platform, &mut told).await {
            tracing::warn!(%error, "alerts could not be looked at");
        }
        drop(platform);
        tokio::time::sleep(EVERY).await;
    }
}

/// `told` holds the ids that need no look in this period. It is only there to save work: the outbox knows them as well.
async fn look(platform: &Platform, told: &mut HashSet<String>) -> Result<(), ApiError> {
    let mut still = HashSet::new();
    let webhooks = platform.outside.webhooks.all().await?;
    for webhooks in webhooks.chunk_by(|one, next| one.account == next.account) {
        let account = &webhooks[0].account;
        let limits = platform.limits.of(account);
        for limit in limits.iter().filter(|limit| limit.kind == LimitKind::Alert) {
            let start_ms = limit.period.start_ms(now_ms());
            let ids = webhooks.iter().map(|webhook| (limit.message_id(start_ms, &webhook.id), webhook));
            let (known, new): (Vec<_>, Vec<_>) = ids.partition(|(id, _)| told.contains(id));
            still.extend(known.into_iter().map(|(id, _)| id));
            if new.is_empty() {
                continue;
            }
            let spent = platform.limits.spent_from(account, limit, start_ms).await?;
            if spent < limit.amount {
                continue;
            }
            let body = message(account, limit, start_ms, spent);
            for (id, webhook) in new {
                let target = webhook.id.clone();
                let body = body.clone();
                let kind = DeliveryKind::Webhook;
                let put = NewDelivery { id: id.clone(), kind, account: account.clone(), target, body };
                platform.outside.outbox.put(&put).await?;
                still.insert(id);
            }
        }
    }
    *told = still;
    Ok(())
}

fn message(account: &AccountName, limit: &Limit, start_ms: i64, spent: Nano) -> String {
    let message = json!({
        "type": "limit.reached",
        "timestamp": second_of(now_ms()),
        "data": {
            "account": account,
            "limit": shown_limit(limit, None),
            // `total` has no beginning.
            "period_start": (start_ms > 0).then(|| second_of(start_ms)),
            "spent": dollars(spent),
            "spent_nano_usd": spent,
        },
    });
    message.to_string()
}
