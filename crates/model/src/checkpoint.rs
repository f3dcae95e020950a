//! Weights in safetensors files: mapped, found by name, and every tensor accounted for.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::config::read_object;
use crate::error::ModelError;

/// Largest shard index, in bytes.
const INDEX_BYTES: u64 = 64 << 20;

/// The tensors of a model folder.
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Mmap>,
    tensors: BTreeMap<String, Entry>,
    /// What was read. Behind a lock, as several threads read.
    taken: Mutex<BTreeSet<String>>,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: std::ops::Range<usize>,
}

/// One tensor, row-major, as it lies in its file.
pub struct TensorView<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

impl Checkpoint {
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut checkpoint =
            Self { folder: folder.to_owned(), shards: Vec::new(), tensors: BTreeMap::new(), taken: Mutex::default() };
        for shard in shard_paths(folder)? {
            checkpoint.add(&shard)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: &Path) -> Result<(), ModelError> {
        let failed = |reason: String| ModelError::File { path: path.to_owned(), reason };
        let file = File::open(path).map_err(|e| failed(e.to_string()))?;
        // SAFETY: a model's files are not changed while they are served; if they are, values change and nothing else.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| failed(e.to_string()))?;
        let parsed = SafeTensors::deserialize(&map).map_err(|e| failed(e.to_string()))?;
        let base = map.as_ptr() as usize;
        let shard = self.shards.len();
        for (name, tensor) in parsed.iter() {
            let start = tensor.data().as_ptr() as usize - base;
            let entry = Entry {
                shard,
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                bytes: start..start + tensor.data().len(),
            };
            if self.tensors.insert(name.to_owned(), entry).is_some() {
                return Err(failed(format!("tensor {name} is in two files")));
            }
        }
        self.shards.push(map);
        Ok(())
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of that name, which must have that shape.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, ModelError> {
        let folder = self.folder.clone();
        let Some(entry) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor { folder, name: name.to_owned() });
        };
        if entry.shape != shape {
            let (found, needed) = (entry.shape.clone(), shape.to_vec());
            return Err(ModelError::TensorShape { folder, name: name.to_owned(), found, needed });
        }
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(ModelError::TensorType { folder, name: name.to_owned(), dtype: format!("{:?}", entry.dtype) });
        }
        self.ignore(name);
        Ok(TensorView { dtype: entry.dtype, bytes: &self.shards[entry.shard][entry.bytes.clone()] })
    }

    /// Marks a tensor that the model does not read, and may be there.
    pub fn ignore(&self, name: &str) {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(name.to_owned());
    }

    /// Whether every tensor was taken: one that belongs nowhere means that this is not the model it seems to be.
    pub fn finish(&self) -> Result<(), ModelError> {
        // Old checkpoints carry the rotary frequencies, which follow from the configuration.
        let harmless = |name: &str| name.ends_with("rotary_emb.inv_freq");
        let taken = self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match self.tensors.keys().find(|name| !taken.contains(*name) && !harmless(name)) {
            Some(name) => Err(ModelError::UnknownTensor { folder: self.folder.clone(), name: name.clone() }),
            None => Ok(()),
        }
    }
}

impl TensorView<'_> {
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => words(self.bytes).map(f32::from_le_bytes).collect(),
            Dtype::F16 => words(self.bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            _ => words(self.bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        }
    }

    /// The bits of bf16, rounded to nearest, ties to even; those of the file where it has them.
    pub fn bf16_bits(&self) -> Cow<'_, [u16]> {
        match (self.dtype, bytemuck::try_cast_slice(self.bytes)) {
            (Dtype::BF16, Ok(bits)) if cfg!(target_endian = "little") => Cow::Borrowed(bits),
            (Dtype::BF16, _) => words(self.bytes).map(u16::from_le_bytes).collect(),
            _ => self.to_f32().into_iter().map(|value| bf16::from_f32(value).to_bits()).collect(),
        }
    }
}

/// Little-endian words of N bytes; safetensors promises no alignment.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

fn shard_paths(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        let pickle = folder.join("pytorch_model.bin").exists() || folder.join("pytorch_model.bin.index.json").exists();
        let reason = if pickle {
            "has only .bin pickles, which can run code when they are read; convert it with save_pretrained(..., safe_serialization=True)"
        } else {
            "has no model.safetensors"
        };
        return Err(ModelError::File { path: folder.to_owned(), reason: reason.into() });
    }
    let failed = |reason: String| ModelError::File { path: index.clone(), reason };
    let object = read_object(&index, INDEX_BYTES)?;
    let map =
        object.get("weight_map").and_then(|map| map.as_object()).ok_or_else(|| failed("has no weight_map".into()))?;
    let mut names = BTreeSet::new();
    for shard in map.values() {
        let name = shard.as_str().ok_or_else(|| failed("weight_map has an entry that is not a file name".into()))?;
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(failed(format!("{name:?} is not the name of a file in the same folder")));
        }
        names.insert(folder.join(name));
    }
    Ok(names.into_iter().collect())
}
