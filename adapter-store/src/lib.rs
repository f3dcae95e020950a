//! Adapters: formats and checks, versions and aliases, content-addressed files and images.
//!
//! An upload goes one way: its files are unpacked ([`unpack`]), the configuration is parsed ([`PeftConfig`]), every tensor is bound
//! to a linear of a base model ([`tensors`]), and what comes out is [`Checked`]: an identity and an image, nothing stored. Only
//! [`AdapterStore::publish`] writes: blobs first, then the rows that make them visible.
//!
//! Knows nothing of scheduling or HTTP.

mod choice;
mod config;
mod error;
pub mod folder;
mod identity;
mod images;
mod locks;
mod publish;
mod reference;
mod removal;
mod selection;
mod store;
pub mod tensors;
mod tokenizer;
mod upload;
mod versions;

pub use config::PeftConfig;
pub use error::StoreError;
pub use images::Staged;
pub use reference::{AdapterRef, DEFAULT_ALIAS, Selector, check_alias};
pub use store::{AdapterStore, Base, Canary, Checked, Report, Upload};
pub use upload::{FILES, UPLOAD_BYTES, UploadFile, unpack};
pub use versions::{Alias, StoredAdapter, Version};
