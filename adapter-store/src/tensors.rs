//! Binds every tensor of an upload to a linear of the base model, or says which one does not fit and why.

use std::collections::BTreeMap;

use half::{bf16, f16};
use model::{Linear, LoraPair, ModelShape};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::StoreError;
use crate::config::{PeftConfig, RANK};
use crate::error::refused;

/// Most tensors, longest name and largest header of one file.
const TENSORS: usize = 100_000;
const NAME_BYTES: usize = 512;
const HEADER_BYTES: u64 = 32 << 20;

/// A module of the base: layer and linear.
pub type Module = (usize, Linear);

/// An adapter whose every tensor is bound.
#[derive(Debug)]
pub struct Bound {
    /// Scale folded into B.
    pub pairs: BTreeMap<Module, LoraPair>,
    pub tensors: usize,
    pub rank_max: usize,
    pub warnings: Vec<String>,
}

/// A base model's name and sizes, as the checks need them.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub id: &'a str,
    pub shape: &'a ModelShape,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    A,
    B,
}

struct Place {
    module: Module,
    half: Half,
    /// As peft names the module: patterns match it.
    path: String,
}

/// Where every tensor of a file belongs. Shapes and names are checked, no weight is read yet.
pub struct Plan<'a> {
    pairs: BTreeMap<Module, PlannedPair<'a>>,
    tensors: usize,
}

struct PlannedPair<'a> {
    a: (Place, TensorView<'a>),
    b: (Place, TensorView<'a>),
}

/// Reads `file` (safetensors) for `target`.
pub fn bind(file: &[u8], config: &PeftConfig, target: Target<'_>) -> Result<Bound, StoreError> {
    plan(file, config, target)?.read(config)
}

/// Binds every tensor to a linear of `target`, from the file's header alone.
pub fn plan<'a>(file: &'a [u8], config: &PeftConfig, target: Target<'_>) -> Result<Plan<'a>, StoreError> {
    let tensors = open(file)?;
    let mut halves: BTreeMap<Module, [Option<(Place, TensorView<'a>)>; 2]> = BTreeMap::new();
    let mut views = tensors.tensors();
    views.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let count = views.len();
    for (name, view) in views {
        let place = place(&name, target)?;
        check_shape(&place, &view, config, target)?;
        let slot = &mut halves.entry(place.module).or_default()[usize::from(place.half == Half::B)];
        if slot.is_some() {
            return Err(refused(format!("{name}: {} is there twice.", short(&place))));
        }
        *slot = Some((place, view));
    }
    if halves.is_empty() {
        return Err(refused("adapter_model.safetensors holds no tensors."));
    }
    let paired = |(module, pair): (Module, [Option<(Place, TensorView<'a>)>; 2])| match pair {
        [Some(a), Some(b)] => Ok((module, PlannedPair { a, b })),
        [a, _] => {
            let (has, missing) = if a.is_some() { ("lora_A", "lora_B") } else { ("lora_B", "lora_A") };
            Err(refused(format!("{} has {has} and no {missing}.", short_module(module))))
        }
    };
    Ok(Plan { pairs: halves.into_iter().map(paired).collect::<Result<_, _>>()?, tensors: count })
}

impl Plan<'_> {
    /// Reads the weights and folds the scale into B.
    pub fn read(self, config: &PeftConfig) -> Result<Bound, StoreError> {
        let warnings = config.disagreements(self.pairs.iter().map(|(module, pair)| (pair.a.0.path.as_str(), module.0)));
        let mut bound = Bound { pairs: BTreeMap::new(), tensors: self.tensors, rank_max: 0, warnings };
        let (mut zero, mut scaled_to_zero) = (0, 0);
        for (module, PlannedPair { a, b }) in self.pairs {
            let (pair, silence) = read_pair(&a, &b, config)?;
            zero += usize::from(silence == Some(Silence::ZeroB));
            scaled_to_zero += usize::from(silence == Some(Silence::ZeroScale));
            bound.rank_max = bound.rank_max.max(pair.rank);
            bound.pairs.insert(module, pair);
        }
        let all = bound.pairs.len();
        bound.warnings.extend(silent("lora_B is zero", zero, all));
        bound.warnings.extend(silent("the scale (lora_alpha or alpha_pattern) makes lora_B zero", scaled_to_zero, all));
        Ok(bound)
    }
}

/// Why a module has no effect.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    ZeroB,
    /// B is not zero before its scale is applied.
    ZeroScale,
}

fn silent(what: &str, modules: usize, all: usize) -> Option<String> {
    match modules {
        0 => None,
        _ if modules == all => Some(format!("{what} in every module: this adapter has no effect")),
        _ => Some(format!("{what} in {modules} of {all} modules: they have no effect")),
    }
}

fn open(file: &[u8]) -> Result<SafeTensors<'_>, StoreError> {
    let wrong = |reason: String| refused(format!("adapter_model.safetensors: {reason}."));
    let length = file.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    match length {
        Some(length) if length <= HEADER_BYTES && length + 8 <= file.len() as u64 => {}
        _ => return Err(wrong("it is not a safetensors file, or it is cut off".into())),
    }
    let tensors = SafeTensors::deserialize(file).map_err(|e| wrong(e.to_string()))?;
    if tensors.len() > TENSORS {
        return Err(wrong(format!("it has over {TENSORS} tensors")));
    }
    if let Some(name) = tensors.names().into_iter().find(|name| name.len() > NAME_BYTES) {
        return Err(wrong(format!("a tensor's name has {} bytes", name.len())));
    }
    Ok(tensors)
}

/// Where a tensor belongs, from its name.
fn place(name: &str, target: Target<'_>) -> Result<Place, StoreError> {
    let shown: String = name.chars().take(200).collect();
    let unknown = |reason: &str| {
        let end = if reason.ends_with('?') { "" } else { "." };
        refused(format!("{shown}: {reason}{end}"))
    };
    let (module, half) = halves(name).ok_or_else(|| unknown(what_it_is(name)))?;
    // The same model is wrapped differently by different trainers; what counts is the path from the layers on.
    let start = module.find("layers.").filter(|&at| at == 0 || module.as_bytes()[at - 1] == b'.');
    let path = start.map(|at| &module[at..]).ok_or_else(|| unknown("it belongs to no layer of the base model"))?;
    let prefix = module[..module.len() - path.len()].trim_end_matches('.');
    const PREFIXES: [&str; 7] = [
        "",
        "model",
        "base_model.model",
        "base_model.model.model",
        "base_model.model.model.language_model",
        "model.language_model",
        "language_model.model",
    ];
    let wrapped = prefix.strip_prefix("base_model.model.").unwrap_or(prefix);
    if !PREFIXES.contains(&prefix) && !PREFIXES.contains(&wrapped) {
        return Err(unknown("it is not part of the text model"));
    }
    let mut parts = path.splitn(3, '.').skip(1);
    let (layer, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let layer: usize = layer.parse().map_err(|_| unknown("its layer is not a number"))?;
    if layer >= target.shape.layers {
        let layers = target.shape.layers;
        return Err(unknown(&format!("{} has {layers} layers. Was it trained on another size?", target.id)));
    }
    let linear = Linear::ALL.into_iter().find(|linear| linear.path() == rest);
    let linear = linear.ok_or_else(|| {
        let known = Linear::ALL.map(Linear::path).join(", ");
        unknown(&format!("{rest} is not a module that can be adapted here; these are: {known}"))
    })?;
    Ok(Place { module: (layer, linear), half, path: module.trim_start_matches("base_model.model.").to_owned() })
}

/// The module's path and which half of the pair the tensor is. Old files name the adapter (`default`) in between.
fn halves(name: &str) -> Option<(&str, Half)> {
    let bare = name.strip_suffix(".weight")?;
    let bare = bare.strip_suffix(".default").unwrap_or(bare);
    match bare.strip_suffix(".lora_A") {
        Some(module) => Some((module, Half::A)),
        None => bare.strip_suffix(".lora_B").map(|module| (module, Half::B)),
    }
}

fn what_it_is(name: &str) -> &'static str {
    let kinds = [
        ("lora_magnitude_vector", "DoRA is not served yet; merge it into a plain LoRA, or train without use_dora"),
        ("lora_embedding_", "an adapted embedding is not served yet; train without embed_tokens in target_modules"),
        ("lora_B.bias", "a bias on lora_B is not served yet; train with lora_bias=False"),
        ("lora_a", "it is in MLX's form, which is not served yet; convert it to PEFT's"),
        ("lora_b", "it is in MLX's form, which is not served yet; convert it to PEFT's"),
        ("modules_to_save", "a whole trained module is not served yet; train without modules_to_save"),
        ("token_adapter", "trained token embeddings are not served yet; train without trainable_token_indices"),
        ("lora_unet", "it is a LoRA of an image model"),
    ];
    kinds
        .iter()
        .find(|(part, _)| name.contains(part))
        .map_or("it is neither lora_A nor lora_B of a module", |(_, what)| what)
}

fn short_module((layer, linear): Module) -> String {
    format!("layers.{layer}.{}", linear.path())
}

fn short(place: &Place) -> String {
    let half = if place.half == Half::A { "lora_A" } else { "lora_B" };
    format!("{}.{half}", short_module(place.module))
}

fn check_shape(
    place: &Place,
    view: &TensorView<'_>,
    config: &PeftConfig,
    target: Target<'_>,
) -> Result<(), StoreError> {
    let name = short(place);
    if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(refused(format!("{name} has dtype {:?}; F32, F16 and BF16 are served.", view.dtype())));
    }
    let (outputs, inputs) = target.shape.linear(place.module.1);
    let &[rows, columns] = view.shape() else {
        return Err(refused(format!("{name} has {} dimensions; it needs 2.", view.shape().len())));
    };
    let (rank, width, needs) = match place.half {
        Half::A => (rows, columns, inputs),
        Half::B => (columns, rows, outputs),
    };
    if width != needs {
        let needed = match place.half {
            Half::A => format!("[{rank}, {needs}]"),
            Half::B => format!("[{needs}, {rank}]"),
        };
        return Err(refused(format!(
            "{name} is [{rows}, {columns}]; {} needs {needed}. Was it trained on another size?",
            target.id
        )));
    }
    let expected = config.rank(&place.path);
    if rank != expected || rank == 0 || rank > RANK {
        return Err(refused(format!("{name} has rank {rank}; adapter_config.json says {expected} for it.")));
    }
    Ok(())
}

fn read_pair(
    (a_place, a): &(Place, TensorView<'_>),
    (b_place, b): &(Place, TensorView<'_>),
    config: &PeftConfig,
) -> Result<(LoraPair, Option<Silence>), StoreError> {
    let scale = config.scale(&a_place.path);
    let mut folded = numbers(b_place, b)?;
    let is_zero = |values: &[f32]| values.iter().all(|&value| value == 0.0);
    let was_zero = is_zero(&folded);
    // Folded in f64, so that the only rounding is the last.
    folded.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    if folded.iter().any(|value| !value.is_finite()) {
        return Err(refused(format!("{} overflows when its scale {scale} is applied.", short(b_place))));
    }
    let silence = match is_zero(&folded) {
        true if was_zero => Some(Silence::ZeroB),
        true => Some(Silence::ZeroScale),
        false => None,
    };
    Ok((LoraPair { rank: a.shape()[0], a: numbers(a_place, a)?, b: folded }, silence))
}

fn numbers(place: &Place, view: &TensorView<'_>) -> Result<Vec<f32>, StoreError> {
    let bytes = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|&word| f16::from_le_bytes(word).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|&word| bf16::from_le_bytes(word).to_f32()).collect(),
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(refused(format!("{} holds {} at index {index}.", short(place), values[index]))),
        None => Ok(values),
    }
}
