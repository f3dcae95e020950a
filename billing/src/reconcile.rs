//! The reconciler: what is written in several places must say the same.
//!
//! It compares, for every account, model and hour, the rows of requests with the sums of usage, and for every account the costs of
//! the rows, of storage as of requests, with the ledger's revenue, corrections with its adjustments, the ledger's books with the balances and reservations that follow from them, and what this
//! server's engines have counted with what it has settled. Requests that settle while it looks are no difference: all is read in
//! one snapshot.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platform::DbTransaction;
use platform::units::{HOUR_MS, now_ms};
use sqlx::Row;

use crate::price::COST_SQL;
use crate::rules::Nano;
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

/// Compares everything from the hour of `since_ms` on; the ledger's books always as a whole.
pub async fn reconcile(
    journal: &Journal,
    engine: &EngineCounts,
    since_ms: i64,
) -> Result<Reconciliation, BillingError> {
    let mut found = Reconciliation { at_ms: now_ms(), ..Reconciliation::default() };
    let counted = if journal.is_silent() { None } else { settled_counts(journal, engine).await? };
    let mut snapshot = journal.db().snapshot().await?;
    let hour = since_ms.div_euclid(HOUR_MS);
    usage_and_requests(&mut snapshot, hour, &mut found).await?;
    requests_and_ledger(&mut snapshot, hour * HOUR_MS, &mut found).await?;
    storage_and_ledger(&mut snapshot, hour, &mut found).await?;
    corrections_and_ledger(&mut snapshot, hour * HOUR_MS, &mut found).await?;
    books(&mut snapshot, &mut found).await?;
    snapshot.rollback().await?;
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
        journal.flush().await?;
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

async fn usage_and_requests(
    snapshot: &mut DbTransaction,
    hour: i64,
    found: &mut Reconciliation,
) -> Result<(), BillingError> {
    const COLUMNS: [&str; 5] = ["requests", "prompt", "cached", "completion", "cost"];
    let sum = |column: &str, name: &str| format!("CAST(SUM({column}) AS BIGINT) AS {name}");
    let usage = format!(
        "SELECT account || ' ' || base || ' ' || CAST(hour AS TEXT) AS subject, {}, {}, {}, {}, {} FROM usage_hours \
         WHERE hour >= $1 GROUP BY account, base, hour",
        sum("requests", "requests"),
        sum("prompt_tokens", "prompt"),
        sum("cached_tokens", "cached"),
        sum("completion_tokens", "completion"),
        sum("cost", "cost")
    );
    let requests = format!(
        "SELECT account || ' ' || base || ' ' || CAST(hour AS TEXT) AS subject, COUNT(*) AS requests, {}, {}, {}, {} FROM \
         (SELECT r.account, r.base, r.started_ms / {HOUR_MS} AS hour, r.prompt_tokens, r.cached_tokens, r.completion_tokens, \
         {COST_SQL} AS cost FROM requests r LEFT JOIN prices p ON p.version = r.price_version \
         WHERE r.finish <> 'running' AND r.instance IS NOT NULL AND r.started_ms >= $1) AS settled GROUP BY account, base, hour",
        sum("prompt_tokens", "prompt"),
        sum("cached_tokens", "cached"),
        sum("completion_tokens", "completion"),
        sum("cost", "cost")
    );
    let usage = sums(snapshot, usage, hour, COLUMNS).await?;
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
    Ok(())
}

/// Each request's row and the ledger's transaction that charges it.
async fn requests_and_ledger(
    snapshot: &mut DbTransaction,
    since_ms: i64,
    found: &mut Reconciliation,
) -> Result<(), BillingError> {
    let requests = format!(
        "SELECT account AS subject, CAST(SUM(cost) AS BIGINT) AS cost FROM (SELECT r.account, {COST_SQL} AS cost \
         FROM requests r LEFT JOIN prices p ON p.version = r.price_version \
         WHERE r.finish <> 'running' AND r.instance IS NOT NULL AND r.started_ms >= $1) AS settled GROUP BY account"
    );
    // By the request's row, so that both sides cover the same ones.
    let ledger = "SELECT t.account AS subject, CAST(SUM(e.amount) AS BIGINT) AS cost FROM requests r \
         JOIN ledger_transactions t ON t.id = 'settle ' || r.id \
         JOIN ledger_entries e ON e.transaction_id = t.id AND e.book = 'revenue' \
         WHERE r.finish <> 'running' AND r.started_ms >= $1 GROUP BY t.account";
    let [requests] = sums(snapshot, requests, since_ms, ["cost"]).await?;
    let [ledger] = sums(snapshot, ledger.to_owned(), since_ms, ["cost"]).await?;
    found.compare_all("requests = ledger, cost", &requests, &ledger);
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
    let orphans = "SELECT t.account AS subject, COUNT(*) AS charges FROM ledger_transactions t \
         LEFT JOIN storage_hours s ON s.id = t.id WHERE t.kind = 'charge' AND t.created_ms >= $1 AND s.id IS NULL GROUP BY t.account";
    let [orphans] = sums(snapshot, orphans.to_owned(), hour * HOUR_MS, ["charges"]).await?;
    found.compare_all("every charge of storage has its row", &orphans, &BTreeMap::new());
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

/// The books and what follows from them.
async fn books(snapshot: &mut DbTransaction, found: &mut Reconciliation) -> Result<(), BillingError> {
    let book = |book: &str| {
        format!(
            "SELECT t.account AS subject, CAST(SUM(e.amount) AS BIGINT) AS amount FROM ledger_entries e \
             JOIN ledger_transactions t ON t.id = e.transaction_id WHERE e.book = '{book}' AND t.created_ms >= $1 GROUP BY t.account"
        )
    };
    let [available] = sums(snapshot, book("available"), 0, ["amount"]).await?;
    let [held] = sums(snapshot, book("held"), 0, ["amount"]).await?;
    let balances = "SELECT account AS subject, available AS amount FROM balances WHERE $1 = 0".to_owned();
    let [balances] = sums(snapshot, balances, 0, ["amount"]).await?;
    let reservations = "SELECT account AS subject, CAST(SUM(amount) AS BIGINT) AS amount FROM reservations WHERE $1 = 0 GROUP BY account";
    let [reservations] = sums(snapshot, reservations.to_owned(), 0, ["amount"]).await?;
    found.compare_all("ledger = balance, available", &available, &balances);
    found.compare_all("ledger = reservations, held", &held, &reservations);
    let unbalanced = "SELECT transaction_id AS subject, CAST(SUM(amount) AS BIGINT) AS amount FROM ledger_entries \
         WHERE $1 = 0 GROUP BY transaction_id HAVING SUM(amount) <> 0";
    let [unbalanced] = sums(snapshot, unbalanced.to_owned(), 0, ["amount"]).await?;
    found.compare_all("every transaction sums to zero", &unbalanced, &BTreeMap::<String, Nano>::new());
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
            let look = async || reconcile(&first, &engine, 0).await.unwrap();
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
