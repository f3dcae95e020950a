//! The sampling site: what a row's logits answer to what was asked of them.

use crate::{Ask, NotANumber, RowOutput, SampleRow, Sampling, TokenCounts};

/// Answers one row. `logits` is scratch afterwards.
pub fn answer(ask: &Ask, logits: &mut [f32]) -> Result<RowOutput, NotANumber> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err(NotANumber);
    }
    match ask {
        Ask::Score { target, top_logprobs } => {
            let normaliser = log_sum_exp(logits);
            let logprob = logits.get(*target as usize).map_or(f32::NEG_INFINITY, |logit| logit - normaliser);
            Ok(RowOutput { token: *target, logprob, top: top(logits, normaliser, *top_logprobs) })
        }
        Ask::Sample(row) => {
            let report = row.top_logprobs.map(|count| {
                let normaliser = log_sum_exp(logits);
                (logits.to_vec(), normaliser, top(logits, normaliser, count))
            });
            let token = draw(row, logits);
            let (logprob, top) = match report {
                Some((raw, normaliser, top)) => (raw[token as usize] - normaliser, top),
                None => (0.0, Vec::new()),
            };
            Ok(RowOutput { token, logprob, top })
        }
    }
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    largest + sum.ln() as f32
}

/// Descending by logit, ascending by token among equals.
fn before(logits: &[f32], a: u32, b: u32) -> std::cmp::Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// The `count` largest, in order.
fn largest(logits: &[f32], count: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    let count = count.min(tokens.len());
    if count > 0 && count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, |&a, &b| before(logits, a, b));
        tokens.truncate(count);
    }
    tokens.truncate(count);
    tokens.sort_unstable_by(|&a, &b| before(logits, a, b));
    tokens
}

fn top(logits: &[f32], normaliser: f32, count: u16) -> Vec<(u32, f32)> {
    let tokens = largest(logits, count as usize);
    tokens.into_iter().map(|token| (token, logits[token as usize] - normaliser)).collect()
}

fn draw(row: &SampleRow, logits: &mut [f32]) -> u32 {
    let sampling = &row.sampling;
    for &(token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if let Some(counts) = &row.counts {
        penalise(sampling, counts, logits);
    }
    for &token in row.banned.iter() {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    if let Some(mask) = &row.mask {
        for (token, logit) in logits.iter_mut().enumerate() {
            if mask.get(token / 32).is_none_or(|word| word >> (token % 32) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    if sampling.temperature <= 0.0 {
        return greedy(logits);
    }
    nucleus(sampling, row.uniform, logits)
}

fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

fn penalise(sampling: &Sampling, counts: &TokenCounts, logits: &mut [f32]) {
    let mut repeat = |token: u32| {
        if let Some(logit) = logits.get_mut(token as usize) {
            let penalty = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    };
    if sampling.repetition_penalty != 1.0 {
        counts.prompt.iter().copied().for_each(&mut repeat);
        let is_new = |token: &u32| counts.prompt.binary_search(token).is_err();
        counts.output.iter().map(|&(token, _)| token).filter(is_new).for_each(&mut repeat);
    }
    for &(token, count) in &counts.output {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit -= sampling.presence_penalty + sampling.frequency_penalty * count as f32;
        }
    }
}

/// One draw by inversion, most probable token first: the order is a function of the logits alone.
fn nucleus(sampling: &Sampling, uniform: f32, logits: &[f32]) -> u32 {
    let keep = if sampling.top_k == 0 { logits.len() } else { sampling.top_k as usize };
    let tokens = largest(logits, keep);
    let peak = logits[tokens[0] as usize];
    let weight = |token: u32| f64::from((logits[token as usize] - peak) / sampling.temperature).exp();
    let mut weights: Vec<f64> = tokens.iter().map(|&token| weight(token)).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = weights.len();
    if sampling.top_p < 1.0 {
        let mut sum = 0.0;
        let enough = |&w: &f64| {
            sum += w;
            sum >= f64::from(sampling.top_p) * total
        };
        kept = weights.iter().position(enough).map_or(kept, |last| last + 1);
    }
    if sampling.min_p > 0.0 {
        // Weights are relative to the largest, which is 1.
        let small = weights.iter().position(|&w| w < f64::from(sampling.min_p));
        kept = kept.min(small.unwrap_or(kept)).max(1);
    }
    weights.truncate(kept);
    let mut left = f64::from(uniform) * weights.iter().sum::<f64>();
    for (&token, &weight) in tokens.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return token;
        }
    }
    tokens[weights.iter().rposition(|&w| w > 0.0).unwrap_or(0)]
}
