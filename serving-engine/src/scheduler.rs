//! What the next step computes. Pure: it sees sequences, pages and lanes, and no device and no clock.

use std::collections::HashMap;

use crate::request::Lane;

/// Fair shares: each lane's counter grows by the rows that were computed for it, and the lane with the smallest goes first.
#[derive(Debug, Default)]
pub struct Lanes {
    served: HashMap<Lane, u64>,
}

impl Lanes {
    /// Keeps the counters of the lanes that have work. One that comes new, or back, starts level with the least served: it
    /// has no claim on the time in which it asked for nothing.
    pub fn keep(&mut self, active: impl Iterator<Item = Lane>) {
        let least = self.served.values().copied().min().unwrap_or(0);
        let next: HashMap<Lane, u64> =
            active.map(|lane| (lane, self.served.get(&lane).copied().unwrap_or(least))).collect();
        self.served = next;
    }

    pub fn served(&self, lane: Lane) -> u64 {
        self.served.get(&lane).copied().unwrap_or(0)
    }

    pub fn charge(&mut self, lane: Lane, rows: usize) {
        *self.served.entry(lane).or_default() += rows as u64;
    }
}

/// A sequence as the planner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Where it stands in the caller's list.
    pub index: usize,
    pub lane: Lane,
    pub arrival: u64,
    /// Rows that it could use now.
    pub pending: usize,
}

/// How many rows each candidate gets: (index, rows), in the order in which they were chosen.
///
/// Sequences that decode (one row) go first, so that a long prompt does not hold up running answers; what is left of the
/// budget is dealt to prompts, least served lane first, then first come first served.
pub fn share_rows(candidates: &[Candidate], lanes: &Lanes, budget: usize) -> Vec<(usize, usize)> {
    let mut order: Vec<Candidate> = candidates.to_vec();
    order.sort_by_key(|c| (c.pending > 1, lanes.served(c.lane), c.arrival));
    let mut left = budget;
    let mut shares = Vec::new();
    for candidate in order {
        let rows = candidate.pending.min(left);
        if rows > 0 {
            left -= rows;
            shares.push((candidate.index, rows));
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(index: usize, lane: u64, arrival: u64, pending: usize) -> Candidate {
        Candidate { index, lane: Lane(lane), arrival, pending }
    }

    #[test]
    fn table_of_shares() {
        let mut lanes = Lanes::default();
        lanes.charge(Lane(1), 100);
        lanes.charge(Lane(2), 10);
        let a = candidate(0, 1, 0, 50);
        let b = candidate(1, 2, 1, 50);
        let decoding = candidate(2, 1, 2, 1);
        type Case<'a> = (&'a str, &'a [Candidate], usize, &'a [(usize, usize)]);
        let cases: [Case<'_>; 5] = [
            ("a decoding sequence goes before any prompt", &[a, decoding], 8, &[(2, 1), (0, 7)]),
            ("the least served lane goes first", &[a, b], 60, &[(1, 50), (0, 10)]),
            ("within a lane, first come first served", &[candidate(0, 1, 5, 9), candidate(1, 1, 4, 9)], 9, &[(1, 9)]),
            ("the budget is not exceeded", &[a, b, decoding], 1, &[(2, 1)]),
            ("nothing to do is nothing", &[], 8, &[]),
        ];
        for (rule, candidates, budget, expected) in cases {
            assert_eq!(share_rows(candidates, &lanes, budget), expected, "{rule}");
        }
    }

    #[test]
    fn a_lane_that_comes_back_has_no_claim_on_the_past() {
        let mut lanes = Lanes::default();
        lanes.charge(Lane(1), 1_000);
        lanes.charge(Lane(2), 900);
        lanes.keep([Lane(1), Lane(2), Lane(3)].into_iter());
        assert_eq!(lanes.served(Lane(3)), 900);
    }
}
