//! HTTP, authentication and the life of a request. Knows nothing of kernels.

mod access;
mod accounts;
mod auth;
mod body;
mod changes;
mod cors;
mod error;
mod idempotency;
mod life;
mod metrics;
mod names;
mod prepare;
mod resolve;
mod routes;
mod server;
mod state;
mod upload;
mod wire;

pub use accounts::{AccountError, Accounts};
pub use changes::follow as follow_changes;
pub use error::ApiError;
pub use idempotency::Replies;
pub use metrics::Metrics;
pub use names::nearest_names;
pub use server::{Servers, serve};
pub use state::{Platform, ServedModel, StoreImages};
pub use upload::{Push, push};
