//! Removes what nobody needs any more: deliveries that arrived long ago, and the sums of servers that are long gone, which become
//! sums of no server. What was counted and charged stays, and so does what has not arrived.

use platform::units::{HOUR_MS, now_ms};
use platform::{AccountName, Db};
use sqlx::Row;

use crate::journal::account_of;
use crate::limits::{Period, lock_name};
use crate::usage_hours::UsageHours;
use crate::{BillingError, LimitKind};

/// Deliveries of one transaction.
const DELIVERIES: i64 = 1_000;
/// Hours of one server and account that are folded in one transaction.
const HOURS: i64 = 24;
/// Accounts of servers that are looked up at once.
const SERVERS: i64 = 1_000;
/// A server that has signed off, or was buried, and has begun nothing for so many hours is long gone: one that was only away for a
/// while has signed on again, and compares its own sums with what its engines have counted.
const GONE_HOURS: i64 = 7 * 24;

/// Whose sums those of servers are that have gone.
const NOBODY: &str = "";

#[derive(Debug, Clone)]
pub struct Purge {
    db: Db,
}

/// How many rows have gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    pub deliveries: u64,
    /// Rows of usage that were folded into others.
    pub usage: u64,
}

impl Purge {
    pub const fn new(db: Db) -> Self {
        Self { db }
    }

    /// Does all there is to do. Deliveries are kept for so long after they arrived.
    pub async fn run(&self, keep_deliveries_ms: i64) -> Result<Purged, BillingError> {
        let mut purged = Purged { deliveries: self.deliveries(keep_deliveries_ms).await?, usage: 0 };
        loop {
            let gone = self.gone().await?;
            if gone.is_empty() {
                return Ok(purged);
            }
            for (account, instance) in &gone {
                loop {
                    match self.fold(account, instance).await? {
                        0 => break,
                        folded => purged.usage += folded,
                    }
                }
            }
        }
    }

    /// An alert's message of the period that still runs stays: as long as it is there, the alert is not told again.
    async fn deliveries(&self, keep_ms: i64) -> Result<u64, BillingError> {
        let (now, sql_now) = (now_ms(), self.db.now_sql());
        // The id is that of `Limit::message_id`.
        let sql = format!(
            "DELETE FROM outbox WHERE id IN (SELECT o.id FROM outbox o WHERE o.delivered_ms <= {sql_now} - $1 AND NOT EXISTS \
             (SELECT 1 FROM limits l WHERE l.account = o.account AND l.kind = '{alert}' AND o.id = 'alert ' || l.id || ' ' || \
             CAST(CASE l.period WHEN '{day}' THEN CAST($2 AS BIGINT) WHEN '{month}' THEN CAST($3 AS BIGINT) ELSE 0 END AS TEXT) \
             || ' ' || o.target) ORDER BY o.delivered_ms LIMIT $4)",
            alert = LimitKind::Alert.name(),
            day = Period::Day.name(),
            month = Period::Month.name(),
        );
        let mut deleted = 0;
        loop {
            let batch = sqlx::query(sqlx::AssertSqlSafe(sql.clone()))
                .bind(keep_ms)
                .bind(Period::Day.start_ms(now))
                .bind(Period::Month.start_ms(now))
                .bind(DELIVERIES)
                .execute(self.db.pool())
                .await?
                .rows_affected();
            deleted += batch;
            if batch < DELIVERIES as u64 {
                return Ok(deleted);
            }
        }
    }

    /// Accounts and servers that are long gone, with sums of their own.
    async fn gone(&self) -> Result<Vec<(AccountName, String)>, BillingError> {
        let rows = sqlx::query(
            "SELECT instance, account FROM usage_hours WHERE instance <> $1 AND instance NOT IN (SELECT id FROM instances) \
             GROUP BY instance, account HAVING MAX(hour) < $2 ORDER BY instance, account LIMIT $3",
        )
        .bind(NOBODY)
        .bind(now_ms() / HOUR_MS - GONE_HOURS)
        .bind(SERVERS)
        .fetch_all(self.db.pool())
        .await?;
        rows.iter().map(|row| Ok((account_of(row)?, row.try_get("instance")?))).collect()
    }

    /// Folds the first day of a gone server's sums into those of no server. Returns how many rows that were; 0: nothing is left, or
    /// the server is back.
    async fn fold(&self, account: &AccountName, instance: &str) -> Result<u64, BillingError> {
        // Who leases a cap adds up what each server has spent, or has leased where that is more.
        let mut transaction = self.db.write(&lock_name(account)).await?;
        let lives = sqlx::query("SELECT 1 FROM instances WHERE id = $1").bind(instance);
        if lives.fetch_optional(&mut *transaction).await?.is_some() {
            return Ok(0);
        }
        sqlx::query("DELETE FROM cap_leases WHERE account = $1 AND instance = $2")
            .bind(account.as_str())
            .bind(instance)
            .execute(&mut *transaction)
            .await?;
        let rows = sqlx::query(
            "DELETE FROM usage_hours WHERE account = $1 AND instance = $2 AND hour < $3 + \
             (SELECT MIN(hour) FROM usage_hours WHERE account = $1 AND instance = $2) \
             RETURNING account, hour, key_id, base, adapter, price_version, requests, prompt_tokens, cached_tokens, completion_tokens, \
             cost",
        )
        .bind(account.as_str())
        .bind(instance)
        .bind(HOURS)
        .fetch_all(&mut *transaction)
        .await?;
        let mut hours = UsageHours::default();
        for row in &rows {
            hours.take(row)?;
        }
        hours.write(&mut transaction, self.db.kind(), NOBODY).await?;
        transaction.commit().await?;
        Ok(rows.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use platform::testing::{databases, noted};
    use platform::units::DAY_MS;

    use super::*;
    use crate::testing::{account, journal, request};
    use crate::{
        Attempt, DeliveryKind, DeliveryState, EngineCounts, Extent, Finish, Journal, Limit, LimitScope, Limits,
        NewDelivery, Outbox, Quantities, Spender, reconcile,
    };

    async fn execute(db: &Db, sql: String) {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(db.pool()).await.unwrap();
    }

    fn alert(period: Period) -> Limit {
        Limit {
            id: String::new(),
            kind: LimitKind::Alert,
            scope: LimitScope::Account,
            subject: String::new(),
            period,
            amount: 1,
            operators: false,
        }
    }

    async fn put(outbox: &Outbox, id: &str) {
        let (account, target) = (account(), "hook".to_owned());
        let new = NewDelivery { id: id.into(), kind: DeliveryKind::Webhook, account, target, body: "{}".into() };
        assert!(outbox.put(&new).await.unwrap(), "{id} is there already");
    }

    #[tokio::test]
    async fn what_arrived_long_ago_goes_but_for_alerts_that_would_be_told_again() {
        for db in databases().await {
            journal(&db).await;
            let (outbox, limits) = (Outbox::new(db.clone()), Limits::open(db.clone()).await.unwrap());
            let (now, mut expected) = (now_ms(), vec!["failed".to_owned(), "waits".into(), "young".into()]);
            for id in ["old", "older", "failed", "waits", "young"] {
                put(&outbox, id).await;
            }
            for period in [Period::Day, Period::Month, Period::Total] {
                let limit = limits.set(&account(), alert(period), &noted).await.unwrap();
                let [running, over] = [period.start_ms(now), period.start_ms(now) - 1];
                let [running, over] = [running, over].map(|start_ms| limit.message_id(start_ms, "hook"));
                put(&outbox, &running).await;
                put(&outbox, &over).await;
                expected.push(running);
            }
            let long_ago = now - 31 * DAY_MS;
            execute(&db, format!("UPDATE outbox SET delivered_ms = {long_ago}, next_ms = NULL WHERE id NOT IN ('failed', 'waits', 'young')")).await;
            execute(&db, format!("UPDATE outbox SET created_ms = {long_ago}, next_ms = NULL WHERE id = 'failed'"))
                .await;
            execute(&db, format!("UPDATE outbox SET created_ms = {long_ago} WHERE id = 'waits'")).await;
            let young = outbox.claim("here", &[DeliveryKind::Webhook], 9).await.unwrap();
            assert_eq!(young.len(), 1);
            execute(
                &db,
                "UPDATE outbox SET next_ms = 0, claimed_by = NULL, attempts = 0 WHERE next_ms IS NOT NULL".into(),
            )
            .await;
            execute(&db, format!("UPDATE outbox SET delivered_ms = {now}, next_ms = NULL WHERE id = 'young'")).await;
            let purged = Purge::new(db.clone()).run(30 * DAY_MS).await.unwrap();
            assert_eq!(purged.deliveries, 5);
            let mut left: Vec<String> =
                outbox.to_target("hook", 99).await.unwrap().into_iter().map(|row| row.id).collect();
            left.sort();
            expected.sort();
            assert_eq!(left, expected);
            // What goes on, goes on.
            let claimed = outbox.claim("here", &[DeliveryKind::Webhook], 9).await.unwrap();
            assert_eq!(claimed.iter().map(|claimed| claimed.id.as_str()).collect::<Vec<_>>(), ["waits"]);
            outbox.note(&claimed[0], &Attempt::Delivered).await.unwrap();
            let state =
                |rows: &[crate::DeliveryRow], id: &str| rows.iter().find(|row| row.id == id).map(|row| row.state);
            let rows = outbox.to_target("hook", 99).await.unwrap();
            assert_eq!(state(&rows, "waits"), Some(DeliveryState::Delivered));
            assert_eq!(state(&rows, "failed"), Some(DeliveryState::GivenUp));
        }
    }

    /// So many requests that began so many hours ago, two keys in turn.
    async fn requests(db: &Db, journal: &Journal, hours_ago: i64, count: usize) {
        for at in 0..count {
            let request = crate::NewRequest { key_id: format!("key-{}", at % 2), ..request() };
            journal.begin(&request).await.unwrap();
            let began = format!(
                "UPDATE requests SET started_ms = started_ms - {} WHERE id = '{}'",
                hours_ago * HOUR_MS,
                request.id
            );
            execute(db, began).await;
            let quantities = Quantities { prompt_tokens: 3, cached_tokens: 1, completion_tokens: at as u64 };
            assert!(journal.settle(&request.id, quantities, Finish::Stop, None).await.unwrap());
        }
    }

    async fn rows(db: &Db, instance: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM usage_hours WHERE instance = $1").bind(instance);
        count.fetch_one(db.pool()).await.unwrap()
    }

    #[tokio::test]
    async fn sums_of_servers_that_are_long_gone_become_sums_of_nobody_and_every_book_still_agrees() {
        for db in databases().await {
            let mut gone = Vec::new();
            for hours_ago in [GONE_HOURS + 2, GONE_HOURS + 60] {
                let (server, _) = journal(&db).await;
                requests(&db, &server, hours_ago, 4).await;
                requests(&db, &server, GONE_HOURS + 2, 2).await;
                server.close().await.unwrap();
                gone.push(server.instance().to_owned());
            }
            let (recent, _) = journal(&db).await;
            requests(&db, &recent, GONE_HOURS + 50, 2).await;
            requests(&db, &recent, 3, 2).await;
            recent.close().await.unwrap();
            let (alive, _) = journal(&db).await;
            requests(&db, &alive, GONE_HOURS + 50, 2).await;
            // Sums have costs, and a lease of what was spent was left behind.
            execute(&db, "UPDATE usage_hours SET cost = requests".into()).await;
            for instance in gone.iter().chain([&recent.instance().to_owned()]) {
                execute(
                    &db,
                    format!("INSERT INTO cap_leases VALUES ('acme', 'account', '', 'total', 0, '{instance}', 2)"),
                )
                .await;
            }
            let limits = Limits::open(db.clone()).await.unwrap();
            let cap = limits
                .set(&account(), Limit { kind: LimitKind::Cap, amount: 100, ..alert(Period::Total) }, &noted)
                .await
                .unwrap();
            let left = async || {
                let meter = limits.caps(&Spender { account: &account(), key_id: "key-0", adapter: None }, now_ms());
                let lease = limits.lease(&account(), (&meter[0].0, meter[0].1), "asking", 1, 1_000).await.unwrap();
                execute(&db, "DELETE FROM cap_leases WHERE instance = 'asking'".into()).await;
                lease.leased
            };
            let key = Limit { scope: LimitScope::Key, subject: "key-1".into(), ..cap.clone() };
            let spent = async || {
                (
                    limits.spent_from(&account(), &cap, 0).await.unwrap(),
                    limits.spent_from(&account(), &key, 0).await.unwrap(),
                )
            };
            let before = (spent().await, left().await);
            assert_eq!(before, ((18, 9), 82));
            let purged = Purge::new(db.clone()).run(30 * DAY_MS).await.unwrap();
            assert_eq!((purged.usage, Purge::new(db.clone()).run(0).await.unwrap().usage), (6, 0));
            // Two keys in the hour that both had, and in the one that one had.
            assert_eq!((rows(&db, NOBODY).await, rows(&db, &gone[0]).await, rows(&db, &gone[1]).await), (4, 0, 0));
            assert_eq!((rows(&db, recent.instance()).await, rows(&db, alive.instance()).await), (4, 2));
            assert_eq!((spent().await, left().await), before);
            execute(&db, "UPDATE usage_hours SET cost = 0".into()).await;
            let engine = EngineCounts::default();
            (0..2).for_each(|at| {
                engine.add("acme", "mini", Quantities { prompt_tokens: 3, cached_tokens: 1, completion_tokens: at })
            });
            let found = reconcile(&alive, &engine, 0, Extent::Whole).await.unwrap();
            assert_eq!(found.differences, 0, "{found:?}");
            assert!(found.compared > 20, "{found:?}");
        }
    }
}
