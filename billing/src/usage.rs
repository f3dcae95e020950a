//! Usage: quantities and costs of an account's requests and storage, summed by what one asks for.

use platform::AccountName;
use sqlx::Row;

use crate::price::COST_SQL;
use crate::storage::{self, StorageSum};
use crate::usage_hours::hours;
use crate::{BillingError, Journal, Quantities};

/// What usage can be grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBy {
    Key,
    /// The base model.
    Model,
    Adapter,
    /// UTC, by the request's start.
    Day,
    /// The caller's own.
    Tag,
}

impl GroupBy {
    pub const ALL: [Self; 5] = [Self::Key, Self::Model, Self::Adapter, Self::Day, Self::Tag];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Model => "model",
            Self::Adapter => "adapter",
            Self::Day => "day",
            Self::Tag => "tag",
        }
    }

    const fn sql(self) -> &'static str {
        match self {
            Self::Key => "r.key_id",
            Self::Model => "r.base",
            Self::Adapter => "r.adapter",
            Self::Day => "CAST(r.started_ms / 86400000 AS TEXT)",
            Self::Tag => "r.tag",
        }
    }

    /// Of a row of storage, which no key has asked for.
    const fn storage_sql(self) -> Option<&'static str> {
        match self {
            Self::Key | Self::Tag => None,
            Self::Model => Some("s.base"),
            Self::Adapter => Some("s.adapter"),
            Self::Day => Some("CAST(s.hour / 24 AS TEXT)"),
        }
    }
}

/// Requests and storage of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageRow {
    /// One for each of the names asked for; days are counted from the Unix epoch.
    pub group: Vec<Option<String>>,
    pub requests: i64,
    pub quantities: Quantities,
    pub storage: StorageSum,
    /// Of both.
    pub cost_nano_usd: i64,
}

impl Journal {
    /// Sums over the account's requests that started in `from_ms..to_ms`, and over its storage in the hours that began there.
    pub async fn usage(
        &self,
        account: &AccountName,
        by: &[GroupBy],
        from_ms: i64,
        to_ms: i64,
    ) -> Result<Vec<UsageRow>, BillingError> {
        let mut sql = String::from("SELECT COUNT(*) AS requests, ");
        for (column, sum) in
            [("prompt_tokens", "prompt"), ("cached_tokens", "cached"), ("completion_tokens", "completion")]
        {
            sql += &format!("CAST(COALESCE(SUM(r.{column}), 0) AS BIGINT) AS {sum}, ");
        }
        sql += &format!("CAST(COALESCE(SUM({COST_SQL}), 0) AS BIGINT) AS cost");
        for (index, group) in by.iter().enumerate() {
            sql += &format!(", {} AS g{index}", group.sql());
        }
        sql += " FROM requests r LEFT JOIN prices p ON p.version = r.price_version \
                 WHERE r.account = $1 AND r.started_ms >= $2 AND r.started_ms < $3";
        if !by.is_empty() {
            let columns: Vec<String> = (0..by.len()).map(|index| format!("g{index}")).collect();
            sql += &format!(" GROUP BY {}", columns.join(", "));
        }
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str()).bind(from_ms).bind(to_ms);
        let rows = query.fetch_all(self.db().pool()).await?;
        let row = |row: &platform::DbRow| -> Result<UsageRow, BillingError> {
            Ok(UsageRow {
                group: (0..by.len())
                    .map(|index| row.try_get(format!("g{index}").as_str()))
                    .collect::<Result<_, _>>()?,
                requests: row.try_get("requests")?,
                quantities: Quantities::read(row, ["prompt", "cached", "completion"])?,
                cost_nano_usd: row.try_get("cost")?,
                storage: StorageSum::default(),
            })
        };
        let mut rows = rows.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        let columns: Vec<&str> = by.iter().filter_map(|group| group.storage_sql()).collect();
        let stored = storage::sums(self.db().pool(), Some(account), hours(from_ms, to_ms), &columns).await?;
        for (values, sum) in stored {
            let mut values = values.into_iter();
            let group = by.iter().map(|group| group.storage_sql().and_then(|_| values.next())).collect();
            add_storage(&mut rows, group, sum);
        }
        rows.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(rows)
    }
}

fn add_storage(rows: &mut Vec<UsageRow>, group: Vec<Option<String>>, sum: StorageSum) {
    let at = rows.iter().position(|row| row.group == group).unwrap_or_else(|| {
        rows.push(UsageRow { group, ..UsageRow::default() });
        rows.len() - 1
    });
    rows[at].storage.add(sum);
    rows[at].cost_nano_usd += sum.cost_nano_usd;
}

#[cfg(test)]
mod tests {
    use platform::Db;
    use platform::testing::noted;
    use platform::units::{DAY_MS, day_of, now_ms};

    use super::*;
    use crate::testing::{account, journal, request};
    use crate::{Finish, HIGHEST, NewPrice, NewRequest, Prices, Rates};

    /// Small steps and the extremes, from a seed: what the sums must agree on does not depend on luck.
    fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    }

    #[tokio::test]
    async fn sums_agree_with_the_cost_of_each_request_however_they_are_grouped() {
        for db in platform::testing::databases().await {
            sums_agree(db).await;
        }
    }

    async fn sums_agree(db: Db) {
        let (journal, prices) = journal(&db).await;
        let mut number = numbers(7);
        for at in 0..4u64 {
            let mut rate = || if at == 0 { HIGHEST } else { number(3_000_000_000) as i64 };
            let rates = Rates { input: rate(), cached_input: rate(), output: rate(), ..Rates::default() };
            prices.add(NewPrice { account: None, model: None, rates, starts_ms: None }, &noted).await.unwrap();
        }
        let finishes = [Finish::Stop, Finish::Length, Finish::Cancelled, Finish::Error];
        for at in 0..300u64 {
            let request = NewRequest {
                account: if at % 5 == 0 { "other" } else { "acme" }.parse().unwrap(),
                key_id: format!("key-{}", number(2)),
                tag: (number(2) == 0).then(|| "night".to_owned()),
                base: format!("base-{}", number(2)),
                adapter: (number(2) == 0).then(|| (format!("acme/a{}", number(3)), 1)),
                price_version: (number(6) > 0).then(|| 1 + number(4) as i64),
                ..request()
            };
            let most = if at % 7 == 0 { 1_000_000 } else { 50 };
            let prompt_tokens = number(most);
            let quantities = Quantities {
                prompt_tokens,
                cached_tokens: number(prompt_tokens + 2),
                completion_tokens: number(3) * number(most),
            };
            journal.begin(&request).await.unwrap();
            journal.settle(&request.id, quantities, finishes[number(4) as usize], None).await.unwrap();
        }
        let account = account();
        let rows = journal.list(&account, None, 1000).await.unwrap();
        assert_eq!(rows.len(), 240);
        let cost = |row: &crate::RequestRow| {
            let rates = row.price_version.and_then(|version| prices.rates(version));
            rates.map_or(0, |rates| rates.cost(&row.quantities, &row.finish))
        };
        let today = now_ms().div_euclid(DAY_MS);
        let groupings: [&[GroupBy]; 6] = [
            &[],
            &[GroupBy::Key],
            &[GroupBy::Adapter, GroupBy::Model],
            &[GroupBy::Day],
            &[GroupBy::Tag],
            &[GroupBy::Key, GroupBy::Model, GroupBy::Adapter, GroupBy::Day],
        ];
        for by in groupings {
            let sums = journal.usage(&account, by, (today - 1) * DAY_MS, (today + 1) * DAY_MS).await.unwrap();
            for sum in &sums {
                let of = |row: &&crate::RequestRow| {
                    by.iter().zip(&sum.group).all(|(group, value)| match group {
                        GroupBy::Key => value.as_deref() == Some(row.key_id.as_str()),
                        GroupBy::Model => value.as_deref() == Some(row.base.as_str()),
                        GroupBy::Adapter => *value == row.adapter,
                        GroupBy::Tag => *value == row.tag,
                        GroupBy::Day => {
                            let days = value.as_ref().unwrap().parse().unwrap();
                            day_of(days) == day_of(row.started_ms.div_euclid(DAY_MS))
                        }
                    })
                };
                let mine: Vec<_> = rows.iter().filter(of).collect();
                assert_eq!(sum.requests, mine.len() as i64);
                assert_eq!(sum.cost_nano_usd, mine.iter().map(|row| cost(row)).sum::<i64>(), "{by:?} {:?}", sum.group);
                let prompt: u64 = mine.iter().map(|row| row.quantities.prompt_tokens).sum();
                assert_eq!(sum.quantities.prompt_tokens, prompt);
            }
            assert_eq!(sums.iter().map(|sum| sum.requests).sum::<i64>(), 240);
        }
        let none = journal.usage(&account, &[GroupBy::Day], 0, (today - 1) * DAY_MS).await.unwrap();
        assert!(none.is_empty());
    }

    #[tokio::test]
    async fn a_price_stays_what_it_was_and_none_starts_in_the_past() {
        for db in platform::testing::databases().await {
            prices_stay(db).await;
        }
    }

    async fn prices_stay(db: Db) {
        let prices = Prices::open(db.clone()).await.unwrap();
        let rates = Rates { input: 3, cached_input: 2, output: 1, training: Some(4), storage: None };
        let new = |starts_ms| NewPrice { account: None, model: None, rates, starts_ms };
        let first = prices.add(new(None), &noted).await.unwrap();
        assert!(matches!(prices.add(new(Some(now_ms() - 1000)), &noted).await, Err(BillingError::PriceInThePast)));
        let later = prices.add(new(Some(now_ms() + 60_000)), &noted).await.unwrap();
        assert_eq!(prices.in_force("acme", "base", None).unwrap(), first);
        let reopened = Prices::open(db).await.unwrap();
        assert_eq!(reopened.all(), [first, later]);
        for wrong in [Rates { input: -1, ..rates }, Rates { storage: Some(HIGHEST + 1), ..rates }] {
            let refused = prices.add(NewPrice { rates: wrong, ..new(None) }, &noted).await;
            assert!(matches!(refused, Err(BillingError::PriceRange)));
        }
    }
}
