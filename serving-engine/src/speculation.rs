//! Guessing what comes next from the text itself (prompt lookup decoding: Saxena 2023; Yang et al. 2023, arXiv:2304.04487).
//!
//! Where a sequence's last tokens stand in it once before, what followed them there is guessed to follow again. The guesses are computed as
//! further rows of the sequence's step. A row draws what it would have drawn without them, from the same logits and the same random
//! number, so an answer is the same token by token; a guess only decides how many of them one step yields.

/// How many last tokens must stand earlier in the text.
const MATCH: usize = 3;
/// Most guesses of one step, and how many a sequence begins with.
const MOST: usize = 8;
const FIRST: usize = 2;
/// Tokens without a guess after guesses of which none was right.
const PAUSE: usize = 16;

/// How far a sequence's text has been guessed right: wrong guesses cost rows that others could use.
#[derive(Debug, Clone, Copy)]
pub struct Trust {
    length: usize,
    pause: usize,
}

impl Default for Trust {
    fn default() -> Self {
        Self { length: FIRST, pause: 0 }
    }
}

impl Trust {
    /// Most guesses that are worth a row now.
    pub const fn most(&self) -> usize {
        if self.pause == 0 { self.length } else { 0 }
    }

    /// Learns from a step with `guessed` guesses, the first `right` of which were drawn.
    pub fn learn(&mut self, guessed: usize, right: usize) {
        self.pause = self.pause.saturating_sub(right + 1);
        match (guessed, right) {
            (0, _) => {}
            (_, 0) => *self = Self { length: (self.length / 2).max(1), pause: PAUSE },
            _ if right == guessed => self.length = (self.length * 2).min(MOST),
            _ => {}
        }
    }
}

/// What followed the last time that the text's last tokens stood in it: at most `most` tokens.
pub fn guess(tokens: &[u32], most: usize) -> &[u32] {
    let Some(before) = tokens.len().checked_sub(MATCH).filter(|_| most > 0) else { return &[] };
    let last = &tokens[before..];
    let found = tokens[..tokens.len() - 1].windows(MATCH).rposition(|window| window == last);
    found.map_or(&[], |at| &tokens[at + MATCH..(at + MATCH + most).min(tokens.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_guesses() {
        let cases: [(&str, &[u32], usize, &[u32]); 6] = [
            ("what followed the same three tokens", &[1, 2, 3, 4, 5, 1, 2, 3], 2, &[4, 5]),
            ("the latest place counts", &[1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1, &[5]),
            ("a repeated token follows itself", &[7, 7, 7, 7], 4, &[7]),
            ("two equal tokens are too few", &[2, 3, 4, 9, 2, 3], 4, &[]),
            ("a text that is too short", &[1, 2], 4, &[]),
            ("none are asked for", &[1, 2, 3, 4, 1, 2, 3], 0, &[]),
        ];
        for (rule, tokens, most, expected) in cases {
            assert_eq!(guess(tokens, most), expected, "{rule}");
        }
    }

    #[test]
    fn trust_grows_with_right_guesses_and_pauses_after_wrong_ones() {
        let mut trust = Trust::default();
        for (guessed, right, most) in [(2, 2, 4), (4, 4, 8), (8, 8, 8), (8, 3, 8), (8, 0, 0)] {
            trust.learn(guessed, right);
            assert_eq!(trust.most(), most, "after {right} of {guessed}");
        }
        (0..PAUSE).for_each(|_| trust.learn(0, 0));
        assert_eq!(trust.most(), 4);
    }
}
