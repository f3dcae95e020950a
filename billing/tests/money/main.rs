//! Money under random commands, many tasks, several servers, and servers and databases that fail.

mod audited;
mod caps;
mod expiring;
mod journal;
mod ledger;
mod model;
mod reconcile;
mod rerate;
mod simulation;
mod storage;
mod support;
mod wallets;
