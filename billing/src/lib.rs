//! The request journal: exactly one row per request, with the engine's own counts.
//!
//! Quantities only. Money is derived from them and a price version, which are not here yet: until then every request costs 0.
//! Knows nothing of HTTP or tensors.

mod journal;

pub use journal::{Finish, Journal, NewRequest, Quantities, RequestRow};

#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    #[error(transparent)]
    Db(#[from] platform::DbError),
    #[error("request {0} has no row")]
    Missing(platform::RequestId),
}

impl From<sqlx::Error> for BillingError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}
