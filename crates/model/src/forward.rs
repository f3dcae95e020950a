//! The forward pass: a step's rows through every layer, on the CPU.

use std::path::Path;
use std::sync::Arc;

use tensor::cpu::attention::{self, Cache, Heads, Input, Query};
use tensor::cpu::lora::{self, Update};
use tensor::cpu::{Cpu, Matrix, Output, norm};
use tensor::{DType, Runs};

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::executor::{Slot, Step};
use crate::image::{AdapterImage, Site};

/// Positions per KV page.
pub const PAGE_TOKENS: usize = 16;

struct Layer {
    input_norm: Vec<f32>,
    post_norm: Vec<f32>,
    qkv: Matrix,
    qkv_bias: Option<Vec<f32>>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    o: Matrix,
    o_bias: Option<Vec<f32>>,
    gate_up: Matrix,
    gate_up_bias: Option<Vec<f32>>,
    down: Matrix,
    down_bias: Option<Vec<f32>>,
}

/// A model's weights, packed.
pub struct Weights {
    pub config: ModelConfig,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Option<Matrix>,
}

/// K and V of every layer.
pub struct Pages {
    pub pages: u32,
    layers: Vec<(Cache, Cache)>,
}

impl Pages {
    pub fn bytes_per_page(config: &ModelConfig, dtype: DType) -> usize {
        let shape = &config.shape;
        2 * shape.layers * shape.kv_heads * shape.head_dim * PAGE_TOKENS * dtype.bytes()
    }

    pub fn new(config: &ModelConfig, dtype: DType, pages: u32) -> Self {
        let shape = &config.shape;
        let length = pages as usize * shape.kv_heads * shape.head_dim * PAGE_TOKENS;
        let cache = || match dtype {
            DType::F32 => Cache::F32(vec![0.0; length]),
            DType::Bf16 => Cache::Bf16(vec![0; length]),
        };
        Self { pages, layers: (0..shape.layers).map(|_| (cache(), cache())).collect() }
    }
}

/// Reads tensors into packed matrices of one dtype.
struct Loader {
    checkpoint: Checkpoint,
    dtype: DType,
}

impl Loader {
    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.checkpoint.take(name, &[length])?.to_f32())
    }

    /// The named weights [outputs, inputs], one under the other.
    fn matrix(&mut self, parts: &[(String, usize)], inputs: usize) -> Result<Matrix, ModelError> {
        let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
        match self.dtype {
            DType::F32 => {
                let mut all = Vec::with_capacity(outputs * inputs);
                for (name, outputs) in parts {
                    all.extend(self.checkpoint.take(name, &[*outputs, inputs])?.to_f32());
                }
                Ok(Matrix::pack_f32(&all, outputs, inputs))
            }
            DType::Bf16 => {
                let mut all = Vec::with_capacity(outputs * inputs);
                for (name, outputs) in parts {
                    all.extend(self.checkpoint.take(name, &[*outputs, inputs])?.to_bf16());
                }
                Ok(Matrix::pack_bf16(&all, outputs, inputs))
            }
        }
    }

    fn linears(&mut self, config: &ModelConfig, layer: usize, site: Site) -> Result<Matrix, ModelError> {
        let inputs = config.shape.linear(site.linears()[0]).1;
        let parts: Vec<(String, usize)> = (site.linears().iter())
            .map(|&linear| (format!("model.layers.{layer}.{}.weight", linear.path()), config.shape.linear(linear).0))
            .collect();
        self.matrix(&parts, inputs)
    }

    fn biases(
        &mut self,
        config: &ModelConfig,
        layer: usize,
        site: Site,
        there: bool,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        if !there {
            return Ok(None);
        }
        let mut all = Vec::new();
        for &linear in site.linears() {
            let name = format!("model.layers.{layer}.{}.bias", linear.path());
            all.extend(self.vector(&name, config.shape.linear(linear).0)?);
        }
        Ok(Some(all))
    }

    fn layer(&mut self, config: &ModelConfig, layer: usize) -> Result<Layer, ModelError> {
        let shape = &config.shape;
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let head_norm = |loader: &mut Self, part: &str| match config.qk_norm {
            true => loader.vector(&name(part), shape.head_dim).map(Some),
            false => Ok(None),
        };
        Ok(Layer {
            input_norm: self.vector(&name("input_layernorm"), shape.hidden)?,
            post_norm: self.vector(&name("post_attention_layernorm"), shape.hidden)?,
            q_norm: head_norm(self, "self_attn.q_norm")?,
            k_norm: head_norm(self, "self_attn.k_norm")?,
            qkv: self.linears(config, layer, Site::Qkv)?,
            qkv_bias: self.biases(config, layer, Site::Qkv, config.qkv_bias)?,
            o: self.linears(config, layer, Site::O)?,
            o_bias: self.biases(config, layer, Site::O, config.output_bias)?,
            gate_up: self.linears(config, layer, Site::GateUp)?,
            gate_up_bias: self.biases(config, layer, Site::GateUp, config.mlp_bias)?,
            down: self.linears(config, layer, Site::Down)?,
            down_bias: self.biases(config, layer, Site::Down, config.mlp_bias)?,
        })
    }
}

impl Weights {
    pub fn load(folder: &Path, dtype: DType) -> Result<Self, ModelError> {
        let config = ModelConfig::load(folder)?;
        let mut loader = Loader { checkpoint: Checkpoint::open(folder)?, dtype };
        let (vocabulary, hidden) = (config.shape.vocabulary, config.shape.hidden);
        let embedding = loader.matrix(&[("model.embed_tokens.weight".into(), vocabulary)], hidden)?;
        let layers = (0..config.shape.layers).map(|layer| loader.layer(&config, layer)).collect::<Result<_, _>>()?;
        let norm = loader.vector("model.norm.weight", hidden)?;
        let head = match config.tie_embeddings {
            true => {
                loader.checkpoint.ignore("lm_head.weight");
                None
            }
            false => Some(loader.matrix(&[("lm_head.weight".into(), vocabulary)], hidden)?),
        };
        loader.checkpoint.finish()?;
        Ok(Self { config, embedding, layers, norm, head })
    }

    /// Logits [asks, vocabulary] of the step's asked rows; stores K and V of all its rows.
    pub fn forward(&self, cpu: &Cpu, pages: &mut Pages, slots: &[Option<Arc<AdapterImage>>], step: &Step) -> Vec<f32> {
        let shape = &self.config.shape;
        let rows = step.tokens.len();
        let mut x = vec![0.0; rows * shape.hidden];
        for (row, &token) in x.chunks_exact_mut(shape.hidden).zip(&step.tokens) {
            self.embedding.row(token as usize, row);
        }
        let plan = Plan::new(&self.config, step);
        let mut work = Work::new(&self.config, rows);
        for (index, layer) in self.layers.iter().enumerate() {
            let adapters = Adapters { layer: index, slots, runs: &step.slots };
            self.attention(cpu, layer, (&mut pages.layers[index], &plan, &adapters), &mut x, &mut work);
            self.mlp(cpu, layer, &adapters, &mut x, &mut work);
        }
        let asked = step.asks.len();
        let mut last = vec![0.0; asked * shape.hidden];
        for (y, (row, _)) in last.chunks_exact_mut(shape.hidden).zip(&step.asks) {
            let at = *row as usize * shape.hidden;
            norm::rms(&x[at..at + shape.hidden], &self.norm, self.config.norm_eps, y);
        }
        let mut logits = vec![0.0; asked * shape.vocabulary];
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        head.product(cpu, &last, asked, Output { y: &mut logits, stride: shape.vocabulary, bias: None });
        logits
    }

    fn attention(
        &self,
        cpu: &Cpu,
        layer: &Layer,
        (cache, plan, adapters): (&mut (Cache, Cache), &Plan<'_>, &Adapters<'_>),
        x: &mut [f32],
        work: &mut Work,
    ) {
        let shape = &self.config.shape;
        let (hidden, rows) = (shape.hidden, plan.queries.len());
        let (q_width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let stride = q_width + 2 * kv_width;
        norm_rows(x, &layer.input_norm, self.config.norm_eps, &mut work.normed);
        let output = Output { y: &mut work.qkv, stride, bias: layer.qkv_bias.as_deref() };
        layer.qkv.product(cpu, &work.normed, rows, output);
        lora::apply(cpu, &adapters.updates(Site::Qkv), &work.normed, hidden, &mut work.qkv, stride);
        for (row, qkv) in work.qkv.chunks_exact_mut(stride).enumerate() {
            let (q, rest) = qkv.split_at_mut(q_width);
            let (k, v) = rest.split_at_mut(kv_width);
            let (cos, sin) = plan.rotation(row);
            for (heads, weight) in [(q, &layer.q_norm), (&mut *k, &layer.k_norm)] {
                for head in heads.chunks_exact_mut(shape.head_dim) {
                    if let Some(weight) = weight {
                        norm::rms_in_place(head, weight, self.config.norm_eps);
                    }
                    norm::rotate(head, cos, sin);
                }
            }
            let query = &plan.queries[row];
            let page = query.pages[query.position / PAGE_TOKENS] as usize;
            let place = query.position % PAGE_TOKENS;
            for head in 0..shape.kv_heads {
                let at = ((page * shape.kv_heads + head) * PAGE_TOKENS + place) * shape.head_dim;
                let part = head * shape.head_dim..(head + 1) * shape.head_dim;
                cache.0.store(at, &k[part.clone()]);
                cache.1.store(at, &v[part]);
            }
        }
        let heads = Heads {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            page_tokens: PAGE_TOKENS,
            window: self.config.windows[adapters.layer],
        };
        let input = Input { q: &work.qkv, stride, k: &cache.0, v: &cache.1 };
        attention::attend(cpu, heads, &plan.queries, input, &mut work.attended);
        let output = Output { y: &mut work.out, stride: hidden, bias: layer.o_bias.as_deref() };
        layer.o.product(cpu, &work.attended, rows, output);
        lora::apply(cpu, &adapters.updates(Site::O), &work.attended, q_width, &mut work.out, hidden);
        add(x, &work.out);
    }

    fn mlp(&self, cpu: &Cpu, layer: &Layer, adapters: &Adapters<'_>, x: &mut [f32], work: &mut Work) {
        let (hidden, inner) = (self.config.shape.hidden, self.config.shape.intermediate);
        let rows = x.len() / hidden;
        norm_rows(x, &layer.post_norm, self.config.norm_eps, &mut work.normed);
        let output = Output { y: &mut work.gate_up, stride: 2 * inner, bias: layer.gate_up_bias.as_deref() };
        layer.gate_up.product(cpu, &work.normed, rows, output);
        lora::apply(cpu, &adapters.updates(Site::GateUp), &work.normed, hidden, &mut work.gate_up, 2 * inner);
        for (gate_up, active) in work.gate_up.chunks_exact(2 * inner).zip(work.active.chunks_exact_mut(inner)) {
            active.copy_from_slice(&gate_up[..inner]);
            norm::silu_times(active, &gate_up[inner..]);
        }
        let output = Output { y: &mut work.out, stride: hidden, bias: layer.down_bias.as_deref() };
        layer.down.product(cpu, &work.active, rows, output);
        lora::apply(cpu, &adapters.updates(Site::Down), &work.active, inner, &mut work.out, hidden);
        add(x, &work.out);
    }
}

fn norm_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
        norm::rms(x, weight, eps, y);
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Buffers of one step.
struct Work {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    out: Vec<f32>,
    gate_up: Vec<f32>,
    active: Vec<f32>,
}

impl Work {
    fn new(config: &ModelConfig, rows: usize) -> Self {
        let shape = &config.shape;
        let q_width = shape.heads * shape.head_dim;
        Self {
            normed: vec![0.0; rows * shape.hidden],
            qkv: vec![0.0; rows * (q_width + 2 * shape.kv_heads * shape.head_dim)],
            attended: vec![0.0; rows * q_width],
            out: vec![0.0; rows * shape.hidden],
            gate_up: vec![0.0; rows * 2 * shape.intermediate],
            active: vec![0.0; rows * shape.intermediate],
        }
    }
}

/// What all layers of a step share.
struct Plan<'a> {
    queries: Vec<Query<'a>>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl<'a> Plan<'a> {
    fn new(config: &ModelConfig, step: &'a Step) -> Self {
        let mut queries = Vec::with_capacity(step.tokens.len());
        for (rows, pages) in step.sequences.iter() {
            queries.extend(rows.map(|row| Query { pages, position: step.positions[row] as usize }));
        }
        let rope = &config.rope;
        let angles = step.positions.iter().flat_map(|&p| rope.inv_freq.iter().map(move |&f| p as f32 * f));
        let (sin, cos) =
            angles.map(|angle| (angle.sin() * rope.attention_factor, angle.cos() * rope.attention_factor)).unzip();
        Self { queries, cos, sin }
    }

    fn rotation(&self, row: usize) -> (&[f32], &[f32]) {
        let half = self.cos.len() / self.queries.len();
        (&self.cos[row * half..(row + 1) * half], &self.sin[row * half..(row + 1) * half])
    }
}

/// The adapters of a step, seen from one layer.
struct Adapters<'a> {
    layer: usize,
    slots: &'a [Option<Arc<AdapterImage>>],
    runs: &'a Runs<Slot>,
}

impl<'a> Adapters<'a> {
    fn updates(&self, site: Site) -> Vec<Update<'a>> {
        let update = |(rows, slot): (std::ops::Range<usize>, &Slot)| {
            let image = self.slots.get(slot.0 as usize)?.as_ref()?;
            let part = image.site(self.layer, site)?;
            Some(Update { rows, ranks: part.ranks, a: part.a, expand: part.expand })
        };
        self.runs.iter().filter_map(update).collect()
    }
}
