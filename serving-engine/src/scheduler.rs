//! What the next step computes. Pure: it sees sequences, costs and lanes, and no device and no clock.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;

use model::ModelShape;

use crate::request::Lane;

/// What a row costs where it has nothing before it: work is counted in parts of it, so that small things add up too.
pub const ROW: u64 = 1 << 16;
/// Reading the base model once takes as long as computing so many rows. It is the machine's ratio of arithmetic to bandwidth, and the
/// same for any model: bytes and arithmetic of a row both grow with the weights (435 GFLOP/s over 30 GB/s, at two operations and two
/// bytes a weight, is 15 rows).
const ROWS_PER_READ: u64 = 16;
/// Lanes that have left and are remembered with what they were served beyond others.
const LANES_REMEMBERED: usize = 4096;
/// A part of a step's rows, this many of it, is kept for who has waited too long.
const AGED_SHARE: usize = 4;

/// What work costs, in parts of a row.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// Bytes of an adapter that take as long to read as a row to compute.
    bytes_per_row: u64,
    /// Positions before a row whose attention takes as long as the row's linears.
    positions_per_row: u64,
}

impl Costs {
    /// `weight_bytes`: what a step reads of the base model.
    pub fn new(shape: &ModelShape, weight_bytes: u64) -> Self {
        // A position costs a product with K and one with V in every head; a weight one with an input.
        let positions = shape.layer_weights() / (2 * shape.heads * shape.head_dim).max(1);
        Self { bytes_per_row: (weight_bytes / ROWS_PER_READ).max(1), positions_per_row: (positions as u64).max(1) }
    }

    /// A row with so many positions before it.
    const fn row(&self, positions: usize) -> u64 {
        ROW + positions as u64 * ROW / self.positions_per_row
    }

    /// A chunk of rows from `first` on. What its rows see of each other is not counted, so that a prompt as long as a step fits in one.
    pub const fn rows(&self, first: usize, rows: usize) -> u64 {
        self.row(first) * rows as u64
    }

    /// An adapter in a step, however many rows use it.
    pub fn adapter(&self, bytes: usize) -> u64 {
        bytes as u64 * ROW / self.bytes_per_row
    }

    /// How many of `pending` rows from `first` on cost at most `left`.
    fn fitting(&self, first: usize, pending: usize, left: u64) -> usize {
        pending.min(usize::try_from(left / self.row(first)).unwrap_or(pending))
    }
}

/// Fair shares: each lane's counter grows by what was computed for it over its weight, and the lane with the smallest goes first.
#[derive(Debug, Default)]
pub struct Lanes {
    served: HashMap<Lane, u64>,
}

impl Lanes {
    /// Keeps the counters of the lanes that have work. One that comes new starts level with the least served: it has no claim on the
    /// time in which it asked for nothing. One that leaves and comes back keeps what it had beyond the least served: it cannot shed that
    /// by leaving.
    pub fn keep(&mut self, active: impl Iterator<Item = Lane>) {
        let active: HashSet<Lane> = active.collect();
        let served = |lane: &Lane| self.served.get(lane).copied();
        let Some(least) = active.iter().filter_map(served).min().or_else(|| self.served.values().copied().max()) else {
            self.served = active.into_iter().map(|lane| (lane, 0)).collect();
            return;
        };
        self.served.retain(|lane, served| active.contains(lane) || *served > least);
        for &lane in &active {
            self.served.entry(lane).or_insert(least);
        }
        self.forget(&active);
    }

    /// Forgets those who left with the smallest debts, where they are too many.
    fn forget(&mut self, active: &HashSet<Lane>) {
        let over = self.served.len().saturating_sub(active.len() + LANES_REMEMBERED);
        if over == 0 {
            return;
        }
        let left = self.served.iter().filter(|(lane, _)| !active.contains(lane));
        let mut left: Vec<(u64, Lane)> = left.map(|(&lane, &served)| (served, lane)).collect();
        left.sort_unstable();
        for (_, lane) in &left[..over] {
            self.served.remove(lane);
        }
    }

    pub fn served(&self, lane: Lane) -> u64 {
        self.served.get(&lane).copied().unwrap_or(0)
    }

    pub fn charge(&mut self, lane: Lane, weight: NonZeroU32, cost: u64) {
        *self.served.entry(lane).or_default() += cost / u64::from(weight.get());
    }
}

/// A sequence as the planner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Where it stands in the caller's list.
    pub index: usize,
    pub lane: Lane,
    pub arrival: u64,
    /// Rows that are computed already: the position of its next one.
    pub computed: usize,
    /// Rows that it could use now.
    pub pending: usize,
    /// Steps since it last had a row.
    pub waited: u64,
}

/// A step's bounds.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Most rows; and what so many rows at the beginning of a text cost is the most that prompts may add up to.
    pub rows: usize,
    /// Who had no row for more steps than this goes first, with a part of the rows.
    pub patience_steps: u64,
}

/// How many rows each candidate gets: (index, rows), in the order in which they were chosen.
///
/// Sequences that decode (one row) go first, so that a long prompt does not hold up running answers; what is left of the budget is dealt
/// to prompts, least served lane first, then first come first served. A row far into a text costs more than one at its beginning, so a long
/// prompt's chunks get shorter as it goes on and a step takes about as long as any other. Before all, a quarter of the step goes to who
/// has waited longest, once that is too long: so nobody waits for more than the patience and a step for each other running sequence.
pub fn share_rows(candidates: &[Candidate], lanes: &Lanes, costs: Costs, budget: Budget) -> Vec<(usize, usize)> {
    let mut order: Vec<Candidate> = candidates.iter().filter(|c| c.pending > 0).copied().collect();
    order.sort_by_key(|c| (c.pending > 1, lanes.served(c.lane), c.arrival));
    let mut left = Left { rows: budget.rows, cost: budget.rows as u64 * ROW };
    let mut shares = Vec::new();
    let aged = order.iter().filter(|c| c.waited > budget.patience_steps);
    if let Some(oldest) = aged.max_by_key(|c| (c.waited, u64::MAX - c.arrival)).copied() {
        let most = (budget.rows / AGED_SHARE).max(1);
        let rows = costs.fitting(oldest.computed, oldest.pending.min(most), most as u64 * ROW).max(1);
        left.take(costs, &oldest, rows);
        shares.push((oldest.index, rows));
        order.retain_mut(|c| {
            let taken = if c.index == oldest.index { rows } else { 0 };
            (c.computed, c.pending) = (c.computed + taken, c.pending - taken);
            c.pending > 0
        });
    }
    for candidate in order {
        let first = shares.iter().position(|(index, _)| *index == candidate.index);
        let rows = match candidate.pending.min(left.rows) {
            // Decoding takes no more than its row, wherever that is: without it nothing would ever end.
            1 if candidate.pending == 1 && first.is_none() => 1,
            most => costs.fitting(candidate.computed, most, left.cost),
        };
        // A step of one prompt has a row at least.
        let rows = if shares.is_empty() { rows.max(left.rows.min(1)) } else { rows };
        if rows > 0 {
            left.take(costs, &candidate, rows);
            match first {
                Some(at) => shares[at].1 += rows,
                None => shares.push((candidate.index, rows)),
            }
        }
    }
    shares
}

/// What is left of a step.
struct Left {
    rows: usize,
    cost: u64,
}

impl Left {
    fn take(&mut self, costs: Costs, candidate: &Candidate, rows: usize) {
        self.rows -= rows;
        self.cost = self.cost.saturating_sub(costs.rows(candidate.computed, rows));
    }
}

/// A lane as the rule for places sees it: how many of its sequences run, and its weight. Only lanes that have work are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    pub lane: Lane,
    pub weight: NonZeroU32,
    pub running: usize,
}

/// Whose running sequence gives its place to `claimant`, who has waited too long for one.
///
/// It is the lane furthest above its share of the `places`, where that brings both nearer to theirs or `claimant` has none at all. With
/// more lanes than places those that have one take turns with those that have none, the most served lane first.
pub fn yields(holdings: &[Holding], claimant: Lane, places: usize, lanes: &Lanes) -> Option<Lane> {
    let weights: i128 = holdings.iter().map(|h| i128::from(h.weight.get())).sum();
    // How far above its share a lane is with so many places, in parts of a place times all weights.
    let above = |h: &Holding, held: usize| held as i128 * weights - places as i128 * i128::from(h.weight.get());
    let own = holdings.iter().find(|h| h.lane == claimant)?;
    let others = || holdings.iter().filter(|h| h.lane != claimant && h.running > 0);
    let most = others().max_by_key(|h| (above(h, h.running), lanes.served(h.lane), h.lane))?;
    let fairer = above(own, own.running + 1) <= above(most, most.running) - weights;
    if most.running > 1 && (fairer || own.running == 0) {
        return Some(most.lane);
    }
    let turn = others().filter(|h| own.running == 0 && lanes.served(h.lane) > lanes.served(claimant) + ROW);
    turn.max_by_key(|h| (lanes.served(h.lane), h.lane)).map(|h| h.lane)
}

#[cfg(test)]
mod tests;
