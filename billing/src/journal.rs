//! A request's row: opened before its first byte, marked while it runs, settled once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use platform::units::now_ms;
use platform::{AccountName, Db, DbKind, DbRow, DbTransaction, RequestId};
use sqlx::Row;
use tokio::sync::{mpsc, oneshot};

use crate::faults::Faults;
use crate::ledger::{apply_in, lock_name};
use crate::rules::Command;
use crate::usage_hours::UsageHours;
use crate::writer::{Later, Settlement, Write, Writer, charge_id};
use crate::{BillingError, Charge, Prices};

/// How often a server says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// One that has not said so for this long is dead, in milliseconds.
const DEAD_AFTER_MS: i64 = 10_000;
/// Who was away for longer may find others not to have been seen only because the database was away for all.
const GRACE: Duration = Duration::from_secs(6);

/// What a request used. The engine's count, never an estimate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantities {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
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
        let journal = Self { db, faults, prices, instance, writes, silent: false };
        journal.say_alive().await?;
        // The data directory's lock keeps a second server from an SQLite file: all others are dead, whatever the clock says.
        let closed = match journal.db.kind() {
            DbKind::Sqlite => journal.bury(None).await?,
            DbKind::Postgres => journal.bury(Some(DEAD_AFTER_MS)).await?,
        };
        tokio::spawn(journal.clone().watch());
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
    /// The receiver hears when the mark is durable.
    pub fn mark(&self, id: &RequestId, quantities: Quantities) -> Result<oneshot::Receiver<()>, BillingError> {
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

    /// Writes what is left and signs off: this server leaves nothing that another one would have to close.
    pub async fn close(&self) -> Result<(), BillingError> {
        self.flush().await?;
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

    /// Says that this server lives, and buries those that no longer do.
    async fn watch(self) {
        let mut beats = tokio::time::interval(HEARTBEAT);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_beat = Instant::now();
        loop {
            beats.tick().await;
            if self.db.pool().is_closed() {
                return;
            }
            let said = self.say_alive().await;
            let was_here = last_beat.elapsed() < GRACE;
            if said.is_ok() {
                last_beat = Instant::now();
            }
            let buried = match said {
                Ok(()) if was_here && self.db.kind() == DbKind::Postgres => self.bury(Some(DEAD_AFTER_MS)).await,
                other => other.map(|()| 0),
            };
            match buried {
                Ok(0) => {}
                Ok(closed) => {
                    tracing::warn!(closed, "another server has died; its requests are closed at their last mark")
                }
                Err(error) => tracing::warn!(%error, "the database does not take this server's sign of life"),
            }
        }
    }

    async fn say_alive(&self) -> Result<(), BillingError> {
        let now = self.db.now_sql();
        let sql = format!(
            "INSERT INTO instances (id, started_ms, seen_ms) VALUES ($1, {now}, {now}) \
             ON CONFLICT (id) DO UPDATE SET seen_ms = excluded.seen_ms"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&self.instance).execute(self.db.pool()).await?;
        Ok(())
    }

    /// Closes what servers have left behind that have not been seen for so long; without a time, all others. Returns how many
    /// requests that were.
    async fn bury(&self, dead_after_ms: Option<i64>) -> Result<u64, BillingError> {
        let sql = format!(
            "SELECT id FROM instances WHERE id <> $1 AND ($2 IS NULL OR seen_ms <= {} - $2)",
            self.db.now_sql()
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(&self.instance)
            .bind(dead_after_ms)
            .fetch_all(self.db.pool())
            .await?;
        if !rows.is_empty() {
            // The dead server may have known a price that this one does not.
            self.prices.reload().await?;
        }
        let mut closed = 0;
        for row in rows {
            let dead: String = row.try_get("id")?;
            for account in self.left_by(&dead).await? {
                closed += self.bury_in(&dead, &account).await?;
            }
            sqlx::query("DELETE FROM instances WHERE id = $1").bind(&dead).execute(self.db.pool()).await?;
        }
        Ok(closed)
    }

    /// Accounts with requests or reservations of a dead server.
    async fn left_by(&self, dead: &str) -> Result<BTreeSet<AccountName>, BillingError> {
        let rows = sqlx::query(
            "SELECT account FROM requests WHERE instance = $1 AND finish = 'running' \
             UNION SELECT account FROM reservations WHERE instance = $1 AND closed_ms IS NULL \
             UNION SELECT account FROM cap_leases WHERE instance = $1",
        )
        .bind(dead)
        .fetch_all(self.db.pool())
        .await?;
        rows.iter().map(account_of).collect()
    }

    /// One account's part: requests are charged at their last marks, and the rest of the reservations is given back.
    async fn bury_in(&self, dead: &str, account: &AccountName) -> Result<u64, BillingError> {
        let mut transaction = self.db.write(&lock_name(account)).await?;
        let reservations = open_reservations(&mut transaction, dead, account).await?;
        let running = sqlx::query(
            "UPDATE requests SET finish = 'interrupted', finished_ms = $3 \
             WHERE instance = $1 AND account = $2 AND finish = 'running' RETURNING *",
        )
        .bind(dead)
        .bind(account.as_str())
        .bind(now_ms())
        .fetch_all(&mut *transaction)
        .await?;
        let mut conflict = false;
        let mut hours = UsageHours::default();
        for row in &running {
            let request = row_of(row)?;
            let rates = request.price_version.and_then(|version| self.prices.rates(version));
            let amount = rates.map_or(0, |rates| rates.cost(&request.quantities, &request.finish));
            let (Some(reservation), 1..) = (reservations.first(), amount) else {
                hours.add(row, 0)?;
                continue;
            };
            let command = Command::Settle { reservation: reservation.clone(), amount };
            let id = charge_id(&request.id);
            match apply_in(&mut transaction, &id, account, &command, Some("interrupted"), dead).await? {
                None => conflict = true,
                Some(Ok(())) => hours.add(row, amount)?,
                Some(Err(refusal)) => {
                    tracing::error!(request = request.id, %refusal, "an interrupted request could not be charged");
                    hours.add(row, 0)?;
                }
            }
        }
        hours.write(&mut transaction, self.db.kind(), dead).await?;
        // What it has spent of caps is in the hours; what it had leased beyond that is free.
        sqlx::query("DELETE FROM cap_leases WHERE instance = $1 AND account = $2")
            .bind(dead)
            .bind(account.as_str())
            .execute(&mut *transaction)
            .await?;
        for reservation in reservations {
            let id = format!("void {reservation}");
            let command = Command::Void { reservation };
            conflict |= apply_in(&mut transaction, &id, account, &command, Some("server died"), dead).await?.is_none();
        }
        if conflict {
            return Err(BillingError::Conflict(dead.to_owned()));
        }
        self.faults.commit(transaction.commit()).await?;
        Ok(running.len() as u64)
    }

    /// The account's requests, newest first, after the one with id `after`.
    pub async fn list(
        &self,
        account: &AccountName,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<RequestRow>, BillingError> {
        let rows = sqlx::query(
            "SELECT * FROM requests WHERE account = $1 AND ($2 IS NULL OR (started_ms, id) < \
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

/// Whether some server writes to the database, or has died just now.
pub async fn servers_live(db: &Db) -> Result<bool, BillingError> {
    let sql = format!("SELECT 1 FROM instances WHERE seen_ms > {} - $1 LIMIT 1", db.now_sql());
    let found = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(DEAD_AFTER_MS).fetch_optional(db.pool()).await?;
    Ok(found.is_some())
}

fn account_of(row: &DbRow) -> Result<AccountName, BillingError> {
    let name: String = row.try_get("account")?;
    name.parse().map_err(|_| BillingError::NoAccount(name))
}

async fn open_reservations(
    transaction: &mut DbTransaction,
    instance: &str,
    account: &AccountName,
) -> Result<Vec<String>, BillingError> {
    let rows = sqlx::query(
        "SELECT id FROM reservations WHERE instance = $1 AND account = $2 AND closed_ms IS NULL ORDER BY created_ms",
    )
    .bind(instance)
    .bind(account.as_str())
    .fetch_all(&mut **transaction)
    .await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// What a row of requests says was used.
pub(crate) fn quantities_of(row: &DbRow) -> Result<Quantities, sqlx::Error> {
    let count = |column: &str| row.try_get::<i64, _>(column).map(|count| u64::try_from(count).unwrap_or(0));
    Ok(Quantities {
        prompt_tokens: count("prompt_tokens")?,
        cached_tokens: count("cached_tokens")?,
        completion_tokens: count("completion_tokens")?,
    })
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
        quantities: quantities_of(row)?,
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
            let _ = journal.mark(&request.id, Quantities::default()).unwrap();
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
            first.mark(&request.id, TEN).unwrap().await.unwrap();
            let (second, _) = journal(&db).await;
            second.bury(Some(0)).await.unwrap();
            let rows = second.list(&request.account, None, 10).await.unwrap();
            assert_eq!((rows[0].quantities, rows[0].finish.as_str()), (TEN, "interrupted"));
            // It was not dead after all: what it says now comes too late.
            let late = Quantities { completion_tokens: 99, ..TEN };
            assert!(!first.settle(&request.id, late, Finish::Stop, None).await.unwrap());
            assert_eq!(second.list(&request.account, None, 10).await.unwrap(), rows);
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
