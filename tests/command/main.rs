//! The binary as a person meets it: what the command line accepts, prints and refuses.

mod client;
mod refusals;
mod server;
mod settings;
