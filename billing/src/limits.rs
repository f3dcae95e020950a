//! Caps and alerts on what an account, one of its keys or one of its adapters spends in a day, a month or altogether.
//!
//! A cap is kept by every server together: each may spend what it has leased of it, and the leases never exceed the cap. A cap
//! holds for requests that begin after it was set, and counts them in the period in which they began.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use platform::audit::{Change, Note};
use platform::units::{DAY_MS, HOUR_MS, Month, now_ms};
use platform::{AccountName, Db, DbRow, RequestId, changes};
use sqlx::Row;

use crate::BillingError;
use crate::rules::{LARGEST, Nano};

/// Most limits of one account.
const MOST: usize = 100;
/// Of what is left of a cap, the part that one server leases at a time: others may need it too.
const LEASE_PART: Nano = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// Nothing is spent over it.
    Cap,
    /// Somebody is told.
    Alert,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitScope {
    Account,
    Key,
    Adapter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    Day,
    Month,
    Total,
}

macro_rules! named {
    ($type:ident { $($variant:ident = $name:literal),+ }) => {
        impl $type {
            pub const NAMES: &'static str = concat!($($name, " "),+).trim_ascii_end();

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            pub fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

named!(LimitKind { Cap = "cap", Alert = "alert" });
named!(LimitScope { Account = "account", Key = "key", Adapter = "adapter" });
named!(Period { Day = "day", Month = "month", Total = "total" });

impl Period {
    /// When the period began that `now` is in, in milliseconds since the Unix epoch, UTC.
    pub fn start_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::Day => now_ms.div_euclid(DAY_MS) * DAY_MS,
            Self::Month => Month::of_ms(now_ms).start_ms(),
            Self::Total => 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub id: String,
    pub kind: LimitKind,
    pub scope: LimitScope,
    /// A key's id or an adapter's `account/name`; empty for the account.
    pub subject: String,
    pub period: Period,
    pub amount: Nano,
    /// Only the operator may change it.
    pub operators: bool,
}

impl Limit {
    /// Of the one message to a webhook that an alert was reached in the period that began then.
    pub fn message_id(&self, start_ms: i64, webhook: &str) -> String {
        format!("alert {} {start_ms} {webhook}", self.id)
    }
}

/// Who spends: what limits are looked up by.
#[derive(Debug, Clone, Copy)]
pub struct Spender<'a> {
    pub account: &'a AccountName,
    pub key_id: &'a str,
    /// `account/name`
    pub adapter: Option<&'a str>,
}

/// A cap's count in one period.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Meter {
    pub scope: LimitScope,
    pub subject: String,
    pub period: Period,
    pub start_ms: i64,
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Any, sqlx::any::AnyArguments>;

impl Meter {
    /// A statement whose parameters `$1` to `$5` say which meter of which account.
    fn query<'q>(&'q self, sql: &'static str, account: &'q AccountName) -> Query<'q> {
        sqlx::query(sql)
            .bind(account.as_str())
            .bind(self.scope.name())
            .bind(&self.subject)
            .bind(self.period.name())
            .bind(self.start_ms)
    }

    pub fn counts(&self, origin: &Origin) -> bool {
        origin.day_ms >= self.start_ms
            && match self.scope {
                LimitScope::Account => true,
                LimitScope::Key => origin.key_id == self.subject,
                LimitScope::Adapter => origin.adapter.as_ref() == Some(&self.subject),
            }
    }
}

/// Of an account's request, what says which meters count it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    key_id: String,
    adapter: Option<String>,
    /// The day in which it began: periods begin with days.
    day_ms: i64,
}

impl Origin {
    pub fn new(spender: &Spender<'_>, now_ms: i64) -> Self {
        let adapter = spender.adapter.map(str::to_owned);
        Self { key_id: spender.key_id.to_owned(), adapter, day_ms: Period::Day.start_ms(now_ms) }
    }
}

/// All limits. They are few and asked for at every request, so they are held in memory.
#[derive(Debug, Clone)]
pub struct Limits {
    db: Db,
    known: Arc<RwLock<HashMap<String, Vec<Limit>>>>,
    /// Held from reading the limits to holding them: an older read must not replace a newer one.
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl Limits {
    pub async fn open(db: Db) -> Result<Self, BillingError> {
        let limits = Self { db, known: Arc::default(), reading: Arc::default() };
        limits.reload().await?;
        Ok(limits)
    }

    /// Reads all limits again: another server may have changed some.
    pub async fn reload(&self) -> Result<(), BillingError> {
        let _reading = self.reading.lock().await;
        let rows = sqlx::query(
            "SELECT id, account, kind, scope, subject, period, amount, operators FROM limits ORDER BY created_ms, id",
        )
        .fetch_all(self.db.pool())
        .await?;
        let mut known: HashMap<String, Vec<Limit>> = HashMap::new();
        for row in &rows {
            known.entry(row.try_get("account")?).or_default().push(limit_of(row)?);
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(())
    }

    pub fn of(&self, account: &AccountName) -> Vec<Limit> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(account.as_str()).cloned().unwrap_or_default()
    }

    /// All accounts' limits.
    pub fn all(&self) -> HashMap<String, Vec<Limit>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets a limit. There is one cap for each scope, subject and period: a second one replaces it, unless it is the operator's.
    /// `note`: what the audit log says of it.
    pub async fn set(
        &self,
        account: &AccountName,
        mut limit: Limit,
        note: &Note<'_, Limit>,
    ) -> Result<Limit, BillingError> {
        if !(0..=LARGEST).contains(&limit.amount) {
            return Err(BillingError::LimitAmount);
        }
        let mut transaction = self.db.write(&lock_name(account)).await?;
        let same = "account = $1 AND scope = $2 AND subject = $3 AND period = $4 AND kind = 'cap' AND operators = $5";
        if limit.kind == LimitKind::Cap {
            sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM limits WHERE {same}")))
                .bind(account.as_str())
                .bind(limit.scope.name())
                .bind(&limit.subject)
                .bind(limit.period.name())
                .bind(i64::from(limit.operators))
                .execute(&mut *transaction)
                .await?;
        }
        let count = sqlx::query("SELECT COUNT(*) AS count FROM limits WHERE account = $1").bind(account.as_str());
        if count.fetch_one(&mut *transaction).await?.try_get::<i64, _>("count")? as usize >= MOST {
            return Err(BillingError::TooManyLimits);
        }
        limit.id = RequestId::fresh("limit").to_string();
        sqlx::query(
            "INSERT INTO limits (id, account, kind, scope, subject, period, amount, operators, created_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&limit.id)
        .bind(account.as_str())
        .bind(limit.kind.name())
        .bind(limit.scope.name())
        .bind(&limit.subject)
        .bind(limit.period.name())
        .bind(limit.amount)
        .bind(i64::from(limit.operators))
        .bind(now_ms())
        .execute(&mut *transaction)
        .await?;
        changes::note(&mut transaction, changes::LIMITS).await?;
        note(&limit).write(&mut transaction).await?;
        transaction.commit().await?;
        self.reload().await?;
        Ok(limit)
    }

    /// Removes a limit. False where the account has no such one; the operator's are only removed by `operator`.
    pub async fn remove(
        &self,
        account: &AccountName,
        id: &str,
        operator: bool,
        change: &Change,
    ) -> Result<bool, BillingError> {
        let mut transaction = self.db.write(&lock_name(account)).await?;
        let removed = sqlx::query("DELETE FROM limits WHERE account = $1 AND id = $2 AND operators <= $3")
            .bind(account.as_str())
            .bind(id)
            .bind(i64::from(operator))
            .execute(&mut *transaction)
            .await?
            .rows_affected();
        if removed == 0 {
            return Ok(false);
        }
        changes::note(&mut transaction, changes::LIMITS).await?;
        change.write(&mut transaction).await?;
        transaction.commit().await?;
        self.reload().await?;
        Ok(true)
    }

    /// The caps that a request must keep which begins now, each with its meter. The lowest where there are several.
    pub(crate) fn caps(&self, spender: &Spender<'_>, now_ms: i64) -> Vec<(Meter, Nano)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(limits) = known.get(spender.account.as_str()) else { return Vec::new() };
        let concerns = |limit: &&Limit| {
            limit.kind == LimitKind::Cap
                && match limit.scope {
                    LimitScope::Account => true,
                    LimitScope::Key => limit.subject == spender.key_id,
                    LimitScope::Adapter => Some(limit.subject.as_str()) == spender.adapter,
                }
        };
        let mut caps: HashMap<Meter, Nano> = HashMap::new();
        for limit in limits.iter().filter(concerns) {
            let start_ms = limit.period.start_ms(now_ms);
            let meter = Meter { scope: limit.scope, subject: limit.subject.clone(), period: limit.period, start_ms };
            let cap = caps.entry(meter).or_insert(limit.amount);
            *cap = limit.amount.min(*cap);
        }
        caps.into_iter().collect()
    }

    /// What was spent in a meter's period, by server.
    pub(crate) async fn spent(
        &self,
        executor: impl sqlx::Executor<'_, Database = sqlx::Any>,
        account: &AccountName,
        meter: &Meter,
    ) -> Result<HashMap<String, Nano>, BillingError> {
        let subject = match meter.scope {
            LimitScope::Account => "$3 = ''",
            LimitScope::Key => "key_id = $3",
            LimitScope::Adapter => "adapter = $3",
        };
        let sql = format!(
            "SELECT instance, CAST(SUM(cost) AS BIGINT) AS cost FROM usage_hours \
             WHERE account = $1 AND hour >= $2 AND {subject} GROUP BY instance"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(account.as_str())
            .bind(meter.start_ms / HOUR_MS)
            .bind(&meter.subject)
            .fetch_all(executor)
            .await?;
        rows.iter().map(|row| Ok((row.try_get("instance")?, row.try_get("cost")?))).collect()
    }

    /// What was spent in the period that now runs, by all servers.
    pub async fn spent_now(&self, account: &AccountName, limit: &Limit) -> Result<Nano, BillingError> {
        self.spent_from(account, limit, limit.period.start_ms(now_ms())).await
    }

    /// What was spent since a period began, by all servers.
    pub async fn spent_from(&self, account: &AccountName, limit: &Limit, start_ms: i64) -> Result<Nano, BillingError> {
        let meter = Meter { scope: limit.scope, subject: limit.subject.clone(), period: limit.period, start_ms };
        Ok(self.spent(self.db.pool(), account, &meter).await?.values().sum())
    }

    /// Leases more of a cap for a server: at least `least`, and `wanted` where there is as much.
    pub(crate) async fn lease(
        &self,
        account: &AccountName,
        (meter, cap): (&Meter, Nano),
        instance: &str,
        least: Nano,
        wanted: Nano,
    ) -> Result<Lease, BillingError> {
        let mut transaction = self.db.write(&lock_name(account)).await?;
        let spent = self.spent(&mut *transaction, account, meter).await?;
        let rows = meter
            .query(
                "SELECT instance, amount FROM cap_leases \
                 WHERE account = $1 AND scope = $2 AND subject = $3 AND period = $4 AND start_ms = $5",
                account,
            )
            .fetch_all(&mut *transaction)
            .await?;
        // A server may have spent without a lease: before there was a cap.
        let mut leased = spent.clone();
        for row in &rows {
            let (instance, amount): (String, Nano) = (row.try_get("instance")?, row.try_get("amount")?);
            let known = leased.entry(instance).or_default();
            *known = amount.max(*known);
        }
        let own = leased.get(instance).copied().unwrap_or(0);
        let left = (cap - leased.values().sum::<Nano>()).max(0);
        let more = match left >= least {
            true => wanted.max(left / LEASE_PART).min(left),
            false => 0,
        };
        meter
            .query(
                "INSERT INTO cap_leases (account, scope, subject, period, start_ms, instance, amount) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) \
                 ON CONFLICT (account, scope, subject, period, start_ms, instance) DO UPDATE SET amount = excluded.amount",
                account,
            )
            .bind(instance)
            .bind(own + more)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        let others = leased.values().sum::<Nano>() - own;
        let own_spent = spent.get(instance).copied().unwrap_or(0);
        let others_spent = spent.values().sum::<Nano>() - own_spent;
        Ok(Lease { leased: own + more, others, others_spent, spent: own_spent })
    }

    /// Gives back what a server has leased of an account's caps and does not use; `kept` is what it still needs, by meter.
    pub(crate) async fn give_back(
        &self,
        account: &AccountName,
        instance: &str,
        kept: &[(Meter, Nano)],
    ) -> Result<(), BillingError> {
        for (meter, amount) in kept {
            meter
                .query(
                    "UPDATE cap_leases SET amount = $7 WHERE account = $1 AND scope = $2 AND subject = $3 AND period = $4 \
                     AND start_ms = $5 AND instance = $6 AND amount > $7",
                    account,
                )
                .bind(instance)
                .bind(amount)
                .execute(self.db.pool())
                .await?;
        }
        Ok(())
    }
}

/// What a server may spend in a period altogether, what the others may and what they have spent, and what it has spent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    pub leased: Nano,
    pub others: Nano,
    pub others_spent: Nano,
    pub spent: Nano,
}

/// What a transaction names that leases caps: of one account's, one runs at a time.
pub(crate) fn lock_name(account: &AccountName) -> String {
    format!("limits {account}")
}

fn limit_of(row: &DbRow) -> Result<Limit, sqlx::Error> {
    let odd = |column: &str| sqlx::Error::Decode(format!("the stored {column} is not what was written").into());
    let name = |column: &str| row.try_get::<String, _>(column);
    Ok(Limit {
        id: name("id")?,
        kind: LimitKind::named(&name("kind")?).ok_or_else(|| odd("kind"))?,
        scope: LimitScope::named(&name("scope")?).ok_or_else(|| odd("scope"))?,
        subject: name("subject")?,
        period: Period::named(&name("period")?).ok_or_else(|| odd("period"))?,
        amount: row.try_get("amount")?,
        operators: row.try_get::<i64, _>("operators")? != 0,
    })
}
