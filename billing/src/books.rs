//! All books of all accounts at once: what must be equal before and after a database moves.

use std::collections::BTreeMap;

use platform::DbTransaction;
use sqlx::Row;

use crate::BillingError;
use crate::price::COST_SQL;
use crate::rules::Nano;

/// Sums over everything that a database holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Books {
    /// Of the ledger's entries, by account and book.
    pub entries: BTreeMap<(String, String), Nano>,
    /// Of what accounts have by the projections: available, and held.
    pub balances: BTreeMap<(String, String), Nano>,
    /// Of what requests cost, by account.
    pub costs: BTreeMap<String, Nano>,
}

impl Books {
    pub async fn read(transaction: &mut DbTransaction) -> Result<Self, BillingError> {
        let entries = "SELECT t.account, e.book AS part, CAST(SUM(e.amount) AS BIGINT) AS amount FROM ledger_entries e \
                       JOIN ledger_transactions t ON t.id = e.transaction_id GROUP BY t.account, e.book";
        let balances = "SELECT account, 'available' AS part, available AS amount FROM balances UNION ALL \
                        SELECT account, 'held' AS part, CAST(SUM(amount) AS BIGINT) AS amount FROM reservations \
                        WHERE closed_ms IS NULL GROUP BY account";
        let costs = format!(
            "SELECT r.account, '' AS part, CAST(COALESCE(SUM({COST_SQL}), 0) AS BIGINT) AS amount FROM requests r \
             LEFT JOIN prices p ON p.version = r.price_version WHERE r.finished_ms IS NOT NULL GROUP BY r.account"
        );
        let costs = sums(transaction, costs).await?;
        Ok(Self {
            entries: sums(transaction, entries.into()).await?,
            balances: sums(transaction, balances.into()).await?,
            costs: costs.into_iter().map(|((account, _), amount)| (account, amount)).collect(),
        })
    }

    /// The first account whose balance is not what its ledger says: the database is damaged, and so would be its copy. With the book,
    /// what the ledger says and what the balance is.
    pub fn damaged(&self) -> Option<(&str, &str, Nano, Nano)> {
        let of = |sums: &BTreeMap<(String, String), Nano>, key| sums.get(key).copied().unwrap_or_default();
        let parts =
            self.entries.keys().chain(self.balances.keys()).filter(|(_, book)| book == "available" || book == "held");
        let mut differing = parts.filter(|key| of(&self.entries, key) != of(&self.balances, key));
        differing.next().map(|key| (key.0.as_str(), key.1.as_str(), of(&self.entries, key), of(&self.balances, key)))
    }

    /// The sums of all accounts, for a table; by name.
    pub fn totals(&self) -> BTreeMap<String, Nano> {
        let mut totals = BTreeMap::from([("cost of requests".to_owned(), self.costs.values().sum())]);
        for (what, sums) in [("ledger", &self.entries), ("balance", &self.balances)] {
            for ((_, part), amount) in sums {
                *totals.entry(format!("{what}, {part}")).or_default() += amount;
            }
        }
        totals
    }
}

async fn sums(transaction: &mut DbTransaction, sql: String) -> Result<BTreeMap<(String, String), Nano>, BillingError> {
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut **transaction).await?;
    let sum = |row: &platform::DbRow| -> Result<_, BillingError> {
        Ok(((row.try_get("account")?, row.try_get("part")?), row.try_get("amount")?))
    };
    rows.iter().map(sum).collect()
}
