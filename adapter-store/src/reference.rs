//! How an adapter is named: `name`, `account/name`, each with `@3` (a version) or `@prod` (an alias).

use std::str::FromStr;

use platform::{AccountName, AdapterName};

use crate::StoreError;

/// The alias that a bare name answers with.
pub const DEFAULT_ALIAS: &str = "default";
const ALIAS_BYTES: usize = 64;

/// Which of an adapter's versions is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Default,
    Version(u32),
    Alias(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterRef {
    /// Absent: the caller's own.
    pub account: Option<AccountName>,
    pub name: AdapterName,
    pub selector: Selector,
}

impl AdapterRef {
    /// Reads a reference; `None` where the text cannot be one, and so names nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let (path, selector) = match text.split_once('@') {
            None => (text, Selector::Default),
            Some((path, selector)) => (path, Selector::parse(selector)?),
        };
        let (account, name) = match path.split_once('/') {
            None => (None, path),
            Some((account, name)) => (Some(AccountName::from_str(account).ok()?), name),
        };
        Some(Self { account, name: name.parse().ok()?, selector })
    }
}

impl Selector {
    fn parse(text: &str) -> Option<Self> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return text.parse().ok().filter(|&version| version > 0).map(Self::Version);
        }
        check_alias(text).ok()?;
        Some(if text == DEFAULT_ALIAS { Self::Default } else { Self::Alias(text.to_owned()) })
    }
}

/// An alias is `[a-z0-9._-]` and never starts with a digit, so that it cannot be taken for a version.
pub fn check_alias(alias: &str) -> Result<(), StoreError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let fits = (1..=ALIAS_BYTES).contains(&alias.len())
        && alias.bytes().all(plain)
        && alias.starts_with(|c: char| c.is_ascii_lowercase());
    if fits { Ok(()) } else { Err(StoreError::Alias(alias.chars().take(80).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_references() {
        let parsed = |text: &str| {
            let AdapterRef { account, name, selector } = AdapterRef::parse(text)?;
            Some(format!("{:?} {name} {selector:?}", account.map(|account| account.to_string())))
        };
        let cases = [
            ("sql", Some("None sql Default")),
            ("acme/sql@3", Some("Some(\"acme\") sql Version(3)")),
            ("sql@prod", Some("None sql Alias(\"prod\")")),
            ("sql@default", Some("None sql Default")),
            ("sql@", None),
            ("sql@0", None),
            ("sql@3x", None),
            ("sql@Prod", None),
            ("a/b/c", None),
            ("../etc", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parsed(text).as_deref(), expected, "{text:?}");
        }
    }
}
