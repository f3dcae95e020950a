//! Where an answer ends: stop strings, matched as bytes across tokens.

/// The output of one choice, as bytes, watched for stop strings.
#[derive(Debug, Clone)]
pub struct StopWatch {
    stops: Vec<Vec<u8>>,
    include_stop: bool,
    /// The last bytes of the output: as many as a match that is still open can reach back, and all of the newest token.
    tail: Vec<u8>,
    total: u64,
}

/// What a token did to the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The answer goes on; its last `held_bytes` bytes may be the beginning of a stop string.
    Open { held_bytes: u32 },
    /// A stop string is complete: the answer is its first `visible_bytes` bytes.
    Stopped { visible_bytes: u64, held_bytes: u32 },
}

impl StopWatch {
    pub fn new(stops: Vec<Vec<u8>>, include_stop: bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, include_stop, tail: Vec::new(), total: 0 }
    }

    /// Bytes of the output so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn push(&mut self, bytes: &[u8]) -> Watched {
        self.total += bytes.len() as u64;
        if self.stops.is_empty() {
            return Watched::Open { held_bytes: 0 };
        }
        self.tail.extend_from_slice(bytes);
        if let Some((start, end)) = self.first_match() {
            let visible = if self.include_stop { end } else { start };
            let held = self.tail.len() - visible;
            return Watched::Stopped { visible_bytes: self.total - held as u64, held_bytes: held as u32 };
        }
        let held = self.open_prefix();
        let reach = self.stops.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let keep = reach.min(self.tail.len());
        self.tail.drain(..self.tail.len() - keep);
        Watched::Open { held_bytes: held as u32 }
    }

    /// The match that begins first; of two that begin together, the one that ends first.
    fn first_match(&self) -> Option<(usize, usize)> {
        let found = |stop: &Vec<u8>| {
            let start = self.tail.windows(stop.len()).position(|window| window == stop)?;
            Some((start, start + stop.len()))
        };
        self.stops.iter().filter_map(found).min()
    }

    /// Length of the longest suffix that begins a stop string.
    fn open_prefix(&self) -> usize {
        let longest = |stop: &Vec<u8>| {
            let most = (stop.len() - 1).min(self.tail.len());
            (1..=most).rev().find(|&length| self.tail.ends_with(&stop[..length])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(stops: &[&str], include: bool, tokens: &[&str]) -> Vec<Watched> {
        let mut watch = StopWatch::new(stops.iter().map(|s| s.as_bytes().to_vec()).collect(), include);
        tokens.iter().map(|token| watch.push(token.as_bytes())).collect()
    }

    #[test]
    fn a_stop_string_over_token_borders_is_held_and_cut() {
        let open = |held_bytes| Watched::Open { held_bytes };
        assert_eq!(
            watch(&["STOP"], false, &["a S", "T", "O", "Px"]),
            [open(1), open(2), open(3), Watched::Stopped { visible_bytes: 2, held_bytes: 5 }]
        );
        assert_eq!(watch(&["STOP"], false, &["ST", "x"]), [open(2), open(0)]);
        assert_eq!(watch(&["STOP"], true, &["a STOPx"]), [Watched::Stopped { visible_bytes: 6, held_bytes: 1 }]);
    }

    #[test]
    fn the_match_that_begins_first_wins() {
        assert_eq!(watch(&["cd", "abc"], false, &["xabcd"]), [Watched::Stopped { visible_bytes: 1, held_bytes: 4 }]);
    }

    #[test]
    fn overlapping_beginnings_hold_the_longest() {
        assert_eq!(watch(&["aab"], false, &["aa", "a", "b"])[..2], [Watched::Open { held_bytes: 2 }; 2]);
        assert_eq!(watch(&["aab"], false, &["aaab"]), [Watched::Stopped { visible_bytes: 1, held_bytes: 3 }]);
    }

    #[test]
    fn nothing_is_held_without_stop_strings() {
        assert_eq!(watch(&[""], false, &["abc"]), [Watched::Open { held_bytes: 0 }]);
    }
}
