//! The binary as a person meets it: what the command line accepts, prints and refuses.

mod client;
mod hub;
mod push;
mod refusals;
mod server;
mod settings;
mod standin;
mod start;
