//! What makes two adapters the same adapter.

use std::collections::BTreeMap;

use model::LoraPair;
use platform::Digest;
use sha2::{Digest as _, Sha256};

use crate::tensors::Module;

/// Numbers hashed at a time.
const CHUNK: usize = 4096;

/// SHA-256 over what decides the answers: the base's id; every module in order of layer and linear with its rank, A and B as
/// f32 (scale folded in, exactly as they are served); the chat template.
///
/// So the order of tensors in a file, their names' prefix, F16 stored as F32, and settings that only mattered in training make
/// no difference; another base, scale, weight or template does.
pub fn identity(base: &str, pairs: &BTreeMap<Module, LoraPair>, chat_template: Option<&str>) -> Digest {
    let mut hash = Sha256::new();
    text(&mut hash, "myriad adapter 1");
    text(&mut hash, base);
    for ((layer, linear), pair) in pairs {
        text(&mut hash, &format!("layers.{layer}.{} {}", linear.path(), pair.rank));
        numbers(&mut hash, &pair.a);
        numbers(&mut hash, &pair.b);
    }
    text(&mut hash, if chat_template.is_some() { "with template" } else { "without template" });
    text(&mut hash, chat_template.unwrap_or_default());
    Digest::from_bytes(hash.finalize().into())
}

/// Every part is preceded by its length, so that no two sequences of parts are the same bytes.
fn text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}

fn numbers(hash: &mut Sha256, numbers: &[f32]) {
    hash.update((numbers.len() as u64).to_le_bytes());
    let mut bytes = Vec::with_capacity(CHUNK * 4);
    for chunk in numbers.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|number| number.to_le_bytes()));
        hash.update(&bytes);
    }
}
