//! The numbers that define a model's tensors.

use serde::{Deserialize, Serialize};

/// The linears of a layer that an adapter can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Linear {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Linear {
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's path within a layer, as Hugging Face names it.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// What the outside needs to know of a model's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    /// As in `config.json`, for instance `LlamaForCausalLM`.
    pub architecture: String,
    pub vocabulary: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Longest sequence, prompt and answer together, in tokens.
    pub context: usize,
}

impl ModelShape {
    /// Weights of one layer's linears.
    pub fn layer_weights(&self) -> usize {
        Linear::ALL.iter().map(|&linear| self.linear(linear)).map(|(outputs, inputs)| outputs * inputs).sum()
    }

    /// Weights of all linears, that of the logits included.
    pub fn weights(&self) -> usize {
        self.layers * self.layer_weights() + self.vocabulary * self.hidden
    }

    /// (outputs, inputs) of a linear's weight.
    pub const fn linear(&self, linear: Linear) -> (usize, usize) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match linear {
            Linear::Q => (q, self.hidden),
            Linear::K | Linear::V => (kv, self.hidden),
            Linear::O => (self.hidden, q),
            Linear::Gate | Linear::Up => (self.intermediate, self.hidden),
            Linear::Down => (self.hidden, self.intermediate),
        }
    }
}
