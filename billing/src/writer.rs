//! Group commit: what happens to requests is written by one task, all that is waiting in one transaction.
//!
//! While one transaction is being made durable the next one's writes gather, so that a hundred requests cost one wait for the
//! disk and not a hundred. Rows are opened by statements of their own, since an answer's first byte waits for them and for nothing
//! else. Writes of one request happen in the order in which they were handed in. A batch that fails because the database is away is
//! tried again: every write is one that may be repeated.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use platform::units::now_ms;
use platform::{Db, DbConnection, DbKind, DbTransaction, RequestId, Statements};
use sqlx::{AnyConnection, Connection, Row};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::faults::Faults;
use crate::journal::{Finish, NewRequest, Quantities};
use crate::ledger::{apply_in, lock_name};
use crate::rules::{Book, Command, Nano};
use crate::usage_hours::UsageHours;
use crate::{BillingError, Charge};

/// Writes of one transaction.
const BATCH: usize = 256;
/// Between the beginnings of two batches of marks and settlements. Nobody but an answer's end waits for them, and rows that are to be
/// opened wait for each of them where the database has one writer at a time.
const APART: Duration = Duration::from_millis(2);
/// Waits between attempts while the database is away.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What became of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The row says what was to be written.
    AsSaid,
    /// The row was closed as free: the credit that was held for it is gone.
    Free,
    /// The row was closed otherwise before, and stays at this.
    Before(Quantities),
}

pub(crate) enum Write {
    Begin(NewRequest, oneshot::Sender<Result<(), BillingError>>),
    Later(Later),
}

/// What is written to rows that are open.
pub(crate) enum Later {
    /// Answered with whether the row was still open; not at all where the request's settlement overtakes it.
    Mark(RequestId, Quantities, oneshot::Sender<bool>),
    Settle(Settlement, oneshot::Sender<Result<Settled, BillingError>>),
    /// Answered when all that came before is durable or given up.
    Flush(oneshot::Sender<()>),
}

impl Write {
    /// As if it were written.
    pub fn answer(self) {
        match self {
            Self::Begin(_, done) => drop(done.send(Ok(()))),
            Self::Later(Later::Mark(_, _, done)) => drop(done.send(true)),
            Self::Later(Later::Flush(done)) => done.send(()).unwrap_or(()),
            Self::Later(Later::Settle(_, done)) => drop(done.send(Ok(Settled::AsSaid))),
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
    db: Db,
    faults: Faults,
    instance: String,
    /// Connections that no write uses now.
    idle: Mutex<Vec<DbConnection>>,
}

impl Writer {
    pub const fn new(db: Db, faults: Faults, instance: String) -> Self {
        Self { db, faults, instance, idle: Mutex::new(Vec::new()) }
    }

    /// Takes writes until nobody can hand in any more.
    pub async fn run(self, mut inbox: mpsc::UnboundedReceiver<Write>) {
        let mut queue = Queue::default();
        let (mut opening, mut batch) = (None::<Running<'_, u64>>, None::<Running<'_, ()>>);
        // SQLite has one writer at a time: there, the two kinds take turns.
        let one_at_a_time = self.db.kind() == DbKind::Sqlite;
        let mut opened_last = false;
        let mut next_batch = Instant::now();
        let mut arrived = Vec::new();
        loop {
            while let Ok(write) = inbox.try_recv() {
                queue.add(write);
            }
            let batch_waits = queue.has_others();
            let batch_is_due = batch_waits && next_batch <= Instant::now();
            let turn_of_the_rest = one_at_a_time && (batch.is_some() || (opened_last && batch_is_due));
            if opening.is_none() && !turn_of_the_rest && !queue.begins.is_empty() {
                opening = Some(Box::pin(self.open(queue.take_begins())));
                opened_last = true;
            }
            if batch.is_none() && !(one_at_a_time && opening.is_some()) && batch_is_due {
                batch = Some(Box::pin(queue.take_others().commit(&self)));
                opened_last = false;
                next_batch = Instant::now() + APART;
            }
            if opening.is_none() && batch.is_none() && !batch_waits && inbox.is_closed() && inbox.is_empty() {
                return;
            }
            tokio::select! {
                _ = inbox.recv_many(&mut arrived, BATCH), if !inbox.is_closed() || !inbox.is_empty() => {
                    arrived.drain(..).for_each(|write| queue.add(write));
                }
                opened = ended(&mut opening) => {
                    queue.opened += opened;
                    opening = None;
                }
                () = ended(&mut batch) => batch = None,
                () = tokio::time::sleep_until(next_batch), if batch_waits && batch.is_none() && !batch_is_due => {}
            }
        }
    }

    async fn connection(&self) -> Result<DbConnection, sqlx::Error> {
        if self.db.pool().is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(connection) => Ok(connection),
            None => self.db.connection().await,
        }
    }

    /// Keeps a connection for the next write. One on which something failed is not brought back.
    fn keep(&self, connection: DbConnection) {
        if let DbConnection::Own(_) = connection {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }

    /// Opens rows and answers. Returns how many.
    async fn open(&self, begins: Vec<(NewRequest, oneshot::Sender<Result<(), BillingError>>)>) -> u64 {
        let count = begins.len() as u64;
        let requests: Vec<&NewRequest> = begins.iter().map(|(request, _)| request).collect();
        let written = persist(|| self.begin(&requests)).await;
        for (request, done) in begins {
            let refused = match &written {
                Ok(refused) => Ok(refused.contains(request.id.as_str())),
                // One of them cannot be written. Alone, only that one fails.
                Err(_) => {
                    let one = [&request];
                    persist(|| self.begin(&one)).await.map(|refused| !refused.is_empty())
                }
            };
            let _ = done.send(refused.and_then(|refused| match refused {
                true => Err(BillingError::ReservationClosed(request.reservation.unwrap_or_default())),
                false => Ok(()),
            }));
        }
        count
    }

    /// Returns the ids of those whose reservations are closed; they have no row.
    async fn begin(&self, requests: &[&NewRequest]) -> Result<HashSet<String>, BillingError> {
        let mut connection = self.connection().await?;
        let refused = self.faults.commit(begin(&mut connection, self.db.kind(), &self.instance, requests)).await?;
        self.keep(connection);
        Ok(refused)
    }

    async fn write(
        &self,
        marks: &HashMap<RequestId, Quantities>,
        settlements: &[&Settlement],
    ) -> Result<Written, BillingError> {
        let mut connection = self.connection().await?;
        let mut transaction = connection.begin_with(self.db.begin_sql()).await?;
        let open = mark(&mut transaction, self.db.kind(), marks).await?;
        let settled = settle(&mut transaction, self.db.kind(), &self.instance, settlements).await?;
        self.faults.commit(transaction.commit()).await?;
        self.keep(connection);
        Ok(Written { open, settled })
    }

    /// Settles a request whose reservation was closed by a server that took this one for dead, before the request began: what was
    /// held has gone back to the account and is taken from there. If it is there no more, nothing is charged, and the row says so.
    async fn settle_late(&self, settlement: &Settlement) -> Result<Settled, BillingError> {
        let Some(charge) = &settlement.charge else { return Ok(Settled::Before(Quantities::default())) };
        charge.doubt();
        let mut transaction = self.db.write(&lock_name(&charge.account)).await?;
        let row = Settlement { charge: None, ..settlement.clone() };
        let (closed, hours) = close(&mut transaction, self.db.kind(), &[settlement]).await?;
        if closed.is_empty() {
            return found(&mut transaction, settlement).await;
        }
        hours.write(&mut transaction, self.db.kind(), &self.instance).await?;
        if charge_late(&mut transaction, &row.id, charge, &self.instance).await? {
            self.faults.commit(transaction.commit()).await?;
            return Ok(Settled::AsSaid);
        }
        transaction.rollback().await?;
        tracing::error!(request = %row.id, account = %charge.account, amount = charge.amount, "a request's credit is gone; it is free");
        let free = Settlement { quantities: Quantities::default(), finish: Finish::Error, ..row };
        match self.write(&HashMap::new(), &[&free]).await?.settled(&free) {
            Settled::AsSaid => Ok(Settled::Free),
            otherwise => Ok(otherwise),
        }
    }
}

type Running<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What that ends with; never, where there is nothing.
async fn ended<T>(running: &mut Option<Running<'_, T>>) -> T {
    match running {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

/// Writes that wait. Those that open rows are numbered as they come and are written in this order.
#[derive(Default)]
struct Queue {
    begins: VecDeque<(NewRequest, oneshot::Sender<Result<(), BillingError>>)>,
    /// Each with the number of rows that must have been opened before.
    others: VecDeque<(u64, Later)>,
    /// Requests whose rows may not be open yet, by their number.
    numbers: HashMap<RequestId, u64>,
    /// How many came and how many were opened, or given up.
    came: u64,
    opened: u64,
}

impl Queue {
    fn add(&mut self, write: Write) {
        match write {
            Write::Begin(request, done) => {
                self.came += 1;
                self.numbers.insert(request.id.clone(), self.came);
                self.begins.push_back((request, done));
            }
            Write::Later(later) => {
                let after = match &later {
                    Later::Mark(id, ..) => self.numbers.get(id).copied().unwrap_or(0),
                    Later::Settle(settlement, _) => self.numbers.get(&settlement.id).copied().unwrap_or(0),
                    Later::Flush(_) => self.came,
                };
                self.others.push_back((after, later));
            }
        }
    }

    fn take_begins(&mut self) -> Vec<(NewRequest, oneshot::Sender<Result<(), BillingError>>)> {
        self.begins.drain(..self.begins.len().min(BATCH)).collect()
    }

    fn has_others(&self) -> bool {
        self.others.iter().any(|(after, _)| *after <= self.opened)
    }

    /// The oldest that may be written now.
    fn take_others(&mut self) -> Batch {
        let opened = self.opened;
        self.numbers.retain(|_, number| *number > opened);
        let mut taken = Vec::new();
        for _ in 0..self.others.len() {
            let Some((after, write)) = self.others.pop_front() else { break };
            if after <= opened && taken.len() < BATCH {
                taken.push(write);
            } else {
                self.others.push_back((after, write));
            }
        }
        Batch::sort(taken)
    }
}

/// The writes of one transaction, by kind.
#[derive(Default)]
struct Batch {
    marks: HashMap<RequestId, Quantities>,
    settlements: Vec<(Settlement, oneshot::Sender<Result<Settled, BillingError>>)>,
    /// Settlements of requests that are among these already: one statement would take either of the two.
    again: Vec<(Settlement, oneshot::Sender<Result<Settled, BillingError>>)>,
    /// The requests of all settlements.
    ending: HashSet<RequestId>,
    /// Who waits for marks, those that a later one has replaced included.
    marking: Vec<(RequestId, oneshot::Sender<bool>)>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl Batch {
    /// A request's marks and settlement come in this order, so kinds may be written one after the other; of several marks only the
    /// last one matters.
    fn sort(writes: Vec<Later>) -> Self {
        let mut batch = Self::default();
        for write in writes {
            match write {
                Later::Mark(id, quantities, done) => {
                    batch.marks.insert(id.clone(), quantities);
                    batch.marking.push((id, done));
                }
                Later::Settle(settlement, done) => {
                    batch.marks.remove(&settlement.id);
                    let first = batch.ending.insert(settlement.id.clone());
                    if first { &mut batch.settlements } else { &mut batch.again }.push((settlement, done));
                }
                Later::Flush(done) => batch.flushes.push(done),
            }
        }
        batch
    }

    async fn commit(mut self, writer: &Writer) {
        let again = Self { settlements: std::mem::take(&mut self.again), ..Self::default() };
        let (marking, flushes) = (std::mem::take(&mut self.marking), std::mem::take(&mut self.flushes));
        let ending = std::mem::take(&mut self.ending);
        let closed = self.commit_firsts(writer).await;
        again.commit_each(writer).await;
        // A mark that a settlement has overtaken was not written.
        let marking = marking.into_iter().filter(|(id, _)| !ending.contains(id));
        marking.for_each(|(id, done)| done.send(!closed.contains(&id)).unwrap_or(()));
        flushes.into_iter().for_each(|done| done.send(()).unwrap_or(()));
    }

    /// Returns the requests whose marks have found their rows closed.
    async fn commit_firsts(self, writer: &Writer) -> HashSet<RequestId> {
        let settlements: Vec<&Settlement> = self.settlements.iter().map(|(settlement, _)| settlement).collect();
        if self.marks.is_empty() && settlements.is_empty() {
            return HashSet::new();
        }
        match persist(|| writer.write(&self.marks, &settlements)).await {
            Ok(written) => {
                for (settlement, done) in self.settlements {
                    let answer = Ok(written.settled(&settlement));
                    // With it its charge goes, which has kept the account's reservation open.
                    drop(settlement);
                    let _ = done.send(answer);
                }
                self.marks.into_keys().filter(|id| !written.open.contains(id.as_str())).collect()
            }
            // One of them cannot be written. Alone, only that one fails.
            Err(_) => self.commit_each(writer).await,
        }
    }

    /// The same, each write for itself.
    async fn commit_each(self, writer: &Writer) -> HashSet<RequestId> {
        let mut closed = HashSet::new();
        for (id, quantities) in self.marks {
            let one = HashMap::from([(id.clone(), quantities)]);
            match persist(|| writer.write(&one, &[])).await {
                Ok(written) if written.open.is_empty() => drop(closed.insert(id)),
                Ok(_) => {}
                Err(error) => tracing::error!(request = %id, %error, "a request's row could not be marked"),
            }
        }
        let none = HashMap::new();
        for (settlement, done) in self.settlements {
            let one = [&settlement];
            let answer = match persist(|| writer.write(&none, &one)).await {
                Err(BillingError::OverReserved(_)) => persist(|| writer.settle_late(&settlement)).await,
                written => written.map(|written| written.settled(&settlement)),
            };
            drop(settlement);
            let _ = done.send(answer);
        }
        closed
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

/// What a transaction has found.
struct Written {
    /// Ids of the requests that were marked: their rows are open.
    open: HashSet<String>,
    settled: HashMap<String, Settled>,
}

impl Written {
    /// What became of a settlement that was among those that were written.
    fn settled(&self, settlement: &Settlement) -> Settled {
        self.settled.get(settlement.id.as_str()).copied().unwrap_or(Settled::Before(Quantities::default()))
    }
}

/// One statement, and so a transaction of its own. A server that others took for dead opens no rows until it has said that it lives: a
/// statement that arrives after its death would leave a row that nobody closes. Nor does it open one on a reservation that they have
/// closed: nothing could be charged for it. Returns the ids of such requests.
///
/// On PostgreSQL the server's sign of life is locked meanwhile against those who would remove it, not against its next sign: all rows
/// that are opened before it goes are seen by who closes them.
async fn begin(
    connection: &mut AnyConnection,
    kind: DbKind,
    instance: &str,
    begins: &[&NewRequest],
) -> Result<HashSet<String>, sqlx::Error> {
    let now = now_ms();
    let rows = padded(begins.len());
    let locked = match kind {
        DbKind::Sqlite => "",
        DbKind::Postgres => "FOR KEY SHARE",
    };
    let columns = (1..=13).map(|column| format!("v.column{column}")).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "INSERT INTO requests (id, account, key_id, endpoint, model, base, adapter, adapter_version, tag, started_ms, price_version, \
         instance, finish) SELECT {columns} FROM ({}) AS v \
         WHERE EXISTS (SELECT 1 FROM instances WHERE id = v.column12 {locked}) AND (v.column14 IS NULL \
         OR EXISTS (SELECT 1 FROM reservations AS held WHERE held.id = v.column14 AND held.closed_ms IS NULL)) \
         ON CONFLICT (id) DO NOTHING RETURNING id",
        kind.values(rows, 14)
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
    for request in repeat_last(begins, rows) {
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
            .bind("running")
            .bind(request.reservation.clone());
    }
    let opened = query.fetch_all(&mut *connection).await?;
    let opened = opened.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<String>, _>>()?;
    let lives = sqlx::query("SELECT 1 FROM instances WHERE id = $1").bind(instance);
    if opened.is_empty() && lives.fetch_optional(&mut *connection).await?.is_none() {
        return Err(sqlx::Error::Io(std::io::Error::other("other servers have taken this one for dead")));
    }
    let mut refused = HashSet::new();
    for request in begins.iter().filter(|request| !opened.contains(request.id.as_str())) {
        // It may have been opened before: its answer got lost.
        let known = sqlx::query("SELECT 1 FROM requests WHERE id = $1").bind(request.id.as_str());
        if known.fetch_optional(&mut *connection).await?.is_none() {
            refused.insert(request.id.to_string());
        }
    }
    Ok(refused)
}

/// Returns the ids of those whose rows are open: one that another server has closed says so by its absence.
async fn mark(
    connection: &mut AnyConnection,
    kind: DbKind,
    marks: &HashMap<RequestId, Quantities>,
) -> Result<HashSet<String>, BillingError> {
    if marks.is_empty() {
        return Ok(HashSet::new());
    }
    let marks: Vec<_> = marks.iter().collect();
    let rows = padded(marks.len());
    let sql = format!(
        "UPDATE requests SET prompt_tokens = v.column2, cached_tokens = v.column3, completion_tokens = v.column4 \
         FROM ({}) AS v WHERE requests.id = v.column1 AND requests.finish = 'running' RETURNING requests.id",
        kind.values(rows, 4)
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
    for (id, quantities) in repeat_last(&marks, rows) {
        query = counts(query.bind(id.to_string()), **quantities);
    }
    let open = query.fetch_all(connection).await?;
    open.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Closes rows and takes what they cost from their reservations, each once.
async fn settle(
    connection: &mut AnyConnection,
    kind: DbKind,
    instance: &str,
    settlements: &[&Settlement],
) -> Result<HashMap<String, Settled>, BillingError> {
    if settlements.is_empty() {
        return Ok(HashMap::new());
    }
    let (closed, hours) = close(connection, kind, settlements).await?;
    let first = |settlement: &&&Settlement| closed.contains(settlement.id.as_str());
    let charges: Vec<(&RequestId, &Charge)> =
        settlements.iter().filter(first).filter_map(|s| Some((&s.id, s.charge.as_ref()?))).collect();
    charge(connection, kind, &charges, hours, instance).await?;
    let mut settled: HashMap<String, Settled> = closed.into_iter().map(|id| (id, Settled::AsSaid)).collect();
    for settlement in settlements {
        if !settled.contains_key(settlement.id.as_str()) {
            settled.insert(settlement.id.to_string(), found(connection, settlement).await?);
        }
    }
    Ok(settled)
}

/// Closes the rows that are open. Returns which those were, and the hours that they count in.
async fn close(
    connection: &mut AnyConnection,
    kind: DbKind,
    settlements: &[&Settlement],
) -> Result<(HashSet<String>, UsageHours), BillingError> {
    let now = now_ms();
    let padded = padded(settlements.len());
    let sql = format!(
        "UPDATE requests SET prompt_tokens = v.column2, cached_tokens = v.column3, completion_tokens = v.column4, \
         finish = v.column5, finished_ms = v.column6 FROM ({}) AS v \
         WHERE requests.id = v.column1 AND requests.finish = 'running' RETURNING \
         id, account, started_ms, key_id, base, adapter, price_version, prompt_tokens, cached_tokens, completion_tokens",
        kind.values(padded, 6)
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
    for settlement in repeat_last(settlements, padded) {
        query = counts(query.bind(settlement.id.to_string()), settlement.quantities);
        query = query.bind(settlement.finish.name()).bind(now);
    }
    let rows = query.fetch_all(connection).await?;
    let costs: HashMap<&str, Nano> =
        settlements.iter().filter_map(|s| Some((s.id.as_str(), s.charge.as_ref()?.amount))).collect();
    let (mut ids, mut hours) = (HashSet::new(), UsageHours::default());
    for row in &rows {
        let id: String = row.try_get("id")?;
        hours.add(row, costs.get(id.as_str()).copied().unwrap_or(0))?;
        ids.insert(id);
    }
    Ok((ids, hours))
}

/// What a row says that was closed before: the same, where the settlement was repeated or its answer got lost behind a commit.
async fn found(connection: &mut AnyConnection, settlement: &Settlement) -> Result<Settled, BillingError> {
    let sql = "SELECT prompt_tokens, cached_tokens, completion_tokens, finish FROM requests WHERE id = $1";
    let found = sqlx::query(sql).bind(settlement.id.as_str()).fetch_optional(connection).await?;
    let row = found.ok_or_else(|| BillingError::Missing(settlement.id.clone()))?;
    let quantities = Quantities::read(&row, ["prompt_tokens", "cached_tokens", "completion_tokens"])?;
    let same = quantities == settlement.quantities && row.try_get::<String, _>("finish")? == settlement.finish.name();
    Ok(if same { Settled::AsSaid } else { Settled::Before(quantities) })
}

/// `settle` of the rules for many requests at once: transactions, their entries, the reservations that they draw on, and the hours
/// that they count in.
async fn charge(
    connection: &mut AnyConnection,
    kind: DbKind,
    charges: &[(&RequestId, &Charge)],
    hours: UsageHours,
    instance: &str,
) -> Result<(), BillingError> {
    let now = now_ms();
    let mut writes = Statements::new(kind);
    let mut changes = hours.add_to(&mut writes, kind, instance)?;
    if !charges.is_empty() {
        let mut sums: BTreeMap<&str, Nano> = BTreeMap::new();
        for (_, charge) in charges {
            *sums.entry(&charge.reservation).or_default() += charge.amount;
        }
        changes += sums.len() + 3 * charges.len();
        let rows = padded(sums.len());
        writes.add(&format!(
            "UPDATE reservations SET amount = amount - v.column2, settled = settled + v.column2 FROM ({}) AS v \
             WHERE reservations.id = v.column1 AND closed_ms IS NULL AND amount >= v.column2",
            kind.values(rows, 2)
        ));
        let sums: Vec<_> = sums.into_iter().collect();
        // What fills a statement up has no id.
        for &(reservation, sum) in sums.iter().chain(std::iter::repeat(&("", 0))).take(rows) {
            writes.bind(reservation.to_owned())?;
            writes.bind(sum)?;
        }
        let rows = padded(charges.len());
        writes.add(&format!(
            "INSERT INTO ledger_transactions (id, account, kind, amount, reservation, outcome, created_ms) \
             SELECT * FROM ({}) AS v WHERE v.column1 <> ''",
            kind.values(rows, 7)
        ));
        for at in 0..rows {
            let (id, account, amount, reservation) = match charges.get(at) {
                Some((id, charge)) => {
                    (charge_id(id), charge.account.to_string(), charge.amount, charge.reservation.clone())
                }
                None => Default::default(),
            };
            writes.bind(id)?;
            writes.bind(account)?;
            writes.bind("settle".to_owned())?;
            writes.bind(amount)?;
            writes.bind(reservation)?;
            writes.bind("done".to_owned())?;
            writes.bind(now)?;
        }
        writes.add(&format!(
            "INSERT INTO ledger_entries (transaction_id, book, amount) SELECT * FROM ({}) AS v WHERE v.column1 <> ''",
            kind.values(2 * rows, 3)
        ));
        for at in 0..rows {
            let (id, amount) = charges.get(at).map(|(id, charge)| (charge_id(id), charge.amount)).unwrap_or_default();
            for (book, amount) in [(Book::Held, -amount), (Book::Revenue, amount)] {
                writes.bind(id.clone())?;
                writes.bind(book.name().to_owned())?;
                writes.bind(amount)?;
            }
        }
    }
    // The rest are inserts, which fail or change their rows.
    if writes.execute(connection).await? < changes as u64 {
        return Err(BillingError::OverReserved(charges.iter().map(|(_, charge)| charge.reservation.clone()).collect()));
    }
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

/// Rows of the statement that takes so many: there are few sizes, so each statement is kept prepared.
const fn padded(rows: usize) -> usize {
    rows.next_power_of_two()
}

/// The rows and, up to `count` of them, the last one again.
fn repeat_last<T>(rows: &[T], count: usize) -> impl Iterator<Item = &T> {
    rows.iter().chain(rows.last().into_iter().cycle()).take(count)
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
