//! One lock per digest, so that what adds a blob and what removes it never overlap while unrelated uploads go on.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use platform::Digest;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Locks exist while someone holds or awaits them.
#[derive(Default)]
pub struct DigestLocks {
    known: Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>,
}

/// Held until dropped.
#[must_use]
pub struct Held {
    _guards: Vec<OwnedMutexGuard<()>>,
}

impl DigestLocks {
    /// Takes the locks of all `digests`. Everyone takes them in ascending order: none can wait for each other in a circle.
    pub async fn hold(&self, digests: impl IntoIterator<Item = Digest>) -> Held {
        let mut guards = Vec::new();
        for digest in digests.into_iter().collect::<BTreeSet<_>>() {
            let lock = self.of(digest);
            guards.push(lock.lock_owned().await);
        }
        Held { _guards: guards }
    }

    fn of(&self, digest: Digest) -> Arc<AsyncMutex<()>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = known.get(&digest).and_then(Weak::upgrade) {
            return lock;
        }
        known.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        known.insert(digest, Arc::downgrade(&lock));
        lock
    }
}
