//! The ledger in the database: commands by id, decided by the rules, with the balances that follow from them.

use std::collections::BTreeMap;

use platform::audit::{Change, Note};
use platform::units::now_ms;
use platform::{AccountName, Db, DbRow, DbTransaction};
use sqlx::Row;

use crate::faults::Faults;
use crate::rules::{Book, Command, Credit, Nano, Refusal, Reservation, Standing, decide};
use crate::{BillingError, expiring};

/// What became of a command: done, or refused by a rule. A repeat of its id gets the same.
pub type Outcome = Result<(), Refusal>;

/// A transaction as it is listed. One that was refused has no entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRow {
    pub id: String,
    pub kind: String,
    pub amount: Nano,
    pub reservation: Option<String>,
    pub outcome: String,
    pub memo: Option<String>,
    pub created_ms: i64,
    pub entries: BTreeMap<String, Nano>,
}

/// What became of a change of credit that has an id of somebody's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credited {
    pub outcome: Outcome,
    /// What stands in the ledger under the id, where this was a repeat.
    pub first: Option<LedgerRow>,
}

/// What an account has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    pub credit: Credit,
    /// What can still be reserved.
    pub available: Nano,
    /// What is reserved.
    pub held: Nano,
}

impl Balance {
    /// What the account has, reserved or not.
    pub const fn posted(&self) -> Nano {
        self.available + self.held
    }
}

#[derive(Debug, Clone)]
pub struct Ledger {
    db: Db,
    faults: Faults,
}

/// A conflicting writer is rare (a server that was taken for dead and is not); so often a command is decided anew.
const ATTEMPTS: usize = 5;

impl Ledger {
    pub fn new(db: Db) -> Self {
        Self::with_faults(db, Faults::default())
    }

    #[doc(hidden)]
    pub const fn with_faults(db: Db, faults: Faults) -> Self {
        Self { db, faults }
    }

    /// Does what the rules allow: durable when this returns. The same id again changes nothing and returns what the first one
    /// did; another command under that id is an error. `instance` is who will hold a new reservation.
    pub async fn apply(
        &self,
        id: &str,
        account: &AccountName,
        command: &Command,
        memo: Option<&str>,
        instance: &str,
    ) -> Result<Outcome, BillingError> {
        for _ in 0..ATTEMPTS {
            let mut transaction = self.db.write(&lock_name(account)).await?;
            if let Some(outcome) = apply_in(&mut transaction, id, account, command, memo, instance).await? {
                self.commit(transaction).await?;
                return Ok(outcome);
            }
        }
        Err(BillingError::Conflict(id.to_owned()))
    }

    /// As [`apply`](Self::apply), for what somebody does to an account's credit: says what the first one was where this is a repeat,
    /// and `note` what the audit log says of it where it is none.
    pub async fn credit(
        &self,
        id: &str,
        account: &AccountName,
        command: &Command,
        memo: Option<&str>,
        note: &Note<'_, Outcome>,
    ) -> Result<Credited, BillingError> {
        let mut transaction = self.db.write(&lock_name(account)).await?;
        let credited = credit_in(&mut transaction, id, account, command, memo, "").await?;
        let credited = credited.ok_or_else(|| BillingError::Conflict(id.to_owned()))?;
        if credited.first.is_none() {
            note(&credited.outcome).write(&mut transaction).await?;
        }
        self.commit(transaction).await?;
        Ok(credited)
    }

    /// Whether the account has a transaction with this id.
    pub async fn has(&self, account: &AccountName, id: &str) -> Result<bool, BillingError> {
        let found = sqlx::query("SELECT 1 FROM ledger_transactions WHERE id = $1 AND account = $2");
        Ok(found.bind(id).bind(account.as_str()).fetch_optional(self.db.pool()).await?.is_some())
    }

    pub(crate) const fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) async fn commit(&self, transaction: DbTransaction) -> Result<(), BillingError> {
        Ok(self.faults.commit(transaction.commit()).await?)
    }

    pub async fn balance(&self, account: &AccountName) -> Result<Balance, BillingError> {
        let row = sqlx::query(
            "SELECT a.credit, CAST(COALESCE((SELECT available FROM balances b WHERE b.account = a.name), 0) AS BIGINT) AS available, \
             CAST(COALESCE((SELECT SUM(amount) FROM reservations r WHERE r.account = a.name AND r.closed_ms IS NULL), 0) AS BIGINT) AS held \
             FROM accounts a WHERE a.name = $1",
        )
        .bind(account.as_str())
        .fetch_optional(self.db.pool())
        .await?
        .ok_or_else(|| BillingError::NoAccount(account.to_string()))?;
        Ok(Balance { credit: credit_of(&row)?, available: row.try_get("available")?, held: row.try_get("held")? })
    }

    /// Says whether an account may owe. One that owes cannot become prepaid. False where it is like that already.
    pub async fn set_credit(
        &self,
        account: &AccountName,
        credit: Credit,
        change: &Change,
    ) -> Result<bool, BillingError> {
        let mut transaction = self.db.write(&lock_name(account)).await?;
        let standing = standing(&mut transaction, account, None).await?;
        if credit == Credit::Prepaid && standing.available < 0 {
            return Err(BillingError::Owes(account.to_string(), -standing.available));
        }
        if standing.credit == credit {
            return Ok(false);
        }
        sqlx::query("UPDATE accounts SET credit = $2 WHERE name = $1")
            .bind(account.as_str())
            .bind(credit.name())
            .execute(&mut *transaction)
            .await?;
        change.write(&mut transaction).await?;
        self.commit(transaction).await?;
        Ok(true)
    }

    /// The account's transactions, newest first, after the one with id `after`.
    pub async fn list(
        &self,
        account: &AccountName,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<LedgerRow>, BillingError> {
        let rows = sqlx::query(
            "SELECT id, account, kind, amount, reservation, outcome, memo, created_ms FROM ledger_transactions \
             WHERE account = $1 AND ($2 IS NULL OR (created_ms, id) < \
             (SELECT created_ms, id FROM ledger_transactions WHERE id = $2 AND account = $1)) \
             ORDER BY created_ms DESC, id DESC LIMIT $3",
        )
        .bind(account.as_str())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(self.db.pool())
        .await?;
        let mut listed = rows.iter().map(transaction_of).collect::<Result<Vec<_>, _>>()?;
        if listed.is_empty() {
            return Ok(listed);
        }
        let ids: Vec<String> = (1..=listed.len()).map(|number| format!("${number}")).collect();
        let sql = format!(
            "SELECT transaction_id, book, amount FROM ledger_entries WHERE transaction_id IN ({})",
            ids.join(", ")
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
        for row in &listed {
            query = query.bind(row.id.clone());
        }
        for entry in query.fetch_all(self.db.pool()).await? {
            let id: String = entry.try_get("transaction_id")?;
            if let Some(row) = listed.iter_mut().find(|row| row.id == id) {
                row.entries.insert(entry.try_get("book")?, entry.try_get("amount")?);
            }
        }
        Ok(listed)
    }

    /// The sum of each book's entries: what the projections must agree with.
    pub async fn sums(&self, account: &AccountName) -> Result<BTreeMap<String, Nano>, BillingError> {
        let rows = sqlx::query(
            "SELECT e.book, CAST(SUM(e.amount) AS BIGINT) AS amount FROM ledger_entries e \
             JOIN ledger_transactions t ON t.id = e.transaction_id WHERE t.account = $1 GROUP BY e.book",
        )
        .bind(account.as_str())
        .fetch_all(self.db.pool())
        .await?;
        rows.iter().map(|row| Ok((row.try_get("book")?, row.try_get("amount")?))).collect()
    }
}

/// What the account has, reserved or not, as the transaction sees it.
pub(crate) async fn posted_in(transaction: &mut DbTransaction, account: &AccountName) -> Result<Nano, BillingError> {
    let row = sqlx::query(
        "SELECT CAST(COALESCE((SELECT available FROM balances WHERE account = $1), 0) + COALESCE((SELECT SUM(amount) \
         FROM reservations WHERE account = $1 AND closed_ms IS NULL), 0) AS BIGINT) AS posted",
    )
    .bind(account.as_str())
    .fetch_one(&mut **transaction)
    .await?;
    Ok(row.try_get("posted")?)
}

/// What the account can still reserve, as the transaction sees it.
pub(crate) async fn available_in(transaction: &mut DbTransaction, account: &AccountName) -> Result<Nano, BillingError> {
    Ok(standing(transaction, account, None).await?.available)
}

/// What a transaction names that decides on an account's balance: such run one after the other.
pub(crate) fn lock_name(account: &AccountName) -> String {
    format!("ledger {account}")
}

/// `None`: another writer came between reading and writing; nothing may be committed.
pub(crate) async fn apply_in(
    transaction: &mut DbTransaction,
    id: &str,
    account: &AccountName,
    command: &Command,
    memo: Option<&str>,
    instance: &str,
) -> Result<Option<Outcome>, BillingError> {
    let credited = credit_in(transaction, id, account, command, memo, instance).await?;
    Ok(credited.map(|credited| credited.outcome))
}

/// As [`apply_in`], and says what the first one was where this is a repeat.
pub(crate) async fn credit_in(
    transaction: &mut DbTransaction,
    id: &str,
    account: &AccountName,
    command: &Command,
    memo: Option<&str>,
    instance: &str,
) -> Result<Option<Credited>, BillingError> {
    let is_new = |outcome| Credited { outcome, first: None };
    let known = "SELECT id, account, kind, amount, reservation, outcome, memo, created_ms FROM ledger_transactions WHERE id = $1";
    if let Some(first) = sqlx::query(known).bind(id).fetch_optional(&mut **transaction).await? {
        return Ok(Some(repeated(&first, account, command)?));
    }
    let standing = standing(transaction, account, Some(command)).await?;
    let outcome = decide(&standing, command);
    let amount = match (command, &outcome) {
        // What it gave back.
        (Command::Void { .. }, Ok(entries)) => entries[1].1,
        _ => command.amount(),
    };
    let name = outcome.as_ref().map_or_else(|refusal| refusal.name(), |_| "done");
    sqlx::query(
        "INSERT INTO ledger_transactions (id, account, kind, amount, reservation, outcome, memo, created_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(id)
    .bind(account.as_str())
    .bind(command.kind())
    .bind(amount)
    .bind(command.reservation())
    .bind(name)
    .bind(memo)
    .bind(now_ms())
    .execute(&mut **transaction)
    .await?;
    let entries = match outcome {
        Err(refusal) => return Ok(Some(is_new(Err(refusal)))),
        Ok(entries) => entries,
    };
    for (book, amount) in entries.iter().filter(|(_, amount)| *amount != 0) {
        sqlx::query("INSERT INTO ledger_entries (transaction_id, book, amount) VALUES ($1, $2, $3)")
            .bind(id)
            .bind(book.name())
            .bind(amount)
            .execute(&mut **transaction)
            .await?;
    }
    if command.raises() {
        expiring::count(transaction, account, command.amount()).await?;
    }
    let done = project(transaction, account, command, &standing, &entries, instance).await?;
    Ok(done.then(|| is_new(Ok(()))))
}

fn repeated(first: &DbRow, account: &AccountName, command: &Command) -> Result<Credited, BillingError> {
    let row = transaction_of(first)?;
    let owner: String = first.try_get("account")?;
    let same_amount = matches!(command, Command::Void { .. }) || row.amount == command.amount();
    if owner != account.as_str()
        || row.kind != command.kind()
        || row.reservation.as_deref() != command.reservation()
        || !same_amount
    {
        return Err(BillingError::IdReused(row.id));
    }
    let outcome = match Refusal::ALL.into_iter().find(|refusal| refusal.name() == row.outcome) {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    };
    Ok(Credited { outcome, first: Some(row) })
}

async fn standing(
    transaction: &mut DbTransaction,
    account: &AccountName,
    command: Option<&Command>,
) -> Result<Standing, BillingError> {
    let row = sqlx::query(
        "SELECT a.credit, b.available FROM accounts a LEFT JOIN balances b ON b.account = a.name WHERE a.name = $1",
    )
    .bind(account.as_str())
    .fetch_optional(&mut **transaction)
    .await?
    .ok_or_else(|| BillingError::NoAccount(account.to_string()))?;
    let revenue = match command {
        Some(Command::Refund { .. }) => {
            let sum = sqlx::query(
                "SELECT CAST(COALESCE(SUM(e.amount), 0) AS BIGINT) AS revenue FROM ledger_entries e \
                 JOIN ledger_transactions t ON t.id = e.transaction_id WHERE t.account = $1 AND e.book = 'revenue'",
            );
            sum.bind(account.as_str()).fetch_one(&mut **transaction).await?.try_get("revenue")?
        }
        _ => 0,
    };
    let reservation = match command.and_then(Command::reservation) {
        None => None,
        Some(reservation) => {
            // A name is used once among all accounts; under another account's name there is nothing to draw on.
            let taken = i64::from(matches!(command, Some(Command::Reserve { .. })));
            let sql = "SELECT amount, closed_ms FROM reservations WHERE id = $1 AND (account = $2 OR $3 = 1)";
            let found = sqlx::query(sql)
                .bind(reservation)
                .bind(account.as_str())
                .bind(taken)
                .fetch_optional(&mut **transaction)
                .await?;
            found.map(|row| reservation_of(&row)).transpose()?
        }
    };
    Ok(Standing {
        credit: credit_of(&row)?,
        available: row.try_get::<Option<i64>, _>("available")?.unwrap_or(0),
        revenue,
        reservation,
    })
}

/// Brings the projections to where the entries lead. False where a reservation is no longer what the rules saw.
async fn project(
    transaction: &mut DbTransaction,
    account: &AccountName,
    command: &Command,
    standing: &Standing,
    entries: &[(Book, Nano); 2],
    instance: &str,
) -> Result<bool, BillingError> {
    let now = now_ms();
    let held = standing.reservation.map_or(0, |reservation| reservation.amount);
    let query = match command {
        Command::Reserve { reservation, amount } => Some(
            sqlx::query(
                "INSERT INTO reservations (id, account, instance, amount, settled, created_ms) VALUES ($1, $2, $3, $4, 0, $5)",
            )
            .bind(reservation)
            .bind(account.as_str())
            .bind(instance)
            .bind(amount)
            .bind(now),
        ),
        Command::Extend { reservation, amount } => Some(
            sqlx::query("UPDATE reservations SET amount = amount + $2 WHERE id = $1 AND closed_ms IS NULL")
                .bind(reservation)
                .bind(amount),
        ),
        Command::Settle { reservation, amount } => Some(
            sqlx::query(
                "UPDATE reservations SET amount = amount - $2, settled = settled + $2 \
                 WHERE id = $1 AND closed_ms IS NULL AND amount >= $2",
            )
            .bind(reservation)
            .bind(amount),
        ),
        Command::Release { reservation, amount } => Some(
            sqlx::query(
                "UPDATE reservations SET amount = amount - $2 WHERE id = $1 AND closed_ms IS NULL AND amount >= $2",
            )
            .bind(reservation)
            .bind(amount),
        ),
        Command::Void { reservation } => Some(
            sqlx::query("UPDATE reservations SET amount = 0, closed_ms = $2 WHERE id = $1 AND closed_ms IS NULL AND amount = $3")
                .bind(reservation)
                .bind(now)
                .bind(held),
        ),
        _ => None,
    };
    if let Some(query) = query
        && query.execute(&mut **transaction).await?.rows_affected() == 0
    {
        return Ok(false);
    }
    let available: Nano = entries.iter().filter(|(book, _)| *book == Book::Available).map(|(_, amount)| amount).sum();
    if available != 0 {
        sqlx::query(
            "INSERT INTO balances (account, available) VALUES ($1, $2) \
             ON CONFLICT (account) DO UPDATE SET available = balances.available + excluded.available",
        )
        .bind(account.as_str())
        .bind(available)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(true)
}

fn credit_of(row: &DbRow) -> Result<Credit, sqlx::Error> {
    let name: String = row.try_get("credit")?;
    Credit::named(&name).ok_or_else(|| sqlx::Error::Decode(format!("the stored credit {name:?} is unknown").into()))
}

fn reservation_of(row: &DbRow) -> Result<Reservation, sqlx::Error> {
    Ok(Reservation { amount: row.try_get("amount")?, open: row.try_get::<Option<i64>, _>("closed_ms")?.is_none() })
}

fn transaction_of(row: &DbRow) -> Result<LedgerRow, sqlx::Error> {
    Ok(LedgerRow {
        id: row.try_get("id")?,
        kind: row.try_get("kind")?,
        amount: row.try_get("amount")?,
        reservation: row.try_get("reservation")?,
        outcome: row.try_get("outcome")?,
        memo: row.try_get("memo")?,
        created_ms: row.try_get("created_ms")?,
        entries: BTreeMap::new(),
    })
}
