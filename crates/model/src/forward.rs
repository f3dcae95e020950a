//! The forward pass: a step's rows through every layer, on the CPU.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use tensor::cpu::attention::{self, Cache, Chunk, Heads, Input, Query, Scratch};
use tensor::cpu::lora::{self, Adapters, Update};
use tensor::cpu::prepare::{self, Norm, Positions};
use tensor::cpu::{Buffer, Cpu, Epilogue, LANES, Matrix, NumberBuffer, Numbers, Quantised, Rows, row_stride};
use tensor::{DType, Format, Runs};

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::executor::{Slot, Step};
use crate::image::{AdapterImage, Site};

pub use tensor::cpu::attention::PAGE_TOKENS;

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
        2 * shape.layers * shape.kv_heads * heads(config, 0).page_head() * dtype.bytes()
    }

    pub fn new(config: &ModelConfig, dtype: DType, pages: u32) -> Self {
        let cache = |layer| Cache::new(dtype, pages as usize, heads(config, layer));
        Self { pages, layers: (0..config.shape.layers).map(|layer| (cache(layer), cache(layer))).collect() }
    }

    /// A page's K and V, layer by layer.
    pub fn read(&self, page: u32) -> Vec<u8> {
        let (page, pages) = (page as usize, self.pages as usize);
        let total: usize = self.layers.iter().map(|(k, v)| k.bytes().len() + v.bytes().len()).sum();
        let mut bytes = Vec::with_capacity(total / pages);
        for cache in self.layers.iter().flat_map(|(k, v)| [k, v]) {
            let size = cache.bytes().len() / pages;
            bytes.extend_from_slice(&cache.bytes()[page * size..(page + 1) * size]);
        }
        bytes
    }

    /// Puts back what was read; false where it is of another length.
    pub fn write(&mut self, page: u32, mut bytes: &[u8]) -> bool {
        let pages = self.pages as usize;
        for cache in self.layers.iter_mut().flat_map(|(k, v)| [k, v]) {
            let size = cache.bytes().len() / pages;
            let Some((of_cache, rest)) = bytes.split_at_checked(size) else { return false };
            cache.bytes_mut()[page as usize * size..(page as usize + 1) * size].copy_from_slice(of_cache);
            bytes = rest;
        }
        bytes.is_empty()
    }
}

fn heads(config: &ModelConfig, layer: usize) -> Heads {
    let shape = &config.shape;
    let window = config.windows.get(layer).copied().flatten();
    Heads { heads: shape.heads, kv_heads: shape.kv_heads, head_dim: shape.head_dim, window }
}

/// Reads tensors into packed matrices of one format.
struct Loader {
    checkpoint: Checkpoint,
    format: Format,
}

/// A tensor [outputs, inputs] and the panels of a matrix where its outputs go: the first, and the distance to the next.
struct Part {
    name: String,
    outputs: usize,
    panels: (usize, usize),
}

impl Loader {
    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.checkpoint.take(name, &[length])?.to_f32())
    }

    fn matrix(&self, parts: &[Part], panels: usize, inputs: usize) -> Result<Matrix, ModelError> {
        let mut matrix = Matrix::zeroed(self.format, panels, inputs);
        for part in parts {
            let tensor = self.checkpoint.take(&part.name, &[part.outputs, inputs])?;
            let (first, every) = part.panels;
            match self.format {
                Format::Plain(DType::Bf16) => {
                    matrix.fill(Numbers::Bf16(&tensor.bf16_bits()), first, every);
                }
                Format::Plain(DType::F32) | Format::Int8 => {
                    matrix.fill(Numbers::F32(&tensor.to_f32()), first, every);
                }
            }
        }
        Ok(matrix)
    }

    fn vocabulary(&self, name: &str, config: &ModelConfig) -> Result<Matrix, ModelError> {
        let (outputs, inputs) = (config.shape.vocabulary, config.shape.hidden);
        self.matrix(&[Part { name: name.into(), outputs, panels: (0, 1) }], outputs.div_ceil(LANES), inputs)
    }

    fn linears(&self, config: &ModelConfig, layer: usize, site: Site) -> Result<Matrix, ModelError> {
        let shape = &config.shape;
        let part = |&linear| Part {
            name: format!("model.layers.{layer}.{}.weight", crate::Linear::path(linear)),
            outputs: shape.linear(linear).0,
            panels: site.panels(shape, linear),
        };
        let parts: Vec<Part> = site.linears().iter().map(part).collect();
        self.matrix(&parts, site.width(shape), shape.linear(site.linears()[0]).1)
    }

    /// The biases of a site, where its matrix has the outputs.
    fn biases(
        &self,
        config: &ModelConfig,
        layer: usize,
        site: Site,
        there: bool,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        if !there {
            return Ok(None);
        }
        let mut all = vec![0.0; (site.width(&config.shape) * LANES).next_multiple_of(2 * LANES)];
        for &linear in site.linears() {
            let name = format!("model.layers.{layer}.{}.bias", linear.path());
            let (first, every) = site.panels(&config.shape, linear);
            let values = self.vector(&name, config.shape.linear(linear).0)?;
            for (panel, values) in values.chunks(LANES).enumerate() {
                let at = (first + panel * every) * LANES;
                all[at..at + values.len()].copy_from_slice(values);
            }
        }
        Ok(Some(all))
    }

    fn layer(&self, config: &ModelConfig, layer: usize) -> Result<Layer, ModelError> {
        let shape = &config.shape;
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let head_norm = |loader: &Self, part: &str| match config.qk_norm {
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
    /// Reads and packs a model folder, layers side by side.
    pub fn load(folder: &Path, format: Format, cpu: &Cpu) -> Result<Self, ModelError> {
        let config = ModelConfig::load(folder)?;
        let loader = Loader { checkpoint: Checkpoint::open(folder)?, format };
        let embedding = loader.vocabulary("model.embed_tokens.weight", &config)?;
        let layers: Vec<OnceLock<_>> = (0..config.shape.layers).map(|_| OnceLock::new()).collect();
        cpu.pool.run(layers.len(), &|layer| {
            let _ = layers[layer].set(loader.layer(&config, layer));
        });
        let layers = layers.into_iter().filter_map(OnceLock::into_inner).collect::<Result<_, _>>()?;
        let norm = loader.vector("model.norm.weight", config.shape.hidden)?;
        let head = match config.tie_embeddings {
            true => {
                loader.checkpoint.ignore("lm_head.weight");
                None
            }
            false => Some(loader.vocabulary("lm_head.weight", &config)?),
        };
        loader.checkpoint.finish()?;
        Ok(Self { config, embedding, layers, norm, head })
    }

    /// Leaves the logits of the step's asked rows in `work`, and K and V of all its rows in `pages`.
    pub fn forward(
        &self,
        cpu: &Cpu,
        pages: &mut Pages,
        slots: &[Option<Arc<AdapterImage>>],
        step: &Step,
        work: &mut Work,
    ) {
        let rows = step.tokens.len();
        work.grow(&self.config, rows, step.asks.len());
        self.embedding.gather(cpu, &step.tokens, &mut work.x, work.stride);
        let plan = Plan::new(&self.config, step);
        for (index, layer) in self.layers.iter().enumerate() {
            let adapters = Slots { layer: index, slots, runs: &step.slots };
            self.attention(cpu, layer, (&mut pages.layers[index], &plan, &adapters), work);
            self.mlp(cpu, layer, (&adapters, rows), work);
        }
        let asked = step.asks.len();
        let norm = Norm { weight: &self.norm, eps: self.config.norm_eps };
        let stride = row_stride(self.config.shape.hidden);
        let at = |row: usize| step.asks[row].0 as usize;
        prepare::norm(cpu, norm, (&work.x, work.stride), at, (&mut work.normed, stride, asked));
        let x = Rows { numbers: work.normed.numbers(), rows: asked, stride, quantised: None };
        let y = Epilogue::Store { y: &mut work.logits, stride: self.head().width(), bias: None };
        product(cpu, self.head(), (x, &mut work.quantised), Adapters::NONE, y);
    }

    fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    fn attention(
        &self,
        cpu: &Cpu,
        layer: &Layer,
        (cache, plan, slots): (&mut (Cache, Cache), &Plan<'_>, &Slots<'_>),
        work: &mut Work,
    ) {
        let shape = &self.config.shape;
        let rows = plan.queries.len();
        let norm = |weight| Norm { weight, eps: self.config.norm_eps };
        let stride = row_stride(shape.hidden);
        let x = (&work.x[..], work.stride);
        prepare::norm(cpu, norm(&layer.input_norm), x, |row| row, (&mut work.normed, stride, rows));
        let x = Rows { numbers: work.normed.numbers(), rows, stride, quantised: None };
        let y = Epilogue::Store { y: &mut work.qkv, stride: layer.qkv.width(), bias: layer.qkv_bias.as_deref() };
        slots.product(cpu, Site::Qkv, &layer.qkv, (x, &mut work.shrunk, &mut work.quantised), y);

        let heads = heads(&self.config, slots.layer);
        let (k, v) = (Site::Qkv.panels(shape, crate::Linear::K).0, Site::Qkv.panels(shape, crate::Linear::V).0);
        let positions = Positions {
            heads,
            queries: &plan.queries,
            cos: &plan.cos,
            sin: &plan.sin,
            q_norm: layer.q_norm.as_deref().map(norm),
            k_norm: layer.k_norm.as_deref().map(norm),
            k: k * LANES,
            v: v * LANES,
        };
        let q_stride = row_stride(shape.heads * shape.head_dim);
        cache.1.clear(heads, &plan.chunks);
        let (qkv, q) = ((&mut work.qkv[..], layer.qkv.width()), (&mut work.q, q_stride));
        prepare::positions(cpu, &positions, qkv, q, (&mut cache.0, &mut cache.1));
        let input = Input { q: work.q.numbers(), stride: q_stride, k: &cache.0, v: &cache.1 };
        attention::attend(cpu, heads, &plan.chunks, input, &mut work.attended, &mut work.scratch);

        let x = Rows { numbers: work.attended.numbers(), rows, stride: q_stride, quantised: None };
        let y = Epilogue::Add { y: &mut work.x, stride: work.stride, bias: layer.o_bias.as_deref() };
        slots.product(cpu, Site::O, &layer.o, (x, &mut work.shrunk, &mut work.quantised), y);
    }

    fn mlp(&self, cpu: &Cpu, layer: &Layer, (slots, rows): (&Slots<'_>, usize), work: &mut Work) {
        let norm = Norm { weight: &layer.post_norm, eps: self.config.norm_eps };
        let stride = row_stride(self.config.shape.hidden);
        prepare::norm(cpu, norm, (&work.x, work.stride), |row| row, (&mut work.normed, stride, rows));
        let x = Rows { numbers: work.normed.numbers(), rows, stride, quantised: None };
        let stride = row_stride(self.config.shape.intermediate);
        let y = Epilogue::Gate { y: &mut work.active, stride, bias: layer.gate_up_bias.as_deref() };
        slots.product(cpu, Site::GateUp, &layer.gate_up, (x, &mut work.shrunk, &mut work.quantised), y);
        let x = Rows { numbers: work.active.numbers(), rows, stride, quantised: None };
        let y = Epilogue::Add { y: &mut work.x, stride: work.stride, bias: layer.down_bias.as_deref() };
        slots.product(cpu, Site::Down, &layer.down, (x, &mut work.shrunk, &mut work.quantised), y);
    }
}

/// Buffers of a step, kept from one to the next.
pub struct Work {
    /// The residual stream, [rows, stride] in f32.
    x: Buffer<f32>,
    stride: usize,
    normed: NumberBuffer,
    qkv: Buffer<f32>,
    q: NumberBuffer,
    attended: NumberBuffer,
    active: NumberBuffer,
    shrunk: NumberBuffer,
    quantised: Quantised,
    scratch: Scratch,
    logits: Buffer<f32>,
}

impl Work {
    pub fn new(config: &ModelConfig, activations: DType) -> Self {
        let empty = || NumberBuffer::zeroed(activations, 0);
        Self {
            x: Buffer::default(),
            stride: config.shape.hidden.next_multiple_of(2 * LANES),
            normed: empty(),
            qkv: Buffer::default(),
            q: empty(),
            attended: empty(),
            active: empty(),
            shrunk: empty(),
            quantised: Quantised::default(),
            scratch: Scratch::default(),
            logits: Buffer::default(),
        }
    }

    fn grow(&mut self, config: &ModelConfig, rows: usize, asked: usize) {
        let shape = &config.shape;
        let q_stride = row_stride(shape.heads * shape.head_dim);
        self.x.grow(rows * self.stride);
        self.normed.grow(rows.max(asked) * row_stride(shape.hidden));
        self.qkv.grow(rows * (Site::Qkv.width(shape) * LANES).next_multiple_of(2 * LANES));
        self.q.grow(rows * q_stride);
        self.attended.grow(rows * q_stride);
        self.active.grow(rows * row_stride(shape.intermediate));
        self.logits.grow(asked * shape.vocabulary.next_multiple_of(2 * LANES));
    }

    /// The logits of the last step's asked rows, one after the other.
    pub fn logits(&mut self, vocabulary: usize) -> impl Iterator<Item = &mut [f32]> {
        let stride = vocabulary.next_multiple_of(2 * LANES);
        self.logits.chunks_exact_mut(stride).map(move |row| &mut row[..vocabulary])
    }
}

/// What all layers of a step share.
struct Plan<'a> {
    queries: Vec<Query<'a>>,
    chunks: Vec<Chunk<'a>>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl<'a> Plan<'a> {
    fn new(config: &ModelConfig, step: &'a Step) -> Self {
        let mut queries = Vec::with_capacity(step.tokens.len());
        let mut chunks = Vec::with_capacity(step.sequences.len());
        for (rows, pages) in step.sequences.iter() {
            let position = step.positions[rows.start] as usize;
            chunks.push(Chunk { first: rows.start, rows: rows.len(), pages, position });
            queries.extend(rows.map(|row| Query { pages, position: step.positions[row] as usize }));
        }
        let rope = &config.rope;
        let angles = step.positions.iter().flat_map(|&p| rope.inv_freq.iter().map(move |&f| p as f32 * f));
        let (sin, cos) =
            angles.map(|angle| (angle.sin() * rope.attention_factor, angle.cos() * rope.attention_factor)).unzip();
        Self { queries, chunks, cos, sin }
    }
}

/// The adapters of a step, seen from one layer.
struct Slots<'a> {
    layer: usize,
    slots: &'a [Option<Arc<AdapterImage>>],
    runs: &'a Runs<Slot>,
}

impl<'a> Slots<'a> {
    fn updates(&self, site: Site) -> Vec<Update<'a>> {
        let update = |(rows, slot): (std::ops::Range<usize>, &Slot)| {
            let image = self.slots.get(slot.0 as usize)?.as_ref()?;
            let part = image.site(self.layer, site)?;
            Some(Update { rows, ranks: part.ranks, a: part.a, modules: part.modules })
        };
        self.runs.iter().filter_map(update).collect()
    }

    /// A site's product with what its adapters add.
    fn product(
        &self,
        cpu: &Cpu,
        site: Site,
        matrix: &Matrix,
        (x, shrunk, quantised): (Rows<'_>, &mut NumberBuffer, &mut Quantised),
        epilogue: Epilogue<'_>,
    ) {
        let updates = self.updates(site);
        if updates.is_empty() {
            return product(cpu, matrix, (x, quantised), Adapters::NONE, epilogue);
        }
        let stride = lora::shrink(cpu, &updates, x, matrix.inputs(), shrunk);
        let adapters = Adapters { updates: &updates, shrunk: shrunk.numbers(), stride };
        product(cpu, matrix, (x, quantised), adapters, epilogue);
    }
}

/// A product whose rows are rounded first where the weights have 8 bits.
fn product(
    cpu: &Cpu,
    matrix: &Matrix,
    (x, quantised): (Rows<'_>, &mut Quantised),
    adapters: Adapters<'_>,
    epilogue: Epilogue<'_>,
) {
    if matrix.format() == Format::Int8 {
        quantised.round(cpu, x, matrix.inputs());
    }
    matrix.product(cpu, Rows { quantised: Some(quantised), ..x }, adapters, epilogue);
}
