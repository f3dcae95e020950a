//! A store in a folder, and small adapters for it.

use std::path::{Path, PathBuf};

use adapter_store::{AdapterStore, Base, Checked, StoreError, Upload, UploadFile, Version};
use model::{DType, Linear, ModelConfig, ModelShape};
use platform::testing::noted;
use platform::{AccountName, AdapterName, Blobs, Db};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/fixtures")
}

pub fn read_folder(folder: &Path) -> Vec<UploadFile> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| file(&path.file_name().unwrap().to_string_lossy(), std::fs::read(&path).unwrap());
    entries.filter(|path| path.is_file()).map(read).collect()
}

/// An adapter that peft wrote for [`shape`].
pub fn written_by_peft(kind: &str) -> Vec<UploadFile> {
    read_folder(&fixtures().join("models/llama/adapters").join(kind))
}

pub fn file(name: &str, bytes: impl Into<Vec<u8>>) -> UploadFile {
    UploadFile { name: name.into(), bytes: bytes.into().into() }
}

pub fn account(name: &str) -> AccountName {
    name.parse().unwrap()
}

pub fn name(name: &str) -> AdapterName {
    name.parse().unwrap()
}

pub fn upload(to: &str, files: Vec<UploadFile>) -> Upload {
    Upload { account: account("local"), name: name(to), base: None, files }
}

pub fn shape() -> ModelShape {
    ModelConfig::load(&fixtures().join("models/llama")).unwrap().shape
}

pub fn base(id: &str) -> Base {
    Base { id: id.into(), shape: shape(), dtype: DType::Bf16 }
}

pub async fn open(folder: &Path) -> AdapterStore {
    open_with(folder, vec![base("llama")]).await
}

pub async fn open_with(folder: &Path, bases: Vec<Base>) -> AdapterStore {
    open_at(folder, bases, 1 << 30).await
}

/// A store that keeps as little as it can in memory.
pub async fn open_with_budget(folder: &Path, memory_bytes: usize) -> AdapterStore {
    open_at(folder, vec![base("llama")], memory_bytes).await
}

async fn open_at(folder: &Path, bases: Vec<Base>, memory_bytes: usize) -> AdapterStore {
    let db = Db::open(&format!("sqlite:{}", folder.join("db").display())).await.unwrap();
    for account in ["local", "other"] {
        sqlx::query("INSERT INTO accounts (name, created_ms) VALUES ($1, 0) ON CONFLICT DO NOTHING")
            .bind(account)
            .execute(db.pool())
            .await
            .unwrap();
    }
    let blobs = Blobs::open(&format!("file:{}", folder.join("blobs").display())).await.unwrap();
    AdapterStore::new(db, blobs, bases, memory_bytes)
}

pub async fn push(store: &AdapterStore, to: &str, files: Vec<UploadFile>) -> Version {
    let checked = store.check(upload(to, files)).unwrap();
    store.publish(&checked, None, None, Box::new(noted)).await.unwrap()
}

pub fn blobs(folder: &Path) -> usize {
    fn count(folder: &Path) -> usize {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
    }
    count(&folder.join("blobs"))
}

/// A tensor by its full name.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// An adapter folder: its configuration and its tensors.
#[derive(Clone)]
pub struct Built {
    pub config: Value,
    pub tensors: Vec<Tensor>,
    /// Files beside them.
    pub others: Vec<UploadFile>,
}

pub const RANK: usize = 4;

pub fn module(layer: usize, linear: Linear) -> String {
    format!("base_model.model.model.layers.{layer}.{}", linear.path())
}

impl Built {
    /// q and up of layer 0, all weights `0.01 * seed` apart from each other.
    pub fn good(seed: u32) -> Self {
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "bias": "none",
            "base_model_name_or_path": "llama", "target_modules": ["q_proj", "up_proj"],
        });
        let mut built = Self { config, tensors: Vec::new(), others: Vec::new() };
        for linear in [Linear::Q, Linear::Up] {
            let (outputs, inputs) = shape().linear(linear);
            let module = module(0, linear);
            built.put(&format!("{module}.lora_A.weight"), &[RANK, inputs], seed as f32 * 0.01);
            built.put(&format!("{module}.lora_B.weight"), &[outputs, RANK], seed as f32 * 0.01);
        }
        built
    }

    /// Adds a tensor of one value, or puts it in the place of the one with this name.
    pub fn put(&mut self, name: &str, shape: &[usize], value: f32) {
        let count: usize = shape.iter().product();
        let bytes = value.to_le_bytes().repeat(count);
        self.tensors.retain(|tensor| tensor.name != name);
        self.tensors.push(Tensor { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), bytes });
    }

    pub fn remove(&mut self, part: &str) {
        self.tensors.retain(|tensor| !tensor.name.contains(part));
    }

    pub fn set(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }

    pub fn weights(&self) -> Vec<u8> {
        let views = self
            .tensors
            .iter()
            .map(|tensor| (&tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    pub fn files(&self) -> Vec<UploadFile> {
        let mut files = vec![
            file("adapter_config.json", serde_json::to_vec(&self.config).unwrap()),
            file("adapter_model.safetensors", self.weights()),
        ];
        files.extend(self.others.iter().cloned());
        files
    }

    pub fn check(&self, store: &AdapterStore) -> Result<Checked, StoreError> {
        store.check(upload("x", self.files()))
    }
}
