//! A request's row: opened before its first byte, marked while it runs, settled once.

mod instances;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use platform::{AccountName, Db, DbRow, RequestId};
use sqlx::Row;
use tokio::sync::{mpsc, oneshot};

pub(crate) use instances::account_of;
pub use instances::{nobody_lives, servers_live};

use crate::faults::Faults;
use crate::outbox;
use crate::writer::{Later, Settled, Settlement, Write, Writer};
use crate::{BillingError, Charge, Prices, wallet};

/// A database that has not taken by then what waits is away.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// What a request used. The engine's count, never an estimate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantities {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
}

impl Quantities {
    /// From a row's columns of prompt, cached and completion tokens.
    pub(crate) fn read(row: &DbRow, columns: [&str; 3]) -> Result<Self, sqlx::Error> {
        let count = |column: &str| row.try_get::<i64, _>(column).map(|count| u64::try_from(count).unwrap_or(0));
        let [prompt, cached, completion] = columns;
        Ok(Self { prompt_tokens: count(prompt)?, cached_tokens: count(cached)?, completion_tokens: count(completion)? })
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
    /// The account's credit, or a cap, allowed no more tokens.
    Credit,
    Cancelled,
    Error,
}

impl Finish {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Credit => "credit",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
        }
    }
}

/// A request that is about to run.
#[derive(Debug, Clone)]
pub struct NewRequest {
    pub id: RequestId,
    pub account: AccountName,
    pub key_id: String,
    pub endpoint: &'static str,
    /// As the request named it.
    pub model: String,
    pub base: String,
    /// `account/name` and version.
    pub adapter: Option<(String, u32)>,
    /// Of the price in force; none: it is free.
    pub price_version: Option<i64>,
    /// What the caller sorts its requests by.
    pub tag: Option<String>,
    /// What it is going to be charged to; none: it is free. The row is not opened where others have closed that.
    pub reservation: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    pub id: String,
    pub key_id: String,
    pub endpoint: String,
    pub model: String,
    pub base: String,
    pub adapter: Option<String>,
    pub adapter_version: Option<i64>,
    pub started_ms: i64,
    pub finished_ms: Option<i64>,
    pub quantities: Quantities,
    pub price_version: Option<i64>,
    pub tag: Option<String>,
    pub finish: String,
}

/// The journal of requests. Rows are written by one task, see [`Writer`].
#[derive(Debug, Clone)]
pub struct Journal {
    db: Db,
    faults: Faults,
    prices: Prices,
    instance: String,
    writes: mpsc::UnboundedSender<Write>,
    /// When the database took this server's last sign of life.
    beat: Arc<Mutex<Instant>>,
    silent: bool,
}

impl Journal {
    /// Opens the journal. What was running on servers that died is closed as `interrupted`, with the counts of its last mark;
    /// returns how many such requests there were.
    pub async fn open(db: Db, prices: Prices) -> Result<(Self, u64), BillingError> {
        Self::open_with_faults(db, prices, Faults::default()).await
    }

    #[doc(hidden)]
    pub async fn open_with_faults(db: Db, prices: Prices, faults: Faults) -> Result<(Self, u64), BillingError> {
        let instance = RequestId::fresh("instance").to_string();
        let (writes, inbox) = mpsc::unbounded_channel();
        let writer = Writer::new(db.clone(), faults.clone(), instance.clone());
        tokio::spawn(writer.run(inbox));
        let journal =
            Self { db, faults, prices, instance, writes, beat: Arc::new(Mutex::new(Instant::now())), silent: false };
        let closed = journal.sign_on().await?;
        Ok((journal, closed))
    }

    /// The same, but it writes nothing: to measure what writing costs.
    #[doc(hidden)]
    pub fn silent(self) -> Self {
        Self { silent: true, ..self }
    }

    pub(crate) const fn is_silent(&self) -> bool {
        self.silent
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    /// This server, as rows and reservations name it.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Writes the row: durable when this returns.
    pub async fn begin(&self, request: &NewRequest) -> Result<(), BillingError> {
        let (done, written) = oneshot::channel();
        self.hand_in(Write::Begin(request.clone(), done))?;
        written.await.map_err(|_| BillingError::Closed)?
    }

    /// Notes what has been delivered so far: what a killed process leaves behind is settled at it.
    /// The receiver hears when the mark is durable, and whether the row was still open: false where another server has closed it,
    /// and nothing that is delivered from now on will be charged. It hears nothing where the request's settlement overtakes the mark.
    pub fn mark(&self, id: &RequestId, quantities: Quantities) -> Result<oneshot::Receiver<bool>, BillingError> {
        let (done, written) = oneshot::channel();
        self.hand_in(Write::Later(Later::Mark(id.clone(), quantities, done)))?;
        Ok(written)
    }

    /// Closes the row and takes what it costs: durable when this returns. A repeat changes nothing. False where the row was closed
    /// with something else, as after this server was taken for dead.
    pub async fn settle(
        &self,
        id: &RequestId,
        quantities: Quantities,
        finish: Finish,
        charge: Option<Charge>,
    ) -> Result<bool, BillingError> {
        Ok(self.end(id, quantities, finish, charge).await? == Settled::AsSaid)
    }

    /// [`Journal::settle`], and what the row says where it does not say this.
    pub async fn end(
        &self,
        id: &RequestId,
        quantities: Quantities,
        finish: Finish,
        charge: Option<Charge>,
    ) -> Result<Settled, BillingError> {
        let (done, written) = oneshot::channel();
        let settlement = Settlement { id: id.clone(), quantities, finish, charge };
        self.hand_in(Write::Later(Later::Settle(settlement, done)))?;
        written.await.map_err(|_| BillingError::Closed)?
    }

    /// Returns when all that was handed in before is durable.
    pub async fn flush(&self) -> Result<(), BillingError> {
        let (done, written) = oneshot::channel();
        self.hand_in(Write::Later(Later::Flush(done)))?;
        written.await.map_err(|_| BillingError::Closed)
    }

    /// The same for who cannot wait until a database is back.
    pub(crate) async fn flush_in_time(&self) -> Result<(), BillingError> {
        tokio::time::timeout(FLUSH_TIMEOUT, self.flush()).await.unwrap_or(Err(BillingError::Slow))
    }

    /// Writes what is left and signs off: this server leaves nothing that another one would have to close.
    pub async fn close(&self) -> Result<(), BillingError> {
        self.flush().await?;
        outbox::release(&self.db, &self.instance).await?;
        wallet::forget_wants(&self.db, &self.instance).await?;
        let left = sqlx::query(
            "SELECT 1 FROM requests WHERE instance = $1 AND finish = 'running' \
             UNION SELECT 1 FROM reservations WHERE instance = $1 AND closed_ms IS NULL",
        );
        if left.bind(&self.instance).fetch_optional(self.db.pool()).await?.is_none() {
            sqlx::query("DELETE FROM instances WHERE id = $1").bind(&self.instance).execute(self.db.pool()).await?;
        }
        Ok(())
    }

    fn hand_in(&self, write: Write) -> Result<(), BillingError> {
        if self.silent {
            write.answer();
            return Ok(());
        }
        self.writes.send(write).map_err(|_| BillingError::Closed)
    }

    /// Whether the account has a request with this id.
    pub async fn has(&self, account: &AccountName, id: &str) -> Result<bool, BillingError> {
        let found = sqlx::query("SELECT 1 FROM requests WHERE id = $1 AND account = $2");
        Ok(found.bind(id).bind(account.as_str()).fetch_optional(self.db.pool()).await?.is_some())
    }

    /// The account's requests, newest first, after the one with id `after`.
    pub async fn list(
        &self,
        account: &AccountName,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<RequestRow>, BillingError> {
        let rows = sqlx::query(
            "SELECT id, account, key_id, endpoint, model, base, adapter, adapter_version, started_ms, finished_ms, prompt_tokens, \
             cached_tokens, completion_tokens, price_version, tag, finish FROM requests WHERE account = $1 AND ($2 IS NULL OR (started_ms, id) < \
             (SELECT started_ms, id FROM requests WHERE id = $2 AND account = $1)) \
             ORDER BY started_ms DESC, id DESC LIMIT $3",
        )
        .bind(account.as_str())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(self.db.pool())
        .await?;
        rows.iter().map(row_of).collect()
    }
}

fn row_of(row: &DbRow) -> Result<RequestRow, BillingError> {
    Ok(RequestRow {
        id: row.try_get("id")?,
        key_id: row.try_get("key_id")?,
        endpoint: row.try_get("endpoint")?,
        model: row.try_get("model")?,
        base: row.try_get("base")?,
        adapter: row.try_get("adapter")?,
        adapter_version: row.try_get("adapter_version")?,
        started_ms: row.try_get("started_ms")?,
        finished_ms: row.try_get("finished_ms")?,
        quantities: Quantities::read(row, ["prompt_tokens", "cached_tokens", "completion_tokens"])?,
        price_version: row.try_get("price_version")?,
        tag: row.try_get("tag")?,
        finish: row.try_get("finish")?,
    })
}

#[cfg(test)]
mod tests {
    use platform::testing::databases;

    use super::*;
    use crate::testing::{account, journal, request};

    const TEN: Quantities = Quantities { prompt_tokens: 5, cached_tokens: 2, completion_tokens: 10 };

    #[tokio::test]
    async fn a_request_is_settled_once_and_what_came_later_changes_nothing() {
        for db in databases().await {
            let (journal, _) = journal(&db).await;
            let request = request();
            journal.begin(&request).await.unwrap();
            assert!(journal.settle(&request.id, TEN, Finish::Stop, None).await.unwrap());
            assert!(!journal.settle(&request.id, Quantities::default(), Finish::Error, None).await.unwrap());
            drop(journal.mark(&request.id, Quantities::default()).unwrap());
            // Begun again, as after a connection that was lost behind a commit.
            journal.begin(&request).await.unwrap();
            journal.flush().await.unwrap();
            let rows = journal.list(&request.account, None, 10).await.unwrap();
            assert_eq!((rows.len(), rows[0].quantities, rows[0].finish.as_str()), (1, TEN, "stop"));
            assert!(journal.settle(&RequestId::fresh("x"), TEN, Finish::Stop, None).await.is_err());
        }
    }

    #[tokio::test]
    async fn one_write_that_is_wrong_fails_alone() {
        for db in databases().await {
            let (journal, _) = journal(&db).await;
            let stranger = NewRequest { account: "stranger".parse().unwrap(), ..request() };
            let requests: Vec<NewRequest> =
                (0..20).map(|at| if at == 7 { stranger.clone() } else { request() }).collect();
            let begun = futures::future::join_all(requests.iter().map(|request| journal.begin(request))).await;
            for (at, begun) in begun.into_iter().enumerate() {
                assert_eq!(begun.is_ok(), at != 7, "{at}: {begun:?}");
            }
            let settled =
                futures::future::join_all(requests.iter().map(|r| journal.settle(&r.id, TEN, Finish::Length, None)))
                    .await;
            for (at, settled) in settled.into_iter().enumerate() {
                assert_eq!(settled.is_ok(), at != 7, "{at}: {settled:?}");
            }
            let rows = journal.list(&account(), None, 100).await.unwrap();
            assert!(rows.len() == 19 && rows.iter().all(|row| row.finish == "length" && row.quantities == TEN));
        }
    }

    #[tokio::test]
    async fn what_ran_when_the_process_died_is_closed_at_its_last_mark() {
        for db in databases().await {
            let (first, _) = journal(&db).await;
            let request = request();
            first.begin(&request).await.unwrap();
            assert!(first.mark(&request.id, TEN).unwrap().await.unwrap());
            let (second, _) = journal(&db).await;
            second.bury(&second.others(None).await.unwrap()).await.unwrap();
            let rows = second.list(&request.account, None, 10).await.unwrap();
            assert_eq!((rows[0].quantities, rows[0].finish.as_str()), (TEN, "interrupted"));
            // It was not dead after all: what it says now comes too late.
            let late = Quantities { completion_tokens: 99, ..TEN };
            assert!(!first.mark(&request.id, late).unwrap().await.unwrap());
            assert!(!first.settle(&request.id, late, Finish::Stop, None).await.unwrap());
            assert_eq!(first.end(&request.id, late, Finish::Stop, None).await.unwrap(), Settled::Before(TEN));
            assert_eq!(second.list(&request.account, None, 10).await.unwrap(), rows);
        }
    }

    #[tokio::test]
    async fn of_marks_that_are_written_together_each_hears_of_its_own_row() {
        for db in databases().await {
            let (journal, _) = journal(&db).await;
            let requests: Vec<NewRequest> = (0..9).map(|_| request()).collect();
            for request in &requests {
                journal.begin(request).await.unwrap();
            }
            for closed in requests.iter().step_by(3) {
                let close = sqlx::query("UPDATE requests SET finish = 'interrupted' WHERE id = $1");
                close.bind(closed.id.as_str()).execute(db.pool()).await.unwrap();
            }
            let marks = requests.iter().chain(&requests).map(|request| journal.mark(&request.id, TEN).unwrap());
            let open = futures::future::join_all(marks.collect::<Vec<_>>()).await;
            let open: Vec<bool> = open.into_iter().map(Result::unwrap).collect();
            assert_eq!(open, (0..18).map(|at| at % 9 % 3 != 0).collect::<Vec<_>>());
            // A mark that its settlement overtakes has found nothing.
            let mark = journal.mark(&requests[1].id, TEN).unwrap();
            let settled = journal.settle(&requests[1].id, TEN, Finish::Stop, None);
            assert_eq!((settled.await.unwrap(), mark.await.is_err()), (true, true));
        }
    }

    #[tokio::test]
    async fn pages_of_the_list_follow_each_other_without_gap() {
        for db in databases().await {
            let (journal, _) = journal(&db).await;
            for _ in 0..5 {
                journal.begin(&request()).await.unwrap();
            }
            let all = journal.list(&account(), None, 10).await.unwrap();
            let first = journal.list(&account(), None, 2).await.unwrap();
            let rest = journal.list(&account(), Some(&first[1].id), 10).await.unwrap();
            assert_eq!([first, rest].concat(), all);
            let other: AccountName = "other".parse().unwrap();
            assert!(journal.list(&other, None, 10).await.unwrap().is_empty());
        }
    }
}
