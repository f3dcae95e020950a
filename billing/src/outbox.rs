//! What is to be delivered to the outside: kept until it is, tried again with growing pauses, given up after about three days.
//!
//! No transaction is open while something is delivered: a server claims a row by moving the time at which it is due forward. Who
//! buries a dead server releases what it had claimed; at the latest it can be claimed again when it is due. So everything is
//! delivered at least once, and receivers know repeats by the id. Knows nothing of how things are delivered.

use platform::{AccountName, Db, DbRow, DbTransaction};
use sqlx::Row;

use crate::BillingError;

/// How long a claimed row is left to who claimed it, in milliseconds: longer than any attempt may take.
const CLAIM_MS: i64 = 20_000;
/// The pause after the first failure; each later one is twice as long, up to the longest.
const FIRST_PAUSE_MS: i64 = 2_000;
const LONGEST_PAUSE_MS: i64 = 6 * 3_600_000;
/// Attempts altogether: with these pauses, three days.
const MOST_ATTEMPTS: i64 = 26;
/// Longest reason that is kept, in characters.
const FAILURE_CHARS: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryKind {
    /// To an account's webhook.
    Webhook,
    /// Revenue, to Stripe.
    Stripe,
}

impl DeliveryKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Stripe => "stripe",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Webhook, Self::Stripe].into_iter().find(|kind| kind.name() == name)
    }
}

/// Something to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    /// The same id again is the same delivery.
    pub id: String,
    pub kind: DeliveryKind,
    pub account: AccountName,
    /// A webhook's id, or a customer at Stripe.
    pub target: String,
    /// JSON
    pub body: String,
}

/// A delivery that this server has claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    pub id: String,
    pub kind: DeliveryKind,
    pub account: AccountName,
    pub target: String,
    pub body: String,
    /// Attempts with this one.
    attempts: i64,
    /// How long ago an earlier attempt began of which nobody knows whether it arrived, in milliseconds.
    pub unclear_for_ms: Option<i64>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    Delivered,
    /// It did not arrive, for certain.
    Failed(String),
    /// It may have arrived.
    Unclear(String),
    /// It did not arrive, and another attempt would not either.
    Hopeless(String),
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    Due,
    Delivered,
    GivenUp,
}

impl DeliveryState {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Delivered => "delivered",
            Self::GivenUp => "given_up",
        }
    }
}

/// A delivery as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    pub id: String,
    pub account: String,
    pub target: String,
    pub body: String,
    pub state: DeliveryState,
    pub attempts: i64,
    pub created_ms: i64,
    pub next_ms: Option<i64>,
    pub delivered_ms: Option<i64>,
    pub failure: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Outbox {
    db: Db,
}

impl Outbox {
    pub const fn new(db: Db) -> Self {
        Self { db }
    }

    /// Puts something in, due now. False where it is there already.
    pub async fn put(&self, new: &NewDelivery) -> Result<bool, BillingError> {
        let mut transaction = self.db.begin().await?;
        let put = self.put_in(&mut transaction, new).await?;
        transaction.commit().await?;
        Ok(put)
    }

    pub(crate) async fn put_in(
        &self,
        transaction: &mut DbTransaction,
        new: &NewDelivery,
    ) -> Result<bool, BillingError> {
        let now = self.db.now_sql();
        let sql = format!(
            "INSERT INTO outbox (id, kind, account, target, body, created_ms, next_ms) \
             VALUES ($1, $2, $3, $4, $5, {now}, {now}) ON CONFLICT DO NOTHING"
        );
        let put = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(&new.id)
            .bind(new.kind.name())
            .bind(new.account.as_str())
            .bind(&new.target)
            .bind(&new.body)
            .execute(&mut **transaction)
            .await?;
        Ok(put.rows_affected() > 0)
    }

    /// Claims up to `most` of what is due, one for each target that is not being delivered to: what waits for one receiver does not
    /// hold up others, and Stripe takes one call at a time for each customer. `instance` is the server that will deliver it.
    pub async fn claim(
        &self,
        instance: &str,
        kinds: &[DeliveryKind],
        most: usize,
    ) -> Result<Vec<Claimed>, BillingError> {
        let (now, kinds) = (self.db.now_sql(), kinds.iter().map(|kind| format!("'{}'", kind.name())));
        let kinds: Vec<String> = kinds.collect();
        let sql = format!(
            "SELECT MIN(o.id) AS id FROM outbox o WHERE o.next_ms <= {now} AND o.kind IN ({}) AND NOT EXISTS \
             (SELECT 1 FROM outbox c WHERE c.target = o.target AND c.kind = o.kind AND c.claimed_by IS NOT NULL AND c.next_ms > {now}) \
             GROUP BY o.kind, o.target ORDER BY MIN(o.next_ms) LIMIT $1",
            kinds.join(", ")
        );
        let due = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(most as i64).fetch_all(self.db.pool()).await?;
        let mut claimed = Vec::new();
        for row in &due {
            claimed.extend(self.claim_one(instance, row.try_get("id")?).await?);
        }
        Ok(claimed)
    }

    async fn claim_one(&self, instance: &str, id: &str) -> Result<Option<Claimed>, BillingError> {
        let now = self.db.now_sql();
        let sql = format!(
            "SELECT id, kind, account, target, body, attempts, {now} - unclear_ms AS unclear_for_ms FROM outbox WHERE id = $1"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).fetch_one(self.db.pool()).await?;
        let claimed = claimed_of(&row)?;
        // Every claim counts as an attempt, so the number tells whether somebody else came before.
        let sql = format!(
            "UPDATE outbox SET attempts = $2, next_ms = {now} + {CLAIM_MS}, unclear_ms = COALESCE(unclear_ms, {now}), \
             claimed_by = $3 WHERE id = $1 AND attempts = $2 - 1 AND next_ms <= {now}"
        );
        let update = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).bind(claimed.attempts).bind(instance);
        let updated = update.execute(self.db.pool()).await?.rows_affected();
        Ok((updated > 0).then_some(claimed))
    }

    /// Writes down how an attempt ended. One that took longer than its claim changes nothing, unless it delivered.
    pub async fn note(&self, claimed: &Claimed, attempt: &Attempt) -> Result<(), BillingError> {
        let now = self.db.now_sql();
        let (next, failure) = match attempt {
            Attempt::Delivered => return self.delivered(&claimed.id).await,
            Attempt::Hopeless(reason) => ("NULL".to_owned(), reason),
            Attempt::Failed(reason) | Attempt::Unclear(reason) => match pause_ms(claimed.attempts) {
                Some(pause) => (format!("{now} + {pause}"), reason),
                None => ("NULL".to_owned(), reason),
            },
        };
        // What is unclear stays so: that this attempt failed for certain says nothing of an earlier one.
        let certain = claimed.unclear_for_ms.is_none() && !matches!(attempt, Attempt::Unclear(_));
        let unclear = if certain { "NULL" } else { "unclear_ms" };
        let sql = format!(
            "UPDATE outbox SET next_ms = {next}, unclear_ms = {unclear}, failure = $3, claimed_by = NULL \
             WHERE id = $1 AND attempts = $2 AND next_ms IS NOT NULL"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(&claimed.id)
            .bind(claimed.attempts)
            .bind(failure.chars().take(FAILURE_CHARS).collect::<String>())
            .execute(self.db.pool())
            .await?;
        Ok(())
    }

    async fn delivered(&self, id: &str) -> Result<(), BillingError> {
        let sql = format!(
            "UPDATE outbox SET delivered_ms = {}, next_ms = NULL, unclear_ms = NULL, failure = NULL, claimed_by = NULL \
             WHERE id = $1 AND delivered_ms IS NULL",
            self.db.now_sql()
        );
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).execute(self.db.pool()).await?;
        Ok(())
    }

    /// The newest deliveries to a target.
    pub async fn to_target(&self, target: &str, most: u32) -> Result<Vec<DeliveryRow>, BillingError> {
        let rows = sqlx::query(
            "SELECT id, account, target, body, next_ms, delivered_ms, attempts, created_ms, failure FROM outbox \
             WHERE target = $1 ORDER BY created_ms DESC, id DESC LIMIT $2",
        )
        .bind(target)
        .bind(i64::from(most))
        .fetch_all(self.db.pool())
        .await?;
        rows.iter().map(row_of).collect()
    }

    /// The newest deliveries of a kind, of all accounts; those that were not delivered first.
    pub async fn of_kind(&self, kind: DeliveryKind, most: u32) -> Result<Vec<DeliveryRow>, BillingError> {
        let rows = sqlx::query(
            "SELECT id, account, target, body, next_ms, delivered_ms, attempts, created_ms, failure FROM outbox WHERE kind = $1 \
             ORDER BY CASE WHEN delivered_ms IS NULL THEN 0 ELSE 1 END, created_ms DESC, id DESC LIMIT $2",
        )
        .bind(kind.name())
        .bind(i64::from(most))
        .fetch_all(self.db.pool())
        .await?;
        rows.iter().map(row_of).collect()
    }

    /// Takes up again what was given up, as if it were new: where `ids` are named, these; otherwise all that failed for certain.
    /// Returns how many.
    pub async fn retry(&self, kind: DeliveryKind, ids: Option<&[&str]>) -> Result<u64, BillingError> {
        let which = match ids {
            None => "unclear_ms IS NULL".to_owned(),
            Some([]) => return Ok(0),
            Some(ids) => {
                let ids: Vec<String> = (2..ids.len() + 2).map(|number| format!("${number}")).collect();
                format!("id IN ({})", ids.join(", "))
            }
        };
        let sql = format!(
            "UPDATE outbox SET attempts = 0, next_ms = {}, unclear_ms = NULL \
             WHERE kind = $1 AND delivered_ms IS NULL AND next_ms IS NULL AND {which}",
            self.db.now_sql()
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false).bind(kind.name());
        for id in ids.unwrap_or_default() {
            query = query.bind(*id);
        }
        Ok(query.execute(self.db.pool()).await?.rows_affected())
    }
}

/// What a server that has ended was delivering is due now. Whether its attempts arrived stays unclear.
pub(crate) async fn release(db: &Db, instance: &str) -> Result<(), BillingError> {
    let sql = format!(
        "UPDATE outbox SET next_ms = {}, claimed_by = NULL WHERE claimed_by = $1 AND next_ms IS NOT NULL",
        db.now_sql()
    );
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(instance).execute(db.pool()).await?;
    Ok(())
}

/// How long to wait after so many attempts; none: it is given up.
fn pause_ms(attempts: i64) -> Option<i64> {
    let doublings = u32::try_from(attempts - 1).unwrap_or(0).min(30);
    (attempts < MOST_ATTEMPTS).then(|| (FIRST_PAUSE_MS << doublings).min(LONGEST_PAUSE_MS))
}

fn claimed_of(row: &DbRow) -> Result<Claimed, BillingError> {
    let odd = |column: &str| sqlx::Error::Decode(format!("the stored {column} is not what was written").into());
    let (kind, account): (String, String) = (row.try_get("kind")?, row.try_get("account")?);
    Ok(Claimed {
        id: row.try_get("id")?,
        kind: DeliveryKind::named(&kind).ok_or_else(|| odd("kind"))?,
        account: account.parse().map_err(|_| odd("account"))?,
        target: row.try_get("target")?,
        body: row.try_get("body")?,
        attempts: row.try_get::<i64, _>("attempts")? + 1,
        unclear_for_ms: row.try_get("unclear_for_ms")?,
    })
}

fn row_of(row: &DbRow) -> Result<DeliveryRow, BillingError> {
    let (next_ms, delivered_ms): (Option<i64>, Option<i64>) = (row.try_get("next_ms")?, row.try_get("delivered_ms")?);
    Ok(DeliveryRow {
        id: row.try_get("id")?,
        account: row.try_get("account")?,
        target: row.try_get("target")?,
        body: row.try_get("body")?,
        state: match (next_ms, delivered_ms) {
            (_, Some(_)) => DeliveryState::Delivered,
            (Some(_), None) => DeliveryState::Due,
            (None, None) => DeliveryState::GivenUp,
        },
        attempts: row.try_get("attempts")?,
        created_ms: row.try_get("created_ms")?,
        next_ms,
        delivered_ms,
        failure: row.try_get("failure")?,
    })
}

#[cfg(test)]
mod tests {
    use platform::testing::databases;

    use super::*;
    use crate::testing::{account, journal};

    fn new(id: &str, target: &str) -> NewDelivery {
        NewDelivery {
            id: id.into(),
            kind: DeliveryKind::Webhook,
            account: account(),
            target: target.into(),
            body: "{}".into(),
        }
    }

    /// As after the pause.
    async fn make_due(db: &Db) {
        let due =
            sqlx::query("UPDATE outbox SET next_ms = 0, unclear_ms = unclear_ms - 60000 WHERE next_ms IS NOT NULL");
        due.execute(db.pool()).await.unwrap();
    }

    #[test]
    fn attempts_are_spread_over_about_three_days() {
        let pauses: Vec<i64> = (1..).map_while(pause_ms).collect();
        assert_eq!(pauses[..3], [2_000, 4_000, 8_000]);
        let hours = pauses.iter().sum::<i64>() / 3_600_000;
        assert!((70..76).contains(&hours), "{hours} hours");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE_MS));
    }

    #[tokio::test]
    async fn what_is_put_twice_is_delivered_once() {
        for db in databases().await {
            journal(&db).await;
            let outbox = Outbox::new(db.clone());
            assert!(outbox.put(&new("a", "one")).await.unwrap());
            assert!(!outbox.put(&new("a", "one")).await.unwrap());
            assert!(outbox.put(&new("b", "one")).await.unwrap());
            assert_eq!(outbox.claim("here", &[DeliveryKind::Stripe], 9).await.unwrap(), []);
            for id in ["a", "b"] {
                let claimed = outbox.claim("here", &[DeliveryKind::Webhook], 9).await.unwrap();
                assert_eq!(claimed.iter().map(|claimed| claimed.id.as_str()).collect::<Vec<_>>(), [id]);
                outbox.note(&claimed[0], &Attempt::Delivered).await.unwrap();
            }
            make_due(&db).await;
            assert_eq!(outbox.claim("here", &[DeliveryKind::Webhook], 9).await.unwrap(), []);
            assert!(!outbox.put(&new("a", "one")).await.unwrap());
            let rows = outbox.to_target("one", 9).await.unwrap();
            assert!(rows.iter().all(|row| row.state == DeliveryState::Delivered && row.attempts == 1), "{rows:?}");
        }
    }

    #[tokio::test]
    async fn of_several_servers_one_claims_and_after_its_death_another() {
        for db in databases().await {
            journal(&db).await;
            let outbox = Outbox::new(db.clone());
            outbox.put(&new("a", "one")).await.unwrap();
            let claims = (0..8).map(|_| outbox.claim("here", &[DeliveryKind::Webhook], 9));
            let claimed: Vec<Claimed> =
                futures::future::join_all(claims).await.into_iter().flat_map(Result::unwrap).collect();
            assert_eq!((claimed.len(), claimed[0].unclear_for_ms), (1, None));
            // The claim has lapsed: whether the first attempt arrived is not known.
            make_due(&db).await;
            let again = outbox.claim("here", &[DeliveryKind::Webhook], 9).await.unwrap();
            assert!(again[0].attempts == 2 && again[0].unclear_for_ms >= Some(60_000), "{again:?}");
            // What the first one has to say comes too late, unless it is that it arrived.
            outbox.note(&claimed[0], &Attempt::Hopeless("late".into())).await.unwrap();
            assert_eq!(outbox.to_target("one", 9).await.unwrap()[0].state, DeliveryState::Due);
            outbox.note(&claimed[0], &Attempt::Delivered).await.unwrap();
            outbox.note(&again[0], &Attempt::Failed("no".into())).await.unwrap();
            let row = outbox.to_target("one", 9).await.unwrap().remove(0);
            assert_eq!((row.state, row.failure), (DeliveryState::Delivered, None));
        }
    }

    #[tokio::test]
    async fn what_a_dead_server_was_delivering_is_due_at_once_and_what_waits_goes_on_waiting() {
        for db in databases().await {
            journal(&db).await;
            let outbox = Outbox::new(db.clone());
            for (id, target) in [("a", "one"), ("b", "two"), ("c", "three")] {
                outbox.put(&new(id, target)).await.unwrap();
                let claimed = outbox.claim(if id == "b" { "alive" } else { "dead" }, &[DeliveryKind::Webhook], 9).await;
                if id == "c" {
                    outbox.note(&claimed.unwrap()[0], &Attempt::Failed("no".into())).await.unwrap();
                }
            }
            release(&db, "dead").await.unwrap();
            let claimed = outbox.claim("alive", &[DeliveryKind::Webhook], 9).await.unwrap();
            let [again] = &claimed[..] else { panic!("{claimed:?}") };
            assert_eq!((again.id.as_str(), again.attempts), ("a", 2));
            assert!(again.unclear_for_ms.is_some(), "nobody knows whether the first attempt arrived");
        }
    }

    #[tokio::test]
    async fn a_target_gets_one_after_the_other_and_does_not_hold_up_others() {
        for db in databases().await {
            journal(&db).await;
            let outbox = Outbox::new(db.clone());
            for (id, target) in [("a", "one"), ("b", "one"), ("c", "two")] {
                outbox.put(&new(id, target)).await.unwrap();
            }
            let claim = async |instance| outbox.claim(instance, &[DeliveryKind::Webhook], 9).await.unwrap();
            let claimed = claim("here").await;
            assert_eq!(claimed.iter().map(|claimed| claimed.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
            assert_eq!((claim("here").await, claim("there").await), (vec![], vec![]));
            outbox.note(&claimed[0], &Attempt::Failed("no".into())).await.unwrap();
            let claimed = claim("there").await;
            assert_eq!(claimed.iter().map(|claimed| claimed.id.as_str()).collect::<Vec<_>>(), ["b"]);
        }
    }

    #[tokio::test]
    async fn failures_are_kept_until_the_last_attempt_and_a_retry_begins_anew() {
        for db in databases().await {
            journal(&db).await;
            let outbox = Outbox::new(db.clone());
            outbox.put(&new("a", "one")).await.unwrap();
            for attempt in 1..=MOST_ATTEMPTS {
                make_due(&db).await;
                let claimed = outbox.claim("here", &[DeliveryKind::Webhook], 9).await.unwrap();
                assert_eq!((claimed[0].attempts, claimed[0].unclear_for_ms), (attempt, None));
                outbox.note(&claimed[0], &Attempt::Failed(format!("no {attempt}"))).await.unwrap();
            }
            let row = outbox.to_target("one", 9).await.unwrap().remove(0);
            assert_eq!((row.state, row.failure.as_deref()), (DeliveryState::GivenUp, Some("no 26")));
            assert_eq!(outbox.retry(DeliveryKind::Stripe, None).await.unwrap(), 0);
            assert_eq!(outbox.retry(DeliveryKind::Webhook, None).await.unwrap(), 1);
            let claimed = outbox.claim("here", &[DeliveryKind::Webhook], 9).await.unwrap();
            outbox.note(&claimed[0], &Attempt::Unclear("timeout".into())).await.unwrap();
            make_due(&db).await;
            let claimed = outbox.claim("here", &[DeliveryKind::Webhook], 9).await.unwrap();
            assert!(claimed[0].unclear_for_ms.is_some());
            // A certain failure does not make the unclear attempt before it certain.
            outbox.note(&claimed[0], &Attempt::Failed("refused".into())).await.unwrap();
            make_due(&db).await;
            assert!(outbox.claim("here", &[DeliveryKind::Webhook], 9).await.unwrap()[0].unclear_for_ms.is_some());
        }
    }
}
