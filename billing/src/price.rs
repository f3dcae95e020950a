//! Prices: immutable versions, and what a request costs at one of them.
//!
//! Money is an integer of nano-dollars, a price an integer of nano-dollars per million tokens or per GB-month of storage. What a
//! request, or an hour of storage, costs is rounded up once; sums add such costs.

use std::sync::{Arc, PoisonError, RwLock};

use platform::audit::Note;
use platform::units::now_ms;
use platform::{AccountName, Db, DbRow, changes};
use sqlx::Row;

use crate::{BillingError, Finish, Quantities};

/// Highest rate: 1,000 dollars per million tokens or GB-month. With it a request of a billion tokens still fits the database's
/// integers.
pub const HIGHEST: i64 = 1_000_000_000_000;
const MILLION: i128 = 1_000_000;
/// Hours of a month of storage: a year has 8,760.
pub const MONTH_HOURS: u64 = 730;
/// Bytes of a GB of storage.
pub const GB: u64 = 1_000_000_000;

/// Nano-dollars per million tokens; storage per GB-month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    pub input: i64,
    /// Of prompt tokens that the prefix cache had.
    pub cached_input: i64,
    pub output: i64,
    /// Of tokens that an adapter is trained on. None: a wider price says it, or they are free.
    pub training: Option<i64>,
    /// Of stored adapters, per [`GB`] and [`MONTH_HOURS`]. None: a wider price says it, or it is free.
    pub storage: Option<i64>,
}

impl Rates {
    pub const fn are_free(&self) -> bool {
        self.input == 0 && self.cached_input == 0 && self.output == 0
    }

    /// Nano-dollars that so many tokens cost at most, whatever the prefix cache has of the prompt.
    pub fn most(&self, prompt_tokens: u64, completion_tokens: u64) -> i64 {
        let input = i128::from(self.input.max(self.cached_input));
        let sum = i128::from(prompt_tokens) * input + i128::from(completion_tokens) * i128::from(self.output);
        rounded_up(sum, MILLION)
    }

    /// Nano-dollars, rounded up. What failed before its first token is free.
    pub fn cost(&self, quantities: &Quantities, finish: &str) -> i64 {
        if finish == Finish::Error.name() && quantities.completion_tokens == 0 {
            return 0;
        }
        let cached = quantities.cached_tokens.min(quantities.prompt_tokens);
        let of = |tokens: u64, rate: i64| i128::from(tokens) * i128::from(rate);
        let sum = of(quantities.prompt_tokens - cached, self.input)
            + of(cached, self.cached_input)
            + of(quantities.completion_tokens, self.output);
        rounded_up(sum, MILLION)
    }

    /// Nano-dollars that training on so many tokens costs, rounded up; 0 without a rate.
    pub fn training_cost(&self, tokens: u64) -> i64 {
        rounded_up(i128::from(tokens) * i128::from(self.training.unwrap_or(0)), MILLION)
    }

    /// Nano-dollars that so many byte-hours of stored adapters cost, rounded up; 0 without a rate.
    pub fn storage_cost(&self, byte_hours: u64) -> i64 {
        let gb_month = i128::from(GB) * i128::from(MONTH_HOURS);
        rounded_up(i128::from(byte_hours) * i128::from(self.storage.unwrap_or(0)), gb_month)
    }

    fn are_in_range(&self) -> bool {
        let rates = [Some(self.input), Some(self.cached_input), Some(self.output), self.training, self.storage];
        rates.into_iter().flatten().all(|rate| (0..=HIGHEST).contains(&rate))
    }
}

fn rounded_up(sum: i128, unit: i128) -> i64 {
    i64::try_from((sum + unit - 1) / unit).unwrap_or(i64::MAX)
}

/// [`Rates::cost`] as SQL, over a row `r` of requests and its price `p`: sums are made where the rows are.
pub(crate) const COST_SQL: &str = "CASE WHEN p.version IS NULL OR (r.finish = 'error' AND r.completion_tokens = 0) THEN 0 ELSE \
     ((r.prompt_tokens - CASE WHEN r.cached_tokens < r.prompt_tokens THEN r.cached_tokens ELSE r.prompt_tokens END) * p.input \
      + (CASE WHEN r.cached_tokens < r.prompt_tokens THEN r.cached_tokens ELSE r.prompt_tokens END) * p.cached_input \
      + r.completion_tokens * p.output + 999999) / 1000000 END";

/// A price that is, was or will be in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    pub version: i64,
    /// Everyone, where absent.
    pub account: Option<String>,
    /// A base model's id or an adapter's `account/name`; everything, where absent.
    pub model: Option<String>,
    pub rates: Rates,
    pub starts_ms: i64,
    /// When it was written.
    pub created_ms: i64,
}

/// A price to be.
#[derive(Debug, Clone)]
pub struct NewPrice {
    pub account: Option<AccountName>,
    pub model: Option<String>,
    pub rates: Rates,
    /// At once, where absent.
    pub starts_ms: Option<i64>,
}

/// All price versions. They are few and asked for at every request, so they are held in memory; every change goes through here.
#[derive(Debug, Clone)]
pub struct Prices {
    db: Db,
    known: Arc<RwLock<Vec<Price>>>,
    /// Held from reading the prices to holding them: an older read must not replace a newer one.
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl Prices {
    pub async fn open(db: Db) -> Result<Self, BillingError> {
        let prices = Self { db, known: Arc::default(), reading: Arc::default() };
        prices.reload().await?;
        Ok(prices)
    }

    /// Reads all versions again: another server may have added some.
    pub async fn reload(&self) -> Result<(), BillingError> {
        let _reading = self.reading.lock().await;
        // Columns by name: a server of the version before must be able to read on when a migration adds one.
        let rows = sqlx::query(
            "SELECT version, account, model, input, cached_input, output, training, storage, starts_ms, created_ms \
             FROM prices ORDER BY version",
        );
        let rows = rows.fetch_all(self.db.pool()).await?;
        let price = |row: &DbRow| -> Result<Price, sqlx::Error> {
            Ok(Price {
                version: row.try_get("version")?,
                account: row.try_get("account")?,
                model: row.try_get("model")?,
                rates: Rates {
                    input: row.try_get("input")?,
                    cached_input: row.try_get("cached_input")?,
                    output: row.try_get("output")?,
                    training: row.try_get("training")?,
                    storage: row.try_get("storage")?,
                },
                starts_ms: row.try_get("starts_ms")?,
                created_ms: row.try_get("created_ms")?,
            })
        };
        let known = rows.iter().map(price).collect::<Result<Vec<_>, _>>()?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(())
    }

    pub fn all(&self) -> Vec<Price> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a version. One that starts in the past would change what requests have cost, and is refused. `note`: what the audit log
    /// says of it.
    pub async fn add(&self, new: NewPrice, note: &Note<'_, Price>) -> Result<Price, BillingError> {
        if !new.rates.are_in_range() {
            return Err(BillingError::PriceRange);
        }
        let account = new.account.map(|account| account.to_string());
        let mut transaction = self.db.write("prices").await?;
        let latest = sqlx::query("SELECT MAX(created_ms) AS latest FROM prices").fetch_one(&mut *transaction).await?;
        let now = now_ms().max(latest.try_get::<Option<i64>, _>("latest")?.unwrap_or(0));
        let starts_ms = new.starts_ms.unwrap_or(now);
        if starts_ms < now {
            return Err(BillingError::PriceInThePast);
        }
        let row = sqlx::query(
            "INSERT INTO prices (version, account, model, input, cached_input, output, training, storage, starts_ms, created_ms) \
             SELECT COALESCE(MAX(version), 0) + 1, $1, $2, $3, $4, $5, $6, $7, $8, $9 FROM prices RETURNING version",
        )
        .bind(&account)
        .bind(&new.model)
        .bind(new.rates.input)
        .bind(new.rates.cached_input)
        .bind(new.rates.output)
        .bind(new.rates.training)
        .bind(new.rates.storage)
        .bind(starts_ms)
        .bind(now)
        .fetch_one(&mut *transaction)
        .await?;
        let (version, model, rates) = (row.try_get("version")?, new.model, new.rates);
        let price = Price { version, account, model, rates, starts_ms, created_ms: now };
        changes::note(&mut transaction, changes::PRICES).await?;
        note(&price).write(&mut transaction).await?;
        transaction.commit().await?;
        self.reload().await?;
        Ok(price)
    }

    /// The price of a request that begins now. It is never earlier than when the last price was written, whatever the clock says: one
    /// that is set back, or behind another server's, does not make free what has a price.
    pub fn in_force(&self, account: &str, base: &str, adapter: Option<&str>) -> Option<Price> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let latest_ms = known.iter().map(|price| price.created_ms).max().unwrap_or(0);
        in_force(known.iter(), account, base, adapter, now_ms().max(latest_ms)).cloned()
    }

    /// The price of training tokens at a time, in milliseconds since the Unix epoch: the narrowest that has a rate for them.
    pub fn training_at(&self, account: &str, base: &str, at_ms: i64) -> Option<Price> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let rated = known.iter().filter(|price| price.rates.training.is_some());
        in_force(rated, account, base, None, at_ms).cloned()
    }

    /// The price of storing an adapter (`account/name`) at a time, in milliseconds since the Unix epoch: the narrowest that has a
    /// rate for it.
    pub fn storage_at(&self, account: &str, base: &str, adapter: &str, at_ms: i64) -> Option<Price> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let rated = known.iter().filter(|price| price.rates.storage.is_some());
        in_force(rated, account, base, Some(adapter), at_ms).cloned()
    }

    pub fn rates(&self, version: i64) -> Option<Rates> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|price| price.version == version).map(|price| price.rates)
    }
}

/// The narrowest price wins, an account's own before everyone's, an adapter's before its base's; among equals the one that
/// started last.
fn in_force<'a>(
    known: impl Iterator<Item = &'a Price>,
    account: &str,
    base: &str,
    adapter: Option<&str>,
    now_ms: i64,
) -> Option<&'a Price> {
    let rank = |price: &Price| {
        let own = match &price.account {
            None => 0,
            Some(owner) if owner == account => 1,
            Some(_) => return None,
        };
        let narrow = match price.model.as_deref() {
            None => 0,
            Some(model) if Some(model) == adapter => 2,
            Some(model) if model == base => 1,
            Some(_) => return None,
        };
        Some((own, narrow, price.starts_ms, price.version))
    };
    let started = known.filter(|price| price.starts_ms <= now_ms);
    started.filter_map(|price| Some((rank(price)?, price))).max_by_key(|(rank, _)| *rank).map(|(_, price)| price)
}

#[cfg(test)]
mod tests {
    use platform::testing::{databases, noted};
    use platform::units::HOUR_MS;

    use super::*;

    fn price(version: i64, account: Option<&str>, model: Option<&str>, starts_ms: i64) -> Price {
        let rates = Rates { input: version, ..Rates::default() };
        Price {
            version,
            account: account.map(Into::into),
            model: model.map(Into::into),
            rates,
            starts_ms,
            created_ms: 0,
        }
    }

    #[test]
    fn table_of_prices_in_force() {
        let known = [
            price(1, None, None, 0),
            price(2, None, Some("base"), 0),
            price(3, None, Some("acme/sql"), 0),
            price(4, Some("acme"), None, 0),
            price(5, Some("acme"), Some("base"), 0),
            price(6, None, Some("base"), 50),
            price(7, None, Some("base"), 50),
            price(8, Some("acme"), Some("acme/sql"), 90),
        ];
        let cases = [
            ("other", "else", None, 10, Some(1)),
            ("other", "base", None, 49, Some(2)),
            ("other", "base", None, 50, Some(7)),
            ("other", "base", Some("acme/sql"), 50, Some(3)),
            ("acme", "base", Some("acme/sql"), 50, Some(5)),
            ("acme", "base", Some("acme/sql"), 90, Some(8)),
            ("acme", "else", Some("acme/new"), 90, Some(4)),
            ("other", "base", None, -1, None),
        ];
        for (account, base, adapter, now, expected) in cases {
            let found = in_force(known.iter(), account, base, adapter, now).map(|price| price.version);
            assert_eq!(found, expected, "{account} {base} {adapter:?} at {now}");
        }
    }

    #[test]
    fn a_cost_is_rounded_up_once_and_never_overflows() {
        let rates = Rates { input: 1, output: 400_000_000, ..Rates::default() };
        let cost = |prompt, cached, completion, finish| {
            rates.cost(
                &Quantities { prompt_tokens: prompt, cached_tokens: cached, completion_tokens: completion },
                finish,
            )
        };
        assert_eq!(cost(1, 0, 0, "stop"), 1);
        assert_eq!(cost(10, 10, 0, "stop"), 0);
        assert_eq!(cost(2_000_001, 1, 1_000_000, "length"), 400_000_002);
        assert_eq!(cost(5, 0, 0, "error"), 0);
        assert_eq!(cost(5, 9, 1, "error"), 400);
        let highest = Rates { input: HIGHEST, cached_input: HIGHEST, output: HIGHEST, ..Rates::default() };
        let much = Quantities { prompt_tokens: 1_000_000_000, cached_tokens: 7, completion_tokens: 1_000_000_000 };
        assert_eq!(highest.cost(&much, "stop"), 2_000_000_000_000_000);
    }

    #[test]
    fn table_of_what_training_and_storage_cost() {
        let gb_month = GB * MONTH_HOURS;
        let cases = [
            // rate, tokens or byte-hours, training, storage
            (None, u64::MAX, 0, 0),
            (Some(0), u64::MAX, 0, 0),
            (Some(1), 0, 0, 0),
            (Some(1), 1, 1, 1),
            (Some(3_000_000_000), 1_000_000, 3_000_000_000, 4_110),
            (Some(50_000_000), gb_month, 36_500_000_000_000, 50_000_000),
            (Some(50_000_000), gb_month + 1, 36_500_000_000_050, 50_000_001),
            (Some(50_000_000), 2 * GB, 100_000_000_000, 136_987),
            (Some(HIGHEST), 1_000 * gb_month, 730_000_000_000_000_000_000_i128, 1_000_000_000_000_000),
        ];
        for (rate, amount, training, storage) in cases {
            let rates = Rates { training: rate, storage: rate, ..Rates::default() };
            let training = i64::try_from(training).unwrap_or(i64::MAX);
            assert_eq!(
                (rates.training_cost(amount), rates.storage_cost(amount)),
                (training, storage),
                "{rate:?} {amount}"
            );
        }
    }

    #[test]
    fn a_version_without_a_rate_leaves_it_to_the_next_wider_one() {
        let rated = |version, account, model, training, storage| {
            let known = price(version, account, model, 0);
            Price { rates: Rates { training, storage, ..known.rates }, ..known }
        };
        let known = [
            rated(1, None, None, Some(5), Some(5)),
            rated(2, None, Some("base"), Some(7), None),
            rated(3, Some("acme"), None, None, None),
            rated(4, Some("acme"), Some("acme/sql"), None, Some(0)),
        ];
        let of = |account: &str, base: &str, adapter: &str| {
            let storage = known.iter().filter(|price| price.rates.storage.is_some());
            let training = known.iter().filter(|price| price.rates.training.is_some());
            let version = |found: Option<&Price>| found.map(|price| price.version);
            let adapter = Some(adapter);
            (
                version(in_force(storage, account, base, adapter, 9)),
                version(in_force(training, account, base, adapter, 9)),
            )
        };
        assert_eq!(of("acme", "base", "acme/sql"), (Some(4), Some(2)), "0 is a rate: it is free");
        assert_eq!(of("acme", "base", "acme/new"), (Some(1), Some(2)));
        assert_eq!(of("acme", "else", "acme/new"), (Some(1), Some(1)));
    }

    #[tokio::test]
    async fn a_clock_that_was_set_back_makes_nothing_free() {
        for db in databases().await {
            let prices = Prices::open(db.clone()).await.unwrap();
            let add = async |input, starts_ms| {
                let rates = Rates { input, ..Rates::default() };
                prices.add(NewPrice { account: None, model: None, rates, starts_ms }, &noted).await
            };
            let first = add(1, None).await.unwrap();
            // As it is when the clock has lost an hour since.
            let later = "UPDATE prices SET starts_ms = starts_ms + $1, created_ms = created_ms + $1";
            sqlx::query(later).bind(HOUR_MS).execute(db.pool()).await.unwrap();
            prices.reload().await.unwrap();
            let version = || prices.in_force("acme", "base", None).map(|price| price.version);
            assert_eq!(version(), Some(first.version));
            // What is set now holds from now on, and not only for that hour.
            let second = add(2, None).await.unwrap();
            assert_eq!((version(), second.starts_ms), (Some(second.version), first.starts_ms + HOUR_MS));
            let between = add(3, Some(now_ms() + HOUR_MS / 2)).await;
            assert!(matches!(between, Err(BillingError::PriceInThePast)), "{between:?}");
            let planned = add(3, Some(first.starts_ms + 2 * HOUR_MS)).await.unwrap();
            assert_eq!((version(), planned.version), (Some(second.version), 3), "it has not begun");
        }
    }
}
