//! The client commands: each a file, built on the public API alone.

pub mod bench;
pub mod chat;
pub mod keys;
pub mod limits;
pub mod models;
pub mod prices;
pub mod promote;
pub mod push;
pub mod table;
pub mod usage;
pub mod webhooks;
