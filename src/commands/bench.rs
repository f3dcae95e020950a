//! `myriad bench`: loads a server through its public API and prints latencies and throughput.
//!
//! Prompts are token arrays drawn from a seed, each different from its first token on, so that no two share a prefix and
//! the cache does not flatter the figures. Answers ignore the end-of-sequence token, so that every request has the length
//! that was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::table::Table;
use crate::cli::{Bench, Popularity};
use crate::client::{Client, ClientError};

/// Token ids that every vocabulary has and that are text in practice: above the special ones, below the smallest table.
const PROMPT_TOKENS: std::ops::Range<u64> = 64..256;

/// What one request measured.
struct Sample {
    first: Duration,
    total: Duration,
    /// Gaps between the following tokens' arrivals.
    gaps: Vec<Duration>,
    completion: u64,
}

pub async fn run(bench: &Bench) -> Result<(), ClientError> {
    if bench.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return Err(ClientError::Usage("--rate must be over 0".into()));
    }
    let client = Client::new(&bench.server)?;
    let models = match bench.model.as_slice() {
        [] => vec![client.first_base().await?],
        named => named.to_vec(),
    };
    let plan: Arc<[Planned]> = plan(bench, &models).into();
    let bar = progress_bar(bench.requests);
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let workers: Vec<_> = (0..bench.concurrency.min(bench.requests))
        .map(|_| {
            let pace = bench.rate.map(|rate| (started, rate));
            tokio::spawn(work(client.clone(), plan.clone(), next.clone(), pace, bar.clone(), bench.output_tokens))
        })
        .collect();
    let mut outcomes = Outcomes::default();
    for worker in workers {
        let (samples, failures) = worker.await.map_err(|e| ClientError::Protocol(e.to_string()))?;
        outcomes.samples.extend(samples);
        outcomes.failures.extend(failures);
    }
    bar.finish_and_clear();
    let report = Report::new(bench, &models, &outcomes, started.elapsed());
    print!("{}", report.text());
    if let Some(out) = &bench.out {
        report.write(out)?;
    }
    match outcomes.failures.first() {
        Some(first) => {
            Err(ClientError::Usage(format!("{} requests failed; the first: {first}", outcomes.failures.len())))
        }
        None => Ok(()),
    }
}

#[derive(Default)]
struct Outcomes {
    samples: Vec<Sample>,
    failures: Vec<String>,
}

struct Planned {
    model: String,
    prompt: Vec<u64>,
}

async fn work(
    client: Client,
    plan: Arc<[Planned]>,
    next: Arc<AtomicUsize>,
    pace: Option<(Instant, f64)>,
    bar: ProgressBar,
    output_tokens: u32,
) -> (Vec<Sample>, Vec<String>) {
    let (mut samples, mut failures) = (Vec::new(), Vec::new());
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(planned) = plan.get(index) else { return (samples, failures) };
        let due = pace.map(|(start, rate)| start + Duration::from_secs_f64(index as f64 / rate));
        if let Some(due) = due {
            tokio::time::sleep_until(due.into()).await;
        }
        match request(&client, planned, output_tokens, due.unwrap_or_else(Instant::now)).await {
            Ok(sample) => samples.push(sample),
            Err(error) => failures.push(error.to_string()),
        }
        bar.inc(1);
    }
}

async fn request(
    client: &Client,
    planned: &Planned,
    output_tokens: u32,
    started: Instant,
) -> Result<Sample, ClientError> {
    let body = json!({
        "model": planned.model, "prompt": planned.prompt, "max_tokens": output_tokens, "temperature": 0,
        "ignore_eos": true, "stream": true, "stream_options": { "include_usage": true },
        // A token whose text is not complete yet has no chunk of its own; with log-probabilities each has.
        "logprobs": 0,
    });
    let (mut arrivals, mut completion) = (Vec::new(), 0);
    let streamed = client.stream("/v1/completions", &body, |event| {
        let tokens = event["choices"][0]["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
        arrivals.extend(std::iter::repeat_n(started.elapsed(), tokens));
        completion = event["usage"]["completion_tokens"].as_u64().unwrap_or(completion);
        Ok(())
    });
    streamed.await?;
    let total = started.elapsed();
    let first = *arrivals.first().ok_or_else(|| ClientError::Protocol("the answer has no token".into()))?;
    let gaps = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
    Ok(Sample { first, total, gaps, completion })
}

/// What is sent is fixed by the seed before the clock starts.
fn plan(bench: &Bench, models: &[String]) -> Vec<Planned> {
    let mut random = SplitMix64(bench.seed);
    let weights: Vec<f64> = (1..=models.len()).map(|rank| 1.0 / rank as f64).collect();
    let pick = |index: usize, random: &mut SplitMix64| match bench.popularity {
        Popularity::Identical => 0,
        Popularity::Distinct => index % models.len(),
        Popularity::Uniform => random.below(models.len() as u64) as usize,
        Popularity::Zipf => weighted(&weights, random.unit()),
    };
    (0..bench.requests as usize)
        .map(|index| {
            let model = models[pick(index, &mut random)].clone();
            let width = PROMPT_TOKENS.end - PROMPT_TOKENS.start;
            let mut prompt: Vec<u64> =
                (0..bench.prompt_tokens).map(|_| PROMPT_TOKENS.start + random.below(width)).collect();
            // The first two tokens count the requests: no two prompts begin alike.
            for (place, token) in prompt.iter_mut().take(2).enumerate() {
                *token = PROMPT_TOKENS.start + (index as u64 / width.pow(place as u32)) % width;
            }
            Planned { model, prompt }
        })
        .collect()
}

fn weighted(weights: &[f64], unit: f64) -> usize {
    let mut left = unit * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return index;
        }
    }
    weights.len() - 1
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the benchmark's plan must be the same everywhere.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// The figures of one run.
struct Report {
    figures: Value,
    table: Table,
    heading: String,
}

impl Report {
    fn new(bench: &Bench, models: &[String], outcomes: &Outcomes, wall: Duration) -> Self {
        let samples = &outcomes.samples;
        let stages = [
            ("time to first token", samples.iter().map(|s| s.first).collect()),
            ("inter-token latency", samples.iter().flat_map(|s| s.gaps.iter().copied()).collect()),
            ("end to end", samples.iter().map(|s| s.total).collect::<Vec<_>>()),
        ];
        let mut table = Table::new(["ms", "p50", "p90", "p99", "max"]);
        let mut latencies = serde_json::Map::new();
        for (name, durations) in stages {
            let values = quantiles_ms(durations);
            table.push([
                name.to_owned(),
                format!("{:.2}", values[0]),
                format!("{:.2}", values[1]),
                format!("{:.2}", values[2]),
                format!("{:.2}", values[3]),
            ]);
            let [p50, p90, p99, max] = values;
            latencies
                .insert(name.replace([' ', '-'], "_") + "_ms", json!({"p50": p50, "p90": p90, "p99": p99, "max": max}));
        }
        let completion: u64 = samples.iter().map(|s| s.completion).sum();
        let seconds = wall.as_secs_f64();
        let figures = json!({
            "models": models.len(), "popularity": format!("{:?}", bench.popularity).to_lowercase(),
            "requests": bench.requests, "rate": bench.rate, "failed": outcomes.failures.len(), "concurrency": bench.concurrency,
            "prompt_tokens": bench.prompt_tokens, "output_tokens": bench.output_tokens, "seed": bench.seed,
            "seconds": seconds, "completion_tokens": completion,
            "output_tokens_per_s": completion as f64 / seconds,
            "requests_per_s": samples.len() as f64 / seconds,
            "latencies": latencies,
        });
        let heading = format!(
            "{} requests, {}, {} model(s) ({}), {} tokens in, {} out, {} failed\n\
             {:.1} output tokens/s   {:.2} requests/s   {seconds:.2} s in all\n",
            bench.requests,
            match bench.rate {
                Some(rate) => format!("{rate} per second"),
                None => format!("{} at a time", bench.concurrency),
            },
            models.len(),
            figures["popularity"].as_str().unwrap_or_default(),
            bench.prompt_tokens,
            bench.output_tokens,
            outcomes.failures.len(),
            completion as f64 / seconds,
            samples.len() as f64 / seconds,
        );
        Self { figures, table, heading }
    }

    fn text(&self) -> String {
        format!("{}{}", self.heading, self.table.text())
    }

    fn write(&self, out: &std::path::Path) -> Result<(), ClientError> {
        let markdown = format!("{}\n{}", self.heading, self.table.markdown());
        for (extension, text) in [("md", markdown), ("json", format!("{:#}\n", self.figures))] {
            let path = out.with_extension(extension);
            std::fs::write(&path, text)
                .map_err(|e| ClientError::File { path: path.display().to_string(), reason: e.to_string() })?;
        }
        Ok(())
    }
}

/// p50, p90, p99 and the largest, in milliseconds; nearest rank. Zeros where there is nothing.
fn quantiles_ms(mut durations: Vec<Duration>) -> [f64; 4] {
    durations.sort_unstable();
    [0.5, 0.9, 0.99, 1.0].map(|quantile| {
        let rank = (quantile * durations.len() as f64).ceil() as usize;
        durations.get(rank.saturating_sub(1)).map_or(0.0, |d| d.as_secs_f64() * 1e3)
    })
}

fn progress_bar(requests: u32) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(requests));
    match ProgressStyle::with_template("  [{bar:32}] {pos}/{len} requests, {elapsed}") {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let ms = |n| Duration::from_millis(n);
        assert_eq!(quantiles_ms((1..=100).map(ms).collect()), [50.0, 90.0, 99.0, 100.0]);
        assert_eq!(quantiles_ms(vec![ms(7)]), [7.0; 4]);
        assert_eq!(quantiles_ms(vec![]), [0.0; 4]);
    }

    #[test]
    fn zipf_prefers_the_first_model_in_proportion() {
        let weights = [1.0, 0.5, 1.0 / 3.0];
        let mut random = SplitMix64(3);
        let mut counts = [0; 3];
        for _ in 0..11_000 {
            counts[weighted(&weights, random.unit())] += 1;
        }
        assert!(counts[0] > 5_700 && counts[0] < 6_300, "{counts:?}");
        assert!(counts[2] > 1_800 && counts[2] < 2_200, "{counts:?}");
    }
}
