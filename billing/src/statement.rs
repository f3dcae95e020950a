//! Statements: what an account had at the start of a month, what came and went, and what it had at the end.
//!
//! A month is a month of UTC. A request belongs to the month in which it finished, and an hour of storage to that in which it
//! was over or caught up, since that is when the ledger charges it. Amounts are the ledger's, quantities those of the rows; all of one statement is
//! read from one state of the database.

use platform::units::{Month, now_ms};
use platform::{AccountName, DbRow, DbTransaction};
use sqlx::Row;

use crate::ledger::posted_in;
use crate::rules::Nano;
use crate::{BillingError, Ledger, Quantities};

/// Credits of one statement. A month has a handful; over it the reader is sent to the ledger's pages.
const CREDIT_LINES: u32 = 10_000;
/// A month that ended this long ago gets no more transactions: none is under way for longer.
const FINAL_AFTER_MS: i64 = 5 * 60_000;

/// What a ledger's transaction `t` does to what the account has.
const EFFECT_SQL: &str = "CASE WHEN t.kind IN ('expire', 'settle', 'charge') THEN -t.amount ELSE t.amount END";
/// The others move what the account has between what is reserved and what is not.
const LISTED_SQL: &str =
    "t.outcome = 'done' AND t.kind IN ('grant', 'top_up', 'refund', 'expire', 'adjust', 'settle', 'charge')";
/// Corrections of requests that were rated again: the id is the ledger's own.
const RERATED_SQL: &str = "t.kind = 'adjust' AND t.id LIKE 'rerate %'";

/// One month of an account. `opening` + the amounts of all lines = `closing`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub month: Month,
    /// False while the month may still change.
    pub is_final: bool,
    pub opening: Nano,
    pub credits: Vec<CreditLine>,
    pub charges: Vec<ChargeLine>,
    pub storage: Vec<StorageLine>,
    pub corrections: Vec<CorrectionLine>,
    pub closing: Nano,
}

/// What was not a request: grants, top-ups, refunds, expirations, corrections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditLine {
    pub id: String,
    pub kind: String,
    /// What it did to the balance: below 0 for what was taken away.
    pub amount: Nano,
    pub memo: Option<String>,
    pub created_ms: i64,
}

/// Requests of one base model, adapter and price version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChargeLine {
    /// None: the requests' rows are gone, what they cost is not.
    pub model: Option<String>,
    pub adapter: Option<String>,
    /// None: they were free.
    pub price_version: Option<i64>,
    pub requests: i64,
    pub quantities: Quantities,
    /// What they did to the balance: never over 0.
    pub amount: Nano,
}

/// Storage of one adapter at one price version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageLine {
    pub adapter: String,
    pub price_version: i64,
    /// Charged or not.
    pub hours: i64,
    pub byte_hours: u64,
    /// Of these, what the account's credit did not suffice for: it is free.
    pub uncharged_byte_hours: u64,
    /// What it did to the balance: never over 0.
    pub amount: Nano,
}

/// Requests that were rated again at one price version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorrectionLine {
    pub price_version: i64,
    pub requests: i64,
    /// What it did to the balance: below 0 where they got more expensive.
    pub amount: Nano,
}

impl Ledger {
    /// Months in which something happened, oldest first. Looks from one month to the next, so that it costs by months and not by
    /// transactions.
    pub async fn statement_months(&self, account: &AccountName) -> Result<Vec<Month>, BillingError> {
        let mut transaction = self.db().snapshot().await?;
        let mut months = Vec::new();
        let mut from_ms = 0;
        while let Some(first) = first_since(&mut transaction, account, from_ms).await? {
            let month = Month::of_ms(first);
            from_ms = month.end_ms();
            months.push(month);
        }
        Ok(months)
    }

    pub async fn statement(&self, account: &AccountName, month: Month) -> Result<Statement, BillingError> {
        Statement::read(&mut self.db().snapshot().await?, account, month).await
    }
}

impl Statement {
    pub(crate) async fn read(
        transaction: &mut DbTransaction,
        account: &AccountName,
        month: Month,
    ) -> Result<Self, BillingError> {
        let (from, to) = (month.start_ms(), month.end_ms());
        let is_final = now_ms() >= to + FINAL_AFTER_MS;
        // Counted back from what there is now: what happened before is read by nobody, however much it is.
        let now = posted_in(transaction, account).await?;
        let closing = now - moved(transaction, account, to, i64::MAX).await?;
        let opening = closing - moved(transaction, account, from, to).await?;
        let credits = credits(transaction, account, month).await?;
        let charges = charges(transaction, account, from, to).await?;
        let storage = storage(transaction, account, month).await?;
        let corrections = corrections(transaction, account, month).await?;
        Ok(Self { month, is_final, opening, credits, charges, storage, corrections, closing })
    }

    /// The sum of all lines.
    pub fn moved(&self) -> Nano {
        let credits: Nano = self.credits.iter().map(|line| line.amount).sum();
        let charges: Nano = self.charges.iter().map(|line| line.amount).sum();
        let storage: Nano = self.storage.iter().map(|line| line.amount).sum();
        let corrections: Nano = self.corrections.iter().map(|line| line.amount).sum();
        credits + charges + storage + corrections
    }
}

async fn first_since(
    transaction: &mut DbTransaction,
    account: &AccountName,
    from_ms: i64,
) -> Result<Option<i64>, BillingError> {
    let ledger = format!(
        "SELECT MIN(t.created_ms) AS first FROM ledger_transactions t \
         WHERE t.account = $1 AND t.created_ms >= $2 AND (t.kind = 'charge' OR {LISTED_SQL})"
    );
    let requests =
        "SELECT MIN(r.finished_ms) AS first FROM requests r WHERE r.account = $1 AND r.finished_ms >= $2".to_owned();
    let mut first: Option<i64> = None;
    for sql in [ledger, requests] {
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str()).bind(from_ms);
        let found: Option<i64> = query.fetch_one(&mut **transaction).await?.try_get("first")?;
        first = first.into_iter().chain(found).min();
    }
    Ok(first)
}

/// How much the account had more at the end of `from_ms..to_ms` than at its start.
async fn moved(
    transaction: &mut DbTransaction,
    account: &AccountName,
    from_ms: i64,
    to_ms: i64,
) -> Result<Nano, BillingError> {
    let row = sqlx::query(
        "SELECT CAST(COALESCE(SUM(e.amount), 0) AS BIGINT) AS moved FROM ledger_entries e \
         JOIN ledger_transactions t ON t.id = e.transaction_id WHERE t.account = $1 AND t.created_ms >= $2 AND t.created_ms < $3 \
         AND e.book IN ('available', 'held')",
    )
    .bind(account.as_str())
    .bind(from_ms)
    .bind(to_ms)
    .fetch_one(&mut **transaction)
    .await?;
    Ok(row.try_get("moved")?)
}

async fn credits(
    transaction: &mut DbTransaction,
    account: &AccountName,
    month: Month,
) -> Result<Vec<CreditLine>, BillingError> {
    let sql = format!(
        "SELECT t.id, t.kind, t.memo, t.created_ms, {EFFECT_SQL} AS effect FROM ledger_transactions t \
         WHERE t.account = $1 AND t.created_ms >= $2 AND t.created_ms < $3 AND t.kind NOT IN ('settle', 'charge') \
         AND NOT ({RERATED_SQL}) AND {LISTED_SQL} \
         ORDER BY t.created_ms, t.id LIMIT $4"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(account.as_str())
        .bind(month.start_ms())
        .bind(month.end_ms())
        .bind(i64::from(CREDIT_LINES) + 1)
        .fetch_all(&mut **transaction)
        .await?;
    if rows.len() > CREDIT_LINES as usize {
        return Err(BillingError::StatementTooLong { month: month.to_string(), lines: CREDIT_LINES });
    }
    let line = |row: &DbRow| {
        Ok(CreditLine {
            id: row.try_get("id")?,
            kind: row.try_get("kind")?,
            amount: row.try_get("effect")?,
            memo: row.try_get("memo")?,
            created_ms: row.try_get("created_ms")?,
        })
    };
    rows.iter().map(line).collect()
}

/// What the ledger charged, with the rows that it charged for; and the rows of what was free, for which it has nothing.
async fn charges(
    transaction: &mut DbTransaction,
    account: &AccountName,
    from_ms: i64,
    to_ms: i64,
) -> Result<Vec<ChargeLine>, BillingError> {
    let sql = "WITH charged AS ( \
         SELECT r.base, r.adapter, r.price_version, r.prompt_tokens, r.cached_tokens, r.completion_tokens, t.amount \
         FROM ledger_transactions t LEFT JOIN requests r ON t.id LIKE 'settle %' AND r.id = SUBSTR(t.id, 8) \
         WHERE t.account = $1 AND t.kind = 'settle' AND t.outcome = 'done' AND t.created_ms >= $2 AND t.created_ms < $3 \
         UNION ALL \
         SELECT r.base, r.adapter, r.price_version, r.prompt_tokens, r.cached_tokens, r.completion_tokens, CAST(0 AS BIGINT) \
         FROM requests r WHERE r.account = $1 AND r.finished_ms >= $2 AND r.finished_ms < $3 AND NOT EXISTS \
         (SELECT 1 FROM ledger_transactions t WHERE t.id = 'settle ' || r.id AND t.outcome = 'done')) \
         SELECT base, adapter, price_version, COUNT(*) AS requests, \
         CAST(COALESCE(SUM(prompt_tokens), 0) AS BIGINT) AS prompt, CAST(COALESCE(SUM(cached_tokens), 0) AS BIGINT) AS cached, \
         CAST(COALESCE(SUM(completion_tokens), 0) AS BIGINT) AS completion, CAST(SUM(amount) AS BIGINT) AS charged \
         FROM charged GROUP BY base, adapter, price_version";
    let rows = sqlx::query(sql).bind(account.as_str()).bind(from_ms).bind(to_ms).fetch_all(&mut **transaction).await?;
    let line = |row: &DbRow| -> Result<ChargeLine, BillingError> {
        let count = |column: &str| row.try_get::<i64, _>(column).map(|count| u64::try_from(count).unwrap_or(0));
        Ok(ChargeLine {
            model: row.try_get("base")?,
            adapter: row.try_get("adapter")?,
            price_version: row.try_get("price_version")?,
            requests: row.try_get("requests")?,
            quantities: Quantities {
                prompt_tokens: count("prompt")?,
                cached_tokens: count("cached")?,
                completion_tokens: count("completion")?,
            },
            amount: -row.try_get::<Nano, _>("charged")?,
        })
    };
    let mut lines = rows.iter().map(line).collect::<Result<Vec<_>, _>>()?;
    // Here and not in the statement: the databases do not agree on where NULL sorts.
    lines.sort_by(|a, b| (&a.model, &a.adapter, a.price_version).cmp(&(&b.model, &b.adapter, b.price_version)));
    Ok(lines)
}

async fn storage(
    transaction: &mut DbTransaction,
    account: &AccountName,
    month: Month,
) -> Result<Vec<StorageLine>, BillingError> {
    let sum = |of: &str| format!("CAST(SUM({of}) AS BIGINT)");
    let sql = format!(
        "SELECT s.adapter, s.price_version, COUNT(*) AS hours, {} AS byte_hours, {} AS uncharged, {} AS charged \
         FROM ledger_transactions t JOIN storage_hours s ON s.id = t.id \
         WHERE t.account = $1 AND t.kind = 'charge' AND t.created_ms >= $2 AND t.created_ms < $3 \
         GROUP BY s.adapter, s.price_version",
        sum("s.byte_hours"),
        sum("CASE WHEN t.outcome = 'done' THEN 0 ELSE s.byte_hours END"),
        sum("CASE WHEN t.outcome = 'done' THEN t.amount ELSE 0 END"),
    );
    let line = |row: &DbRow| -> Result<StorageLine, sqlx::Error> {
        let count = |column: &str| row.try_get::<i64, _>(column).map(|count| u64::try_from(count).unwrap_or(0));
        Ok(StorageLine {
            adapter: row.try_get("adapter")?,
            price_version: row.try_get("price_version")?,
            hours: row.try_get("hours")?,
            byte_hours: count("byte_hours")?,
            uncharged_byte_hours: count("uncharged")?,
            amount: -row.try_get::<Nano, _>("charged")?,
        })
    };
    let mut lines = lines_of(transaction, sql, account, month, line).await?;
    lines.sort_by(|a, b| (&a.adapter, a.price_version).cmp(&(&b.adapter, b.price_version)));
    Ok(lines)
}

async fn corrections(
    transaction: &mut DbTransaction,
    account: &AccountName,
    month: Month,
) -> Result<Vec<CorrectionLine>, BillingError> {
    let sql = format!(
        "SELECT version, CAST(SUM(requests) AS BIGINT) AS requests, CAST(SUM(effect) AS BIGINT) AS effect FROM \
         (SELECT {EFFECT_SQL} AS effect, (SELECT MIN(c.price_version) FROM corrections c WHERE c.transaction_id = t.id) AS version, \
         (SELECT COUNT(*) FROM corrections c WHERE c.transaction_id = t.id) AS requests FROM ledger_transactions t \
         WHERE t.account = $1 AND t.created_ms >= $2 AND t.created_ms < $3 AND {RERATED_SQL} AND {LISTED_SQL}) AS corrected \
         GROUP BY version ORDER BY version"
    );
    let line = |row: &DbRow| -> Result<CorrectionLine, sqlx::Error> {
        Ok(CorrectionLine {
            price_version: row.try_get("version")?,
            requests: row.try_get("requests")?,
            amount: row.try_get("effect")?,
        })
    };
    lines_of(transaction, sql, account, month, line).await
}

/// The rows of a query whose parameters are the account and the month's first and last millisecond.
async fn lines_of<T>(
    transaction: &mut DbTransaction,
    sql: String,
    account: &AccountName,
    month: Month,
    line: impl Fn(&DbRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, BillingError> {
    let query =
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str()).bind(month.start_ms()).bind(month.end_ms());
    let rows = query.fetch_all(&mut **transaction).await?;
    rows.iter().map(|row| line(row).map_err(Into::into)).collect()
}

#[cfg(test)]
mod tests {
    use platform::Db;
    use platform::testing::noted;

    use super::*;
    use crate::testing::{account, journal, request};
    use crate::{Charge, Command, Finish, NewRequest};

    const USED: Quantities = Quantities { prompt_tokens: 7, cached_tokens: 2, completion_tokens: 3 };

    /// Puts a transaction, or a request with its charge, into another month.
    async fn at(db: &Db, table: &str, column: &str, id: &str, ms: i64) {
        let sql = format!("UPDATE {table} SET {column} = $2 WHERE id = $1");
        let moved = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).bind(ms).execute(db.pool()).await.unwrap();
        assert_eq!(moved.rows_affected(), 1, "{table} {id}");
    }

    #[tokio::test]
    async fn each_month_begins_with_what_the_one_before_ended_with_and_every_nano_dollar_is_on_a_line() {
        for db in platform::testing::databases().await {
            months_follow(db).await;
        }
    }

    async fn months_follow(db: Db) {
        let (journal, prices) = journal(&db).await;
        let (ledger, account) = (Ledger::new(db.clone()), account());
        let rates = crate::Rates { input: 1_000_000, ..crate::Rates::default() };
        let price =
            prices.add(crate::NewPrice { account: None, model: None, rates, starts_ms: None }, &noted).await.unwrap();
        let months: Vec<Month> = ["2026-01", "2026-02", "2026-04"].map(|text| Month::parse(text).unwrap()).into();
        let edges = |month: Month| [month.start_ms(), month.end_ms() - 1];
        let apply = async |id: String, command: Command| {
            ledger.apply(&id, &account, &command, Some("a memo"), "me").await.unwrap().unwrap();
            id
        };
        let mut number = 0;
        for month in &months {
            for ms in edges(*month) {
                number += 1;
                for (kind, command) in [
                    ("grant", Command::Grant { amount: 1_000 }),
                    ("top_up", Command::TopUp { amount: 500 }),
                    ("reserve", Command::Reserve { reservation: format!("r{number}"), amount: 100 }),
                ] {
                    let id = apply(format!("{kind}-{number}"), command).await;
                    at(&db, "ledger_transactions", "created_ms", &id, ms).await;
                }
                for (adapter, cost) in [(None, 7 * number), (Some(("acme/sql".to_owned(), 1)), 11), (None, 0)] {
                    let price_version = (cost > 0).then_some(price.version);
                    let request = NewRequest { adapter, price_version, ..request() };
                    journal.begin(&request).await.unwrap();
                    let charge = Charge::unheld(account.clone(), &format!("r{number}"), cost);
                    let charge = (cost > 0).then_some(charge);
                    journal.settle(&request.id, USED, Finish::Stop, charge).await.unwrap();
                    at(&db, "requests", "finished_ms", request.id.as_str(), ms).await;
                    if cost > 0 {
                        at(&db, "ledger_transactions", "created_ms", &format!("settle {}", request.id), ms).await;
                    }
                }
                for (kind, command) in [
                    ("refund", Command::Refund { amount: 3 }),
                    ("expire", Command::Expire { amount: 20 }),
                    ("adjust", Command::Adjust { amount: -5 }),
                ] {
                    let id = apply(format!("{kind}-{number}"), command).await;
                    at(&db, "ledger_transactions", "created_ms", &id, ms).await;
                }
            }
        }
        // Still running: on no statement.
        journal.begin(&request()).await.unwrap();
        assert_eq!(ledger.statement_months(&account).await.unwrap(), months);

        let mut before = 0;
        let mut month = months[0];
        while month <= months[2] {
            let statement = ledger.statement(&account, month).await.unwrap();
            assert_eq!(statement.opening, before, "{month}");
            assert_eq!(statement.opening + statement.moved(), statement.closing, "{month}");
            let is_listed = months.contains(&month);
            assert_eq!((statement.credits.len(), statement.charges.len()), if is_listed { (10, 3) } else { (0, 0) });
            assert!(statement.is_final);
            before = statement.closing;
            month = month.next();
        }
        assert_eq!(before, ledger.balance(&account).await.unwrap().posted());
        let sums = ledger.sums(&account).await.unwrap();
        assert_eq!(before, sums["available"] + sums["held"]);

        let first = ledger.statement(&account, months[0]).await.unwrap();
        let shown: Vec<_> =
            first.charges.iter().map(|line| (line.adapter.as_deref(), line.price_version, line.amount)).collect();
        let version = Some(price.version);
        assert_eq!(shown, [(None, None, 0), (None, version, -21), (Some("acme/sql"), version, -22)]);
        assert!(first.charges.iter().all(|line| line.requests == 2 && line.quantities.prompt_tokens == 14));
        assert_eq!(first.credits[0].memo.as_deref(), Some("a memo"));
        let other = "other".parse().unwrap();
        assert_eq!(ledger.statement_months(&other).await.unwrap(), []);
        assert_eq!(ledger.statement(&other, months[0]).await.unwrap().closing, 0);
    }

    #[tokio::test]
    async fn a_charge_stays_on_the_statement_when_the_row_of_its_request_is_gone() {
        for db in platform::testing::databases().await {
            let (journal, _) = journal(&db).await;
            let (ledger, account) = (Ledger::new(db.clone()), account());
            let reserve = Command::Reserve { reservation: "r".into(), amount: 10 };
            ledger.apply("reserve", &account, &reserve, None, "me").await.unwrap().unwrap();
            let request = request();
            journal.begin(&request).await.unwrap();
            let charge = Charge::unheld(account.clone(), "r", 10);
            journal.settle(&request.id, USED, Finish::Stop, Some(charge)).await.unwrap();
            sqlx::query("DELETE FROM requests").execute(db.pool()).await.unwrap();
            let statement = ledger.statement(&account, Month::of_ms(now_ms())).await.unwrap();
            assert_eq!((statement.opening, statement.closing, statement.moved()), (0, -10, -10));
            assert_eq!((statement.charges[0].model.as_deref(), statement.is_final), (None, false));
        }
    }
}
