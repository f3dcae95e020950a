//! Requests to tokens: scheduler, step loop, prefix cache, adapter residency.
//!
//! Knows ids and token numbers: never text, tenants or money.

mod disk;
mod engine;
mod job;
mod limits;
mod masks;
mod pace;
mod pages;
mod random;
mod request;
mod residency;
mod scheduler;
mod sequence;
mod speculation;
mod stop;
mod worker;

pub use disk::PageFile;
pub use engine::{Base, BaseModel, Controls, Engine, Reply, Taken};
pub use limits::{Limits, Stats};
pub use request::{
    AdapterImages, Event, FinishReason, Finished, GRAMMAR_FAILED, ImageFetchError, Lane, NOT_NUMBERS, Refused, Request,
    Token, Usage,
};
