//! Credit that expires: what of a grant is left, and taking it off when its time has come.
//!
//! Requests are settled without a look at grants. What an account has falls by what it spends, and whatever raises it comes through
//! here: so what it has less than at the last count was spent since, and is taken from the credit that expires first.

use platform::audit::Note;
use platform::{AccountName, DbRow, DbTransaction};
use sqlx::Row;

use crate::ledger::{Credited, Outcome, apply_in, available_in, credit_in, lock_name, posted_in};
use crate::rules::{Command, Nano};
use crate::{BillingError, Ledger};

/// What is left of a grant that expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiringCredit {
    /// Of the grant.
    pub id: String,
    /// When it expires, in milliseconds since the Unix epoch.
    pub expires_ms: i64,
    /// Neither spent nor taken off, in nano-dollars.
    pub unspent: Nano,
}

/// What was taken off of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// The ledger's transaction.
    pub id: String,
    /// The grant's.
    pub grant: String,
    /// Nano-dollars.
    pub amount: Nano,
}

/// Takes what was spent from the credit that expires first; `credit` is in that order. What is spent beyond it came from credit that
/// does not expire.
pub fn spend(credit: &mut [ExpiringCredit], mut spent: Nano) {
    for one in credit {
        let taken = one.unspent.min(spent).max(0);
        one.unspent -= taken;
        spent -= taken;
    }
}

impl Ledger {
    /// Grants credit that expires at `expires_ms` (milliseconds since the Unix epoch): what is not spent by then is taken off by
    /// [`expire_due`](Self::expire_due). A repeat of the id gets the first outcome; with another amount or time it is an error. `note`:
    /// what the audit log says of it, where it is no repeat.
    pub async fn grant_until(
        &self,
        id: &str,
        account: &AccountName,
        (amount, expires_ms): (Nano, i64),
        memo: Option<&str>,
        note: &Note<'_, Outcome>,
    ) -> Result<Credited, BillingError> {
        let mut transaction = self.db().write(&lock_name(account)).await?;
        let credited = credit_in(&mut transaction, id, account, &Command::Grant { amount }, memo, "").await?;
        let credited = credited.ok_or_else(|| BillingError::Conflict(id.to_owned()))?;
        match (credited.first.is_some(), credited.outcome) {
            (_, Err(_)) => {}
            (true, Ok(())) => {
                let first = sqlx::query("SELECT expires_ms FROM expiring_credit WHERE id = $1").bind(id);
                let first = first.fetch_optional(&mut *transaction).await?;
                let first = first.map(|row| row.try_get::<i64, _>("expires_ms")).transpose()?;
                if first != Some(expires_ms) {
                    return Err(BillingError::IdReused(id.to_owned()));
                }
            }
            (false, Ok(())) => add(&mut transaction, id, account, amount, expires_ms).await?,
        }
        if credited.first.is_none() {
            note(&credited.outcome).write(&mut transaction).await?;
        }
        self.commit(transaction).await?;
        Ok(credited)
    }

    /// What is left of the account's grants that expire, those first that expire first.
    pub async fn expiring(&self, account: &AccountName) -> Result<Vec<ExpiringCredit>, BillingError> {
        let mut snapshot = self.db().snapshot().await?;
        let mut credit = open(&mut snapshot, account).await?;
        spend_since(&mut snapshot, account, &mut credit).await?;
        credit.retain(|one| one.unspent > 0);
        Ok(credit)
    }

    /// Accounts with something left of a grant that expired before `now_ms`.
    pub async fn accounts_with_expired(&self, now_ms: i64) -> Result<Vec<AccountName>, BillingError> {
        let rows = sqlx::query("SELECT DISTINCT account FROM expiring_credit WHERE unspent > 0 AND expires_ms <= $1");
        let rows = rows.bind(now_ms).fetch_all(self.db().pool()).await?;
        let name = |row: &DbRow| {
            let name: String = row.try_get("account")?;
            name.parse().map_err(|_| BillingError::NoAccount(name))
        };
        rows.iter().map(name).collect()
    }

    /// Takes off what is left of the account's grants that expired before `now_ms`, as far as it is not reserved: what is reserved is
    /// of the credit that expires first, and the rest of it goes once it is given back. Several servers, and repeats after a crash, take
    /// it off once. `note`: what the audit log says of each.
    pub async fn expire_due(
        &self,
        account: &AccountName,
        now_ms: i64,
        note: &Note<'_, Expired>,
    ) -> Result<Vec<Expired>, BillingError> {
        let mut transaction = self.db().write(&lock_name(account)).await?;
        let credit = count(&mut transaction, account, 0).await?;
        let mut expired = Vec::new();
        let mut reserved =
            posted_in(&mut transaction, account).await? - available_in(&mut transaction, account).await?;
        for due in credit.iter().filter(|one| one.expires_ms <= now_ms) {
            let kept = due.unspent.min(reserved);
            reserved -= kept;
            let amount = (due.unspent - kept).min(available_in(&mut transaction, account).await?);
            if amount <= 0 {
                continue;
            }
            // What is left only falls, so this is another id each time.
            let id = format!("expire {} {}", due.id, due.unspent);
            let memo = format!("of {}", due.id);
            let command = Command::Expire { amount };
            if apply_in(&mut transaction, &id, account, &command, Some(&memo), "").await? != Some(Ok(())) {
                return Err(BillingError::Conflict(id));
            }
            set_unspent(&mut transaction, &due.id, due.unspent - amount).await?;
            // It was not spent.
            let less = sqlx::query("UPDATE balances SET counted = counted - $2 WHERE account = $1");
            less.bind(account.as_str()).bind(amount).execute(&mut *transaction).await?;
            let one = Expired { id, grant: due.id.clone(), amount };
            note(&one).write(&mut transaction).await?;
            expired.push(one);
        }
        self.commit(transaction).await?;
        Ok(expired)
    }
}

async fn add(
    transaction: &mut DbTransaction,
    id: &str,
    account: &AccountName,
    amount: Nano,
    expires_ms: i64,
) -> Result<(), BillingError> {
    let posted = posted_in(transaction, account).await?;
    if open(transaction, account).await?.is_empty() {
        set_counted(transaction, account, posted).await?;
    }
    // A debt takes its part at once.
    let unspent = amount.min(posted).max(0);
    sqlx::query("INSERT INTO expiring_credit (id, account, expires_ms, unspent) VALUES ($1, $2, $3, $4)")
        .bind(id)
        .bind(account.as_str())
        .bind(expires_ms)
        .bind(unspent)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Writes down what of the account's expiring credit was spent, before the account gets `raised` more. Returns what is left.
pub(crate) async fn count(
    transaction: &mut DbTransaction,
    account: &AccountName,
    raised: Nano,
) -> Result<Vec<ExpiringCredit>, BillingError> {
    let before = open(transaction, account).await?;
    if before.is_empty() {
        return Ok(before);
    }
    let mut after = before.clone();
    let posted = spend_since(transaction, account, &mut after).await?;
    for (one, before) in after.iter().zip(&before) {
        if one.unspent != before.unspent {
            set_unspent(transaction, &one.id, one.unspent).await?;
        }
    }
    set_counted(transaction, account, posted + raised).await?;
    Ok(after)
}

/// Takes off what was spent since the last count. Returns what the account has, reserved or not.
async fn spend_since(
    transaction: &mut DbTransaction,
    account: &AccountName,
    credit: &mut [ExpiringCredit],
) -> Result<Nano, BillingError> {
    let counted = sqlx::query("SELECT counted FROM balances WHERE account = $1").bind(account.as_str());
    let counted = counted.fetch_optional(&mut **transaction).await?;
    let counted = counted.map(|row| row.try_get::<Option<Nano>, _>("counted")).transpose()?.flatten();
    let posted = posted_in(transaction, account).await?;
    spend(credit, counted.unwrap_or(posted) - posted);
    Ok(posted)
}

/// Grants of which something was left at the last count.
async fn open(transaction: &mut DbTransaction, account: &AccountName) -> Result<Vec<ExpiringCredit>, BillingError> {
    let rows = sqlx::query(
        "SELECT id, expires_ms, unspent FROM expiring_credit WHERE account = $1 AND unspent > 0 ORDER BY expires_ms, id",
    );
    let rows = rows.bind(account.as_str()).fetch_all(&mut **transaction).await?;
    let one = |row: &DbRow| {
        Ok(ExpiringCredit {
            id: row.try_get("id")?,
            expires_ms: row.try_get("expires_ms")?,
            unspent: row.try_get("unspent")?,
        })
    };
    rows.iter().map(one).collect()
}

async fn set_unspent(transaction: &mut DbTransaction, id: &str, unspent: Nano) -> Result<(), BillingError> {
    let set = sqlx::query("UPDATE expiring_credit SET unspent = $2 WHERE id = $1").bind(id).bind(unspent);
    set.execute(&mut **transaction).await?;
    Ok(())
}

async fn set_counted(
    transaction: &mut DbTransaction,
    account: &AccountName,
    counted: Nano,
) -> Result<(), BillingError> {
    let set = sqlx::query("UPDATE balances SET counted = $2 WHERE account = $1").bind(account.as_str()).bind(counted);
    set.execute(&mut **transaction).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_what_is_spent_first() {
        let left = |spent: Nano| {
            let one = |id: &str, unspent| ExpiringCredit { id: id.into(), expires_ms: 0, unspent };
            let mut credit = [one("soon", 10), one("used up", 0), one("later", 5)];
            spend(&mut credit, spent);
            credit.map(|one| one.unspent)
        };
        for (spent, expected) in
            [(0, [10, 0, 5]), (4, [6, 0, 5]), (10, [0, 0, 5]), (12, [0, 0, 3]), (99, [0, 0, 0]), (-3, [10, 0, 5])]
        {
            assert_eq!(left(spent), expected, "{spent}");
        }
    }
}
