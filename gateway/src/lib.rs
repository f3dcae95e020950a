//! HTTP, authentication and the life of a request. Knows nothing of kernels.

mod access;
mod accounts;
mod alerts;
mod audit;
mod auth;
mod body;
mod changes;
mod cors;
mod error;
mod idempotency;
mod life;
mod metrics;
mod names;
mod outbox;
mod prepare;
mod reconciler;
mod resolve;
mod routes;
mod server;
mod state;
mod upload;
mod wire;

pub use accounts::{AccountError, Accounts};
pub use alerts::run as run_alerts;
pub use audit::Audit;
pub use changes::follow as follow_changes;
pub use error::ApiError;
pub use idempotency::Replies;
pub use metrics::Metrics;
pub use names::nearest_names;
pub use outbox::{Outside, Stripe, StripeError, run as run_outbox};
pub use reconciler::{Reconciler, run as run_reconciler};
pub use server::{Servers, serve};
pub use state::{Platform, ServedModel, StoreImages};
pub use upload::{Push, push};
