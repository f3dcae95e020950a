//! The request journal, exactly one row per request with the engine's own counts; prices; usage.
//!
//! A row holds quantities and the version of the price that was in force: money is derived from them. What has no price costs 0.
//! Knows nothing of HTTP or tensors.

mod journal;
mod price;
mod usage;

pub use journal::{Finish, Journal, NewRequest, Quantities, RequestRow};
pub use price::{HIGHEST, NewPrice, Price, Prices, Rates};
pub use usage::{GroupBy, UsageRow};

#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    #[error(transparent)]
    Db(#[from] platform::DbError),
    #[error("request {0} has no row")]
    Missing(platform::RequestId),
    #[error("a price cannot start in the past: what was used has its price already")]
    PriceInThePast,
    #[error("a price is from 0 to {HIGHEST} nano-dollars per million tokens")]
    PriceRange,
}

impl From<sqlx::Error> for BillingError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}
