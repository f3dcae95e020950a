//! Requests to tokens: scheduler, step loop, prefix cache, adapter residency.
//!
//! Knows ids and token numbers: never text, tenants or money.

pub mod request;

pub use request::{AdapterImages, Event, FinishReason, Finished, ImageFetchError, Lane, Refused, Request, Token, Usage};
