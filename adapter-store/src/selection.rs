//! Which modules a configuration selected for training. The truth is in the tensors; where the two disagree, the uploader is told.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Map, Value};

use crate::StoreError;
use crate::error::refused;

/// Largest memory of one compiled pattern.
const PATTERN_PROGRAM_BYTES: usize = 1 << 20;
/// Longest pattern that is looked at again where it does not compile.
const PATTERN_BYTES: usize = 4096;
/// Most names of modules and numbers of layers that are compared, and that a warning lists.
const COMPARED: usize = 4096;
const LISTED: usize = 5;

#[derive(Debug, Default)]
pub struct Selection {
    targets: Option<Modules>,
    excluded: Option<Modules>,
    layers: Option<BTreeSet<usize>>,
}

#[derive(Debug)]
enum Modules {
    All,
    /// Each is a module's path, or the end of one.
    Names(Vec<String>),
    /// Matches a whole path.
    Pattern(Regex),
}

impl Modules {
    /// `None` where it is absent, or in a form that cannot be compared.
    fn parse(json: &Map<String, Value>, key: &str) -> Result<Option<Self>, StoreError> {
        Ok(match json.get(key) {
            Some(Value::String(word)) if word == "all-linear" => Some(Self::All),
            Some(Value::String(pattern)) => whole(key, pattern)?.map(Self::Pattern),
            Some(Value::Array(names)) if !names.is_empty() => {
                Some(Self::Names(names.iter().take(COMPARED).filter_map(Value::as_str).map(str::to_owned).collect()))
            }
            _ => None,
        })
    }

    fn has(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.iter().any(|name| ends_with(path, name)),
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

/// `None` for a pattern that only Python can match: lookarounds, references, or one that is too large here.
fn whole(key: &str, pattern: &str) -> Result<Option<Regex>, StoreError> {
    let compiled = regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(PATTERN_PROGRAM_BYTES).build();
    let parses = || pattern.len() > PATTERN_BYTES || fancy_regex::Expr::parse_tree(pattern).is_ok();
    match compiled {
        Ok(pattern) => Ok(Some(pattern)),
        Err(regex::Error::Syntax(_)) if !parses() => {
            let shown: String = pattern.chars().take(80).collect();
            Err(refused(format!(
                "adapter_config.json: {key} {shown:?} is neither a list of modules nor a valid pattern."
            )))
        }
        Err(_) => Ok(None),
    }
}

fn ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

impl Selection {
    pub fn parse(json: &Map<String, Value>) -> Result<Self, StoreError> {
        let number = |value: &Value| value.as_u64().and_then(|layer| usize::try_from(layer).ok());
        let layers = match json.get("layers_to_transform") {
            Some(Value::Array(layers)) => Some(layers.iter().take(COMPARED).filter_map(number).collect()),
            Some(value) => number(value).map(|layer| BTreeSet::from([layer])),
            None => None,
        };
        Ok(Self {
            targets: Modules::parse(json, "target_modules")?,
            excluded: Modules::parse(json, "exclude_modules")?,
            layers,
        })
    }

    fn selects(&self, path: &str, layer: usize) -> bool {
        self.targets.as_ref().is_none_or(|targets| targets.has(path))
            && !self.excluded.as_ref().is_some_and(|excluded| excluded.has(path))
            && self.layers.as_ref().is_none_or(|layers| layers.contains(&layer))
    }

    /// What the configuration says of the modules that have tensors (path, layer), where it says otherwise.
    pub fn disagreements<'a>(&self, modules: impl Iterator<Item = (&'a str, usize)>) -> Vec<String> {
        let modules: Vec<(&str, usize)> = modules.collect();
        let mut warnings = Vec::new();
        let unselected: Vec<&str> =
            modules.iter().filter(|(path, layer)| !self.selects(path, *layer)).map(|(path, _)| *path).collect();
        if !unselected.is_empty() {
            warnings.push(format!(
                "adapter_config.json does not select {}; they have tensors and are served",
                listed(&unselected)
            ));
        }
        if let Some(Modules::Names(names)) = &self.targets {
            let has_none = |name: &&String| !modules.iter().any(|(path, _)| ends_with(path, name));
            let missing: Vec<&str> = names.iter().filter(has_none).map(String::as_str).collect();
            if !missing.is_empty() {
                warnings.push(format!("target_modules names {}, which no tensor is for", listed(&missing)));
            }
        }
        let absent = self.layers.iter().flatten().filter(|&&layer| !modules.iter().any(|(_, other)| *other == layer));
        let absent: Vec<String> = absent.map(usize::to_string).collect();
        if !absent.is_empty() {
            warnings.push(format!("layers_to_transform names {}, which no tensor is for", listed(&absent)));
        }
        warnings
    }
}

fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| name.as_ref().chars().take(200).collect()).collect();
    let more = names.len().saturating_sub(LISTED);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_configuration_and_the_tensors_disagree_on_is_said() {
        let modules = [("model.layers.0.self_attn.q_proj", 0), ("model.layers.1.mlp.up_proj", 1)];
        let cases = [
            (r#"{"target_modules": ["q_proj", "mlp.up_proj"]}"#, None),
            (r#"{"target_modules": "all-linear", "exclude_modules": ["lm_head"]}"#, None),
            (r#"{"target_modules": ".*(q|up)_proj", "layers_to_transform": [0, 1]}"#, None),
            (r#"{"target_modules": "(?=lookahead).*"}"#, None),
            (r#"{"target_modules": ".*(?P<kind>q|up)_proj(?#python's)\\Z"}"#, None),
            (r#"{"target_modules": ["q_proj"]}"#, Some("does not select model.layers.1.mlp.up_proj")),
            (r#"{"exclude_modules": ".*up_proj"}"#, Some("does not select model.layers.1.mlp.up_proj")),
            (r#"{"layers_to_transform": 0}"#, Some("does not select model.layers.1.mlp.up_proj")),
            (r#"{"target_modules": ["q_proj", "up_proj", "v_proj"]}"#, Some("names v_proj, which no tensor is for")),
            (r#"{"layers_to_transform": [0, 1, 7]}"#, Some("names 7, which no tensor is for")),
        ];
        for (config, expected) in cases {
            let selection = Selection::parse(&serde_json::from_str(config).unwrap()).unwrap();
            let said = selection.disagreements(modules.into_iter());
            assert_eq!(said.is_empty(), expected.is_none(), "{config}: {said:?}");
            assert!(expected.is_none_or(|expected| said[0].contains(expected)), "{config}: {said:?}");
        }
    }
}
