//! The adapter image: an adapter's weights as the device reads them, made once at ingest.
//!
//! Layout: a JSON header, then one buffer of numbers. A of the modules that read the same input lie side by side, transposed
//! [inputs, ranks of the site]; B of each module is transposed [rank, outputs], with the scale folded in. Every block starts
//! at a multiple of 128 bytes. Ranks are exact: what an adapter does not have takes no space.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use platform::Digest;
use serde::{Deserialize, Serialize};
use tensor::DType;
use tensor::cpu::lora::{Expand, Numbers};

use crate::shape::{Linear, ModelShape};

/// Changes with the layout: an image of another version is made again from the adapter's files.
pub const IMAGE_VERSION: u32 = 1;
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
        let mut data = Data::new(self.dtype);
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
        AdapterImage { header, data }
    }
}

/// Lays one site's modules down and says where they are.
fn place(shape: &ModelShape, data: &mut Data, members: &[(Linear, &LoraPair)]) -> SiteEntry {
    let inputs = shape.linear(members[0].0).1;
    let ranks: usize = members.iter().map(|(_, pair)| pair.rank).sum();
    let mut a = vec![0.0; inputs * ranks];
    let (mut modules, mut first) = (Vec::new(), 0);
    for (linear, pair) in members {
        for (rank, row) in pair.a.chunks_exact(inputs).enumerate() {
            for (input, &value) in row.iter().enumerate() {
                a[input * ranks + first + rank] = value;
            }
        }
        modules.push((*linear, first, pair.rank));
        first += pair.rank;
    }
    let a = data.push(&a);
    let modules = (modules.into_iter().zip(members))
        .map(|((linear, first, rank), (_, pair))| {
            let outputs = pair.b.len() / rank;
            let mut b = vec![0.0; pair.b.len()];
            for (output, row) in pair.b.chunks_exact(rank).enumerate() {
                for (r, &value) in row.iter().enumerate() {
                    b[r * outputs + output] = value;
                }
            }
            Module { linear, first, rank, b: data.push(&b) }
        })
        .collect();
    SiteEntry { ranks, a, modules }
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

#[derive(Debug, Clone, PartialEq)]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Data {
    fn new(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32(Vec::new()),
            DType::Bf16 => Self::Bf16(Vec::new()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
        }
    }

    fn push(&mut self, values: &[f32]) -> Range<usize> {
        match self {
            Self::F32(data) => {
                data.resize(data.len().next_multiple_of(ALIGNMENT / 4), 0.0);
                data.extend_from_slice(values);
            }
            Self::Bf16(data) => {
                data.resize(data.len().next_multiple_of(ALIGNMENT / 2), 0);
                data.extend(values.iter().map(|&value| bf16::from_f32(value).to_bits()));
            }
        }
        self.len() - values.len()..self.len()
    }

    fn numbers(&self, range: Range<usize>) -> Numbers<'_> {
        match self {
            Self::F32(data) => Numbers::F32(&data[range]),
            Self::Bf16(data) => Numbers::Bf16(&data[range]),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(data) => bytemuck::cast_slice(data),
            Self::Bf16(data) => bytemuck::cast_slice(data),
        }
    }
}

/// Immutable; shared by `Arc` between the store and the engine. On the CPU a slot points right at it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterImage {
    header: Header,
    data: Data,
}

/// An adapter's part in one site of one layer.
pub struct SiteUpdate<'a> {
    pub ranks: usize,
    pub a: Numbers<'a>,
    pub expand: Vec<Expand<'a>>,
}

impl AdapterImage {
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
        self.data.bytes().len()
    }

    /// What the adapter adds at a site; `None` where it adds nothing. Outputs of the site's linears follow each other in a row.
    pub fn site(&self, layer: usize, site: Site) -> Option<SiteUpdate<'_>> {
        let entry = self.header.sites.get(layer * Site::ALL.len() + site as usize)?.as_ref()?;
        let shape = &self.header.shape;
        let start = |linear: Linear| -> usize {
            site.linears().iter().take_while(|&&other| other != linear).map(|&other| shape.linear(other).0).sum()
        };
        let expand = |module: &Module| Expand {
            ranks: module.first..module.first + module.rank,
            b: self.data.numbers(module.b.clone()),
            at: start(module.linear),
            outputs: shape.linear(module.linear).0,
        };
        Some(SiteUpdate {
            ranks: entry.ranks,
            a: self.data.numbers(entry.a.clone()),
            expand: entry.modules.iter().map(expand).collect(),
        })
    }

    /// Magic, header length (u64, little endian), header as JSON, numbers (little endian).
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.header).expect("a header is plain data");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(self.data.bytes());
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
        let data = match header.dtype {
            DType::F32 => Data::F32(bytemuck::allocation::pod_collect_to_vec(numbers)),
            DType::Bf16 => Data::Bf16(bytemuck::allocation::pod_collect_to_vec(numbers)),
        };
        header.check(data.len())?;
        Ok(Arc::new(Self { header, data }))
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
            let inputs = self.shape.linear(site.linears()[0]).1;
            fits(&entry.a, inputs, entry.ranks, numbers).then_some(()).ok_or_else(wrong)?;
            let mut first = 0;
            for module in &entry.modules {
                let outputs = self.shape.linear(module.linear).0;
                let known =
                    site.linears().contains(&module.linear) && module.first == first && module.rank <= entry.ranks;
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
