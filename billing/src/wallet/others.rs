//! What one server holds and does not use, another one may need: it leaves a row for each server that holds some, and these look
//! for such rows, give back what their requests do not use, and remove them.

use std::sync::Weak;
use std::time::{Duration, Instant};

use platform::{AccountName, Db};
use sqlx::Row;

use super::{LEDGER_TIMEOUT, Purse, Shared, Wallets};
use crate::BillingError;
use crate::journal::account_of;
use crate::limits::Meter;
use crate::rules::{Command, Nano, Refusal};

/// Whether others want something is looked at so often.
const LOOK: Duration = Duration::from_millis(250);
/// After a look that failed the next one waits longer: the database is away.
const LOOK_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Who asks waits so long for those who do not answer, and looks so often whether all have.
const PATIENCE: Duration = Duration::from_millis(1_500);
const AGAIN: Duration = Duration::from_millis(50);

/// Answers others as long as the wallets live.
pub(super) async fn hear(wallets: Weak<Shared>) {
    let mut pause = LOOK;
    loop {
        tokio::time::sleep(pause).await;
        let Some(shared) = wallets.upgrade() else { return };
        if shared.ledger.db().pool().is_closed() {
            return;
        }
        pause = match (Wallets { shared }).answer_others().await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::warn!(%error, "what other servers ask for could not be given back");
                LOOK_AFTER_FAILURE
            }
        };
    }
}

impl Wallets {
    /// Asks the other servers for what they hold of the account and do not use, and waits until they have given it back. False, at
    /// once: that would not be enough. Requests that wait share one asking, so many that are refused cost little more than one.
    pub(super) async fn ask_others(
        &self,
        purse: &Purse,
        refusal: Refusal,
        least: Nano,
        caps: &[(Meter, Nano)],
    ) -> Result<bool, BillingError> {
        let asked = async {
            let missed = Instant::now();
            let (db, instance) = (self.shared.ledger.db(), self.shared.journal.instance());
            let could_do = match refusal {
                Refusal::CapReached => purse.state().others_could_do(least, caps),
                _ => {
                    let (available, others) = held(db, &purse.account, instance).await?;
                    others > 0 && purse.state().free() + available + others >= least
                }
            };
            if !could_do {
                return Ok(false);
            }
            let mut last = purse.asking_others.lock().await;
            // What began after this request had found too little has brought all that there was.
            if last.is_none_or(|began| began < missed) {
                let begins = Instant::now();
                ask(db, &purse.account, instance).await?;
                *last = Some(begins);
            }
            Ok(true)
        };
        tokio::time::timeout(LEDGER_TIMEOUT, asked).await.map_err(|_| BillingError::Slow)?
    }

    async fn answer_others(&self) -> Result<(), BillingError> {
        if self.all().is_empty() {
            return Ok(());
        }
        let (db, instance) = (self.shared.ledger.db(), self.shared.journal.instance());
        let wants = sqlx::query("SELECT account FROM credit_wants WHERE instance = $1").bind(instance);
        for want in wants.fetch_all(db.pool()).await? {
            let account = account_of(&want)?;
            self.release_unused(&self.purse(&account)).await?;
            sqlx::query("DELETE FROM credit_wants WHERE instance = $1 AND account = $2")
                .bind(instance)
                .bind(account.as_str())
                .execute(db.pool())
                .await?;
        }
        Ok(())
    }

    async fn release_unused(&self, purse: &Purse) -> Result<(), BillingError> {
        let _asking = purse.asking.lock().await;
        self.repeat_unanswered(purse).await?;
        let kept = purse.state().let_go();
        self.shared.limits.give_back(&purse.account, self.shared.journal.instance(), &kept).await?;
        let (id, command) = {
            let mut state = purse.state();
            let amount = state.free();
            let Some(reservation) = state.reservation.clone().filter(|_| amount > 0) else { return Ok(()) };
            // Before the ledger is asked: no request may take it any more.
            state.amount -= amount;
            (self.command_id(), Command::Release { reservation, amount })
        };
        if let Err(refusal) = self.add(purse, id, command).await? {
            tracing::warn!(account = %purse.account, %refusal, "what is not used could not be given back");
        }
        Ok(())
    }
}

/// What the account can still reserve, and what other servers hold of it.
async fn held(db: &Db, account: &AccountName, instance: &str) -> Result<(Nano, Nano), BillingError> {
    let row = sqlx::query(
        "SELECT CAST(COALESCE((SELECT available FROM balances WHERE account = $1), 0) AS BIGINT) AS available, \
         CAST(COALESCE((SELECT SUM(amount) FROM reservations WHERE account = $1 AND instance <> $2 AND closed_ms IS NULL), 0) \
         AS BIGINT) AS others",
    );
    let row = row.bind(account.as_str()).bind(instance).fetch_one(db.pool()).await?;
    Ok((row.try_get("available")?, row.try_get("others")?))
}

/// Returns when all others that hold something of the account have answered, or have not for so long.
async fn ask(db: &Db, account: &AccountName, instance: &str) -> Result<(), BillingError> {
    let begins = Instant::now();
    // One at a time: two that write the same rows must not wait for each other.
    let lock = format!("wants {account}");
    let mut transaction = db.write(&lock).await?;
    sqlx::query(
        "INSERT INTO credit_wants (instance, account) \
         SELECT instance, account FROM reservations WHERE account = $1 AND instance <> $2 AND closed_ms IS NULL AND amount > 0 \
         UNION SELECT instance, account FROM cap_leases WHERE account = $1 AND instance <> $2 AND amount > 0 \
         ON CONFLICT (instance, account) DO NOTHING",
    )
    .bind(account.as_str())
    .bind(instance)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    let unanswered = "SELECT 1 FROM credit_wants WHERE account = $1 AND instance <> $2 LIMIT 1";
    while begins.elapsed() < PATIENCE {
        tokio::time::sleep(AGAIN).await;
        let unanswered = sqlx::query(unanswered).bind(account.as_str()).bind(instance);
        if unanswered.fetch_optional(db.pool()).await?.is_none() {
            return Ok(());
        }
    }
    // Of servers that have gone: the next one to ask would wait for them as well.
    let mut transaction = db.write(&lock).await?;
    sqlx::query("DELETE FROM credit_wants WHERE account = $1 AND instance <> $2")
        .bind(account.as_str())
        .bind(instance)
        .execute(&mut *transaction)
        .await?;
    Ok(transaction.commit().await?)
}

/// A server that has ended answers no more.
pub(crate) async fn forget_wants(db: &Db, instance: &str) -> Result<(), BillingError> {
    sqlx::query("DELETE FROM credit_wants WHERE instance = $1").bind(instance).execute(db.pool()).await?;
    Ok(())
}
