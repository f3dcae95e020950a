//! Sums of settled requests by the hour in which they began: a projection of their rows, written in the same transaction.

use std::collections::BTreeMap;

use platform::units::HOUR_MS;
use platform::{DbKind, DbRow, Statements};
use sqlx::{AnyConnection, Row};

use crate::BillingError;
use crate::rules::Nano;

/// The hours (since the Unix epoch) that began in `from_ms..to_ms`: the first, and the one after the last.
pub fn hours(from_ms: i64, to_ms: i64) -> (i64, i64) {
    let up = |ms: i64| ms.div_euclid(HOUR_MS) + i64::from(ms.rem_euclid(HOUR_MS) > 0);
    (up(from_ms), up(to_ms))
}

/// Rows of one statement.
const ROWS: usize = 512;

/// What requests are summed by.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
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

    /// Adds a row of these sums itself.
    pub fn take(&mut self, row: &DbRow) -> Result<(), sqlx::Error> {
        let group = Group {
            account: row.try_get("account")?,
            hour: row.try_get("hour")?,
            key_id: row.try_get("key_id")?,
            base: row.try_get("base")?,
            adapter: row.try_get("adapter")?,
            price_version: row.try_get("price_version")?,
        };
        let sum = self.0.entry(group).or_default();
        sum.requests += row.try_get::<i64, _>("requests")?;
        sum.prompt += row.try_get::<i64, _>("prompt_tokens")?;
        sum.cached += row.try_get::<i64, _>("cached_tokens")?;
        sum.completion += row.try_get::<i64, _>("completion_tokens")?;
        sum.cost += row.try_get::<i64, _>("cost")?;
        Ok(())
    }

    pub async fn write(self, connection: &mut AnyConnection, kind: DbKind, instance: &str) -> Result<(), BillingError> {
        let mut writes = Statements::new(kind);
        self.add_to(&mut writes, kind, instance)?;
        writes.execute(connection).await?;
        Ok(())
    }

    /// Adds the statements that write the sums. Returns how many rows they change.
    pub fn add_to(self, writes: &mut Statements, kind: DbKind, instance: &str) -> Result<usize, sqlx::Error> {
        let all: Vec<(Group, Sum)> = self.0.into_iter().collect();
        for sums in all.chunks(ROWS) {
            let rows = sums.len().next_power_of_two();
            // What fills the statement up has no account. The order of the rows is that of their keys.
            writes.add(&format!(
                "INSERT INTO usage_hours (instance, account, key_id, base, adapter, price_version, hour, \
                 requests, prompt_tokens, cached_tokens, completion_tokens, cost) \
                 SELECT * FROM ({}) AS v WHERE v.column2 <> '' \
                 ON CONFLICT (account, hour, key_id, base, adapter, price_version, instance) DO UPDATE SET \
                 requests = usage_hours.requests + excluded.requests, \
                 prompt_tokens = usage_hours.prompt_tokens + excluded.prompt_tokens, \
                 cached_tokens = usage_hours.cached_tokens + excluded.cached_tokens, \
                 completion_tokens = usage_hours.completion_tokens + excluded.completion_tokens, \
                 cost = usage_hours.cost + excluded.cost",
                kind.values(rows, 12)
            ));
            for at in 0..rows {
                let (group, sum) = sums.get(at).cloned().unwrap_or_default();
                for text in [instance.to_owned(), group.account, group.key_id, group.base, group.adapter] {
                    writes.bind(text)?;
                }
                for number in
                    [group.price_version, group.hour, sum.requests, sum.prompt, sum.cached, sum.completion, sum.cost]
                {
                    writes.bind(number)?;
                }
            }
        }
        Ok(all.len())
    }
}
