//! Sums of settled requests by the hour in which they began: a projection of their rows, written in the same transaction.

use std::collections::BTreeMap;

use platform::db::values;
use platform::{DbRow, DbTransaction};
use sqlx::Row;

use crate::BillingError;
use crate::rules::Nano;

pub const HOUR_MS: i64 = 3_600_000;

/// Rows of one statement.
const ROWS: usize = 500;

/// What requests are summed by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    account: String,
    hour: i64,
    key_id: String,
    base: String,
    adapter: String,
    price_version: i64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    requests: i64,
    prompt: i64,
    cached: i64,
    completion: i64,
    cost: Nano,
}

/// Sums to be written, in the order of their keys: so two servers that write at once cannot wait for each other in a circle.
#[derive(Default)]
pub struct UsageHours(BTreeMap<Group, Sum>);

impl UsageHours {
    /// Adds a settled request's row and what it was charged.
    pub fn add(&mut self, row: &DbRow, cost: Nano) -> Result<(), sqlx::Error> {
        let group = Group {
            account: row.try_get("account")?,
            hour: row.try_get::<i64, _>("started_ms")?.div_euclid(HOUR_MS),
            key_id: row.try_get("key_id")?,
            base: row.try_get("base")?,
            adapter: row.try_get::<Option<String>, _>("adapter")?.unwrap_or_default(),
            price_version: row.try_get::<Option<i64>, _>("price_version")?.unwrap_or(0),
        };
        let sum = self.0.entry(group).or_default();
        sum.requests += 1;
        sum.prompt += row.try_get::<i64, _>("prompt_tokens")?;
        sum.cached += row.try_get::<i64, _>("cached_tokens")?;
        sum.completion += row.try_get::<i64, _>("completion_tokens")?;
        sum.cost += cost;
        Ok(())
    }

    pub async fn write(self, transaction: &mut DbTransaction, instance: &str) -> Result<(), BillingError> {
        let rows: Vec<(Group, Sum)> = self.0.into_iter().collect();
        for rows in rows.chunks(ROWS) {
            let sql = format!(
                "INSERT INTO usage_hours (instance, account, key_id, base, adapter, price_version, hour, \
                 requests, prompt_tokens, cached_tokens, completion_tokens, cost) {} \
                 ON CONFLICT (account, hour, key_id, base, adapter, price_version, instance) DO UPDATE SET \
                 requests = usage_hours.requests + excluded.requests, \
                 prompt_tokens = usage_hours.prompt_tokens + excluded.prompt_tokens, \
                 cached_tokens = usage_hours.cached_tokens + excluded.cached_tokens, \
                 completion_tokens = usage_hours.completion_tokens + excluded.completion_tokens, \
                 cost = usage_hours.cost + excluded.cost",
                values(rows.len(), 12)
            );
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(rows.len() == 1);
            for (group, sum) in rows {
                query = query
                    .bind(instance.to_owned())
                    .bind(group.account.clone())
                    .bind(group.key_id.clone())
                    .bind(group.base.clone())
                    .bind(group.adapter.clone())
                    .bind(group.price_version)
                    .bind(group.hour)
                    .bind(sum.requests)
                    .bind(sum.prompt)
                    .bind(sum.cached)
                    .bind(sum.completion)
                    .bind(sum.cost);
            }
            query.execute(&mut **transaction).await?;
        }
        Ok(())
    }
}
