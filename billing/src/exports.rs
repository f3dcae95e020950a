//! Revenue by the hour, for Stripe: each closed hour of an account that is tied to a customer there becomes a delivery.
//!
//! An hour's revenue is what the ledger settled in it, and what it charged for storage. What of it was put into the outbox is kept, so that an hour that grew later
//! is completed by its difference and nothing is put twice. Only grows: refunds are the operator's to make at Stripe.

use platform::audit::Change;
use platform::units::{DAY_MS, HOUR_MS, now_ms};
use platform::{AccountName, Db, DbTransaction};
use serde_json::json;
use sqlx::Row;

use crate::BillingError;
use crate::outbox::{DeliveryKind, NewDelivery, Outbox};
use crate::rules::Nano;

/// A transaction can be committed so long after the time that it bears.
const LATE_MS: i64 = 5 * 60_000;
/// Hours that are looked at again: an hour that was exported while it ran has grown since.
const AGAIN_HOURS: i64 = 2;
/// Stripe refuses what is older than 35 days.
pub const OLDEST_EXPORT_MS: i64 = 34 * DAY_MS;

/// Where an account's revenue goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer {
    /// At Stripe: `cus_...`
    pub id: String,
    /// The hour from which on, in milliseconds since the Unix epoch.
    pub since_ms: i64,
}

#[derive(Debug, Clone)]
pub struct Exports {
    db: Db,
    outbox: Outbox,
}

/// An hour with revenue that was not put into the outbox yet.
struct Growth {
    account: AccountName,
    customer: String,
    hour: i64,
    /// 1 for the first.
    revision: i64,
    amount: Nano,
}

/// Up to when hours are closed: whole ones, with time for late commits.
pub fn closed_until_ms(now_ms: i64) -> i64 {
    floor(now_ms - LATE_MS)
}

fn floor(ms: i64) -> i64 {
    ms.div_euclid(HOUR_MS) * HOUR_MS
}

impl Exports {
    pub fn new(db: Db) -> Self {
        Self { outbox: Outbox::new(db.clone()), db }
    }

    pub async fn customer(&self, account: &AccountName) -> Result<Option<Customer>, BillingError> {
        let row = sqlx::query("SELECT stripe_customer, stripe_since_ms FROM accounts WHERE name = $1")
            .bind(account.as_str())
            .fetch_optional(self.db.pool())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let Some(id) = row.try_get("stripe_customer")? else { return Ok(None) };
        Ok(Some(Customer { id, since_ms: row.try_get::<Option<i64>, _>("stripe_since_ms")?.unwrap_or(0) }))
    }

    /// Ties an account to a customer, from the hour on in which `since_ms` is. What was put into the outbox and not delivered goes
    /// to the new customer, from its first attempt on: the old one may have been a mistake.
    pub async fn tie(
        &self,
        account: &AccountName,
        customer: &str,
        since_ms: i64,
        change: &Change,
    ) -> Result<(), BillingError> {
        let mut transaction = self.db.begin().await?;
        sqlx::query(
            "UPDATE accounts SET stripe_customer = $2, stripe_since_ms = $3, stripe_from_ms = $3 WHERE name = $1",
        )
        .bind(account.as_str())
        .bind(customer)
        .bind(floor(since_ms))
        .execute(&mut *transaction)
        .await?;
        let sql = format!(
            "UPDATE outbox SET target = $2, attempts = 0, next_ms = {} \
             WHERE kind = 'stripe' AND account = $1 AND target <> $2 AND delivered_ms IS NULL AND unclear_ms IS NULL",
            self.db.now_sql()
        );
        let moved = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str()).bind(customer);
        moved.execute(&mut *transaction).await?;
        change.write(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Hours that are not in the outbox yet will not be. Those that are will still be delivered.
    /// False where the account is tied to none.
    pub async fn untie(&self, account: &AccountName, change: &Change) -> Result<bool, BillingError> {
        let mut transaction = self.db.begin().await?;
        let untied = sqlx::query(
            "UPDATE accounts SET stripe_customer = NULL, stripe_since_ms = NULL, stripe_from_ms = NULL \
             WHERE name = $1 AND stripe_customer IS NOT NULL",
        );
        if untied.bind(account.as_str()).execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(false);
        }
        change.write(&mut transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Puts revenue from before `until_ms` into the outbox, as far as it is not there. Returns how many deliveries that makes.
    pub async fn close(&self, until_ms: i64) -> Result<u64, BillingError> {
        let until_ms = until_ms.min(now_ms());
        let mut transaction = self.db.write("stripe exports").await?;
        let grown = grown(&mut transaction, until_ms).await?;
        let mut put = 0;
        for growth in &grown {
            put += u64::from(self.put(&mut transaction, growth).await?);
        }
        let from_ms = floor(until_ms) - AGAIN_HOURS * HOUR_MS;
        let looked = sqlx::query("UPDATE accounts SET stripe_from_ms = $1 WHERE stripe_from_ms < $1").bind(from_ms);
        looked.execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(put)
    }

    async fn put(&self, transaction: &mut DbTransaction, growth: &Growth) -> Result<bool, BillingError> {
        let Growth { account, customer, hour, revision, amount } = growth;
        sqlx::query("INSERT INTO stripe_exports (account, hour, revision, amount) VALUES ($1, $2, $3, $4)")
            .bind(account.as_str())
            .bind(hour)
            .bind(revision)
            .bind(amount)
            .execute(&mut **transaction)
            .await?;
        let body = json!({
            "identifier": format!("myriad-{account}-{hour}-{revision}"),
            "hour": hour,
            "revision": revision,
            "timestamp": hour * HOUR_MS / 1000,
            "value": amount,
        });
        let new = NewDelivery {
            id: format!("stripe {account} {hour} {revision}"),
            kind: DeliveryKind::Stripe,
            account: account.clone(),
            target: customer.clone(),
            body: body.to_string(),
        };
        self.outbox.put_in(transaction, &new).await
    }
}

async fn grown(transaction: &mut DbTransaction, until_ms: i64) -> Result<Vec<Growth>, BillingError> {
    let sql = format!(
        "SELECT r.account, r.customer, r.hour, r.revenue, \
         CAST(COALESCE((SELECT SUM(x.amount) FROM stripe_exports x WHERE x.account = r.account AND x.hour = r.hour), 0) AS BIGINT) \
         AS exported, \
         (SELECT COUNT(*) FROM stripe_exports x WHERE x.account = r.account AND x.hour = r.hour) AS revisions \
         FROM (SELECT t.account, a.stripe_customer AS customer, t.created_ms / {HOUR_MS} AS hour, \
         CAST(SUM(e.amount) AS BIGINT) AS revenue FROM accounts a \
         JOIN ledger_transactions t ON t.account = a.name AND t.kind IN ('settle', 'charge') \
         JOIN ledger_entries e ON e.transaction_id = t.id AND e.book = 'revenue' \
         WHERE a.stripe_customer IS NOT NULL AND t.created_ms >= a.stripe_from_ms AND t.created_ms >= $1 AND t.created_ms < $2 \
         GROUP BY t.account, a.stripe_customer, t.created_ms / {HOUR_MS}) r ORDER BY r.account, r.hour"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(floor(now_ms() - OLDEST_EXPORT_MS))
        .bind(until_ms)
        .fetch_all(&mut **transaction)
        .await?;
    let mut grown = Vec::new();
    for row in &rows {
        let account: String = row.try_get("account")?;
        let amount = row.try_get::<Nano, _>("revenue")? - row.try_get::<Nano, _>("exported")?;
        if amount > 0 {
            grown.push(Growth {
                account: account.parse().map_err(|_| sqlx::Error::Decode("the stored account is no name".into()))?,
                customer: row.try_get("customer")?,
                hour: row.try_get("hour")?,
                revision: row.try_get::<i64, _>("revisions")? + 1,
                amount,
            });
        }
    }
    Ok(grown)
}

#[cfg(test)]
mod tests {
    use platform::testing::{change, databases};
    use serde_json::Value;

    use super::*;
    use crate::outbox::DeliveryRow;
    use crate::testing::{account, journal};

    /// What a settled request leaves, at a time of the test's choice.
    async fn settled(db: &Db, id: &str, amount: Nano, at_ms: i64) {
        sqlx::query(
            "INSERT INTO ledger_transactions (id, account, kind, amount, outcome, created_ms) VALUES ($1, 'acme', 'settle', $2, 'done', $3)",
        )
        .bind(id)
        .bind(amount)
        .bind(at_ms)
        .execute(db.pool())
        .await
        .unwrap();
        for (book, amount) in [("revenue", amount), ("held", -amount)] {
            let entry = sqlx::query("INSERT INTO ledger_entries (transaction_id, book, amount) VALUES ($1, $2, $3)");
            entry.bind(id).bind(book).bind(amount).execute(db.pool()).await.unwrap();
        }
    }

    /// Hour, revision and value of everything that was put, and how it is told apart.
    async fn events(outbox: &Outbox) -> Vec<(i64, i64, i64)> {
        let rows: Vec<DeliveryRow> = outbox.of_kind(DeliveryKind::Stripe, 100).await.unwrap();
        let mut events = Vec::new();
        for row in &rows {
            let body: Value = serde_json::from_str(&row.body).unwrap();
            let number = |name: &str| body[name].as_i64().unwrap();
            let (hour, revision) = (number("hour"), number("revision"));
            assert_eq!(body["identifier"], format!("myriad-acme-{hour}-{revision}"));
            assert_eq!(number("timestamp"), hour * 3600);
            events.push((hour, revision, number("value")));
        }
        events.sort_unstable();
        events
    }

    #[test]
    fn an_hour_is_closed_a_few_minutes_after_its_end() {
        for (minutes, hours) in [(59, 0), (60, 0), (64, 0), (65, 1), (124, 1), (125, 2)] {
            assert_eq!(closed_until_ms(minutes * 60_000), hours * HOUR_MS, "{minutes} minutes");
        }
    }

    #[tokio::test]
    async fn each_hour_is_exported_once_and_growth_as_a_further_revision() {
        for db in databases().await {
            journal(&db).await;
            let (exports, outbox) = (Exports::new(db.clone()), Outbox::new(db.clone()));
            let hour = now_ms() / HOUR_MS - 5;
            let at = |hours: i64, minutes: i64| (hour + hours) * HOUR_MS + minutes * 60_000;
            settled(&db, "before", 1_000, at(-1, 59)).await;
            settled(&db, "a", 10, at(0, 0)).await;
            settled(&db, "b", 5, at(0, 59)).await;
            settled(&db, "c", 7, at(1, 30)).await;
            assert_eq!(exports.close(at(4, 0)).await.unwrap(), 0, "nobody is tied to a customer");
            exports.tie(&account(), "cus_1", at(0, 20), &change()).await.unwrap();
            let at_once = (0..4).map(|_| exports.close(at(1, 40)));
            let put: u64 = futures::future::join_all(at_once).await.into_iter().map(Result::unwrap).sum();
            assert_eq!(put, 2);
            assert_eq!(events(&outbox).await, [(hour, 1, 15), (hour + 1, 1, 7)]);
            settled(&db, "late", 2, at(0, 58)).await;
            settled(&db, "d", 4, at(1, 50)).await;
            assert_eq!(exports.close(at(1, 45)).await.unwrap(), 1);
            assert_eq!(exports.close(at(4, 0)).await.unwrap(), 1);
            assert_eq!(exports.close(at(4, 0)).await.unwrap(), 0);
            let expected = [(hour, 1, 15), (hour, 2, 2), (hour + 1, 1, 7), (hour + 1, 2, 4)];
            assert_eq!(events(&outbox).await, expected);
        }
    }

    #[tokio::test]
    async fn what_waits_goes_to_the_new_customer_and_an_untied_account_is_left_alone() {
        for db in databases().await {
            journal(&db).await;
            let (exports, outbox) = (Exports::new(db.clone()), Outbox::new(db.clone()));
            let start = floor(now_ms()) - 5 * HOUR_MS;
            exports.tie(&account(), "cus_wrong", start, &change()).await.unwrap();
            settled(&db, "a", 10, start).await;
            exports.close(now_ms()).await.unwrap();
            exports.tie(&account(), "cus_right", start, &change()).await.unwrap();
            assert_eq!(exports.close(now_ms()).await.unwrap(), 0, "the hour is in the outbox already");
            let rows = outbox.of_kind(DeliveryKind::Stripe, 9).await.unwrap();
            assert_eq!(rows.iter().map(|row| row.target.as_str()).collect::<Vec<_>>(), ["cus_right"]);
            assert_eq!(
                exports.customer(&account()).await.unwrap(),
                Some(Customer { id: "cus_right".into(), since_ms: start })
            );
            exports.untie(&account(), &change()).await.unwrap();
            settled(&db, "b", 10, start + HOUR_MS).await;
            assert_eq!(exports.close(now_ms()).await.unwrap(), 0);
            assert_eq!(exports.customer(&account()).await.unwrap(), None);
        }
    }
}
