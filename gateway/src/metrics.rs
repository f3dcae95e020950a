//! Prometheus metrics under the names that existing dashboards read.

use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

use crate::reconciler::Found;
use serving_engine::Stats;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[derive(Debug, Default, Clone, Copy)]
struct Histogram {
    counts: [u64; BUCKETS.len()],
    count: u64,
    sum_s: f64,
}

impl Histogram {
    fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.count += 1;
        self.sum_s += seconds;
        for (count, bound) in self.counts.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (count, bound) in self.counts.iter().zip(BUCKETS) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {}\n{name}_sum {}\n{name}_count {}",
            self.count, self.sum_s, self.count
        );
    }
}

#[derive(Debug, Default)]
struct Latencies {
    first_token: Histogram,
    row_wait: Histogram,
    inter_token: Histogram,
    end_to_end: Histogram,
}

/// What the gateway measures itself; the rest comes from the engine.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Latencies>);

impl Metrics {
    fn with(&self, change: impl FnOnce(&mut Latencies)) {
        change(&mut self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    pub fn first_token(&self, duration: Duration) {
        self.with(|latencies| latencies.first_token.observe(duration));
    }

    pub fn row_wait(&self, duration: Duration) {
        self.with(|latencies| latencies.row_wait.observe(duration));
    }

    pub fn inter_token(&self, duration: Duration) {
        self.with(|latencies| latencies.inter_token.observe(duration));
    }

    pub fn end_to_end(&self, duration: Duration) {
        self.with(|latencies| latencies.end_to_end.observe(duration));
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self, stats: &Stats, books: &Found, unbilled_tokens: u64) -> String {
        let mut out = String::new();
        let used = if stats.pages_total == 0 { 0.0 } else { stats.pages_used as f64 / stats.pages_total as f64 };
        let mut number = |name: &str, kind: &str, help: &str, value: f64| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        number("vllm:num_requests_running", "gauge", "Answers being generated", stats.running as f64);
        number("vllm:num_requests_waiting", "gauge", "Answers waiting to start", stats.waiting as f64);
        number("vllm:kv_cache_usage_perc", "gauge", "Share of KV pages in use, 0 to 1", used);
        number(
            "vllm:prefix_cache_queries",
            "counter",
            "Prompt tokens looked up in the prefix cache",
            stats.prefix_queries as f64,
        );
        number(
            "vllm:prefix_cache_hits",
            "counter",
            "Prompt tokens found in the prefix cache",
            stats.prefix_hits as f64,
        );
        let [used, written, read, lost] =
            [stats.disk_pages_used, stats.disk_pages_written, stats.disk_pages_read, stats.disk_pages_lost];
        number("myriad_kv_disk_pages", "gauge", "Pages of the prefix cache on disk", used as f64);
        number("myriad_kv_disk_written_total", "counter", "Pages written to disk", written as f64);
        number("myriad_kv_disk_read_total", "counter", "Pages read back from disk", read as f64);
        number(
            "myriad_kv_disk_lost_total",
            "counter",
            "Pages on disk that were damaged or could not be read",
            lost as f64,
        );
        number("vllm:prompt_tokens_total", "counter", "Prompt tokens taken in", stats.prompt_tokens as f64);
        number("vllm:generation_tokens_total", "counter", "Tokens generated", stats.generation_tokens as f64);
        number("vllm:num_preemptions_total", "counter", "Sequences sent back to wait", stats.preemptions as f64);
        let (guessed, accepted) = (stats.guessed_tokens as f64, stats.accepted_tokens as f64);
        number("vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens guessed by prompt lookup", guessed);
        number("vllm:spec_decode_num_accepted_tokens_total", "counter", "Guessed tokens that were drawn", accepted);
        number("myriad_engine_steps_total", "counter", "Steps computed", stats.steps as f64);
        number("myriad_resident_adapters", "gauge", "Adapters bound to slots", stats.resident_adapters as f64);
        let help =
            "Tokens computed for requests whose rows were closed otherwise, as after others took this server for dead";
        number("myriad_unbilled_tokens_total", "counter", help, unbilled_tokens as f64);
        if let Some(last) = &books.last {
            let name = "myriad_reconciliation_differences";
            number(
                name,
                "gauge",
                "Places where the books do not agree; anything but 0 is an alarm",
                books.differences() as f64,
            );
            let name = "myriad_reconciliation_compared";
            number(name, "gauge", "Comparisons of the last reconciliation", last.compared as f64);
            let at = last.at_ms as f64 / 1e3;
            number("myriad_reconciliation_timestamp_seconds", "gauge", "When it was, in Unix time", at);
        }
        if let Some(whole) = &books.whole {
            let (name, at) = ("myriad_reconciliation_whole_timestamp_seconds", whole.at_ms as f64 / 1e3);
            number(name, "gauge", "When balances and statements were compared last, in Unix time", at);
        }
        self.with(|latencies| {
            latencies.first_token.write("vllm:time_to_first_token_seconds", "Time to first token", &mut out);
            let help = "Time that an answer's beginning waited for its row to be durable";
            latencies.row_wait.write("myriad_row_wait_seconds", help, &mut out);
            latencies.inter_token.write("vllm:inter_token_latency_seconds", "Time between tokens", &mut out);
            latencies.end_to_end.write("vllm:e2e_request_latency_seconds", "Time of a whole request", &mut out);
        });
        out
    }
}
