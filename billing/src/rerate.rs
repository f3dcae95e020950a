//! Rating again: what finished requests would have cost at another price version, and the correcting entries for the difference.
//!
//! Rows of requests stay as they are. A correction says which version holds for a request from then on, so that a repeat finds
//! nothing more to correct; its amount is derived from the request's quantities and the two versions.

use platform::audit::Note;
use platform::units::now_ms;
use platform::{AccountName, DbKind, DbRow, DbTransaction};
use sqlx::Row;

use crate::Quantities;
use crate::ledger::{apply_in, lock_name};
use crate::rules::{Command, Credit, Nano, Refusal};
use crate::{BillingError, Ledger, Prices};

/// Requests of one transaction.
const ROWS: usize = 500;

/// Which finished requests, and at which version.
#[derive(Debug, Clone)]
pub struct Rerating {
    pub version: i64,
    /// Requests that started from here on, in milliseconds since the Unix epoch.
    pub from_ms: i64,
    /// And before this.
    pub to_ms: i64,
    /// A base model's id or an adapter's `account/name`; all, where absent.
    pub model: Option<String>,
    /// Only what has this version by now; all, where absent.
    pub instead_of: Option<i64>,
}

/// What becomes, or would become, of an account's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rerated {
    /// Whose cost differs.
    pub requests: u64,
    /// What these cost by now, and at the other version, in nano-dollars.
    pub before: Nano,
    pub after: Nano,
    /// Of the difference, what was posted: over 0 where requests got more expensive.
    pub posted: Nano,
    pub outcome: RerateOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RerateOutcome {
    /// Nothing differs.
    Unchanged,
    /// It was only asked for.
    Planned,
    Posted,
    /// A rule refuses the difference, or from some request on what is left of it: that much is not posted.
    Refused(Refusal),
}

impl RerateOutcome {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Planned => "planned",
            Self::Posted => "posted",
            Self::Refused(refusal) => refusal.name(),
        }
    }
}

/// A request whose cost differs.
struct Differing {
    id: String,
    /// Of its corrections, this one would be so many.
    number: i64,
    from_version: Option<i64>,
    before: Nano,
    after: Nano,
}

/// One page of requests, in the order in which they started.
struct Page {
    differing: Vec<Differing>,
    /// Start and id of its last request; none: it is empty.
    last: Option<(i64, String)>,
}

impl Page {
    /// What has become of its requests once it is posted.
    fn posted(&self) -> Rerated {
        let sum = |of: fn(&Differing) -> Nano| self.differing.iter().map(of).sum::<Nano>();
        let (before, after) = (sum(|one| one.before), sum(|one| one.after));
        let requests = self.differing.len() as u64;
        Rerated { requests, before, after, posted: after - before, outcome: RerateOutcome::Posted }
    }
}

impl Ledger {
    /// What an account's requests would cost at another version. With `apply` the difference is posted as corrections (`adjust`), in
    /// the order of requests: a repeat, also after a crash, posts what is missing and nothing twice. `apply` says what the audit log
    /// says of what one transaction has posted. A version that does not exist is an error.
    pub async fn rerate(
        &self,
        prices: &Prices,
        account: &AccountName,
        asked: &Rerating,
        apply: Option<&Note<'_, Rerated>>,
    ) -> Result<Rerated, BillingError> {
        prices.reload().await?;
        let mut rerated = Rerated { requests: 0, before: 0, after: 0, posted: 0, outcome: RerateOutcome::Unchanged };
        let mut after = (asked.from_ms, String::new());
        loop {
            let mut transaction = match apply {
                Some(_) => self.db().write(&lock_name(account)).await?,
                None => self.db().snapshot().await?,
            };
            let page = page(&mut transaction, prices, account, asked, &after).await?;
            let posted = page.posted();
            rerated.requests += posted.requests;
            rerated.before += posted.before;
            rerated.after += posted.after;
            let refused = matches!(rerated.outcome, RerateOutcome::Refused(_));
            if let Some(note) = apply
                && !refused
                && !page.differing.is_empty()
            {
                rerated.outcome =
                    match correct(&mut transaction, self.db().kind(), account, asked.version, &page).await? {
                        Ok(()) => {
                            note(&posted).write(&mut transaction).await?;
                            self.commit(transaction).await?;
                            rerated.posted += posted.posted;
                            posted.outcome
                        }
                        // Not even the refusal is written: once there is credit, a repeat goes on here.
                        Err(refusal) => RerateOutcome::Refused(refusal),
                    };
            }
            match page.last {
                Some(last) => after = last,
                None => break,
            }
        }
        if apply.is_none() && rerated.requests > 0 {
            rerated.outcome = self.foreseen(account, rerated.after - rerated.before).await?;
        }
        Ok(rerated)
    }

    /// What would become of such a difference now.
    async fn foreseen(&self, account: &AccountName, difference: Nano) -> Result<RerateOutcome, BillingError> {
        let balance = self.balance(account).await?;
        // What is reserved goes back before anything is posted, as far as nothing runs.
        let is_short = balance.credit == Credit::Prepaid && difference > balance.posted();
        Ok(if is_short { RerateOutcome::Refused(Refusal::InsufficientCredit) } else { RerateOutcome::Planned })
    }
}

async fn page(
    transaction: &mut DbTransaction,
    prices: &Prices,
    account: &AccountName,
    asked: &Rerating,
    after: &(i64, String),
) -> Result<Page, BillingError> {
    let rates = prices.rates(asked.version).ok_or(BillingError::NoPrice(asked.version))?;
    let rows = sqlx::query(
        "SELECT r.id, r.started_ms, r.finish, r.price_version, r.prompt_tokens, r.cached_tokens, r.completion_tokens, \
         (SELECT COUNT(*) FROM corrections c WHERE c.request_id = r.id) AS corrections, \
         (SELECT c.price_version FROM corrections c WHERE c.request_id = r.id ORDER BY c.number DESC LIMIT 1) AS corrected \
         FROM requests r WHERE r.account = $1 AND r.finished_ms IS NOT NULL AND r.instance IS NOT NULL \
         AND (r.started_ms, r.id) > ($2, $3) AND r.started_ms < $4 AND ($5 IS NULL OR r.base = $5 OR r.adapter = $5) \
         ORDER BY r.started_ms, r.id LIMIT $6",
    )
    .bind(account.as_str())
    .bind(after.0)
    .bind(&after.1)
    .bind(asked.to_ms)
    .bind(&asked.model)
    .bind(ROWS as i64)
    .fetch_all(&mut **transaction)
    .await?;
    let last =
        rows.last().map(|row| Ok::<_, sqlx::Error>((row.try_get("started_ms")?, row.try_get("id")?))).transpose()?;
    let mut differing = Vec::new();
    for row in &rows {
        let version = row.try_get::<Option<i64>, _>("corrected")?.or(row.try_get("price_version")?);
        if version == Some(asked.version) || asked.instead_of.is_some_and(|only| version != Some(only)) {
            continue;
        }
        let (quantities, finish) = (
            Quantities::read(row, ["prompt_tokens", "cached_tokens", "completion_tokens"])?,
            row.try_get::<&str, _>("finish")?,
        );
        let known = version.and_then(|version| prices.rates(version));
        let (before, after) =
            (known.map_or(0, |known| known.cost(&quantities, finish)), rates.cost(&quantities, finish));
        if before != after {
            differing.push(differs(row, version, before, after)?);
        }
    }
    Ok(Page { differing, last })
}

fn differs(row: &DbRow, from_version: Option<i64>, before: Nano, after: Nano) -> Result<Differing, sqlx::Error> {
    let number = row.try_get::<i64, _>("corrections")? + 1;
    Ok(Differing { id: row.try_get("id")?, number, from_version, before, after })
}

/// Posts a page's difference and writes down for which requests. After a refusal nothing may be committed.
async fn correct(
    transaction: &mut DbTransaction,
    kind: DbKind,
    account: &AccountName,
    version: i64,
    page: &Page,
) -> Result<Result<(), Refusal>, BillingError> {
    let amount = -page.posted().posted;
    let id = match page.differing.first() {
        Some(first) if amount != 0 => Some(format!("rerate {version} {} {}", first.id, first.number)),
        _ => None,
    };
    if let Some(id) = &id {
        let memo = format!("{} requests at price {version}", page.differing.len());
        let command = Command::Adjust { amount };
        let outcome = apply_in(transaction, id, account, &command, Some(&memo), "").await?;
        if let Err(refusal) = outcome.ok_or_else(|| BillingError::Conflict(id.clone()))? {
            return Ok(Err(refusal));
        }
    }
    let sql = format!(
        "INSERT INTO corrections (request_id, number, account, from_version, price_version, transaction_id, created_ms) {}",
        kind.values(page.differing.len(), 7)
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
    let now = now_ms();
    for one in &page.differing {
        query = query
            .bind(one.id.clone())
            .bind(one.number)
            .bind(account.to_string())
            .bind(one.from_version)
            .bind(version)
            .bind(id.clone())
            .bind(now);
    }
    query.execute(&mut **transaction).await?;
    Ok(Ok(()))
}
