//! A model of the 135M Llama shape with random weights, and random adapters for it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use model::{AdapterImage, DType, ImageBuilder, Linear, LoraPair, ModelShape};
use platform::Digest;
use serde_json::json;

pub const VOCABULARY: usize = 49_152;
const HIDDEN: usize = 576;
const INNER: usize = 1_536;
const LAYERS: usize = 30;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;

/// Numbers from a seed, in [-1, 1).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// The folder of the model, written where it is not there yet.
pub fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("llama-135m");
    if !folder.join("model.safetensors").exists() {
        write(&folder).expect("the model is written");
    }
    folder
}

fn write(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY, "max_position_embeddings": 32_768, "rope_theta": 100_000.0, "tie_word_embeddings": true,
        "rms_norm_eps": 1e-5,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let mut tensors: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    tensors.insert("model.embed_tokens.weight".into(), (VOCABULARY, HIDDEN));
    tensors.insert("model.norm.weight".into(), (HIDDEN, 0));
    for layer in 0..LAYERS {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.insert(format!("model.layers.{layer}.{norm}.weight"), (HIDDEN, 0));
        }
        for linear in Linear::ALL {
            tensors.insert(format!("model.layers.{layer}.{}.weight", linear.path()), shape().linear(linear));
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, &(outputs, inputs)) in &tensors {
        let start = end;
        end += outputs * inputs.max(1) * 2;
        let dims = if inputs == 0 { vec![outputs] } else { vec![outputs, inputs] };
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": dims, "data_offsets": [start, end] }));
    }
    let header = serde_json::to_vec(&header)?;
    let partial = folder.join("model.partial");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&partial)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut numbers = Numbers(1);
    for &(outputs, inputs) in tensors.values() {
        for _ in 0..outputs * inputs.max(1) {
            let value = if inputs == 0 { 1.0 } else { numbers.next() * 0.04 };
            file.write_all(&bf16::from_f32(value).to_le_bytes())?;
        }
    }
    file.into_inner()?.sync_all()?;
    std::fs::rename(partial, folder.join("model.safetensors"))
}

pub fn shape() -> ModelShape {
    ModelShape {
        architecture: "LlamaForCausalLM".into(),
        vocabulary: VOCABULARY,
        hidden: HIDDEN,
        intermediate: INNER,
        layers: LAYERS,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        context: 32_768,
    }
}

/// An adapter on all linears.
pub fn adapter(number: u64, rank: usize, dtype: DType) -> Arc<AdapterImage> {
    let shape = shape();
    let mut builder = ImageBuilder::new(&shape, dtype);
    let mut numbers = Numbers(number + 100);
    for layer in 0..shape.layers {
        for linear in Linear::ALL {
            let (outputs, inputs) = shape.linear(linear);
            let a = (0..rank * inputs).map(|_| numbers.next() * 0.04).collect();
            let b = (0..rank * outputs).map(|_| numbers.next() * 0.04).collect();
            builder.add(layer, linear, LoraPair { rank, a, b }).expect("the shape fits");
        }
    }
    Arc::new(builder.finish(Digest::of(&number.to_le_bytes())))
}
