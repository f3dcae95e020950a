//! Money under random commands, many tasks, several servers, and servers and databases that fail.

mod journal;
mod ledger;
mod model;
mod simulation;
mod support;
mod wallets;
