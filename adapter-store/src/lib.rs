//! Adapters: formats and checks, versions and aliases, content-addressed files and images.
//!
//! Knows nothing of scheduling or HTTP.

mod config;
mod error;
mod reference;
mod store;
pub mod tensors;
mod upload;
mod versions;

pub use config::PeftConfig;
pub use error::StoreError;
pub use reference::{AdapterRef, DEFAULT_ALIAS, Selector, check_alias};
pub use store::{AdapterStore, Base, Canary, Checked, Report, Upload};
pub use upload::{FILES, UPLOAD_BYTES, UploadFile, unpack};
pub use versions::{Alias, Version};
