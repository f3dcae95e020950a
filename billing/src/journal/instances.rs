//! The servers that write to a database: each says that it lives, and what a dead one has left behind is closed.
//!
//! Who is dead is seen, not calculated: a server counts its signs of life, and one whose count stands still for ten seconds of the
//! clock of who looks is dead, whatever the database's clock does in between. Only a server that starts believes that clock: what
//! has ended long ago need not wait.

use std::collections::{BTreeSet, HashMap};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use platform::units::now_ms;
use platform::{AccountName, Db, DbKind, DbRow, DbTransaction};
use sqlx::Row;

use super::{Journal, row_of};
use crate::BillingError;
use crate::ledger::{apply_in, lock_name};
use crate::outbox;
use crate::rules::Command;
use crate::usage_hours::UsageHours;
use crate::wallet;
use crate::writer::charge_id;

/// How often a server looks after the others; it says that it lives at every second look.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS_PER_BEAT: u64 = 2;
/// One that has not said so for this long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(10);
/// Who was away for longer may find others not to have been seen only because the database was away for all.
const GRACE: Duration = Duration::from_secs(6);

/// A server's last sign of life: how many there were, and when by the database's clock, which alone would do for a server of an
/// older version that does not count.
type Sign = (i64, i64);

/// Since when others have been seen not to give a sign.
#[derive(Debug, Default)]
struct Silence(HashMap<String, (Sign, Instant)>);

impl Silence {
    /// Takes in the signs that were read at some time between two. Returns who has been silent for too long: as little time as may
    /// have passed between this reading and the first one of the same sign counts.
    fn dead(&mut self, signs: HashMap<String, Sign>, asked: Instant, answered: Instant) -> Vec<String> {
        self.0.retain(|id, (sign, _)| signs.get(id) == Some(sign));
        for (id, sign) in signs {
            self.0.entry(id).or_insert((sign, answered));
        }
        let silent = self.0.iter().filter(|(_, (_, since))| asked.saturating_duration_since(*since) >= DEAD_AFTER);
        silent.map(|(id, _)| id.clone()).collect()
    }

    /// Time in which this server was away itself says nothing about others.
    fn pause(&mut self, away: Duration) {
        self.0.values_mut().for_each(|(_, since)| *since += away);
    }
}

impl Journal {
    /// Says that this server lives, closes what others have left behind, and goes on doing both. Returns how many requests were
    /// closed.
    pub(super) async fn sign_on(&self) -> Result<u64, BillingError> {
        self.say_alive().await?;
        // The data directory's lock keeps a second server from an SQLite file: all others are dead, whatever the clock says.
        let unseen_for = match self.db.kind() {
            DbKind::Sqlite => None,
            DbKind::Postgres => Some(DEAD_AFTER),
        };
        let mut dead = self.others(unseen_for).await?;
        dead.extend(self.gone().await?);
        let closed = self.bury(&dead).await?;
        let mut silence = Silence::default();
        self.look(&mut silence).await?;
        tokio::spawn(self.clone().watch(silence));
        Ok(closed)
    }

    /// Says that this server lives, and buries those that no longer do.
    async fn watch(self, mut silence: Silence) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_beat = Instant::now();
        for look in 0u64.. {
            looks.tick().await;
            if self.db.pool().is_closed() {
                return;
            }
            let beats = look.is_multiple_of(LOOKS_PER_BEAT);
            let said = if beats { self.say_alive().await } else { Ok(()) };
            let away = last_beat.elapsed();
            if away >= GRACE {
                silence.pause(away);
            }
            if beats && said.is_ok() {
                last_beat = Instant::now();
            }
            let buried = match said {
                Ok(()) if self.db.kind() == DbKind::Postgres => self.bury_silent(&mut silence).await,
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
            "INSERT INTO instances (id, started_ms, seen_ms, beats) VALUES ($1, {now}, {now}, 1) \
             ON CONFLICT (id) DO UPDATE SET seen_ms = excluded.seen_ms, beats = instances.beats + 1"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&self.instance).execute(self.db.pool()).await?;
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(())
    }

    /// Whether the database has taken what this server wrote, of late.
    pub fn is_taken(&self) -> bool {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < GRACE
    }

    async fn bury_silent(&self, silence: &mut Silence) -> Result<u64, BillingError> {
        let mut dead = self.look(silence).await?;
        dead.extend(self.gone().await?);
        self.bury(&dead).await
    }

    async fn look(&self, silence: &mut Silence) -> Result<Vec<String>, BillingError> {
        let asked = Instant::now();
        let signs = self.signs().await?;
        Ok(silence.dead(signs, asked, Instant::now()))
    }

    /// The other servers' last signs of life.
    async fn signs(&self) -> Result<HashMap<String, Sign>, BillingError> {
        let rows = sqlx::query("SELECT id, beats, seen_ms FROM instances WHERE id <> $1").bind(&self.instance);
        let rows = rows.fetch_all(self.db.pool()).await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, (row.try_get("beats")?, row.try_get("seen_ms")?)))).collect()
    }

    /// The other servers, or those that have not been seen for so long by the database's clock.
    pub(crate) async fn others(&self, unseen_for: Option<Duration>) -> Result<Vec<String>, BillingError> {
        let sql = format!(
            "SELECT id FROM instances WHERE id <> $1 AND ($2 IS NULL OR seen_ms <= {} - $2)",
            self.db.now_sql()
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(&self.instance)
            .bind(unseen_for.map(|time| time.as_millis() as i64))
            .fetch_all(self.db.pool())
            .await?;
        rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
    }

    /// Servers that are known no more and have something open: whoever buried them did not come to the end.
    async fn gone(&self) -> Result<Vec<String>, BillingError> {
        let rows = sqlx::query(
            "SELECT instance FROM requests WHERE finish = 'running' AND instance NOT IN (SELECT id FROM instances) \
             UNION SELECT instance FROM reservations WHERE closed_ms IS NULL AND instance NOT IN (SELECT id FROM instances) \
             UNION SELECT instance FROM cap_leases WHERE instance NOT IN (SELECT id FROM instances)",
        );
        let rows = rows.fetch_all(self.db.pool()).await?;
        rows.iter().map(|row| Ok(row.try_get("instance")?)).collect()
    }

    /// Closes what dead servers have left behind. Returns how many requests that were.
    pub(crate) async fn bury(&self, dead: &[String]) -> Result<u64, BillingError> {
        if !dead.is_empty() {
            // The dead server may have known a price that this one does not.
            self.prices.reload().await?;
        }
        let mut closed = 0;
        for dead in dead {
            // First: from now on none of its rows is opened any more, however late that statement arrives.
            sqlx::query("DELETE FROM instances WHERE id = $1").bind(dead).execute(self.db.pool()).await?;
            for account in self.left_by(dead).await? {
                closed += self.bury_in(dead, &account).await?;
            }
            outbox::release(&self.db, dead).await?;
            wallet::forget_wants(&self.db, dead).await?;
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
             WHERE instance = $1 AND account = $2 AND finish = 'running' RETURNING \
             id, account, key_id, endpoint, model, base, adapter, adapter_version, started_ms, finished_ms, prompt_tokens, \
             cached_tokens, completion_tokens, price_version, tag, finish",
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
}

/// Whether some server writes to the database, or has died just now.
pub async fn servers_live(db: &Db) -> Result<bool, BillingError> {
    let sql = format!("SELECT 1 FROM instances WHERE seen_ms > {} - $1 LIMIT 1", db.now_sql());
    let dead_after_ms = DEAD_AFTER.as_millis() as i64;
    let found = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(dead_after_ms).fetch_optional(db.pool()).await?;
    Ok(found.is_some())
}

/// For a database that no server writes to: the next one to start closes what others have left behind, and does not wait.
pub async fn nobody_lives(transaction: &mut DbTransaction) -> Result<(), BillingError> {
    sqlx::query("UPDATE instances SET seen_ms = 0").execute(&mut **transaction).await?;
    Ok(())
}

/// Whose row it is.
pub(crate) fn account_of(row: &DbRow) -> Result<AccountName, BillingError> {
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

#[cfg(test)]
mod tests {
    use platform::testing::databases;

    use super::*;
    use crate::testing::{account, journal, request};

    fn signs(signs: &[(&str, Sign)]) -> HashMap<String, Sign> {
        signs.iter().map(|(id, sign)| ((*id).to_owned(), *sign)).collect()
    }

    #[test]
    fn who_gives_no_sign_for_ten_seconds_is_dead_and_a_slow_reading_proves_nothing() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut silence = Silence::default();
        let mut dead = |now: &[(&str, Sign)], asked: u64, answered: u64| {
            let mut dead = silence.dead(signs(now), at(asked), at(answered));
            dead.sort();
            dead
        };
        let none: [&str; 0] = [];
        assert_eq!(dead(&[("a", (7, 100)), ("b", (3, 100)), ("old", (0, 100))], 0, 500), none);
        // `b` counts while the clock stands still, `old` does not count.
        assert_eq!(dead(&[("a", (7, 100)), ("b", (4, 100)), ("old", (0, 90))], 9_000, 9_001), none);
        // The first reading may have been made at its end, this one at its beginning.
        assert_eq!(dead(&[("a", (7, 100)), ("b", (4, 100)), ("old", (0, 90))], 10_499, 30_000), none);
        assert_eq!(dead(&[("a", (7, 100)), ("b", (4, 100)), ("old", (0, 90))], 10_500, 30_000), ["a"]);
        // One that was buried is no longer read; the same name later begins anew.
        assert_eq!(dead(&[("b", (5, 100)), ("old", (0, 91))], 31_000, 31_001), none);
        assert_eq!(dead(&[("a", (7, 100)), ("b", (5, 100)), ("old", (0, 91))], 41_000, 41_001), none);
        assert_eq!(dead(&[("a", (7, 100)), ("b", (5, 100)), ("old", (0, 91))], 41_001, 41_002), ["b", "old"]);
    }

    #[test]
    fn time_in_which_the_database_was_away_for_who_looks_does_not_count() {
        let start = Instant::now();
        let mut silence = Silence::default();
        let dead = |silence: &mut Silence, seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            silence.dead(signs(&[("a", (7, 100))]), now, now).len()
        };
        assert_eq!((dead(&mut silence, 0), dead(&mut silence, 3)), (0, 0));
        silence.pause(Duration::from_secs(3_600));
        assert_eq!((dead(&mut silence, 3_603), dead(&mut silence, 3_609), dead(&mut silence, 3_610)), (0, 0, 1));
    }

    #[tokio::test]
    async fn a_clock_that_was_set_back_neither_keeps_a_dead_server_alive_nor_kills_a_live_one() {
        for db in databases().await {
            let (watching, _) = journal(&db).await;
            // Seen an hour ahead: as after the clock was set back by an hour.
            for id in ["dead", "live"] {
                let sql = format!(
                    "INSERT INTO instances (id, started_ms, seen_ms, beats) VALUES ($1, 0, {} + 3600000, 1)",
                    db.now_sql()
                );
                sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).execute(db.pool()).await.unwrap();
            }
            let (left, running) = (request(), request());
            for (request, instance) in [(&left, "dead"), (&running, "live")] {
                watching.begin(request).await.unwrap();
                let moved = sqlx::query("UPDATE requests SET instance = $2 WHERE id = $1");
                moved.bind(request.id.as_str()).bind(instance).execute(db.pool()).await.unwrap();
            }
            let (start, mut silence) = (Instant::now(), Silence::default());
            let mut dead = Vec::new();
            for seconds in 0..=10 {
                let now = start + Duration::from_secs(seconds);
                dead = silence.dead(watching.signs().await.unwrap(), now, now);
                assert!(seconds == 10 || dead.is_empty(), "{dead:?} after {seconds} s");
                let beat = sqlx::query("UPDATE instances SET beats = beats + 1 WHERE id = 'live'");
                beat.execute(db.pool()).await.unwrap();
            }
            assert_eq!(dead, ["dead"]);
            assert_eq!(watching.bury(&dead).await.unwrap(), 1);
            let rows = watching.list(&account(), None, 10).await.unwrap();
            let finish = |id| rows.iter().find(|row| row.id == id).map(|row| row.finish.as_str());
            assert_eq!((finish(left.id.as_str()), finish(running.id.as_str())), (Some("interrupted"), Some("running")));
            assert!(!watching.signs().await.unwrap().contains_key("dead"));
        }
    }

    #[tokio::test]
    async fn each_sign_of_life_is_told_from_the_one_before() {
        for db in databases().await {
            let ((first, _), (second, _)) = (journal(&db).await, journal(&db).await);
            let id = first.instance().to_owned();
            // On SQLite the second one has buried it; it signs on again with its next sign.
            first.say_alive().await.unwrap();
            let before = second.signs().await.unwrap()[&id];
            first.say_alive().await.unwrap();
            let after = second.signs().await.unwrap()[&id];
            assert!(after.0 > before.0, "{before:?} {after:?}");
        }
    }
}
