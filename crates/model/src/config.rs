//! `config.json`, as transformers 4 and 5 write it, to the numbers that the forward pass needs.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::rope::Rope;
use crate::shape::ModelShape;

/// Largest `config.json`, in bytes.
const CONFIG_BYTES: u64 = 4 << 20;
/// Largest size of any dimension.
const DIMENSION: u64 = 1 << 24;
/// The architectures that are served, as `config.json` names them.
pub const ARCHITECTURES: [&str; 4] = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"];

/// Everything about a model but its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub shape: ModelShape,
    pub norm_eps: f32,
    pub tie_embeddings: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// RMSNorm over each head of q and k, before the rotation.
    pub qk_norm: bool,
    pub rope: Rope,
    /// Sliding window of each layer, in tokens.
    pub windows: Vec<Option<usize>>,
}

impl ModelConfig {
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        Self::parse(&read_object(&path, CONFIG_BYTES)?).map_err(|error| error.at(&path))
    }

    fn parse(json: &Map<String, Value>) -> Result<Self, ConfigFault> {
        let family = Family::of(json)?;
        let fields = Fields { json };
        match fields.text("hidden_act")?.unwrap_or("silu") {
            "silu" | "swish" => {}
            other => {
                return Err(fields.wrong("hidden_act", format!("{other:?} is not supported; silu is")));
            }
        }
        let hidden = fields.required("hidden_size")?;
        let heads = fields.required("num_attention_heads")?;
        let kv_heads = fields.number("num_key_value_heads")?.unwrap_or(family.kv_heads.unwrap_or(heads));
        let head_dim = fields.number("head_dim")?.or(family.head_dim).unwrap_or(hidden / heads);
        if heads % kv_heads != 0 {
            return Err(fields.wrong("num_key_value_heads", format!("{kv_heads} does not divide {heads} heads")));
        }
        if head_dim % 2 != 0 {
            return Err(fields.wrong("head_dim", format!("{head_dim} is odd")));
        }
        let layers = fields.required("num_hidden_layers")?;
        let shape = ModelShape {
            architecture: family.architecture.to_owned(),
            vocabulary: fields.required("vocab_size")?,
            hidden,
            intermediate: fields.required("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            context: fields.number("max_position_embeddings")?.unwrap_or(family.context),
        };
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        Ok(Self {
            norm_eps: fields.real("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            tie_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: family.qkv_bias.unwrap_or(attention_bias),
            output_bias: family.qkv_bias.is_none() && attention_bias,
            mlp_bias: family.mlp_bias && fields.flag("mlp_bias")?.unwrap_or(false),
            qk_norm: family.qk_norm,
            rope: Rope::parse(&fields, head_dim, shape.context)?,
            windows: windows(&fields, &family, layers)?,
            shape,
        })
    }
}

/// What transformers takes for granted in a family when a key is absent.
struct Family {
    architecture: &'static str,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    context: usize,
    /// `None`: as `attention_bias` says, on o too.
    qkv_bias: Option<bool>,
    mlp_bias: bool,
    qk_norm: bool,
    window: Window,
}

enum Window {
    Never,
    /// All layers, wherever `sliding_window` is set.
    Always,
    /// Where `use_sliding_window` says so, from layer `max_window_layers` on.
    Upper,
}

impl Family {
    fn of(json: &Map<String, Value>) -> Result<Self, ConfigFault> {
        let named = json.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        let named = named.or_else(|| match json.get("model_type").and_then(Value::as_str) {
            Some("llama") => Some("LlamaForCausalLM"),
            Some("mistral") => Some("MistralForCausalLM"),
            Some("qwen2") => Some("Qwen2ForCausalLM"),
            Some("qwen3") => Some("Qwen3ForCausalLM"),
            other => other,
        });
        let llama = Self {
            architecture: ARCHITECTURES[0],
            kv_heads: None,
            head_dim: None,
            context: 2048,
            qkv_bias: None,
            mlp_bias: true,
            qk_norm: false,
            window: Window::Never,
        };
        match named.unwrap_or("none") {
            "LlamaForCausalLM" => Ok(llama),
            "MistralForCausalLM" => Ok(Self {
                architecture: ARCHITECTURES[1],
                kv_heads: Some(8),
                context: 4096 * 32,
                qkv_bias: Some(false),
                mlp_bias: false,
                window: Window::Always,
                ..llama
            }),
            "Qwen2ForCausalLM" => Ok(Self {
                architecture: ARCHITECTURES[2],
                kv_heads: Some(32),
                context: 32768,
                qkv_bias: Some(true),
                mlp_bias: false,
                window: Window::Upper,
                ..llama
            }),
            "Qwen3ForCausalLM" => Ok(Self {
                architecture: ARCHITECTURES[3],
                kv_heads: Some(32),
                head_dim: Some(128),
                context: 32768,
                mlp_bias: false,
                qk_norm: true,
                window: Window::Upper,
                ..llama
            }),
            other => Err(ConfigFault::Architecture(other.chars().take(80).collect())),
        }
    }
}

fn windows(fields: &Fields<'_>, family: &Family, layers: usize) -> Result<Vec<Option<usize>>, ConfigFault> {
    let window = match family.window {
        Window::Never => None,
        // Absent, transformers assumes 4096; null is off.
        Window::Always if !fields.json.contains_key("sliding_window") => Some(4096),
        Window::Upper if !fields.flag("use_sliding_window")?.unwrap_or(false) => None,
        Window::Upper if !fields.json.contains_key("sliding_window") => Some(4096),
        _ => fields.number("sliding_window")?,
    };
    if let Some(types) = fields.json.get("layer_types").and_then(Value::as_array) {
        if types.len() != layers {
            return Err(fields.wrong("layer_types", format!("has {} entries for {layers} layers", types.len())));
        }
        let one = |kind: &Value| match (kind.as_str(), window) {
            (Some("full_attention"), _) => Ok(None),
            (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
            _ => Err(fields.wrong("layer_types", format!("{kind} is not supported here"))),
        };
        return types.iter().map(one).collect();
    }
    let first = match family.window {
        Window::Upper => fields.number("max_window_layers")?.unwrap_or(28),
        _ => 0,
    };
    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
}

/// Typed access to the keys, with the bounds that an untrusted file needs.
pub(crate) struct Fields<'a> {
    pub json: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub fn wrong(&self, key: &str, reason: impl Into<String>) -> ConfigFault {
        ConfigFault::Key { key: key.to_owned(), reason: reason.into() }
    }

    pub fn number(&self, key: &str) -> Result<Option<usize>, ConfigFault> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(number) if (1..=DIMENSION).contains(&number) => Ok(Some(number as usize)),
            Some(0) if key == "max_window_layers" => Ok(Some(0)),
            _ => Err(self.wrong(key, format!("{value} is not a whole number from 1 to {DIMENSION}"))),
        }
    }

    fn required(&self, key: &str) -> Result<usize, ConfigFault> {
        self.number(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    pub fn real(&self, key: &str) -> Result<Option<f64>, ConfigFault> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let real = value.as_f64().filter(|real| real.is_finite());
        real.map(Some).ok_or_else(|| self.wrong(key, format!("{value} is not a number")))
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, ConfigFault> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, format!("{value} is not true or false")))
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, ConfigFault> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, format!("{value} is not a string")))
    }
}

/// What is wrong with a `config.json`, before it is known which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConfigFault {
    Architecture(String),
    Key { key: String, reason: String },
}

impl ConfigFault {
    fn at(self, path: &Path) -> ModelError {
        let path: PathBuf = path.to_owned();
        match self {
            Self::Architecture(name) => ModelError::Architecture { path, name, supported: ARCHITECTURES.join(", ") },
            Self::Key { key, reason } => ModelError::Config { path, key, reason },
        }
    }
}

/// A JSON object from a file of bounded size.
pub(crate) fn read_object(path: &Path, limit: u64) -> Result<Map<String, Value>, ModelError> {
    let unreadable = |reason: String| ModelError::File { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?.len();
    if size > limit {
        return Err(unreadable(format!("is over {limit} bytes")));
    }
    let text = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    match serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))? {
        Value::Object(object) => Ok(object),
        _ => Err(unreadable("is not a JSON object".into())),
    }
}
