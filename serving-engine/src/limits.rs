//! The engine's bounds, by name, and what it counts.

/// Everything is bounded; over a bound a request is refused with a reason.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests that wait to be taken in or to start.
    pub queue: usize,
    /// How many of these may be of one lane.
    pub lane_queue: usize,
    /// Sequences that hold pages at the same time, per base model.
    pub running: usize,
    /// Rows of one step: decoding sequences first, prompt chunks with what is left.
    pub step_rows: usize,
    /// Guesses are made while a step has fewer rows than this: further rows are nearly free as long as reading the weights is what
    /// takes the time. 0: never.
    pub speculative_rows: usize,
    /// Adapter images bound to slots, in bytes, per base model.
    pub adapter_bytes: usize,
    /// After so many steps a sequence that waits for a slot or pages holds back those that came after it, one that waits for a place gets
    /// one of a lane that has more than its share, and a running one that had no row goes first.
    pub patience_steps: u64,
    /// Most choices of one request.
    pub choices: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 1024,
            lane_queue: 768,
            running: 64,
            step_rows: 256,
            speculative_rows: 8,
            adapter_bytes: 1 << 30,
            patience_steps: 64,
            choices: 128,
        }
    }
}

/// A snapshot of the engine's counters, all base models together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub running: u64,
    pub waiting: u64,
    pub pages_used: u64,
    pub pages_total: u64,
    /// Prompt tokens that were looked up in the prefix cache, and found there.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    /// Pages of the prefix cache on disk; how many were written there, read back, and not what had been written.
    pub disk_pages_used: u64,
    pub disk_pages_written: u64,
    pub disk_pages_read: u64,
    pub disk_pages_lost: u64,
    pub prompt_tokens: u64,
    pub generation_tokens: u64,
    /// Choices that have ended.
    pub answers: u64,
    pub resident_adapters: u64,
    pub steps: u64,
    pub preemptions: u64,
    /// Tokens that were guessed, and those of them that were drawn.
    pub guessed_tokens: u64,
    pub accepted_tokens: u64,
}

impl Stats {
    pub fn plus(self, other: Self) -> Self {
        Self {
            running: self.running + other.running,
            waiting: self.waiting + other.waiting,
            pages_used: self.pages_used + other.pages_used,
            pages_total: self.pages_total + other.pages_total,
            prefix_queries: self.prefix_queries + other.prefix_queries,
            prefix_hits: self.prefix_hits + other.prefix_hits,
            disk_pages_used: self.disk_pages_used + other.disk_pages_used,
            disk_pages_written: self.disk_pages_written + other.disk_pages_written,
            disk_pages_read: self.disk_pages_read + other.disk_pages_read,
            disk_pages_lost: self.disk_pages_lost + other.disk_pages_lost,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            generation_tokens: self.generation_tokens + other.generation_tokens,
            answers: self.answers + other.answers,
            resident_adapters: self.resident_adapters + other.resident_adapters,
            steps: self.steps + other.steps,
            preemptions: self.preemptions + other.preemptions,
            guessed_tokens: self.guessed_tokens + other.guessed_tokens,
            accepted_tokens: self.accepted_tokens + other.accepted_tokens,
        }
    }
}
