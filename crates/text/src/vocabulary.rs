//! The bytes that each token adds to the output.
//!
//! Concatenating a sequence's token bytes gives its text, whatever the tokenizer's kind (byte-level, byte fallback,
//! Metaspace); special tokens have none. So stop strings can be matched as bytes, without a tokenizer at hand.

/// Token id -> bytes, for a whole vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBytes {
    /// `starts[t] .. starts[t + 1]` are token t's bytes in `bytes`.
    starts: Vec<u32>,
    bytes: Vec<u8>,
}

impl TokenBytes {
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut table = Self { starts: vec![0], bytes: Vec::new() };
        for token in tokens {
            table.bytes.extend_from_slice(token);
            table.starts.push(u32::try_from(table.bytes.len()).expect("a vocabulary is under 4 GiB"));
        }
        table
    }

    /// Bytes of a token; an id outside the vocabulary (padding rows of the model's output) has none.
    pub fn get(&self, token: u32) -> &[u8] {
        let at = token as usize;
        match (self.starts.get(at), self.starts.get(at + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
