//! Identifiers that cannot be built wrong.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// SHA-256 of some bytes: the identity of an adapter's weights, a blob, a tokenizer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Digest(text.chars().take(80).collect());
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Longest account or adapter name, in bytes.
pub const NAME_BYTES: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{0:?} is not a SHA-256 digest (64 hexadecimal digits)")]
    Digest(String),
    #[error("{name:?} is not {what}: use 1 to {NAME_BYTES} characters of {allowed}, starting with a letter or digit")]
    Name { name: String, what: &'static str, allowed: &'static str },
}

fn checked(name: &str, what: &'static str, allowed: &'static str, extra: &[u8]) -> Result<String, IdError> {
    let fits = (1..=NAME_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || extra.contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if fits { Ok(name.to_owned()) } else { Err(IdError::Name { name: name.chars().take(80).collect(), what, allowed }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $allowed:literal, $extra:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                checked(text, $what, $allowed, $extra).map(Self)
            }
        }

        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// An account: `[a-z0-9-]`.
    AccountName, "an account name", "a-z, 0-9 and '-'", b"-"
);
name!(
    /// An adapter's name within its account: `[a-z0-9._-]`.
    AdapterName, "an adapter name", "a-z, 0-9, '.', '_' and '-'", b"._-"
);

impl AdapterName {
    /// The valid name that is nearest to what somebody called a folder: `My LoRA v2` is `my-lora-v2`. None where nothing of it
    /// can stay.
    pub fn nearest(text: &str) -> Option<Self> {
        let mut name = String::new();
        for character in text.chars().flat_map(char::to_lowercase) {
            match character {
                'a'..='z' | '0'..='9' | '.' | '_' => name.push(character),
                _ if name.ends_with('-') => {}
                _ => name.push('-'),
            }
        }
        let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).trim_end_matches('-');
        name[..name.len().min(NAME_BYTES)].trim_end_matches('-').parse().ok()
    }
}

/// The id of one request: the response's `id`, the journal's key, the `x-request-id` header.
///
/// 128 random bits, so that processes need no coordination to keep it unique.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(String);

impl RequestId {
    /// A fresh id such as `chatcmpl-5f1c...` (32 hexadecimal digits after the prefix).
    pub fn fresh(prefix: &str) -> Self {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).expect("the operating system has no randomness to give");
        Self(format!("{prefix}-{:032x}", u128::from_be_bytes(bytes)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_a_url_or_a_folder_could_misread() {
        for bad in ["", "-a", "A", "a/b", "a b", "..", ".x", "ä", &"a".repeat(65)] {
            assert!(bad.parse::<AccountName>().is_err(), "{bad:?} was accepted");
            assert!(bad.parse::<AdapterName>().is_err(), "{bad:?} was accepted");
        }
        assert!("sql-v1.2_b".parse::<AdapterName>().is_ok());
        assert!("sql.v1".parse::<AccountName>().is_err());
    }

    #[test]
    fn a_folders_name_becomes_the_nearest_name() {
        let long = "x".repeat(80);
        for (folder, name) in [
            ("sql-v1.2_b", "sql-v1.2_b"),
            ("My LoRA v2", "my-lora-v2"),
            ("_out (final)", "out-final"),
            ("a - b", "a-b"),
            ("Größe", "gr-e"),
            (&long, &long[..64]),
        ] {
            assert_eq!(AdapterName::nearest(folder).unwrap().as_str(), name);
        }
        assert_eq!(AdapterName::nearest("--"), None);
        assert_eq!(AdapterName::nearest("模型"), None);
    }

    #[test]
    fn a_digest_survives_its_own_text() {
        let digest = Digest::of(b"myriad");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert!("ab".parse::<Digest>().is_err());
        assert!("é".repeat(32).parse::<Digest>().is_err());
    }
}
