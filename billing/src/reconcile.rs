//! The reconciler: what is written in several places must say the same.
//!
//! It compares, for every account, model and hour, the rows of requests with the sums of usage and with what the ledger charged for
//! them; storage's hours with the ledger's charges, corrections with its adjustments; the ledger's transactions with what they are for;
//! balances and reservations with the books that they follow from; statements with the ledger and with the rows; and what this
//! server's engines have counted with what it has settled. What settles while it looks is no difference: it reads in snapshots.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platform::units::{HOUR_MS, Month, now_ms};
use platform::{AccountName, Db, DbTransaction};
use sqlx::Row;

use crate::journal::account_of;
use crate::price::COST_SQL;
use crate::rules::Nano;
use crate::statement::Statement;
use crate::storage;
use crate::{BillingError, Journal, Quantities, Settled};

/// Most differences that are listed; all are counted.
const LISTED: usize = 100;

/// Two places that do not say the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What was compared, such as `usage = requests`.
    pub check: &'static str,
    /// Of which account, model and hour, as far as the check tells them apart.
    pub subject: String,
    pub left: i64,
    pub right: i64,
}

/// What the reconciler found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciliation {
    pub at_ms: i64,
    /// Comparisons of one kind for one subject.
    pub compared: u64,
    pub differences: u64,
    /// The first of them.
    pub listed: Vec<Difference>,
}

impl Reconciliation {
    fn compare(&mut self, check: &'static str, subject: &str, left: i64, right: i64) {
        self.compared += 1;
        if left == right {
            return;
        }
        self.differences += 1;
        if self.listed.len() < LISTED {
            self.listed.push(Difference { check, subject: subject.to_owned(), left, right });
        }
    }

    /// Compares two sums by subject; what stands on one side only is compared with 0.
    fn compare_all(&mut self, check: &'static str, left: &BTreeMap<String, i64>, right: &BTreeMap<String, i64>) {
        let subjects: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
        for subject in subjects {
            let of = |sums: &BTreeMap<String, i64>| sums.get(subject).copied().unwrap_or(0);
            self.compare(check, subject, of(left), of(right));
        }
    }

    fn compare_engine(&mut self, engine: &Sums, usage: &Sums) {
        for (check, (engine, usage)) in ENGINE_CHECKS.iter().zip(engine.iter().zip(usage)) {
            self.compare_all(check, engine, usage);
        }
    }
}

/// What the engines of this server have counted for requests that ended.
#[derive(Debug, Clone, Default)]
pub struct EngineCounts(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    /// Of requests that this server has settled, or is about to, by account and model.
    settled: BTreeMap<String, Counted>,
    unbilled_tokens: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counted {
    requests: i64,
    quantities: Quantities,
}

impl EngineCounts {
    /// Adds what the engine says of a request, before anything is charged or written for it.
    pub fn add(&self, account: &str, base: &str, quantities: Quantities) {
        let mut counts = self.counts();
        let counted = counts.settled.entry(format!("{account} {base}")).or_default();
        counted.requests += 1;
        counted.quantities.prompt_tokens += quantities.prompt_tokens;
        counted.quantities.cached_tokens += quantities.cached_tokens;
        counted.quantities.completion_tokens += quantities.completion_tokens;
    }

    /// Takes in what became of a request that was added. Where its row does not say what the engine says, the rest is a figure of
    /// its own, and its tokens are returned: nobody is charged for them, and no later look will find that they agree.
    pub fn settled(&self, account: &str, base: &str, quantities: Quantities, settled: Settled) -> u64 {
        let row = match settled {
            Settled::AsSaid => return 0,
            Settled::Free => Quantities::default(),
            Settled::Before(row) => row,
        };
        let mut counts = self.counts();
        let counted = counts.settled.entry(format!("{account} {base}")).or_default();
        // A free row was closed by this server and counts as a request of its own.
        counted.requests -= i64::from(settled != Settled::Free);
        counted.quantities.prompt_tokens -= quantities.prompt_tokens;
        counted.quantities.cached_tokens -= quantities.cached_tokens;
        counted.quantities.completion_tokens -= quantities.completion_tokens;
        let unbilled = quantities.prompt_tokens.saturating_sub(row.prompt_tokens)
            + quantities.completion_tokens.saturating_sub(row.completion_tokens);
        counts.unbilled_tokens += unbilled;
        unbilled
    }

    /// Prompt and completion tokens that were computed, and that the rows of their requests do not hold.
    pub fn unbilled_tokens(&self) -> u64 {
        self.counts().unbilled_tokens
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sums(&self) -> Sums {
        let counts = &self.counts().settled;
        let by =
            |of: fn(&Counted) -> i64| counts.iter().map(|(subject, counted)| (subject.clone(), of(counted))).collect();
        [
            by(|counted| counted.requests),
            by(|counted| counted.quantities.prompt_tokens as i64),
            by(|counted| counted.quantities.cached_tokens as i64),
            by(|counted| counted.quantities.completion_tokens as i64),
        ]
    }
}

/// How much of the books a look covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What began since a moment: costs by what has happened since.
    Since,
    /// Also the balances, made from the ledger's first transaction on, and the statements: costs by all that ever happened.
    Whole,
}

/// Compares what began in the hour of `since_ms` or later.
pub async fn reconcile(
    journal: &Journal,
    engine: &EngineCounts,
    since_ms: i64,
    extent: Extent,
) -> Result<Reconciliation, BillingError> {
    let mut found = Reconciliation { at_ms: now_ms(), ..Reconciliation::default() };
    let counted = if journal.is_silent() { None } else { settled_counts(journal, engine).await? };
    let mut snapshot = journal.db().snapshot().await?;
    let hour = since_ms.div_euclid(HOUR_MS);
    requests_usage_and_ledger(&mut snapshot, hour, &mut found).await?;
    storage_and_ledger(&mut snapshot, hour, &mut found).await?;
    corrections_and_ledger(&mut snapshot, hour * HOUR_MS, &mut found).await?;
    transactions(&mut snapshot, hour * HOUR_MS, &mut found).await?;
    if extent == Extent::Whole {
        balances(&mut snapshot, &mut found).await?;
    }
    snapshot.rollback().await?;
    if extent == Extent::Whole {
        statements(journal.db(), hour * HOUR_MS, &mut found).await?;
    }
    if let Some((engine, usage)) = counted {
        found.compare_engine(&engine, &usage);
    }
    Ok(found)
}

const ENGINE_CHECKS: [&str; 4] =
    ["engine = usage, requests", "engine = usage, prompt", "engine = usage, cached", "engine = usage, completion"];

type Sums = [BTreeMap<String, i64>; 4];

/// The engines' counts and what this server has settled, at a moment at which nothing was between the two, if there is one soon.
/// What others have closed for this server stands in its sums and is left out: its engines have not said that.
async fn settled_counts(journal: &Journal, engine: &EngineCounts) -> Result<Option<(Sums, Sums)>, BillingError> {
    const ATTEMPTS: usize = 40;
    const PAUSE: Duration = Duration::from_millis(25);
    let mut last = None;
    for _ in 0..ATTEMPTS {
        journal.flush_in_time().await?;
        let rows = sqlx::query(
            "SELECT account, base, CAST(SUM(requests) AS BIGINT) AS requests, CAST(SUM(prompt_tokens) AS BIGINT) AS prompt, \
             CAST(SUM(cached_tokens) AS BIGINT) AS cached, CAST(SUM(completion_tokens) AS BIGINT) AS completion \
             FROM (SELECT account, base, requests, prompt_tokens, cached_tokens, completion_tokens FROM usage_hours WHERE instance = $1 \
             UNION ALL SELECT account, base, -1, -prompt_tokens, -cached_tokens, -completion_tokens FROM requests \
             WHERE instance = $1 AND finish = 'interrupted') AS own GROUP BY account, base",
        )
        .bind(journal.instance())
        .fetch_all(journal.db().pool())
        .await?;
        let mut usage = Sums::default();
        for row in &rows {
            let subject = format!("{} {}", row.try_get::<&str, _>("account")?, row.try_get::<&str, _>("base")?);
            for (sums, column) in usage.iter_mut().zip(["requests", "prompt", "cached", "completion"]) {
                sums.insert(subject.clone(), row.try_get(column)?);
            }
        }
        let engine = engine.sums();
        let mut found = Reconciliation::default();
        found.compare_engine(&engine, &usage);
        last = Some((engine, usage));
        if found.differences == 0 {
            break;
        }
        // A request was between the engine and its row: look again.
        tokio::time::sleep(PAUSE).await;
    }
    Ok(last)
}

/// The subjects and numbers of a query with columns `subject` and these.
async fn sums<const N: usize>(
    snapshot: &mut DbTransaction,
    sql: String,
    since: i64,
    columns: [&str; N],
) -> Result<[BTreeMap<String, i64>; N], BillingError> {
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(since).fetch_all(&mut **snapshot).await?;
    let mut sums = [const { BTreeMap::new() }; N];
    for row in &rows {
        let subject: String = row.try_get("subject")?;
        for (sums, column) in sums.iter_mut().zip(columns) {
            sums.insert(subject.clone(), row.try_get(column)?);
        }
    }
    Ok(sums)
}

/// The rows of requests, the sums of usage, and what the ledger charged for each row.
async fn requests_usage_and_ledger(
    snapshot: &mut DbTransaction,
    hour: i64,
    found: &mut Reconciliation,
) -> Result<(), BillingError> {
    let sum = |column: &str, name: &str| format!("CAST(COALESCE(SUM({column}), 0) AS BIGINT) AS {name}");
    let tokens =
        [sum("prompt_tokens", "prompt"), sum("cached_tokens", "cached"), sum("completion_tokens", "completion")];
    let tokens = tokens.join(", ");
    // By adapter and key as well: sums of a model may agree where theirs do not.
    let group = "account, base, adapter, key_id, hour";
    let subject = "account || ' ' || base || ' ' || adapter || ' ' || key_id || ' ' || CAST(hour AS TEXT) AS subject";
    let usage = format!(
        "SELECT {subject}, {}, {tokens}, {} FROM (SELECT u.* FROM accounts a JOIN usage_hours u ON u.account = a.name \
         AND u.hour >= $1) AS counted GROUP BY {group}",
        sum("requests", "requests"),
        sum("cost", "cost")
    );
    let requests = format!(
        "SELECT {subject}, COUNT(*) AS requests, {tokens}, {}, {}, {} FROM \
         (SELECT r.account, r.base, COALESCE(r.adapter, '') AS adapter, r.key_id, r.started_ms / {HOUR_MS} AS hour, r.prompt_tokens, r.cached_tokens, r.completion_tokens, \
         {COST_SQL} AS cost, e.amount AS revenue FROM accounts a JOIN requests r ON r.account = a.name AND r.started_ms >= $1 \
         LEFT JOIN prices p ON p.version = r.price_version \
         LEFT JOIN ledger_entries e ON e.transaction_id = 'settle ' || r.id AND e.book = 'revenue' \
         WHERE r.finish <> 'running' AND r.instance IS NOT NULL) AS settled GROUP BY {group}",
        sum("cost", "cost"),
        sum("revenue", "revenue"),
        sum("CASE WHEN cost <> COALESCE(revenue, 0) THEN 1 ELSE 0 END", "wrong")
    );
    let usage = sums(snapshot, usage, hour, ["requests", "prompt", "cached", "completion", "cost"]).await?;
    const COLUMNS: [&str; 7] = ["requests", "prompt", "cached", "completion", "cost", "revenue", "wrong"];
    let requests = sums(snapshot, requests, hour * HOUR_MS, COLUMNS).await?;
    const CHECKS: [&str; 5] = [
        "usage = requests, requests",
        "usage = requests, prompt",
        "usage = requests, cached",
        "usage = requests, completion",
        "usage = requests, cost",
    ];
    for (check, (usage, requests)) in CHECKS.iter().zip(usage.iter().zip(&requests)) {
        found.compare_all(check, usage, requests);
    }
    let [.., cost, revenue, wrong] = &requests;
    found.compare_all("requests = ledger, cost", cost, revenue);
    found.compare_all("every request is charged what it costs", wrong, &BTreeMap::new());
    Ok(())
}

/// Each hour of storage and the ledger's transaction that charges it.
async fn storage_and_ledger(
    snapshot: &mut DbTransaction,
    hour: i64,
    found: &mut Reconciliation,
) -> Result<(), BillingError> {
    let rows = storage::sums(&mut **snapshot, None, (hour, i64::MAX), &["s.account"]).await?;
    let rows = rows.into_iter().map(|(account, sum)| (account.concat(), sum.cost_nano_usd)).collect();
    let ledger = "SELECT t.account AS subject, CAST(SUM(e.amount) AS BIGINT) AS cost FROM storage_hours s \
         JOIN ledger_transactions t ON t.id = s.id JOIN ledger_entries e ON e.transaction_id = t.id AND e.book = 'revenue' \
         WHERE s.hour >= $1 GROUP BY t.account";
    let [ledger] = sums(snapshot, ledger.to_owned(), hour, ["cost"]).await?;
    found.compare_all("storage = ledger, cost", &rows, &ledger);
    Ok(())
}

/// What requests that were rated again cost more or less, and the adjustments that were posted for it.
async fn corrections_and_ledger(
    snapshot: &mut DbTransaction,
    since_ms: i64,
    found: &mut Reconciliation,
) -> Result<(), BillingError> {
    let before = COST_SQL.replace("p.", "q.");
    let corrections = format!(
        "SELECT account AS subject, CAST(SUM(cost) AS BIGINT) AS cost FROM (SELECT c.account, ({COST_SQL}) - ({before}) AS cost \
         FROM corrections c JOIN requests r ON r.id = c.request_id JOIN prices p ON p.version = c.price_version \
         LEFT JOIN prices q ON q.version = c.from_version WHERE c.created_ms >= $1) AS corrected GROUP BY account"
    );
    let ledger = "SELECT t.account AS subject, CAST(SUM(e.amount) AS BIGINT) AS cost FROM \
         (SELECT DISTINCT transaction_id FROM corrections WHERE created_ms >= $1) c JOIN ledger_transactions t ON t.id = c.transaction_id \
         JOIN ledger_entries e ON e.transaction_id = t.id AND e.book = 'adjustment' GROUP BY t.account";
    let [corrections] = sums(snapshot, corrections, since_ms, ["cost"]).await?;
    let [ledger] = sums(snapshot, ledger.to_owned(), since_ms, ["cost"]).await?;
    found.compare_all("corrections = ledger, cost", &corrections, &ledger);
    Ok(())
}

/// What every transaction of the ledger must keep by itself.
async fn transactions(
    snapshot: &mut DbTransaction,
    since_ms: i64,
    found: &mut Reconciliation,
) -> Result<(), BillingError> {
    const RECENT: &str = "accounts a JOIN ledger_transactions t ON t.account = a.name AND t.created_ms >= $1";
    let wrong = [
        (
            "every transaction sums to zero",
            format!(
                "SELECT t.account || ' ' || t.id AS subject, CAST(SUM(e.amount) AS BIGINT) AS wrong FROM {RECENT} \
                 JOIN ledger_entries e ON e.transaction_id = t.id GROUP BY t.account, t.id HAVING SUM(e.amount) <> 0"
            ),
        ),
        // A second charge for a request, or one for none, may balance and still be wrong.
        (
            "every settlement has its request",
            format!(
                "SELECT t.account || ' ' || t.id AS subject, CAST(1 AS BIGINT) AS wrong FROM {RECENT} \
                 LEFT JOIN requests r ON r.id = SUBSTR(t.id, 8) WHERE t.kind = 'settle' AND t.outcome = 'done' AND (r.id IS NULL \
                 OR t.id <> 'settle ' || r.id OR r.account <> t.account OR r.finish = 'running' OR r.instance IS NULL)"
            ),
        ),
        (
            "every charge of storage has its row",
            format!(
                "SELECT t.account || ' ' || t.id AS subject, CAST(1 AS BIGINT) AS wrong FROM {RECENT} \
                 LEFT JOIN storage_hours s ON s.id = t.id WHERE t.kind = 'charge' AND s.id IS NULL"
            ),
        ),
    ];
    for (check, sql) in wrong {
        let [wrong] = sums(snapshot, sql, since_ms, ["wrong"]).await?;
        found.compared += 1;
        found.compare_all(check, &wrong, &BTreeMap::new());
    }
    Ok(())
}

/// Balances and reservations, and the books that they follow from.
async fn balances(snapshot: &mut DbTransaction, found: &mut Reconciliation) -> Result<(), BillingError> {
    let book = |book: &str| {
        format!(
            "SELECT t.account AS subject, CAST(SUM(e.amount) AS BIGINT) AS amount FROM ledger_entries e \
             JOIN ledger_transactions t ON t.id = e.transaction_id WHERE e.book = '{book}' AND t.created_ms >= $1 GROUP BY t.account"
        )
    };
    let [available] = sums(snapshot, book("available"), i64::MIN, ["amount"]).await?;
    let [held] = sums(snapshot, book("held"), i64::MIN, ["amount"]).await?;
    let balances = "SELECT account AS subject, available AS amount FROM balances WHERE $1 = 0".to_owned();
    let [balances] = sums(snapshot, balances, 0, ["amount"]).await?;
    let reservations = "SELECT account AS subject, CAST(SUM(amount) AS BIGINT) AS amount FROM reservations WHERE $1 = 0 GROUP BY account";
    let [reservations] = sums(snapshot, reservations.to_owned(), 0, ["amount"]).await?;
    found.compare_all("ledger = balance, available", &available, &balances);
    found.compare_all("ledger = reservations, held", &held, &reservations);
    Ok(())
}

/// The statements of the months since `since_ms`, of all accounts in which something happened: an account after the other, each in a
/// snapshot of its own, so that none stays open for long.
async fn statements(db: &Db, since_ms: i64, found: &mut Reconciliation) -> Result<(), BillingError> {
    let active = "SELECT a.name AS account FROM accounts a WHERE EXISTS \
         (SELECT 1 FROM ledger_transactions t WHERE t.account = a.name AND t.created_ms >= $1) \
         OR EXISTS (SELECT 1 FROM requests r WHERE r.account = a.name AND r.finished_ms >= $1) ORDER BY a.name";
    let rows = sqlx::query(active).bind(Month::of_ms(since_ms).start_ms()).fetch_all(db.pool()).await?;
    for row in rows {
        let account = account_of(&row)?;
        let mut month = Month::of_ms(since_ms);
        while month.start_ms() <= found.at_ms {
            let mut snapshot = db.snapshot().await?;
            match statement_and_books(&mut snapshot, &account, month, found).await {
                // Nobody gets to see it.
                Err(error @ BillingError::StatementTooLong { .. }) => tracing::warn!(%account, %error, "not compared"),
                compared => compared?,
            }
            snapshot.rollback().await?;
            month = Month::of_ms(month.end_ms());
        }
    }
    Ok(())
}

/// One statement with the ledger's entries and with the rows of the requests that were charged, or ended free, in its month.
async fn statement_and_books(
    snapshot: &mut DbTransaction,
    account: &AccountName,
    month: Month,
    found: &mut Reconciliation,
) -> Result<(), BillingError> {
    let statement = Statement::read(snapshot, account, month).await?;
    let subject = |part: &str| format!("{account} {month}{part}");
    found.compare("statement, lines = balance", &subject(""), statement.opening + statement.moved(), statement.closing);

    let revenue = "SELECT t.kind AS subject, CAST(SUM(e.amount) AS BIGINT) AS amount FROM ledger_transactions t \
         JOIN ledger_entries e ON e.transaction_id = t.id AND e.book = 'revenue' \
         WHERE t.account = $1 AND t.created_ms >= $2 AND t.created_ms < $3 GROUP BY t.kind";
    // By the rows, and not from the ledger on, as the statement does it; a row is closed at about the time at which it is charged.
    let requests = format!(
        "SELECT r.base AS subject, COUNT(*) AS requests, CAST(SUM(r.prompt_tokens) AS BIGINT) AS prompt, \
         CAST(SUM(r.cached_tokens) AS BIGINT) AS cached, CAST(SUM(r.completion_tokens) AS BIGINT) AS completion \
         FROM requests r LEFT JOIN ledger_transactions t ON t.id = 'settle ' || r.id AND t.outcome = 'done' \
         WHERE r.account = $1 AND r.finished_ms >= $2 - {HOUR_MS} AND r.finished_ms < $3 + {HOUR_MS} \
         AND COALESCE(t.created_ms, r.finished_ms) >= $2 AND COALESCE(t.created_ms, r.finished_ms) < $3 GROUP BY r.base"
    );
    let mut read = async |sql: String| {
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str());
        query.bind(month.start_ms()).bind(month.end_ms()).fetch_all(&mut **snapshot).await
    };
    let mut charged: BTreeMap<String, i64> = BTreeMap::new();
    for row in read(revenue.to_owned()).await? {
        charged.insert(row.try_get("subject")?, row.try_get("amount")?);
    }
    let revenue = |kind: &str| charged.get(kind).copied().unwrap_or(0);
    let lines: Nano = statement.charges.iter().map(|line| -line.amount).sum();
    found.compare("statement = ledger, requests", &subject(""), lines, revenue("settle"));
    let lines: Nano = statement.storage.iter().map(|line| -line.amount).sum();
    found.compare("statement = ledger, storage", &subject(""), lines, revenue("charge"));

    let mut stated = Sums::default();
    for line in &statement.charges {
        let subject = subject(&format!(" {}", line.model.as_deref().unwrap_or("(no row)")));
        let used = line.quantities;
        let tokens = [used.prompt_tokens, used.cached_tokens, used.completion_tokens].map(|count| count as i64);
        for (sums, count) in stated.iter_mut().zip(std::iter::once(line.requests).chain(tokens)) {
            *sums.entry(subject.clone()).or_default() += count;
        }
    }
    let mut rows = Sums::default();
    for row in read(requests).await? {
        let subject = subject(&format!(" {}", row.try_get::<&str, _>("subject")?));
        for (sums, column) in rows.iter_mut().zip(["requests", "prompt", "cached", "completion"]) {
            sums.insert(subject.clone(), row.try_get(column)?);
        }
    }
    const CHECKS: [&str; 4] = [
        "statement = requests, requests",
        "statement = requests, prompt",
        "statement = requests, cached",
        "statement = requests, completion",
    ];
    for (check, (stated, rows)) in CHECKS.iter().zip(stated.iter().zip(&rows)) {
        found.compare_all(check, stated, rows);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use platform::testing::databases;

    use super::*;
    use crate::Finish;
    use crate::testing::{journal, request};

    const fn used(completion_tokens: u64) -> Quantities {
        Quantities { prompt_tokens: 5, cached_tokens: 2, completion_tokens }
    }

    #[tokio::test]
    async fn what_a_server_delivered_after_another_had_buried_it_is_a_figure_and_no_alarm() {
        for db in databases().await {
            let (first, _) = journal(&db).await;
            let engine = EngineCounts::default();
            let [own, buried] = [request(), request()];
            for request in [&own, &buried] {
                first.begin(request).await.unwrap();
            }
            assert!(first.mark(&buried.id, used(10)).unwrap().await.unwrap());
            engine.add("acme", "mini", used(7));
            assert!(first.settle(&own.id, used(7), Finish::Stop, None).await.unwrap());
            let (second, _) = journal(&db).await;
            second.bury(&second.others(None).await.unwrap()).await.unwrap();
            // The server does not know yet, and its request still runs: no alarm.
            let look = async || reconcile(&first, &engine, 0, Extent::Whole).await.unwrap();
            assert_eq!(look().await.listed, []);
            engine.add("acme", "mini", used(90));
            let settled = first.end(&buried.id, used(90), Finish::Stop, None).await.unwrap();
            assert_eq!(settled, Settled::Before(used(10)));
            assert_eq!(engine.settled("acme", "mini", used(90), settled), 80);
            assert_eq!((look().await.listed, engine.unbilled_tokens()), (vec![], 80));
            // A difference that is none of this is still one.
            engine.add("acme", "mini", used(1));
            assert_eq!(look().await.differences, 4);
        }
    }
}
