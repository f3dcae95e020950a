//! How long the queue takes, from what waits in it and how fast the engine is.

use std::collections::HashMap;

use crate::request::Lane;

/// Within what a client is told to come back, in milliseconds.
const RETRY_MS: std::ops::RangeInclusive<f64> = 1_000.0..=60_000.0;
/// A step counts so much less than the one after it.
const FADE: f64 = 1.0 - 1.0 / 64.0;

/// Rows per second of the last steps, while there was something to do.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pace {
    rows: f64,
    seconds: f64,
}

impl Pace {
    /// Learns from a step. `seconds` are measured by who calls.
    pub fn learn(&mut self, rows: usize, seconds: f64) {
        self.rows = self.rows * FADE + rows as f64;
        self.seconds = self.seconds * FADE + seconds;
    }

    /// When so many rows will have been computed. Where nothing was measured yet: soon.
    fn retry_after_ms(&self, rows: u64) -> u64 {
        let ms = if self.rows > 0.0 { rows as f64 * self.seconds / self.rows * 1e3 } else { 0.0 };
        ms.clamp(*RETRY_MS.start(), *RETRY_MS.end()) as u64
    }
}

/// What waits, by lane.
#[derive(Debug, Default)]
pub struct Queue {
    pub waiting: u64,
    rows: u64,
    lanes: HashMap<Lane, (u64, u64)>,
    pub pace: Pace,
}

impl Queue {
    pub fn clear(&mut self) {
        (self.waiting, self.rows) = (0, 0);
        self.lanes.clear();
    }

    pub fn add(&mut self, lane: Lane, rows: u64) {
        let (waiting, of_lane) = self.lanes.entry(lane).or_default();
        (*waiting, *of_lane) = (*waiting + 1, *of_lane + rows);
        (self.waiting, self.rows) = (self.waiting + 1, self.rows + rows);
    }

    pub fn waiting_of(&self, lane: Lane) -> u64 {
        self.lanes.get(&lane).map_or(0, |&(waiting, _)| waiting)
    }

    /// When all that waits now will have been computed.
    pub fn retry_after_ms(&self) -> u64 {
        self.pace.retry_after_ms(self.rows)
    }

    /// When all that waits of a lane will have been, where lanes have equal shares.
    pub fn lane_retry_after_ms(&self, lane: Lane) -> u64 {
        let rows = self.lanes.get(&lane).map_or(0, |&(_, rows)| rows);
        self.pace.retry_after_ms(rows.saturating_mul(self.lanes.len() as u64).min(self.rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_retries() {
        let mut queue = Queue::default();
        queue.add(Lane(1), 1_000_000);
        assert_eq!(queue.retry_after_ms(), 1_000, "before anything was measured");
        queue.pace.learn(100, 0.1);
        for (rows, ms) in [(1, 1_000), (1_000, 1_000), (2_500, 2_500), (59_000, 59_000), (10_000_000, 60_000)] {
            queue.clear();
            queue.add(Lane(1), rows);
            assert_eq!(queue.retry_after_ms(), ms, "{rows} rows at 1,000 a second");
        }
    }

    #[test]
    fn a_lane_waits_for_its_own_rows_at_its_share_of_the_pace() {
        let mut queue = Queue::default();
        queue.pace.learn(1_000, 1.0);
        queue.add(Lane(1), 2_000);
        queue.add(Lane(1), 1_000);
        queue.add(Lane(2), 20_000);
        assert_eq!((queue.waiting, queue.waiting_of(Lane(1)), queue.waiting_of(Lane(3))), (3, 2, 0));
        assert_eq!(queue.lane_retry_after_ms(Lane(1)), 6_000);
        assert_eq!(queue.lane_retry_after_ms(Lane(2)), 23_000, "and never for more than all");
    }

    #[test]
    fn the_last_steps_count_most() {
        let mut pace = Pace::default();
        (0..1_000).for_each(|_| pace.learn(10, 1.0));
        (0..500).for_each(|_| pace.learn(100, 1.0));
        let ms = pace.retry_after_ms(1_000);
        assert!((10_000..10_100).contains(&ms), "{ms}");
    }
}
