//! Adapter images in memory and as blobs: a cache of what an adapter's files say, made again where it is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::{AdapterImage, DType};
use platform::Digest;
use sha2::{Digest as _, Sha256};
use sqlx::Row;

use crate::StoreError;
use crate::store::{AdapterStore, Base, Checked, Upload};

/// Length of the SHA-256 that ends an image's blob.
const SEAL_BYTES: usize = 32;

/// Images in memory: those used last, within a budget, and those staged for a canary, which are kept until it is over.
#[derive(Default)]
pub struct Images {
    recent: HashMap<Digest, (Arc<AdapterImage>, u64)>,
    /// With the number of canaries that hold each.
    staged: HashMap<Digest, (Arc<AdapterImage>, usize)>,
    clock: u64,
    budget_bytes: usize,
}

impl Images {
    pub fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, ..Self::default() }
    }

    pub fn insert(&mut self, image: Arc<AdapterImage>) {
        self.clock += 1;
        self.recent.insert(image.digest(), (image, self.clock));
        let mut used: usize = self.recent.values().map(|(image, _)| image.bytes()).sum();
        while self.recent.len() > 1 && used > self.budget_bytes {
            let oldest = self.recent.iter().min_by_key(|(_, (_, used))| *used).map(|(&digest, _)| digest);
            let Some((image, _)) = oldest.and_then(|digest| self.recent.remove(&digest)) else { return };
            used -= image.bytes();
        }
    }

    fn get(&mut self, digest: &Digest) -> Option<Arc<AdapterImage>> {
        self.clock += 1;
        if let Some((image, used)) = self.recent.get_mut(digest) {
            *used = self.clock;
            return Some(image.clone());
        }
        self.staged.get(digest).map(|(image, _)| image.clone())
    }

    fn stage(&mut self, image: &Arc<AdapterImage>) {
        self.staged.entry(image.digest()).or_insert_with(|| (image.clone(), 0)).1 += 1;
    }

    fn unstage(&mut self, digest: &Digest) {
        if let Some((_, holders)) = self.staged.get_mut(digest) {
            *holders -= 1;
            if *holders == 0 {
                self.staged.remove(digest);
            }
        }
    }
}

/// Keeps an image available to [`AdapterStore::image`] that is not published yet; dropping it ends that.
#[must_use = "the image is forgotten as soon as this is dropped"]
pub struct Staged {
    images: Arc<Mutex<Images>>,
    digest: Digest,
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).unstage(&self.digest);
    }
}

impl AdapterStore {
    /// Makes the image of an upload available before it is published, for its canary.
    pub fn stage(&self, checked: &Checked) -> Staged {
        self.images().stage(&checked.image);
        Staged { images: self.images.clone(), digest: checked.digest }
    }

    /// An adapter's image: from memory, else from its blob, else made again from the files.
    pub async fn image(&self, digest: Digest) -> Result<Arc<AdapterImage>, StoreError> {
        if let Some(image) = self.images().get(&digest) {
            return Ok(image);
        }
        // One reads it, whoever else wants it waits; and nobody deletes it meanwhile.
        let _held = self.locks.hold([digest]).await;
        if let Some(image) = self.images().get(&digest) {
            return Ok(image);
        }
        let base = self.base_of(digest).await?;
        let image = match self.stored_image(digest, base).await? {
            Some(image) => image,
            None => self.rebuild(digest, base).await?,
        };
        self.images().insert(image.clone());
        Ok(image)
    }

    async fn base_of(&self, digest: Digest) -> Result<&Base, StoreError> {
        let row = sqlx::query(
            "SELECT a.base FROM adapter_versions v JOIN adapters a ON a.account = v.account AND a.name = v.name \
             WHERE v.digest = $1 LIMIT 1",
        )
        .bind(digest.to_string())
        .fetch_optional(self.db.pool())
        .await?;
        let base: String = row.ok_or(StoreError::Gone(digest))?.try_get("base")?;
        let loaded = self.bases.iter().find(|loaded| loaded.id == base);
        loaded.ok_or_else(|| StoreError::Unreadable(digest, format!("its base model {base} is not loaded")))
    }

    /// The image as it was stored; `None` where it is missing, damaged, of another image version or of another shape.
    async fn stored_image(&self, digest: Digest, base: &Base) -> Result<Option<Arc<AdapterImage>>, StoreError> {
        let bytes = match self.blobs.get(&image_key(digest, base.dtype)).await {
            Ok(bytes) => bytes,
            Err(platform::BlobError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let read = move || unsealed(&bytes).and_then(|bytes| AdapterImage::from_bytes(bytes).ok());
        let image = blocking(digest, read).await?;
        Ok(image
            .filter(|image| image.digest() == digest && image.shape() == &base.shape && image.dtype() == base.dtype))
    }

    async fn rebuild(&self, digest: Digest, base: &Base) -> Result<Arc<AdapterImage>, StoreError> {
        let version = self.any_version_of(digest).await?;
        let files = self.files(&version).await?;
        let upload = Upload { account: version.account, name: version.name, base: None, files };
        let (store, base_again) = (self.clone(), base.clone());
        let checked = blocking(digest, move || store.check_again(upload, &base_again)).await?;
        let checked = checked.map_err(|e| StoreError::Unreadable(digest, e.to_string()))?;
        if checked.digest != digest {
            return Err(StoreError::Unreadable(digest, "its files are of another adapter".into()));
        }
        // A blob is never written over: what could not be read goes first.
        self.blobs.delete(&image_key(digest, base.dtype)).await?;
        self.store_image(&checked.image).await?;
        Ok(checked.image)
    }

    pub(crate) async fn store_image(&self, image: &Arc<AdapterImage>) -> Result<(), StoreError> {
        let (digest, key) = (image.digest(), image_key(image.digest(), image.dtype()));
        if self.blobs.exists(&key).await? {
            return Ok(());
        }
        let image = image.clone();
        let bytes = blocking(digest, move || sealed(image.to_bytes())).await?;
        Ok(self.blobs.put(&key, bytes.into()).await?)
    }

    pub(crate) async fn remove_images(&self, digest: Digest) -> Result<(), StoreError> {
        self.images().recent.remove(&digest);
        for version in 1..=model::image::IMAGE_VERSION {
            for dtype in [DType::F32, DType::Bf16] {
                self.blobs.delete(&image_key_of(version, digest, dtype)).await?;
            }
        }
        Ok(())
    }
}

fn image_key(digest: Digest, dtype: DType) -> String {
    image_key_of(model::image::IMAGE_VERSION, digest, dtype)
}

fn image_key_of(version: u32, digest: Digest, dtype: DType) -> String {
    format!("images/v{version}/{digest}.{}", dtype.name())
}

/// Ends the bytes with their SHA-256: a flipped bit in the numbers would otherwise only be heard in the answers.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let seal = Sha256::digest(&bytes);
    bytes.extend_from_slice(&seal);
    bytes
}

fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (bytes, seal) = bytes.split_at_checked(bytes.len().checked_sub(SEAL_BYTES)?)?;
    (Sha256::digest(bytes).as_slice() == seal).then_some(bytes)
}

async fn blocking<T: Send + 'static>(
    digest: Digest,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| StoreError::Unreadable(digest, e.to_string()))
}
