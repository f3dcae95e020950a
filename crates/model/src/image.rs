//! The adapter image: an adapter's weights as the device reads them, made once at ingest.
//!
//! Layout: a JSON header, then one buffer of numbers. A of the modules that read the same input lie side by side, in panels of 16
//! ranks, the last one as wide as what is left; B of each module is in panels of 16 outputs, with the scale folded in
//! (`tensor::cpu::lora` says how). Every block starts at a multiple of 128 bytes. Ranks are exact, bf16 ones rounded up to even: what
//! an adapter does not have takes no space.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use platform::Digest;
use serde::{Deserialize, Serialize};
use tensor::DType;
use tensor::cpu::lora::{MODULES, Module as Update};
use tensor::cpu::{LANES, NumberBuffer, Numbers};

use crate::shape::{Linear, ModelShape};

/// Changes with the layout: an image of another version is made again from the adapter's files.
pub const IMAGE_VERSION: u32 = 2;
const MAGIC: &[u8; 8] = b"MYRIADLA";
const ALIGNMENT: usize = 128;
/// Largest header, in bytes.
const HEADER_BYTES: usize = 64 << 20;

/// The linears that read the same input: one shrink serves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    Qkv,
    O,
    GateUp,
    Down,
}

impl Site {
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    pub const fn linears(self) -> &'static [Linear] {
        match self {
            Self::Qkv => &[Linear::Q, Linear::K, Linear::V],
            Self::O => &[Linear::O],
            Self::GateUp => &[Linear::Gate, Linear::Up],
            Self::Down => &[Linear::Down],
        }
    }

    /// Where a linear's outputs are in the site's: its first panel of 16, and the distance to the next. Those of q, k and v follow
    /// each other; gate and up take turns, so that a product has both at hand.
    pub fn panels(self, shape: &ModelShape, linear: Linear) -> (usize, usize) {
        match self {
            Self::GateUp => (usize::from(linear == Linear::Up), 2),
            _ => {
                let before = self.linears().iter().take_while(|&&other| other != linear);
                (before.map(|&other| shape.linear(other).0.div_ceil(LANES)).sum(), 1)
            }
        }
    }

    /// Panels of all the site's linears.
    pub fn width(self, shape: &ModelShape) -> usize {
        self.linears().iter().map(|&linear| shape.linear(linear).0.div_ceil(LANES)).sum()
    }
}

/// One module's low-rank update: y += B (A x), scale already folded into `b`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    pub rank: usize,
    /// [rank, inputs], row-major.
    pub a: Vec<f32>,
    /// [outputs, rank], row-major.
    pub b: Vec<f32>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("layers.{layer}.{}: A or B has the wrong length for rank {rank}", linear.path())]
    Shape { layer: usize, linear: Linear, rank: usize },
    #[error("layers.{layer}.{}: the model has {layers} layers", linear.path())]
    Layer { layer: usize, linear: Linear, layers: usize },
    #[error("adapter image: {0}")]
    Format(String),
}

pub struct ImageBuilder {
    shape: ModelShape,
    dtype: DType,
    pairs: BTreeMap<(usize, Linear), LoraPair>,
}

impl ImageBuilder {
    pub fn new(shape: &ModelShape, dtype: DType) -> Self {
        Self { shape: shape.clone(), dtype, pairs: BTreeMap::new() }
    }

    /// Adds one module. Modules that are never added contribute nothing and take no space.
    pub fn add(&mut self, layer: usize, linear: Linear, pair: LoraPair) -> Result<(), ImageError> {
        let layers = self.shape.layers;
        if layer >= layers {
            return Err(ImageError::Layer { layer, linear, layers });
        }
        let (outputs, inputs) = self.shape.linear(linear);
        let rank = pair.rank;
        if rank == 0 || pair.a.len() != rank * inputs || pair.b.len() != rank * outputs {
            return Err(ImageError::Shape { layer, linear, rank });
        }
        self.pairs.insert((layer, linear), pair);
        Ok(())
    }

    pub fn finish(self, digest: Digest) -> AdapterImage {
        let mut data = Data { dtype: self.dtype, bytes: Vec::new() };
        let mut sites = Vec::new();
        for layer in 0..self.shape.layers {
            for site in Site::ALL {
                let members: Vec<(Linear, &LoraPair)> = (site.linears().iter())
                    .filter_map(|&linear| self.pairs.get(&(layer, linear)).map(|pair| (linear, pair)))
                    .collect();
                sites.push((!members.is_empty()).then(|| place(&self.shape, &mut data, &members)));
            }
        }
        let header = Header { version: IMAGE_VERSION, digest, dtype: self.dtype, shape: self.shape, sites };
        AdapterImage::new(header, &data.bytes)
    }
}

/// Lays one site's modules down and says where they are.
fn place(shape: &ModelShape, data: &mut Data, members: &[(Linear, &LoraPair)]) -> SiteEntry {
    let step = data.dtype.inputs_per_step();
    let padded = |pair: &LoraPair| pair.rank.next_multiple_of(step);
    let ranks = members.iter().map(|(_, pair)| padded(pair)).sum();
    let a = data.push(&pack_a(members, shape.linear(members[0].0).1, ranks, step));
    let mut first = 0;
    let modules = members.iter().map(|&(linear, pair)| {
        let rank = padded(pair);
        first += rank;
        Module { linear, first: first - rank, rank, b: data.push(&pack_b(pair, rank, step)) }
    });
    SiteEntry { ranks, a, modules: modules.collect() }
}

/// [ranks / 16][inputs / step][16, or what is left][step]
fn pack_a(members: &[(Linear, &LoraPair)], inputs: usize, ranks: usize, step: usize) -> Vec<f32> {
    let steps = inputs.div_ceil(step);
    let mut a = vec![0.0; steps * step * ranks];
    let mut first = 0;
    for (_, pair) in members {
        for (rank, row) in pair.a.chunks_exact(inputs).enumerate() {
            let (panel, lane) = ((first + rank) / LANES, (first + rank) % LANES);
            let width = LANES.min(ranks - panel * LANES);
            for (input, &value) in row.iter().enumerate() {
                a[panel * LANES * steps * step + (input / step * width + lane) * step + input % step] = value;
            }
        }
        first += pair.rank.next_multiple_of(step);
    }
    a
}

/// [outputs / 16][rank / step][16][step]
fn pack_b(pair: &LoraPair, rank: usize, step: usize) -> Vec<f32> {
    let outputs = pair.b.len() / pair.rank;
    let mut b = vec![0.0; outputs.next_multiple_of(LANES) * rank];
    for (output, row) in pair.b.chunks_exact(pair.rank).enumerate() {
        for (r, &value) in row.iter().enumerate() {
            b[output / LANES * LANES * rank + (r / step * LANES + output % LANES) * step + r % step] = value;
        }
    }
    b
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Header {
    version: u32,
    digest: Digest,
    dtype: DType,
    shape: ModelShape,
    /// `layer * 4 + site`.
    sites: Vec<Option<SiteEntry>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SiteEntry {
    ranks: usize,
    a: Range<usize>,
    modules: Vec<Module>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Module {
    linear: Linear,
    /// Its first rank among the site's.
    first: usize,
    rank: usize,
    b: Range<usize>,
}

/// Numbers as they are laid down.
struct Data {
    dtype: DType,
    /// Of the type, little endian.
    bytes: Vec<u8>,
}

impl Data {
    fn push(&mut self, values: &[f32]) -> Range<usize> {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let start = self.bytes.len() / self.dtype.bytes();
        match self.dtype {
            DType::F32 => self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            DType::Bf16 => self.bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
        }
        start..start + values.len()
    }
}

/// Immutable; shared by `Arc` between the store and the engine. On the CPU a slot points right at it.
#[derive(Debug, PartialEq)]
pub struct AdapterImage {
    header: Header,
    /// The numbers, and room for a vector behind them.
    data: NumberBuffer,
    bytes: usize,
}

/// An adapter's part in one site of one layer.
#[derive(Debug)]
pub struct SiteUpdate<'a> {
    pub ranks: usize,
    pub a: Numbers<'a>,
    pub modules: [Option<Update<'a>>; MODULES],
}

impl AdapterImage {
    fn new(header: Header, bytes: &[u8]) -> Self {
        let count = bytes.len() / header.dtype.bytes() + LANES * header.dtype.inputs_per_step();
        let mut data = NumberBuffer::zeroed(header.dtype, count);
        data.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        Self { header, data, bytes: bytes.len() }
    }

    /// The adapter's identity, as the engine and the prefix cache know it.
    pub fn digest(&self) -> Digest {
        self.header.digest
    }

    pub fn dtype(&self) -> DType {
        self.header.dtype
    }

    pub fn shape(&self) -> &ModelShape {
        &self.header.shape
    }

    /// Size of the numbers, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the adapter adds at a site; `None` where it adds nothing.
    pub fn site(&self, layer: usize, site: Site) -> Option<SiteUpdate<'_>> {
        let entry = self.header.sites.get(layer * Site::ALL.len() + site as usize)?.as_ref()?;
        let numbers = self.data.numbers();
        let mut modules = [None; MODULES];
        for (place, module) in modules.iter_mut().zip(&entry.modules) {
            let (panel, every) = site.panels(&self.header.shape, module.linear);
            let (first, ranks) = (module.first, module.rank);
            let b = numbers.slice(module.b.clone());
            *place = Some(Update { first, ranks, b, panel, doubled: every.ilog2() });
        }
        // A vector may be read behind the last rank.
        let a = entry.a.start..entry.a.end + LANES * self.header.dtype.inputs_per_step();
        Some(SiteUpdate { ranks: entry.ranks, a: numbers.slice(a), modules })
    }

    /// Magic, header length (u64, little endian), header as JSON, numbers (little endian).
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.header).expect("a header is plain data");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&self.data.bytes()[..self.bytes]);
        bytes
    }

    /// Checks every offset and length against the buffer before anything is read through them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Arc<Self>, ImageError> {
        let wrong = |reason: &str| ImageError::Format(reason.to_owned());
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("does not begin like one"))?;
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| wrong("is cut off"))?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|&n| n <= HEADER_BYTES.min(rest.len()));
        let (header, numbers) = rest.split_at(length.ok_or_else(|| wrong("its header is longer than it"))?);
        let header: Header = serde_json::from_slice(header).map_err(|e| ImageError::Format(e.to_string()))?;
        if header.version != IMAGE_VERSION {
            return Err(wrong("is of another version"));
        }
        if numbers.len() % header.dtype.bytes() != 0 {
            return Err(wrong("is cut off"));
        }
        header.check(numbers.len() / header.dtype.bytes())?;
        Ok(Arc::new(Self::new(header, numbers)))
    }
}

impl Header {
    fn check(&self, numbers: usize) -> Result<(), ImageError> {
        let wrong = || ImageError::Format("its table does not fit its numbers".into());
        if self.shape.layers.checked_mul(Site::ALL.len()) != Some(self.sites.len()) {
            return Err(wrong());
        }
        for (index, entry) in self.sites.iter().enumerate() {
            let Some(entry) = entry else { continue };
            let site = Site::ALL[index % Site::ALL.len()];
            let step = self.dtype.inputs_per_step();
            let inputs = self.shape.linear(site.linears()[0]).1.next_multiple_of(step);
            fits(&entry.a, inputs, entry.ranks, numbers).then_some(()).ok_or_else(wrong)?;
            let mut first = 0;
            for module in &entry.modules {
                let outputs = self.shape.linear(module.linear).0.next_multiple_of(LANES);
                let known = module.rank.is_multiple_of(step)
                    && site.linears().contains(&module.linear)
                    && module.first == first
                    && module.rank <= entry.ranks;
                (known && fits(&module.b, outputs, module.rank, numbers)).then_some(()).ok_or_else(wrong)?;
                first += module.rank;
            }
            (first == entry.ranks).then_some(()).ok_or_else(wrong)?;
        }
        Ok(())
    }
}

fn fits(range: &Range<usize>, width: usize, ranks: usize, numbers: usize) -> bool {
    range.start <= range.end && range.end <= numbers && width.checked_mul(ranks) == Some(range.len())
}
