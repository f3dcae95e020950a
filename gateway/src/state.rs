//! What every route stands on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use adapter_store::AdapterStore;
use billing::{Journal, Ledger, Limits, Prices, Storage, Wallets};
use futures::FutureExt;
use futures::future::BoxFuture;
use model::{AdapterImage, GenerationDefaults};
use platform::{AccountName, Digest};
use serving_engine::{AdapterImages, Engine, ImageFetchError};
use text::Text;

use crate::accounts::Accounts;
use crate::audit::Audit;
use crate::grammars::Grammars;
use crate::idempotency::Replies;
use crate::metrics::Metrics;
use crate::outbox::Outside;
use crate::reconciler::Reconciler;

/// A base model as the gateway serves it.
pub struct ServedModel {
    pub id: Arc<str>,
    pub text: Text,
    pub defaults: GenerationDefaults,
    /// Longest sequence, in tokens.
    pub context: usize,
    pub vocabulary: usize,
    pub grammars: Grammars,
    pub fingerprint: String,
    pub loaded_s: i64,
}

/// The whole platform, as the routes see it.
pub struct Platform {
    pub engine: Engine,
    pub models: Vec<ServedModel>,
    pub store: AdapterStore,
    pub journal: Journal,
    pub prices: Prices,
    pub ledger: Ledger,
    pub storage: Storage,
    pub wallets: Wallets,
    pub limits: Limits,
    pub reconciler: Reconciler,
    /// What is delivered to the outside.
    pub outside: Outside,
    pub accounts: Accounts,
    pub audit: Audit,
    /// Who runs this server: only this account may name paths on it.
    pub operator: AccountName,
    pub replies: Replies,
    pub metrics: Metrics,
    /// Keys the salt of each account's prefix cache, so that accounts never share pages.
    pub cache_secret: [u8; 32],
    pub cors: bool,
    pub ready: AtomicBool,
    pub version: &'static str,
}

impl Platform {
    pub fn model(&self, id: &str) -> Option<&ServedModel> {
        self.models.iter().find(|model| &*model.id == id)
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.engine.is_draining() && self.journal.is_taken()
    }
}

/// The store, as the engine fetches from it.
pub struct StoreImages(pub AdapterStore);

impl AdapterImages for StoreImages {
    fn fetch(&self, digest: Digest) -> BoxFuture<'static, Result<Arc<AdapterImage>, ImageFetchError>> {
        let store = self.0.clone();
        async move {
            store.image(digest).await.map_err(|error| {
                tracing::error!(%digest, %error, "an adapter could not be fetched");
                ImageFetchError { digest, reason: "it could not be read from the store".into() }
            })
        }
        .boxed()
    }
}
