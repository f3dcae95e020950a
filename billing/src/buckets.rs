//! Usage over time: what started in each minute, hour or day, grouped and filtered.

use platform::units::HOUR_MS;
use platform::{AccountName, DbRow};
use sqlx::Row;

use crate::price::COST_SQL;
use crate::rules::Nano;
use crate::storage;
use crate::usage_hours::hours;
use crate::{BillingError, Journal, Quantities};

/// What buckets can be divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dimension {
    /// Whose key it was.
    Member,
    Key,
    /// The adapter, or the base model where the request named that.
    Model,
}

impl Dimension {
    const fn sql(self) -> &'static str {
        match self {
            Self::Member => "k.member",
            Self::Key => "r.key_id",
            Self::Model => "COALESCE(r.adapter, r.base)",
        }
    }
}

/// What is asked for. Buckets begin at multiples of their width since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    pub from_ms: i64,
    pub to_ms: i64,
    pub width_ms: i64,
    pub by: Vec<Dimension>,
    /// Only requests that have one of the values, for each dimension that is named.
    pub only: Vec<(Dimension, Vec<String>)>,
}

/// Requests of one bucket and group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketRow {
    /// Its number since the Unix epoch: its start is this times the width.
    pub bucket: i64,
    /// One for each of the dimensions asked for.
    pub group: Vec<Option<String>>,
    pub requests: i64,
    pub quantities: Quantities,
    pub cost_nano_usd: Nano,
}

impl Journal {
    /// Sums over the account's requests that started in `from_ms..to_ms`, by bucket. Buckets without requests are left out.
    pub async fn buckets(&self, account: &AccountName, asked: &Buckets) -> Result<Vec<BucketRow>, BillingError> {
        let sql = sql(asked);
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
        query = query.bind(account.as_str()).bind(asked.from_ms).bind(asked.to_ms).bind(asked.width_ms);
        for value in asked.only.iter().flat_map(|(_, values)| values) {
            query = query.bind(value.clone());
        }
        let rows = query.fetch_all(self.db().pool()).await?;
        rows.iter().map(|row| row_of(row, asked.by.len())).collect()
    }

    /// As [`buckets`](Self::buckets), with the cost of storage: in the bucket in which its hour began, under the model
    /// `account/name, storage` and no key. Buckets are whole hours.
    pub async fn costs(&self, account: &AccountName, asked: &Buckets) -> Result<Vec<BucketRow>, BillingError> {
        let mut rows = self.buckets(account, asked).await?;
        let bucket = format!("CAST(s.hour / {} AS TEXT)", asked.width_ms / HOUR_MS);
        let hours = hours(asked.from_ms, asked.to_ms);
        let stored = storage::sums(self.db().pool(), Some(account), hours, &[&bucket, "s.adapter"]).await?;
        for (values, sum) in stored {
            let (bucket, item) = (values[0].parse().unwrap_or(0), format!("{}, storage", values[1]));
            let passes =
                |(dimension, names): &(Dimension, Vec<String>)| *dimension == Dimension::Model && names.contains(&item);
            if !asked.only.iter().all(passes) {
                continue;
            }
            let named = |dimension: &Dimension| (*dimension == Dimension::Model).then(|| item.clone());
            let group: Vec<Option<String>> = asked.by.iter().map(named).collect();
            match rows.iter_mut().find(|row| row.bucket == bucket && row.group == group) {
                Some(row) => row.cost_nano_usd += sum.cost_nano_usd,
                None => rows.push(BucketRow {
                    bucket,
                    group,
                    requests: 0,
                    quantities: Quantities::default(),
                    cost_nano_usd: sum.cost_nano_usd,
                }),
            }
        }
        rows.sort_by(|a, b| (a.bucket, &a.group).cmp(&(b.bucket, &b.group)));
        Ok(rows)
    }
}

fn sql(asked: &Buckets) -> String {
    let mut sql = String::from("SELECT r.started_ms / $4 AS bucket, COUNT(*) AS requests, ");
    for (column, sum) in [("prompt_tokens", "prompt"), ("cached_tokens", "cached"), ("completion_tokens", "completion")]
    {
        sql += &format!("CAST(COALESCE(SUM(r.{column}), 0) AS BIGINT) AS {sum}, ");
    }
    sql += &format!("CAST(COALESCE(SUM({COST_SQL}), 0) AS BIGINT) AS cost");
    for (index, dimension) in asked.by.iter().enumerate() {
        sql += &format!(", {} AS g{index}", dimension.sql());
    }
    sql += " FROM requests r LEFT JOIN prices p ON p.version = r.price_version LEFT JOIN api_keys k ON k.id = r.key_id \
             WHERE r.account = $1 AND r.started_ms >= $2 AND r.started_ms < $3";
    let mut parameter = 5;
    for (dimension, values) in &asked.only {
        let numbers: Vec<String> = (parameter..parameter + values.len()).map(|number| format!("${number}")).collect();
        parameter += values.len();
        sql += &format!(" AND {} IN ({})", dimension.sql(), numbers.join(", "));
    }
    let groups: String = (0..asked.by.len()).map(|index| format!(", g{index}")).collect();
    sql + &format!(" GROUP BY bucket{groups} ORDER BY bucket{groups}")
}

fn row_of(row: &DbRow, groups: usize) -> Result<BucketRow, BillingError> {
    Ok(BucketRow {
        bucket: row.try_get("bucket")?,
        group: (0..groups).map(|index| row.try_get(format!("g{index}").as_str())).collect::<Result<_, _>>()?,
        requests: row.try_get("requests")?,
        quantities: Quantities::read(row, ["prompt", "cached", "completion"])?,
        cost_nano_usd: row.try_get("cost")?,
    })
}
