//! Adapters, their versions and aliases, and the files behind them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use model::{AdapterImage, DType, ImageBuilder, ModelShape};
use platform::{AccountName, AdapterName, Blobs, Db, Digest};
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::config::PeftConfig;
use crate::error::refused;
use crate::tensors::{self, Target};
use crate::upload::{UploadFile, unpack};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
/// Largest chat template of an adapter, in bytes.
const TEMPLATE_BYTES: usize = 1 << 20;

/// A base model that adapters can be for.
#[derive(Debug, Clone)]
pub struct Base {
    pub id: String,
    pub shape: ModelShape,
    pub dtype: DType,
}

/// What was uploaded.
#[derive(Debug)]
pub struct Upload {
    pub account: AccountName,
    pub name: AdapterName,
    /// Which base model, where the uploader says so.
    pub base: Option<String>,
    pub files: Vec<UploadFile>,
}

/// An upload that passed every check; nothing of it is stored yet.
#[derive(Debug, Clone)]
pub struct Checked {
    pub account: AccountName,
    pub name: AdapterName,
    pub base: String,
    pub digest: Digest,
    pub report: Report,
    pub image: Arc<AdapterImage>,
    pub chat_template: Option<String>,
    files: Vec<UploadFile>,
}

/// What the checks and the canary said. Kept with the version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub rank: usize,
    pub tensors: usize,
    pub bytes: usize,
    pub warnings: Vec<String>,
    pub canary: Option<Canary>,
}

/// How far an adapter moves the base model's answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    pub prompts: usize,
    /// Mean divergence of the next token's distribution, in nats.
    pub kl: f64,
    /// SHA-256 of the adapter's log-probabilities on the prompts: the same build gives the same again.
    pub fingerprint: String,
}

/// A stored adapter's files, by name and digest: the blob that an adapter's digest leads to.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    base: String,
    files: BTreeMap<String, Digest>,
    chat_template: Option<String>,
}

#[derive(Clone)]
pub struct AdapterStore {
    pub(crate) db: Db,
    blobs: Blobs,
    bases: Arc<[Base]>,
    images: Arc<Mutex<Images>>,
    /// Serialises what adds and what removes blobs, so that a deletion never takes what an upload just found there.
    pub(crate) writing: Arc<tokio::sync::Mutex<()>>,
}

/// Images in memory: those staged for a canary, and those used last.
#[derive(Default)]
struct Images {
    known: HashMap<Digest, (Arc<AdapterImage>, u64)>,
    clock: u64,
    budget: usize,
}

impl Images {
    fn insert(&mut self, image: Arc<AdapterImage>) {
        self.clock += 1;
        self.known.insert(image.digest(), (image, self.clock));
        while self.known.len() > 1 && self.known.values().map(|(image, _)| image.bytes()).sum::<usize>() > self.budget {
            let oldest = self.known.iter().min_by_key(|(_, (_, used))| *used).map(|(&digest, _)| digest);
            oldest.map(|digest| self.known.remove(&digest));
        }
    }

    fn get(&mut self, digest: &Digest) -> Option<Arc<AdapterImage>> {
        self.clock += 1;
        let clock = self.clock;
        self.known.get_mut(digest).map(|(image, used)| {
            *used = clock;
            image.clone()
        })
    }
}

impl AdapterStore {
    /// `memory_bytes` bounds the images that are kept in memory.
    pub fn new(db: Db, blobs: Blobs, bases: Vec<Base>, memory_bytes: usize) -> Self {
        let images = Images { budget: memory_bytes, ..Images::default() };
        Self { db, blobs, bases: bases.into(), images: Arc::new(Mutex::new(images)), writing: Arc::default() }
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs every check on an upload. Takes time in proportion to its size: call it off the runtime's threads.
    pub fn check(&self, upload: Upload) -> Result<Checked, StoreError> {
        let files = unpack(upload.files)?;
        let config = PeftConfig::parse(find(&files, CONFIG)?)?;
        let weights = find(&files, WEIGHTS)?;
        let (base, bound, mut warnings) = self.bind(weights, &config, upload.base.as_deref())?;
        warnings.extend(bound.warnings);
        refuse_other_vocabulary(&files, base)?;
        let chat_template = chat_template(&files)?;
        let digest = identity(&base.id, &bound.pairs, chat_template.as_deref());
        let mut builder = ImageBuilder::new(&base.shape, base.dtype);
        for ((layer, linear), pair) in bound.pairs {
            builder.add(layer, linear, pair).map_err(|e| refused(format!("{e}.")))?;
        }
        let image = Arc::new(builder.finish(digest));
        let bytes = files.iter().map(|file| file.bytes.len()).sum();
        let report = Report { rank: bound.rank_max, tensors: bound.tensors, bytes, warnings, canary: None };
        Ok(Checked {
            account: upload.account,
            name: upload.name,
            base: base.id.clone(),
            digest,
            report,
            image,
            chat_template,
            files,
        })
    }

    /// The base that the adapter is for: the one asked for, else the one its configuration names, else the one that fits.
    fn bind(
        &self,
        weights: &[u8],
        config: &PeftConfig,
        asked: Option<&str>,
    ) -> Result<(&Base, tensors::Bound, Vec<String>), StoreError> {
        let attempt = |base: &Base| tensors::bind(weights, config, Target { id: &base.id, shape: &base.shape });
        let loaded = || self.bases.iter().map(|base| base.id.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(asked) = asked {
            let base = self.bases.iter().find(|base| base.id == asked);
            let base = base
                .ok_or_else(|| refused(format!("base model {asked:?} is not loaded here; these are: {}.", loaded())))?;
            return Ok((base, attempt(base)?, Vec::new()));
        }
        let named = config.base.as_deref().and_then(|name| self.bases.iter().find(|base| names(name, &base.id)));
        if let Some(base) = named {
            return Ok((base, attempt(base)?, Vec::new()));
        }
        let mut first_refusal = None;
        let mut fitting = Vec::new();
        for base in self.bases.iter() {
            match attempt(base) {
                Ok(bound) => fitting.push((base, bound)),
                Err(refusal) => first_refusal = first_refusal.or(Some(refusal)),
            }
        }
        if fitting.len() > 1 {
            let fit: Vec<&str> = fitting.iter().map(|(base, _)| base.id.as_str()).collect();
            return Err(refused(format!("the adapter fits {}; say which with base.", fit.join(" and "))));
        }
        let Some((base, bound)) = fitting.pop() else {
            return Err(first_refusal.unwrap_or_else(|| refused("no base model is loaded.")));
        };
        let warning =
            config.base.as_ref().map(|name| format!("it names {name:?} as its base; its shapes fit {}", base.id));
        Ok((base, bound, warning.into_iter().collect()))
    }

    /// Makes the image of an upload available before it is published, for its canary.
    pub fn stage(&self, checked: &Checked) {
        self.images().insert(checked.image.clone());
    }

    /// Forgets a staged image.
    pub fn unstage(&self, digest: Digest) {
        self.images().known.remove(&digest);
    }

    /// Stores an upload's files. Repeated for the same adapter, it changes nothing.
    pub(crate) async fn store_files(&self, checked: &Checked) -> Result<(), StoreError> {
        let mut files = BTreeMap::new();
        for file in &checked.files {
            let digest = Digest::of(&file.bytes);
            self.blobs.put(&file_key(digest), file.bytes.clone()).await?;
            files.insert(file.name.clone(), digest);
        }
        self.blobs.put(&image_key(&checked.image), checked.image.to_bytes().into()).await?;
        let manifest = Manifest { base: checked.base.clone(), files, chat_template: checked.chat_template.clone() };
        let manifest = serde_json::to_vec(&manifest).expect("a manifest is plain data");
        Ok(self.blobs.put(&manifest_key(checked.digest), manifest.into()).await?)
    }

    /// Removes an adapter's own blobs. Files are shared between adapters by content and stay.
    pub(crate) async fn remove_files(&self, digest: Digest) -> Result<(), StoreError> {
        self.images().known.remove(&digest);
        self.blobs.delete(&manifest_key(digest)).await?;
        for dtype in [DType::F32, DType::Bf16] {
            self.blobs.delete(&image_key_of(digest, dtype)).await?;
        }
        Ok(())
    }

    async fn manifest(&self, digest: Digest) -> Result<Manifest, StoreError> {
        let bytes = self.blobs.get(&manifest_key(digest)).await?;
        serde_json::from_slice(&bytes).map_err(|e| StoreError::Corrupt(digest, e.to_string()))
    }

    /// The files exactly as they were uploaded.
    pub async fn files(&self, digest: Digest) -> Result<Vec<UploadFile>, StoreError> {
        let mut files = Vec::new();
        for (name, file) in self.manifest(digest).await?.files {
            let bytes: Bytes = self.blobs.get(&file_key(file)).await?;
            if Digest::of(&bytes) != file {
                return Err(StoreError::Corrupt(digest, format!("{name} is not what was uploaded")));
            }
            files.push(UploadFile { name, bytes });
        }
        Ok(files)
    }

    /// An adapter's own chat template.
    pub async fn chat_template(&self, digest: Digest) -> Result<Option<String>, StoreError> {
        Ok(self.manifest(digest).await?.chat_template)
    }

    /// An adapter's image: from memory, else from its blob, else made again from the files.
    pub async fn image(&self, digest: Digest) -> Result<Arc<AdapterImage>, StoreError> {
        if let Some(image) = self.images().get(&digest) {
            return Ok(image);
        }
        let manifest = self.manifest(digest).await?;
        let base = self.bases.iter().find(|base| base.id == manifest.base);
        let base =
            base.ok_or_else(|| StoreError::Corrupt(digest, format!("its base {} is not loaded", manifest.base)))?;
        let image = match self
            .blobs
            .get(&image_key_of(digest, base.dtype))
            .await
            .ok()
            .map(|bytes| AdapterImage::from_bytes(&bytes))
        {
            Some(Ok(image)) if image.digest() == digest && image.shape() == &base.shape => image,
            _ => self.rebuild(digest, base.id.clone()).await?,
        };
        self.images().insert(image.clone());
        Ok(image)
    }

    async fn rebuild(&self, digest: Digest, base: String) -> Result<Arc<AdapterImage>, StoreError> {
        let files = self.files(digest).await?;
        let store = self.clone();
        let name: AdapterName = "rebuilt".parse().expect("a valid name");
        let account: AccountName = "rebuilt".parse().expect("a valid name");
        let upload = Upload { account, name, base: Some(base), files };
        let checked = tokio::task::spawn_blocking(move || store.check(upload)).await;
        let checked = checked.map_err(|e| StoreError::Corrupt(digest, e.to_string()))??;
        if checked.digest != digest {
            return Err(StoreError::Corrupt(digest, "its files are of another adapter".into()));
        }
        self.blobs.put(&image_key(&checked.image), checked.image.to_bytes().into()).await?;
        Ok(checked.image)
    }
}

fn file_key(digest: Digest) -> String {
    format!("files/{digest}")
}

fn manifest_key(digest: Digest) -> String {
    format!("adapters/{digest}.json")
}

fn image_key(image: &AdapterImage) -> String {
    image_key_of(image.digest(), image.dtype())
}

fn image_key_of(digest: Digest, dtype: DType) -> String {
    format!("images/v{}/{digest}.{}", model::image::IMAGE_VERSION, dtype.name())
}

fn find<'a>(files: &'a [UploadFile], name: &str) -> Result<&'a [u8], StoreError> {
    if let Some(file) = files.iter().find(|file| file.name == name) {
        return Ok(&file.bytes);
    }
    let pickle = files.iter().find(|file| file.name.ends_with(".bin") || file.name.ends_with(".pt"));
    if let (WEIGHTS, Some(pickle)) = (name, pickle) {
        return Err(refused(format!(
            "{} is a pickle, which can run code when it is read; save the adapter with save_pretrained(..., safe_serialization=True).",
            pickle.name
        )));
    }
    Err(refused(format!("{name} is missing; an adapter has {CONFIG} and {WEIGHTS}.")))
}

/// Whether what the configuration calls its base is this one: ids, or a path or organisation before the same name.
fn names(named: &str, id: &str) -> bool {
    let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    named == id || last(named) == last(id)
}

/// Tokens beyond the base's vocabulary would need rows of the embedding that are not there.
fn refuse_other_vocabulary(files: &[UploadFile], base: &Base) -> Result<(), StoreError> {
    let Some(file) = files.iter().find(|file| file.name == "added_tokens.json") else { return Ok(()) };
    let tokens: HashMap<String, u64> = serde_json::from_slice(&file.bytes).unwrap_or_default();
    match tokens.iter().find(|(_, id)| **id >= base.shape.vocabulary as u64) {
        Some((token, id)) => Err(refused(format!(
            "added_tokens.json: token {token:?} has id {id}, outside {}'s vocabulary of {}; added tokens are not served yet.",
            base.id, base.shape.vocabulary
        ))),
        None => Ok(()),
    }
}

fn chat_template(files: &[UploadFile]) -> Result<Option<String>, StoreError> {
    let Some(file) = files.iter().find(|file| file.name == "chat_template.jinja") else { return Ok(None) };
    if file.bytes.len() > TEMPLATE_BYTES {
        return Err(StoreError::TooLarge(format!("chat_template.jinja is over {TEMPLATE_BYTES} bytes.")));
    }
    let text = std::str::from_utf8(&file.bytes).map_err(|_| refused("chat_template.jinja is not text."))?;
    Ok(Some(text.to_owned()))
}

/// SHA-256 over the base, every module's path, rank and f32 weights (scale folded in) in order, and the chat template: the
/// same adapter, however its file was written.
fn identity(base: &str, pairs: &BTreeMap<tensors::Module, model::LoraPair>, template: Option<&str>) -> Digest {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(base.as_bytes());
    for ((layer, linear), pair) in pairs {
        part(format!("{layer}.{}.{}", linear.path(), pair.rank).as_bytes());
        for numbers in [&pair.a, &pair.b] {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            part(&bytes);
        }
    }
    part(template.unwrap_or_default().as_bytes());
    Digest::from_bytes(hash.finalize().into())
}
