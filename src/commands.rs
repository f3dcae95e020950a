//! The client commands: each a file, built on the public API alone.

mod amount;
pub mod bench;
pub mod chat;
pub mod keys;
pub mod models;
pub mod prices;
pub mod promote;
pub mod push;
pub mod statements;
pub mod table;
pub mod usage;
