//! Which base model an upload is for.

use crate::StoreError;
use crate::config::PeftConfig;
use crate::error::refused;
use crate::store::Base;
use crate::tensors::{self, Plan, Target};

/// The base, the tensors' places in it, and what the uploader should know about the choice.
pub struct Chosen<'a> {
    pub base: &'a Base,
    pub plan: Plan<'a>,
    pub warning: Option<String>,
}

/// The base that the uploader asks for, else the one that the configuration names, else the only one that fits.
///
/// The name in a configuration is what the trainer's disk called the model, so a name that is not known decides nothing.
pub fn choose<'a>(
    bases: &'a [Base],
    asked: Option<&str>,
    config: &PeftConfig,
    weights: &'a [u8],
) -> Result<Chosen<'a>, StoreError> {
    let named = config.base.as_deref().and_then(|name| find_named(bases, name));
    let chosen = |base, plan, warning| Ok(Chosen { base, plan, warning });
    if let Some(asked) = asked {
        let base = bases.iter().find(|base| base.id == asked).ok_or_else(|| not_loaded(bases, asked))?;
        let bound = plan(base, config, weights)?;
        return match named {
            Some(named) if named.id != base.id && plan(named, config, weights).is_ok() => Err(refused(format!(
                "adapter_config.json names {} as its base, which is loaded and fits, but the upload asks for {asked}; leave base out, \
                 or correct base_model_name_or_path.",
                named.id
            ))),
            Some(named) if named.id == base.id => chosen(base, bound, None),
            _ => chosen(base, bound, foreign_name(config, base)),
        };
    }
    if let Some(base) = named {
        return chosen(base, plan(base, config, weights)?, None);
    }
    let (base, bound) = only_fitting(bases, config, weights)?;
    chosen(base, bound, foreign_name(config, base))
}

pub fn plan<'a>(base: &Base, config: &PeftConfig, weights: &'a [u8]) -> Result<Plan<'a>, StoreError> {
    tensors::plan(weights, config, Target { id: &base.id, shape: &base.shape })
}

fn only_fitting<'a>(
    bases: &'a [Base],
    config: &PeftConfig,
    weights: &'a [u8],
) -> Result<(&'a Base, Plan<'a>), StoreError> {
    let mut first_refusal = None;
    let mut fitting = Vec::new();
    for base in bases {
        match plan(base, config, weights) {
            Ok(plan) => fitting.push((base, plan)),
            Err(refusal) => first_refusal = first_refusal.or(Some(refusal)),
        }
    }
    if fitting.len() > 1 {
        let fit: Vec<&str> = fitting.iter().map(|(base, _)| base.id.as_str()).collect();
        return Err(refused(format!("The adapter fits {}; say which with base.", fit.join(" and "))));
    }
    fitting.pop().ok_or_else(|| first_refusal.unwrap_or_else(|| refused("No base model is loaded.")))
}

fn not_loaded(bases: &[Base], asked: &str) -> StoreError {
    let loaded: Vec<&str> = bases.iter().map(|base| base.id.as_str()).collect();
    let asked: String = asked.chars().take(200).collect();
    refused(format!("base model {asked:?} is not loaded here; these are: {}.", loaded.join(", ")))
}

fn foreign_name(config: &PeftConfig, base: &Base) -> Option<String> {
    let name = config.base.as_ref()?;
    Some(format!("adapter_config.json names {name:?} as its base; its shapes fit {}, which serves it", base.id))
}

/// The loaded base with this id, else the only one whose id ends the same: a path or another organisation may stand before.
fn find_named<'a>(bases: &'a [Base], name: &str) -> Option<&'a Base> {
    let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    let mut alike = bases.iter().filter(|base| last(&base.id) == last(name));
    let exact = bases.iter().find(|base| base.id == name);
    exact.or_else(|| alike.next().filter(|_| alike.next().is_none()))
}
