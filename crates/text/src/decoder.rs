//! Tokens to text as they come, never half a character and never a byte that is still held back.

use std::sync::Arc;

use crate::vocabulary::TokenBytes;

/// Decodes one answer.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    table: Arc<TokenBytes>,
    /// Bytes that were not shown yet.
    pending: Vec<u8>,
    /// Bytes that were shown or dropped.
    passed: u64,
    /// The answer's first space belongs to the tokenizer, not to the text.
    strip_space: bool,
}

impl StreamDecoder {
    pub fn new(table: Arc<TokenBytes>, strip_space: bool) -> Self {
        Self { table, pending: Vec::new(), passed: 0, strip_space }
    }

    /// Adds a token and returns what may be shown now. The last `held_bytes` bytes of the answer so far stay back.
    pub fn push(&mut self, token: u32, held_bytes: u32) -> String {
        self.pending.extend_from_slice(self.table.get(token));
        let ready = self.pending.len().saturating_sub(held_bytes as usize);
        let whole = whole_characters(&self.pending[..ready]);
        self.take(whole)
    }

    /// The answer ends after its first `visible_bytes` bytes: returns what was not shown of them. A character that is cut
    /// off becomes U+FFFD.
    pub fn finish(&mut self, visible_bytes: u64) -> String {
        let left = usize::try_from(visible_bytes.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        self.pending.truncate(left);
        self.take(self.pending.len())
    }

    /// Bytes of the answer that were shown or dropped.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// How many bytes a token adds to the answer.
    pub fn bytes_of(&self, token: u32) -> u64 {
        self.table.get(token).len() as u64
    }

    fn take(&mut self, count: usize) -> String {
        let mut bytes: Vec<u8> = self.pending.drain(..count).collect();
        if self.strip_space && self.passed == 0 && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        self.passed += count as u64;
        String::from_utf8(bytes).unwrap_or_else(|broken| String::from_utf8_lossy(broken.as_bytes()).into_owned())
    }
}

/// How many of the bytes can be shown without cutting a character that may still be completed.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has at most four bytes: only the last three can begin one that is incomplete.
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let needed = match bytes[at] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return bytes.len(),
        };
        return if needed > back { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(tokens: &[&[u8]]) -> Arc<TokenBytes> {
        Arc::new(TokenBytes::new(tokens.iter().copied()))
    }

    #[test]
    fn a_character_is_shown_whole_however_it_is_cut() {
        let text = "a é 漢 👩‍👩‍👧 end";
        let bytes: Vec<Vec<u8>> = text.bytes().map(|b| vec![b]).collect();
        let views: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let table = table(&views);
        let mut decoder = StreamDecoder::new(table, false);
        let mut shown = String::new();
        for token in 0..views.len() as u32 {
            let part = decoder.push(token, 0);
            assert!(!part.contains('\u{fffd}'), "half a character was shown");
            shown.push_str(&part);
        }
        shown.push_str(&decoder.finish(text.len() as u64));
        assert_eq!(shown, text);
    }

    #[test]
    fn held_bytes_stay_back_and_the_rest_is_cut_at_the_visible_length() {
        let mut decoder = StreamDecoder::new(table(&[b"one ST", b"OP", b" two"]), false);
        assert_eq!(decoder.push(0, 2), "one ");
        assert_eq!(decoder.push(1, 4), "");
        assert_eq!(decoder.finish(4), "");
        let mut decoder = StreamDecoder::new(table(&[b"one ST", b"OP", b" two"]), false);
        assert_eq!(decoder.push(0, 2) + &decoder.push(2, 0) + &decoder.finish(10), "one ST two");
    }

    #[test]
    fn broken_bytes_become_replacement_characters_and_nothing_is_lost_after_them() {
        let mut decoder = StreamDecoder::new(table(&[b"a\xff", b"b\xe6\xbc"]), false);
        assert_eq!(decoder.push(0, 0), "a\u{fffd}");
        assert_eq!(decoder.push(1, 0), "b");
        assert_eq!(decoder.finish(5), "\u{fffd}");
    }

    #[test]
    fn the_tokenizers_own_leading_space_is_dropped_once() {
        let mut decoder = StreamDecoder::new(table(&[b" a", b" b"]), true);
        assert_eq!(decoder.push(0, 0) + &decoder.push(1, 0), "a b");
    }
}
