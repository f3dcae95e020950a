//! Usage: quantities and costs of an account's requests, summed by what one asks for.

use platform::AccountName;
use sqlx::{QueryBuilder, Row};

use crate::price::COST_SQL;
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
}

impl GroupBy {
    pub const ALL: [Self; 4] = [Self::Key, Self::Model, Self::Adapter, Self::Day];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Model => "model",
            Self::Adapter => "adapter",
            Self::Day => "day",
        }
    }

    const fn sql(self) -> &'static str {
        match self {
            Self::Key => "r.key_id",
            Self::Model => "r.base",
            Self::Adapter => "r.adapter",
            Self::Day => "CAST(r.started_ms / 86400000 AS TEXT)",
        }
    }
}

/// Requests of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// One for each of the names asked for; days are counted from the Unix epoch.
    pub group: Vec<Option<String>>,
    pub requests: i64,
    pub quantities: Quantities,
    pub cost_nano_usd: i64,
}

impl Journal {
    /// Sums over the account's requests that started in `from_ms..to_ms`.
    pub async fn usage(
        &self,
        account: &AccountName,
        by: &[GroupBy],
        from_ms: i64,
        to_ms: i64,
    ) -> Result<Vec<UsageRow>, BillingError> {
        let mut query = QueryBuilder::new("SELECT COUNT(*) AS requests, ");
        for (column, sum) in
            [("prompt_tokens", "prompt"), ("cached_tokens", "cached"), ("completion_tokens", "completion")]
        {
            query.push(format!("CAST(COALESCE(SUM(r.{column}), 0) AS BIGINT) AS {sum}, "));
        }
        query.push(format!("CAST(COALESCE(SUM({COST_SQL}), 0) AS BIGINT) AS cost"));
        for (index, group) in by.iter().enumerate() {
            query.push(format!(", {} AS g{index}", group.sql()));
        }
        query.push(" FROM requests r LEFT JOIN prices p ON p.version = r.price_version WHERE r.account = ");
        query.push_bind(account.to_string()).push(" AND r.started_ms >= ").push_bind(from_ms);
        query.push(" AND r.started_ms < ").push_bind(to_ms);
        if !by.is_empty() {
            let columns: Vec<String> = (0..by.len()).map(|index| format!("g{index}")).collect();
            query.push(format!(" GROUP BY {0} ORDER BY {0}", columns.join(", ")));
        }
        let rows = query.build().fetch_all(self.db().pool()).await?;
        let row = |row: &sqlx::sqlite::SqliteRow| -> Result<UsageRow, BillingError> {
            let count = |column: &str| row.try_get::<i64, _>(column).map(|count| u64::try_from(count).unwrap_or(0));
            Ok(UsageRow {
                group: (0..by.len())
                    .map(|index| row.try_get(format!("g{index}").as_str()))
                    .collect::<Result<_, _>>()?,
                requests: row.try_get("requests")?,
                quantities: Quantities {
                    prompt_tokens: count("prompt")?,
                    cached_tokens: count("cached")?,
                    completion_tokens: count("completion")?,
                },
                cost_nano_usd: row.try_get("cost")?,
            })
        };
        rows.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use platform::units::{DAY_MS, day_of, now_ms};
    use platform::{Db, RequestId};

    use super::*;
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
        let db = Db::open("sqlite::memory:").await.unwrap();
        for name in ["acme", "other"] {
            let insert = sqlx::query("INSERT INTO accounts (name, created_ms) VALUES ($1, 0)").bind(name);
            insert.execute(db.pool()).await.unwrap();
        }
        let (journal, _) = Journal::open(db.clone()).await.unwrap();
        let prices = Prices::open(db).await.unwrap();
        let mut number = numbers(7);
        for at in 0..4u64 {
            let mut rate = || if at == 0 { HIGHEST } else { number(3_000_000_000) as i64 };
            let rates = Rates { input: rate(), cached_input: rate(), output: rate() };
            prices.add(NewPrice { account: None, model: None, rates, starts_ms: None }).await.unwrap();
        }
        let finishes = [Finish::Stop, Finish::Length, Finish::Cancelled, Finish::Error];
        for at in 0..300u64 {
            let request = NewRequest {
                id: RequestId::fresh("chatcmpl"),
                account: if at % 5 == 0 { "other" } else { "acme" }.parse().unwrap(),
                key_id: format!("key-{}", number(2)),
                endpoint: "chat.completions",
                model: "m".into(),
                base: format!("base-{}", number(2)),
                adapter: (number(2) == 0).then(|| (format!("acme/a{}", number(3)), 1)),
                price_version: (number(6) > 0).then(|| 1 + number(4) as i64),
            };
            let most = if at % 7 == 0 { 1_000_000 } else { 50 };
            let prompt_tokens = number(most);
            let quantities = Quantities {
                prompt_tokens,
                cached_tokens: number(prompt_tokens + 2),
                completion_tokens: number(3) * number(most),
            };
            journal.begin(&request).await.unwrap();
            journal.settle(&request.id, quantities, finishes[number(4) as usize]).await.unwrap();
        }
        let account = "acme".parse().unwrap();
        let rows = journal.list(&account, None, 1000).await.unwrap();
        assert_eq!(rows.len(), 240);
        let cost = |row: &crate::RequestRow| {
            let rates = row.price_version.and_then(|version| prices.rates(version));
            rates.map_or(0, |rates| rates.cost(&row.quantities, &row.finish))
        };
        let today = now_ms().div_euclid(DAY_MS);
        let groupings: [&[GroupBy]; 5] = [
            &[],
            &[GroupBy::Key],
            &[GroupBy::Adapter, GroupBy::Model],
            &[GroupBy::Day],
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
        let db = Db::open("sqlite::memory:").await.unwrap();
        let prices = Prices::open(db.clone()).await.unwrap();
        let rates = Rates { input: 3, cached_input: 2, output: 1 };
        let new = |starts_ms| NewPrice { account: None, model: None, rates, starts_ms };
        let first = prices.add(new(None)).await.unwrap();
        assert!(matches!(prices.add(new(Some(now_ms() - 1000))).await, Err(BillingError::PriceInThePast)));
        let later = prices.add(new(Some(now_ms() + 60_000))).await.unwrap();
        assert_eq!(prices.in_force("acme", "base", None).unwrap(), first);
        let reopened = Prices::open(db).await.unwrap();
        assert_eq!(reopened.all(), [first, later]);
        let wrong = NewPrice { rates: Rates { input: -1, ..rates }, ..new(None) };
        assert!(matches!(prices.add(wrong).await, Err(BillingError::PriceRange)));
    }
}
