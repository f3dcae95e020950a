//! Money: the request journal, exactly one row per request with the engine's own counts; prices; the double-entry ledger; credit.
//!
//! A row holds quantities and the version of the price that was in force: money is derived from them. What has no price costs 0.
//! Knows nothing of HTTP or tensors.

mod books;
mod buckets;
mod expiring;
mod exports;
mod faults;
mod journal;
mod ledger;
mod limits;
mod marks;
mod money;
mod outbox;
mod price;
mod purge;
mod reconcile;
mod rerate;
mod rules;
mod statement;
mod storage;
#[cfg(test)]
mod testing;
mod usage;
mod usage_hours;
mod wallet;
mod webhooks;
mod writer;

pub use books::Books;
pub use buckets::{BucketRow, Buckets, Dimension};
pub use expiring::{Expired, ExpiringCredit};
pub use exports::{Customer, Exports, OLDEST_EXPORT_MS, closed_until_ms};
#[doc(hidden)]
pub use faults::{Fault, Faults};
pub use journal::{Finish, Journal, NewRequest, Quantities, RequestRow, nobody_lives, servers_live};
pub use ledger::{Balance, Credited, Ledger, LedgerRow, Outcome};
pub use limits::{Limit, LimitKind, LimitScope, Limits, Period, Spender};
pub use marks::{AHEAD, Marks};
pub use money::{MoneyError, nano_usd};
pub use outbox::{Attempt, Claimed, DeliveryKind, DeliveryRow, DeliveryState, NewDelivery, Outbox};
pub use price::{GB, HIGHEST, MONTH_HOURS, NewPrice, Price, Prices, Rates};
pub use purge::{Purge, Purged};
pub use reconcile::{Difference, EngineCounts, Extent, Reconciliation, reconcile};
pub use rerate::{RerateOutcome, Rerated, Rerating};
pub use rules::{Book, Command, Credit, LARGEST, Nano, Refusal, Reservation, Standing, decide};
pub use statement::{ChargeLine, CorrectionLine, CreditLine, Statement, StorageLine};
pub use storage::{DueStorage, Storage, StorageSum, Stored};
pub use usage::{GroupBy, UsageRow};
pub use wallet::{Charge, Hold, Wallets};
pub use webhooks::{Webhook, Webhooks};
pub use writer::Settled;

#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    #[error(transparent)]
    Db(#[from] platform::DbError),
    #[error("request {0} has no row")]
    Missing(platform::RequestId),
    #[error("a price cannot start in the past: what was used has its price already")]
    PriceInThePast,
    #[error("a price is from 0 to {HIGHEST} nano-dollars per million tokens or GB-month")]
    PriceRange,
    #[error("there is no price version {0}")]
    NoPrice(i64),
    #[error("there is no account {0}")]
    NoAccount(String),
    #[error("account {0} owes {1} nano-dollars; top it up before it becomes prepaid")]
    Owes(String, Nano),
    #[error("the id {0:?} was used for another command")]
    IdReused(String),
    #[error("reservation {0} is closed or holds less than was to be taken from it")]
    OverReserved(String),
    #[error("reservation {0} was closed by another server")]
    ReservationClosed(String),
    #[error("other writers came in between, again and again: {0}")]
    Conflict(String),
    #[error("a limit is from 0 to {LARGEST} nano-dollars")]
    LimitAmount,
    #[error("an account can have at most 100 limits; remove one first")]
    TooManyLimits,
    #[error("{month} has over {lines} credits, too many for one statement; /v1/account/ledger lists them page by page")]
    StatementTooLong { month: String, lines: u32 },
    #[error("an account can have at most {} webhooks; remove one first", webhooks::MOST_WEBHOOKS)]
    TooManyWebhooks,
    #[error("the ledger does not answer in time")]
    Slow,
    #[error("the journal is closed")]
    Closed,
}

impl BillingError {
    /// Whether the database may take the same write a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Db(error) => error.is_passing(),
            Self::Conflict(_) | Self::Slow => true,
            _ => false,
        }
    }
}

impl From<sqlx::Error> for BillingError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}
