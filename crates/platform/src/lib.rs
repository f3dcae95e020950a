//! What every part of Myriad stands on: identifiers, configuration, the database and the blob store opened by URL, and the rows
//! of the audit log.
//!
//! Knows nothing of HTTP, prices or tensors.

pub mod audit;
pub mod blobs;
pub mod changes;
pub mod copy;
pub mod db;
pub mod ids;
mod migrations;
#[doc(hidden)]
pub mod testing;
pub mod units;

pub use blobs::{BlobError, Blobs};
pub use db::{Db, DbConnection, DbError, DbKind, DbRow, DbTransaction, Statements};
pub use ids::{AccountName, AdapterName, Digest, RequestId};
pub use migrations::Migrated;
