//! Group commit: what happens to requests is written by one task, all that is waiting in one transaction.
//!
//! While one transaction is being made durable the next one's writes gather, so that a hundred requests cost one wait for the
//! disk and not a hundred. Writes of one request happen in the order in which they were handed in. A batch that fails because the
//! database is away is tried again: every write is one that may be repeated.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use platform::db::values;
use platform::units::now_ms;
use platform::{Db, DbTransaction, RequestId};
use sqlx::Row;
use tokio::sync::{mpsc, oneshot};

use crate::faults::Faults;
use crate::journal::{Finish, NewRequest, Quantities};
use crate::ledger::{apply_in, lock_name};
use crate::rules::{Book, Command, Nano};
use crate::usage_hours::UsageHours;
use crate::{BillingError, Charge};

/// Writes of one transaction.
const BATCH: usize = 256;
/// Waits between attempts while the database is away.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Whether the row says what was to be written: false for one that was closed otherwise, which stays as it is.
type Settled = bool;

pub(crate) enum Write {
    Begin(NewRequest, oneshot::Sender<Result<(), BillingError>>),
    Mark(RequestId, Quantities, oneshot::Sender<()>),
    Settle(Settlement, oneshot::Sender<Result<Settled, BillingError>>),
    /// Answered when all that came before is durable or given up.
    Flush(oneshot::Sender<()>),
}

impl Write {
    /// As if it were written.
    pub fn answer(self) {
        match self {
            Self::Begin(_, done) => drop(done.send(Ok(()))),
            Self::Mark(_, _, done) | Self::Flush(done) => done.send(()).unwrap_or(()),
            Self::Settle(_, done) => drop(done.send(Ok(true))),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Settlement {
    pub id: RequestId,
    pub quantities: Quantities,
    pub finish: Finish,
    /// What is taken from the account's reservation; none for what costs nothing.
    pub charge: Option<Charge>,
}

/// Owns the rows of requests that run on this server.
pub(crate) struct Writer {
    pub db: Db,
    pub faults: Faults,
    pub instance: String,
}

impl Writer {
    /// Takes writes until nobody can hand in any more.
    pub async fn run(self, mut inbox: mpsc::UnboundedReceiver<Write>) {
        let mut batch = Vec::new();
        while inbox.recv_many(&mut batch, BATCH).await > 0 {
            Batch::sort(std::mem::take(&mut batch)).commit(&self).await;
        }
    }

    async fn write(
        &self,
        begins: &[&NewRequest],
        marks: &HashMap<RequestId, Quantities>,
        settlements: &[&Settlement],
    ) -> Result<SettledIds, BillingError> {
        let mut transaction = self.db.begin().await?;
        begin(&mut transaction, &self.instance, begins).await?;
        mark(&mut transaction, marks).await?;
        let settled = settle(&mut transaction, &self.instance, settlements).await?;
        self.faults.commit(transaction).await?;
        Ok(settled)
    }

    /// Settles a request whose reservation was closed by a server that took this one for dead, before the request began: what was
    /// held has gone back to the account and is taken from there. If it is there no more, nothing is charged, and the row says so.
    async fn settle_late(&self, settlement: &Settlement) -> Result<Settled, BillingError> {
        let Some(charge) = &settlement.charge else { return Ok(false) };
        charge.doubt();
        let mut transaction = self.db.write(&lock_name(&charge.account)).await?;
        let row = Settlement { charge: None, ..settlement.clone() };
        if !close(&mut transaction, &self.instance, &[settlement]).await?.contains(row.id.as_str()) {
            return Ok(false);
        }
        if charge_late(&mut transaction, &row.id, charge, &self.instance).await? {
            self.faults.commit(transaction).await?;
            return Ok(true);
        }
        transaction.rollback().await?;
        tracing::error!(request = %row.id, account = %charge.account, amount = charge.amount, "a request's credit is gone; it is free");
        let free = Settlement { quantities: Quantities::default(), finish: Finish::Error, ..row };
        self.write(&[], &HashMap::new(), &[&free]).await?;
        Ok(false)
    }
}

/// The writes of one transaction, by kind.
#[derive(Default)]
struct Batch {
    begins: Vec<(NewRequest, oneshot::Sender<Result<(), BillingError>>)>,
    marks: HashMap<RequestId, Quantities>,
    settlements: Vec<(Settlement, oneshot::Sender<Result<Settled, BillingError>>)>,
    /// Settlements of requests that are among these already: one statement would take either of the two.
    again: Vec<(Settlement, oneshot::Sender<Result<Settled, BillingError>>)>,
    /// Marks are answered like these.
    flushes: Vec<oneshot::Sender<()>>,
}

impl Batch {
    /// A request's begin, marks and settlement come in this order, so kinds may be written one after the other; of several marks
    /// only the last one matters.
    fn sort(writes: Vec<Write>) -> Self {
        let mut batch = Self::default();
        let mut ids = HashSet::new();
        for write in writes {
            match write {
                Write::Begin(request, done) => batch.begins.push((request, done)),
                Write::Mark(id, quantities, done) => {
                    batch.marks.insert(id, quantities);
                    batch.flushes.push(done);
                }
                Write::Settle(settlement, done) => {
                    batch.marks.remove(&settlement.id);
                    let first = ids.insert(settlement.id.clone());
                    if first { &mut batch.settlements } else { &mut batch.again }.push((settlement, done));
                }
                Write::Flush(done) => batch.flushes.push(done),
            }
        }
        batch
    }

    async fn commit(mut self, writer: &Writer) {
        let again = Self { settlements: std::mem::take(&mut self.again), ..Self::default() };
        let flushes = std::mem::take(&mut self.flushes);
        self.commit_firsts(writer).await;
        again.commit_each(writer).await;
        flushes.into_iter().for_each(|done| done.send(()).unwrap_or(()));
    }

    async fn commit_firsts(self, writer: &Writer) {
        let begins: Vec<&NewRequest> = self.begins.iter().map(|(request, _)| request).collect();
        let settlements: Vec<&Settlement> = self.settlements.iter().map(|(settlement, _)| settlement).collect();
        let written = persist(|| writer.write(&begins, &self.marks, &settlements)).await;
        match written {
            Ok(settled) => {
                self.begins.into_iter().for_each(|(_, done)| drop(done.send(Ok(()))));
                for (settlement, done) in self.settlements {
                    let answer = Ok(settled.contains(settlement.id.as_str()));
                    // With it its charge goes, which has kept the account's reservation open.
                    drop(settlement);
                    let _ = done.send(answer);
                }
            }
            // One of them cannot be written. Alone, only that one fails.
            Err(_) => self.commit_each(writer).await,
        }
    }

    async fn commit_each(self, writer: &Writer) {
        let none = HashMap::new();
        for (request, done) in self.begins {
            let one = [&request];
            let written = persist(|| writer.write(&one, &none, &[])).await;
            let _ = done.send(written.map(drop));
        }
        for (id, quantities) in self.marks {
            let one = HashMap::from([(id.clone(), quantities)]);
            if let Err(error) = persist(|| writer.write(&[], &one, &[])).await {
                tracing::error!(request = %id, %error, "a request's row could not be marked");
            }
        }
        for (settlement, done) in self.settlements {
            let one = [&settlement];
            let answer = match persist(|| writer.write(&[], &none, &one)).await {
                Err(BillingError::OverReserved(_)) => persist(|| writer.settle_late(&settlement)).await,
                written => written.map(|settled| settled.contains(settlement.id.as_str())),
            };
            drop(settlement);
            let _ = done.send(answer);
        }
    }
}

/// Tries again while the database is away; returns when it has answered.
async fn persist<T, F: Future<Output = Result<T, BillingError>>>(attempt: impl Fn() -> F) -> Result<T, BillingError> {
    let mut wait = FIRST_WAIT;
    loop {
        match attempt().await {
            Err(error) if error.is_passing() => {
                tracing::warn!(%error, "requests could not be written; trying again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            answered => return answered,
        }
    }
}

/// Ids of the requests whose rows say what was to be written.
type SettledIds = HashSet<String>;

async fn begin(transaction: &mut DbTransaction, instance: &str, begins: &[&NewRequest]) -> Result<(), BillingError> {
    if begins.is_empty() {
        return Ok(());
    }
    let now = now_ms();
    let sql = format!(
        "INSERT INTO requests (id, account, key_id, endpoint, model, base, adapter, adapter_version, tag, started_ms, price_version, \
         instance, finish) {} ON CONFLICT (id) DO NOTHING",
        values(begins.len(), 13)
    );
    let mut query = many(sql, begins.len());
    for request in begins {
        let (adapter, version) = match &request.adapter {
            Some((adapter, version)) => (Some(adapter.clone()), Some(i64::from(*version))),
            None => (None, None),
        };
        query = query
            .bind(request.id.to_string())
            .bind(request.account.to_string())
            .bind(request.key_id.clone())
            .bind(request.endpoint)
            .bind(request.model.clone())
            .bind(request.base.clone())
            .bind(adapter)
            .bind(version)
            .bind(request.tag.clone())
            .bind(now)
            .bind(request.price_version)
            .bind(instance.to_owned())
            .bind("running");
    }
    query.execute(&mut **transaction).await?;
    Ok(())
}

async fn mark(transaction: &mut DbTransaction, marks: &HashMap<RequestId, Quantities>) -> Result<(), BillingError> {
    if marks.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE requests SET prompt_tokens = v.column2, cached_tokens = v.column3, completion_tokens = v.column4 \
         FROM ({}) AS v WHERE requests.id = v.column1 AND requests.finish = 'running'",
        values(marks.len(), 4)
    );
    let mut query = many(sql, marks.len());
    for (id, quantities) in marks {
        query = counts(query.bind(id.to_string()), *quantities);
    }
    query.execute(&mut **transaction).await?;
    Ok(())
}

/// Closes rows and takes what they cost from their reservations, each once.
async fn settle(
    transaction: &mut DbTransaction,
    instance: &str,
    settlements: &[&Settlement],
) -> Result<SettledIds, BillingError> {
    if settlements.is_empty() {
        return Ok(SettledIds::new());
    }
    let mut settled = close(transaction, instance, settlements).await?;
    let first = |settlement: &&&Settlement| settled.contains(settlement.id.as_str());
    let charges: Vec<(&RequestId, &Charge)> =
        settlements.iter().filter(first).filter_map(|s| Some((&s.id, s.charge.as_ref()?))).collect();
    charge(transaction, &charges, now_ms()).await?;
    for closed in settlements {
        if !settled.contains(closed.id.as_str()) && stands(transaction, closed).await? {
            settled.insert(closed.id.to_string());
        }
    }
    Ok(settled)
}

/// Closes the rows that are open, and counts them. Returns which those were.
async fn close(
    transaction: &mut DbTransaction,
    instance: &str,
    settlements: &[&Settlement],
) -> Result<SettledIds, BillingError> {
    let now = now_ms();
    let sql = format!(
        "UPDATE requests SET prompt_tokens = v.column2, cached_tokens = v.column3, completion_tokens = v.column4, \
         finish = v.column5, finished_ms = v.column6 FROM ({}) AS v \
         WHERE requests.id = v.column1 AND requests.finish = 'running' RETURNING *",
        values(settlements.len(), 6)
    );
    let mut query = many(sql, settlements.len());
    for settlement in settlements {
        query = counts(query.bind(settlement.id.to_string()), settlement.quantities);
        query = query.bind(settlement.finish.name()).bind(now);
    }
    let rows = query.fetch_all(&mut **transaction).await?;
    let costs: HashMap<&str, Nano> =
        settlements.iter().filter_map(|s| Some((s.id.as_str(), s.charge.as_ref()?.amount))).collect();
    let mut hours = UsageHours::default();
    for row in &rows {
        let cost = costs.get(row.try_get::<&str, _>("id")?).copied().unwrap_or(0);
        hours.add(row, cost)?;
    }
    hours.write(transaction, instance).await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// Whether the row was closed by the same settlement: it was repeated, or its answer got lost behind a commit.
async fn stands(transaction: &mut DbTransaction, settlement: &Settlement) -> Result<bool, BillingError> {
    let sql = "SELECT prompt_tokens, cached_tokens, completion_tokens, finish FROM requests WHERE id = $1";
    let found = sqlx::query(sql).bind(settlement.id.as_str()).fetch_optional(&mut **transaction).await?;
    let row = found.ok_or_else(|| BillingError::Missing(settlement.id.clone()))?;
    let Quantities { prompt_tokens, cached_tokens, completion_tokens } = settlement.quantities;
    let counts =
        [("prompt_tokens", prompt_tokens), ("cached_tokens", cached_tokens), ("completion_tokens", completion_tokens)];
    for (column, count) in counts {
        if row.try_get::<i64, _>(column)? != count as i64 {
            return Ok(false);
        }
    }
    Ok(row.try_get::<String, _>("finish")? == settlement.finish.name())
}

/// `settle` of the rules for many requests at once: transactions, their entries, and the reservations that they draw on.
async fn charge(
    transaction: &mut DbTransaction,
    charges: &[(&RequestId, &Charge)],
    now: i64,
) -> Result<(), BillingError> {
    if charges.is_empty() {
        return Ok(());
    }
    let mut sums: BTreeMap<&str, Nano> = BTreeMap::new();
    for (_, charge) in charges {
        *sums.entry(&charge.reservation).or_default() += charge.amount;
    }
    for (reservation, sum) in sums {
        let taken = sqlx::query(
            "UPDATE reservations SET amount = amount - $2, settled = settled + $2 \
             WHERE id = $1 AND closed_ms IS NULL AND amount >= $2",
        )
        .bind(reservation)
        .bind(sum)
        .execute(&mut **transaction)
        .await?;
        if taken.rows_affected() == 0 {
            return Err(BillingError::OverReserved(reservation.to_owned()));
        }
    }
    let sql = format!(
        "INSERT INTO ledger_transactions (id, account, kind, amount, reservation, outcome, created_ms) {}",
        values(charges.len(), 7)
    );
    let mut query = many(sql, charges.len());
    for (id, charge) in charges {
        query = query
            .bind(charge_id(id))
            .bind(charge.account.to_string())
            .bind("settle")
            .bind(charge.amount)
            .bind(charge.reservation.clone())
            .bind("done")
            .bind(now);
    }
    query.execute(&mut **transaction).await?;
    let sql = format!("INSERT INTO ledger_entries (transaction_id, book, amount) {}", values(2 * charges.len(), 3));
    let mut query = many(sql, charges.len());
    for (id, charge) in charges {
        for (book, amount) in [(Book::Held, -charge.amount), (Book::Revenue, charge.amount)] {
            query = query.bind(charge_id(id)).bind(book.name()).bind(amount);
        }
    }
    query.execute(&mut **transaction).await?;
    Ok(())
}

/// `settle` of the rules for one request whose account holds nothing for it. False where there is not enough credit; then nothing
/// may be committed.
async fn charge_late(
    transaction: &mut DbTransaction,
    id: &RequestId,
    charge: &Charge,
    instance: &str,
) -> Result<bool, BillingError> {
    let (reservation, amount) = (format!("late {id}"), charge.amount);
    let commands = [
        (reservation.clone(), Command::Reserve { reservation: reservation.clone(), amount }),
        (charge_id(id), Command::Settle { reservation: reservation.clone(), amount }),
        (format!("void {reservation}"), Command::Void { reservation }),
    ];
    for (command_id, command) in commands {
        match apply_in(transaction, &command_id, &charge.account, &command, Some("late"), instance).await? {
            Some(Ok(())) => {}
            Some(Err(_)) => return Ok(false),
            None => return Err(BillingError::Conflict(command_id)),
        }
    }
    Ok(true)
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Any, sqlx::any::AnyArguments>;

/// A statement on so many rows. Only that on one row comes often enough to be kept prepared.
fn many(sql: String, rows: usize) -> Query<'static> {
    sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(rows == 1)
}

fn counts(query: Query<'_>, quantities: Quantities) -> Query<'_> {
    query
        .bind(quantities.prompt_tokens as i64)
        .bind(quantities.cached_tokens as i64)
        .bind(quantities.completion_tokens as i64)
}

/// Id of the ledger's transaction that charges a request.
pub(crate) fn charge_id(request: impl std::fmt::Display) -> String {
    format!("settle {request}")
}
