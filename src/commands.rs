//! The client commands: each a file, built on the API alone, but for what must work without a server.

pub mod accounts;
pub mod amount;
pub mod bench;
pub mod chat;
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
