//! The store, and the checks that an upload passes before anything of it is stored.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use model::{AdapterImage, DType, ImageBuilder, ModelShape};
use platform::{AccountName, AdapterName, Blobs, Db, Digest};
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::choice::{self, Chosen};
use crate::config::PeftConfig;
use crate::error::refused;
use crate::identity::identity;
use crate::images::Images;
use crate::locks::DigestLocks;
use crate::tokenizer;
use crate::upload::{UploadFile, unpack};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
/// Uploads that are checked at the same time: each holds its weights in memory several times over.
const CHECKS_AT_ONCE: usize = 2;

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
    pub(crate) files: Vec<(UploadFile, Digest)>,
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

#[derive(Clone)]
pub struct AdapterStore {
    pub(crate) db: Db,
    pub(crate) blobs: Blobs,
    pub(crate) bases: Arc<[Base]>,
    pub(crate) images: Arc<Mutex<Images>>,
    pub(crate) locks: Arc<DigestLocks>,
    checking: Arc<Gate>,
}

impl AdapterStore {
    /// `memory_bytes` bounds the images that are kept in memory.
    pub fn new(db: Db, blobs: Blobs, bases: Vec<Base>, memory_bytes: usize) -> Self {
        let images = Arc::new(Mutex::new(Images::new(memory_bytes)));
        Self { db, blobs, bases: bases.into(), images, locks: Arc::default(), checking: Arc::default() }
    }

    pub(crate) fn images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs every check on an upload. Takes time in proportion to its size: call it off the runtime's threads.
    pub fn check(&self, upload: Upload) -> Result<Checked, StoreError> {
        let _turn = self.checking.enter();
        let files = unpack(upload.files)?;
        let config = PeftConfig::parse(find(&files, CONFIG)?)?;
        let chosen = choice::choose(&self.bases, upload.base.as_deref(), &config, find(&files, WEIGHTS)?)?;
        let read = Read::new(chosen, &config, &files)?;
        Ok(read.checked(upload.account, upload.name, files))
    }

    /// Reads a stored version's files again. They passed the checks for this base already.
    pub(crate) fn check_again(&self, upload: Upload, base: &Base) -> Result<Checked, StoreError> {
        let _turn = self.checking.enter();
        let config = PeftConfig::parse(find(&upload.files, CONFIG)?)?;
        let plan = choice::plan(base, &config, find(&upload.files, WEIGHTS)?)?;
        let read = Read::new(Chosen { base, plan, warning: None }, &config, &upload.files)?;
        Ok(read.checked(upload.account, upload.name, upload.files))
    }
}

/// What an upload's files say.
struct Read {
    base: String,
    image: AdapterImage,
    report: Report,
    chat_template: Option<String>,
}

impl Read {
    fn new(chosen: Chosen<'_>, config: &PeftConfig, files: &[UploadFile]) -> Result<Self, StoreError> {
        let base = chosen.base;
        tokenizer::refuse_other_vocabulary(files, base)?;
        let chat_template = tokenizer::chat_template(files)?;
        let bound = chosen.plan.read(config)?;
        let digest = identity(&base.id, &bound.pairs, chat_template.as_deref());
        let mut builder = ImageBuilder::new(&base.shape, base.dtype);
        for ((layer, linear), pair) in bound.pairs {
            builder.add(layer, linear, pair).map_err(|e| refused(format!("{e}.")))?;
        }
        let report = Report {
            rank: bound.rank_max,
            tensors: bound.tensors,
            bytes: files.iter().map(|file| file.bytes.len()).sum(),
            warnings: chosen.warning.into_iter().chain(bound.warnings).collect(),
            canary: None,
        };
        Ok(Self { base: base.id.clone(), image: builder.finish(digest), report, chat_template })
    }

    fn checked(self, account: AccountName, name: AdapterName, files: Vec<UploadFile>) -> Checked {
        let Self { base, image, report, chat_template } = self;
        let named = |file: UploadFile| {
            let digest = Digest::of(&file.bytes);
            (file, digest)
        };
        let files = files.into_iter().map(named).collect();
        Checked { account, name, base, digest: image.digest(), report, image: Arc::new(image), chat_template, files }
    }
}

fn find<'a>(files: &'a [UploadFile], name: &str) -> Result<&'a [u8], StoreError> {
    if let Some(file) = files.iter().find(|file| file.name == name) {
        return Ok(&file.bytes);
    }
    let has = |ends: &[&str]| files.iter().find(|file| ends.iter().any(|end| file.name.ends_with(end)));
    let other_kinds: [(&[&str], &str); 3] = [
        (
            &["pytorch_lora_weights.safetensors"],
            "is a LoRA of an image model; adapters of language models are what is served",
        ),
        (&["adapters.safetensors"], "is in MLX's form, which is not served yet; convert it to PEFT's"),
        (
            &[".bin", ".pt", ".pth"],
            "is a pickle, which can run code when it is read; save the adapter with save_pretrained(..., safe_serialization=True)",
        ),
    ];
    for (ends, reason) in other_kinds {
        if let Some(file) = has(ends) {
            return Err(refused(format!("{} {reason}.", file.name)));
        }
    }
    Err(refused(format!("{name} is missing; an adapter has {CONFIG} and {WEIGHTS}.")))
}

/// Lets [`CHECKS_AT_ONCE`] in; the others wait their turn.
#[derive(Default)]
struct Gate {
    inside: Mutex<usize>,
    left: Condvar,
}

struct Turn<'a>(&'a Gate);

impl Gate {
    fn enter(&self) -> Turn<'_> {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |inside: &mut usize| *inside >= CHECKS_AT_ONCE;
        *self.left.wait_while(inside, full).unwrap_or_else(PoisonError::into_inner) += 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.inside.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.left.notify_one();
    }
}
