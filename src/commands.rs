//! The client commands: each a file, built on the API alone, but for what must work without a server.

pub mod accounts;
pub mod amount;
pub mod audit;
pub mod bench;
pub mod chat;
pub mod exports;
pub mod keys;
pub mod ledger;
pub mod limits;
pub mod members;
pub mod migrate;
pub mod models;
pub mod prices;
pub mod promote;
pub mod push;
pub mod statements;
pub mod table;
pub mod usage;
pub mod webhooks;

/// A time as one types it, in Unix seconds: `2026-11-26` (its start) or `2026-11-26T12:00:00Z`, UTC.
pub fn unix_seconds(text: &str) -> Result<i64, String> {
    let ms = platform::units::ms_of(text);
    ms.map(|ms| ms / 1000).ok_or_else(|| "a time is a day such as 2026-11-26, or 2026-11-26T12:00:00Z".into())
}
