//! `adapter_config.json` as peft writes it: what is served, and what is refused by name.

use regex::Regex;
use serde_json::{Map, Value};

use crate::StoreError;
use crate::error::refused;
use crate::selection::Selection;

const CONFIG_BYTES: usize = 1 << 20;
/// Most entries of `rank_pattern` and `alpha_pattern`, and the longest of their keys.
const PATTERNS: usize = 4096;
const PATTERN_BYTES: usize = 512;
/// Largest memory of one compiled pattern.
const PATTERN_PROGRAM_BYTES: usize = 1 << 20;
/// Largest rank that is served.
pub const RANK: usize = 1024;

/// What the weights need to be read with.
#[derive(Debug)]
pub struct PeftConfig {
    pub base: Option<String>,
    rank: usize,
    alpha: f64,
    rslora: bool,
    ranks: Patterns,
    alphas: Patterns,
    selection: Selection,
}

/// (pattern, value) in the file's order; the first that matches wins, as in peft.
#[derive(Debug, Default)]
struct Patterns(Vec<(Regex, f64)>);

impl Patterns {
    fn parse(json: &Map<String, Value>, key: &str, fits: fn(f64) -> bool) -> Result<Self, StoreError> {
        let entries = match json.get(key) {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Object(entries)) => entries,
            Some(_) => return Err(refused(format!("adapter_config.json: {key} must be a table of numbers."))),
        };
        let wrong = |entry: &str, reason: &str| {
            refused(format!("adapter_config.json: {key} {:?} {reason}.", entry.chars().take(80).collect::<String>()))
        };
        if entries.len() > PATTERNS {
            return Err(refused(format!("adapter_config.json: {key} has over {PATTERNS} entries.")));
        }
        let compile = |(pattern, value): (&String, &Value)| {
            if pattern.len() > PATTERN_BYTES {
                return Err(wrong(pattern, "is too long"));
            }
            let whole = regex::RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                .size_limit(PATTERN_PROGRAM_BYTES)
                .build();
            let whole = whole.map_err(|_| wrong(pattern, "is not a pattern that is supported"))?;
            let value = value.as_f64().filter(|&value| fits(value));
            let value = value.ok_or_else(|| wrong(pattern, "has a value that cannot be one"))?;
            Ok((whole, value))
        };
        entries.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    fn find(&self, module: &str) -> Option<f64> {
        self.0.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
    }
}

impl PeftConfig {
    pub fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        if bytes.len() > CONFIG_BYTES {
            return Err(StoreError::TooLarge(format!("adapter_config.json is over {CONFIG_BYTES} bytes.")));
        }
        let json: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|e| refused(format!("adapter_config.json: {e}.")))?;
        refuse_what_is_not_served(&json)?;
        let number = |key: &str| json.get(key).and_then(Value::as_f64).filter(|number| number.is_finite());
        let rank = json
            .get("r")
            .and_then(Value::as_u64)
            .filter(|r| (1..=RANK as u64).contains(r))
            .ok_or_else(|| refused(format!("adapter_config.json: r must be a whole number from 1 to {RANK}.")))?;
        let alpha = number("lora_alpha").ok_or_else(|| refused("adapter_config.json: lora_alpha must be a number."))?;
        Ok(Self {
            base: json.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            rank: rank as usize,
            alpha,
            rslora: json.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            ranks: Patterns::parse(&json, "rank_pattern", |value| value.fract() == 0.0 && value >= 1.0)?,
            alphas: Patterns::parse(&json, "alpha_pattern", f64::is_finite)?,
            selection: Selection::parse(&json)?,
        })
    }

    /// Where the modules selected for training and those that have tensors (path, layer) differ.
    pub fn disagreements<'a>(&self, modules: impl Iterator<Item = (&'a str, usize)>) -> Vec<String> {
        self.selection.disagreements(modules)
    }

    /// The rank that a module must have.
    pub fn rank(&self, module: &str) -> usize {
        self.ranks.find(module).map_or(self.rank, |rank| rank as usize)
    }

    /// The factor on B A x.
    pub fn scale(&self, module: &str) -> f64 {
        let rank = self.rank(module) as f64;
        let alpha = self.alphas.find(module).unwrap_or(self.alpha);
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// Everything that would change the answers and is not computed: serving it anyway would answer wrongly.
fn refuse_what_is_not_served(json: &Map<String, Value>) -> Result<(), StoreError> {
    let text = |key: &str| json.get(key).and_then(Value::as_str);
    let on = |key: &str| match json.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    };
    if text("peft_type").is_none() && json.contains_key("lora_parameters") {
        return Err(refused(
            "adapter_config.json was written by MLX, which is not served yet; convert it to PEFT's form.",
        ));
    }
    match text("peft_type") {
        Some("LORA") => {}
        other => {
            let named = other.unwrap_or("absent");
            return Err(refused(format!("adapter_config.json: peft_type is {named}; LORA is what is served.")));
        }
    }
    if let Some(bias) = text("bias").filter(|&bias| bias != "none") {
        return Err(refused(format!(
            "adapter_config.json: bias is {bias:?}, and trained biases are not served yet; train with bias=\"none\"."
        )));
    }
    let unsupported = [
        ("use_dora", "DoRA is not served yet; merge it into a plain LoRA, or train without use_dora"),
        ("lora_bias", "biases on lora_B are not served yet; train with lora_bias=False"),
        ("fan_in_fan_out", "it is for models with Conv1D layers, which no supported base has"),
        ("modules_to_save", "whole trained modules are not served yet; train without modules_to_save"),
        ("trainable_token_indices", "trained token embeddings are not served yet; train without them"),
        ("target_parameters", "it is for fused expert weights, which no supported base has"),
        ("layer_replication", "replicated layers change the base model and are not served"),
        ("alora_invocation_tokens", "activated LoRA is not served yet"),
        ("use_qalora", "QALoRA is not served yet"),
        ("use_bdlora", "block-diagonal LoRA is not served yet"),
        ("kasa_config", "KaSA changed the base model's own weights while it was trained"),
        ("monteclora_config", "MonteCLoRA is not served yet"),
        ("arrow_config", "routing between adapters is not served yet"),
    ];
    if let Some((key, reason)) = unsupported.iter().find(|(key, _)| on(key)) {
        return Err(refused(format!("adapter_config.json: {key} is set: {reason}.")));
    }
    refuse_changed_base(json.get("init_lora_weights"))
}

/// Some ways to start training take a part out of the base model's weights and put it into the adapter: on the base as
/// published, such an adapter answers wrongly until it is converted. Others only choose the first A and B.
fn refuse_changed_base(init: Option<&Value>) -> Result<(), StoreError> {
    const ONLY_START: [&str; 3] = ["gaussian", "orthogonal", "eva"];
    let init = match init {
        None | Some(Value::Null | Value::Bool(_)) => return Ok(()),
        Some(Value::String(init)) if ONLY_START.contains(&init.to_lowercase().as_str()) => return Ok(()),
        Some(Value::String(init)) => init.chars().take(80).collect(),
        Some(other) => other.to_string().chars().take(80).collect::<String>(),
    };
    let changed =
        ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|way| init.to_lowercase().starts_with(way));
    let reason = if changed { "which changed" } else { "which is not known here and may have changed" };
    Err(refused(format!(
        "adapter_config.json: init_lora_weights is {init}, {reason} the base model's own weights while it was trained; \
         convert it with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)."
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_peft_and_the_first_wins() {
        let config = PeftConfig::parse(
            br#"{"peft_type":"LORA","r":8,"lora_alpha":16,"use_rslora":false,
                "rank_pattern":{"layers.1.self_attn.q_proj":4,"q_proj":2},"alpha_pattern":{"k_proj":3}}"#,
        )
        .unwrap();
        assert_eq!(config.rank("model.layers.1.self_attn.q_proj"), 4);
        assert_eq!(config.rank("model.layers.11.self_attn.q_proj"), 2);
        assert_eq!(config.rank("model.layers.0.self_attn.v_proj"), 8);
        assert_eq!(config.scale("model.layers.0.self_attn.v_proj"), 2.0);
        assert_eq!(config.scale("model.layers.0.self_attn.k_proj"), 3.0 / 8.0);
    }

    #[test]
    fn what_would_be_answered_wrongly_is_refused_by_name() {
        for (more, named) in [
            (r#""use_dora":true"#, "DoRA"),
            (r#""bias":"all""#, "bias"),
            (r#""modules_to_save":["lm_head"]"#, "modules_to_save"),
            (r#""init_lora_weights":"pissa_niter_4""#, "pissa"),
            (r#""init_lora_weights":"olora""#, "olora"),
            (r#""init_lora_weights":"corda""#, "corda"),
            (r#""init_lora_weights":"of next year""#, "of next year"),
            (r#""target_parameters":["experts.down_proj"]"#, "target_parameters"),
            (r#""layer_replication":[[0,4],[2,5]]"#, "layer_replication"),
            (r#""rank_pattern":{"q_proj":2.5}"#, "rank_pattern"),
            (r#""rank_pattern":[4]"#, "rank_pattern"),
            (r#""rank_pattern":{"(":1}"#, "rank_pattern"),
            (r#""target_modules":"((""#, "target_modules \"((\""),
            (r#""exclude_modules":"*_proj""#, "exclude_modules"),
        ] {
            let text = format!(r#"{{"peft_type":"LORA","r":8,"lora_alpha":8,{more}}}"#);
            let said = PeftConfig::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(named) && said.ends_with("Nothing was stored."), "{said}");
        }
    }
}
