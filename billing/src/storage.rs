//! Storage of adapters: for each hour and adapter one row with what was stored, charged to the ledger with it.
//!
//! A row holds quantities and a price version; its cost is derived from them. What is stored is the caller's to say.

use std::collections::{BTreeMap, HashSet};

use platform::units::HOUR_MS;
use platform::{AccountName, DbTransaction};
use sqlx::Row;

use crate::ledger::{apply_in, lock_name};
use crate::rules::{Command, Nano};
use crate::{BillingError, Ledger, Price, Prices, Rates};

/// Rows of one transaction.
const ROWS: usize = 100;

/// An adapter that was stored throughout an hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub account: AccountName,
    /// `account/name`.
    pub adapter: String,
    pub base: String,
    /// Of all its versions.
    pub bytes: u64,
}

/// Storage with a price that has no row yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueStorage {
    stored: Stored,
    /// Since the Unix epoch.
    hour: i64,
    price: Price,
}

impl DueStorage {
    /// Of the ledger's transaction. It says what is charged and nothing else: however often it is asked for, it is charged once.
    fn id(&self) -> String {
        format!("storage {} {}", self.stored.adapter, self.hour)
    }
}

/// Charges storage.
#[derive(Debug, Clone)]
pub struct Storage {
    ledger: Ledger,
    prices: Prices,
}

impl Storage {
    pub const fn new(ledger: Ledger, prices: Prices) -> Self {
        Self { ledger, prices }
    }

    /// Whether anything that is stored can have a price.
    pub fn has_prices(&self) -> bool {
        self.prices.all().iter().any(|price| price.rates.storage.is_some())
    }

    /// The last hour (since the Unix epoch) of which something was charged. Hours are charged in their order, so those before it are
    /// done.
    pub async fn last_hour(&self) -> Result<Option<i64>, BillingError> {
        let last =
            sqlx::query("SELECT MAX(hour) AS last FROM storage_hours").fetch_one(self.ledger.db().pool()).await?;
        Ok(last.try_get("last")?)
    }

    /// What of this account's adapters has a price in an hour (since the Unix epoch) and no row yet.
    pub async fn due(&self, hour: i64, stored: &[Stored]) -> Result<Vec<DueStorage>, BillingError> {
        let priced = |stored: &Stored| {
            let price =
                self.prices.storage_at(stored.account.as_str(), &stored.base, &stored.adapter, hour * HOUR_MS)?;
            let costs = price.rates.storage_cost(stored.bytes) > 0;
            costs.then(|| DueStorage { stored: stored.clone(), hour, price })
        };
        let mut due: Vec<DueStorage> = stored.iter().filter_map(priced).collect();
        if let Some(first) = due.first() {
            let mut snapshot = self.ledger.db().snapshot().await?;
            let known = known(&mut snapshot, &first.stored.account, hour).await?;
            due.retain(|due| !known.contains(&due.id()));
        }
        Ok(due)
    }

    /// Charges what is due to an account, each row with its transaction. What a prepaid account cannot pay is left uncharged for
    /// good, and its row says so. Returns how many rows were written.
    pub async fn charge(&self, account: &AccountName, due: &[DueStorage]) -> Result<usize, BillingError> {
        let mut written = 0;
        for due in due.chunks(ROWS) {
            let mut transaction = self.ledger.db().write(&lock_name(account)).await?;
            let mut rows = 0;
            for due in due {
                rows += usize::from(charge(&mut transaction, account, due).await?);
            }
            self.ledger.commit(transaction).await?;
            written += rows;
        }
        Ok(written)
    }
}

/// False where another server was faster.
async fn charge(
    transaction: &mut DbTransaction,
    account: &AccountName,
    due: &DueStorage,
) -> Result<bool, BillingError> {
    let (id, stored) = (due.id(), &due.stored);
    let known = sqlx::query("SELECT 1 FROM storage_hours WHERE id = $1").bind(&id);
    if known.fetch_optional(&mut **transaction).await?.is_some() {
        return Ok(false);
    }
    let command = Command::Charge { amount: due.price.rates.storage_cost(stored.bytes) };
    let outcome = apply_in(transaction, &id, account, &command, None, "").await?;
    let outcome = outcome.ok_or_else(|| BillingError::Conflict(id.clone()))?;
    sqlx::query(
        "INSERT INTO storage_hours (id, account, base, adapter, hour, byte_hours, price_version, outcome) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(&id)
    .bind(account.as_str())
    .bind(&stored.base)
    .bind(&stored.adapter)
    .bind(due.hour)
    .bind(i64::try_from(stored.bytes).unwrap_or(i64::MAX))
    .bind(due.price.version)
    .bind(outcome.map_or_else(|refusal| refusal.name(), |()| "done"))
    .execute(&mut **transaction)
    .await?;
    Ok(true)
}

async fn known(
    transaction: &mut DbTransaction,
    account: &AccountName,
    hour: i64,
) -> Result<HashSet<String>, BillingError> {
    let rows = sqlx::query("SELECT id FROM storage_hours WHERE account = $1 AND hour = $2");
    let rows = rows.bind(account.as_str()).bind(hour).fetch_all(&mut **transaction).await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// Storage of one group of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StorageSum {
    /// Charged or not.
    pub byte_hours: u64,
    pub cost_nano_usd: Nano,
}

impl StorageSum {
    pub fn add(&mut self, other: Self) {
        self.byte_hours += other.byte_hours;
        self.cost_nano_usd += other.cost_nano_usd;
    }
}

/// Sums over the rows of one account, or of all, that are of hours in `from..to` (since the Unix epoch), by the values of these columns.
/// Rows of the same size cost the same, so that one of them is priced for all.
pub(crate) async fn sums(
    executor: impl sqlx::Executor<'_, Database = sqlx::Any>,
    account: Option<&AccountName>,
    (from, to): (i64, i64),
    columns: &[&str],
) -> Result<BTreeMap<Vec<String>, StorageSum>, BillingError> {
    let named: String = columns.iter().enumerate().map(|(at, column)| format!(", {column} AS g{at}")).collect();
    let groups: String = (0..columns.len()).map(|at| format!(", g{at}")).collect();
    let sql = format!(
        "SELECT s.byte_hours, p.storage, s.outcome, COUNT(*) AS rows{named} FROM storage_hours s \
         JOIN prices p ON p.version = s.price_version WHERE ($1 IS NULL OR s.account = $1) AND s.hour >= $2 AND s.hour < $3 \
         GROUP BY s.byte_hours, p.storage, s.outcome{groups}"
    );
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.map(AccountName::as_str)).bind(from).bind(to);
    let mut sums: BTreeMap<Vec<String>, StorageSum> = BTreeMap::new();
    for row in query.fetch_all(executor).await? {
        let group = (0..columns.len()).map(|at| row.try_get(format!("g{at}").as_str())).collect::<Result<_, _>>()?;
        let byte_hours = u64::try_from(row.try_get::<i64, _>("byte_hours")?).unwrap_or(0);
        let rows: i64 = row.try_get("rows")?;
        let rates = Rates { storage: row.try_get("storage")?, ..Rates::default() };
        let cost = if row.try_get::<&str, _>("outcome")? == "done" { rates.storage_cost(byte_hours) } else { 0 };
        let sum = StorageSum { byte_hours: byte_hours * rows.unsigned_abs(), cost_nano_usd: cost * rows };
        sums.entry(group).or_default().add(sum);
    }
    Ok(sums)
}
