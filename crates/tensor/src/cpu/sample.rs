//! The sampling site: what a row's logits answer to what was asked of them.

use super::arithmetic::Arithmetic;
use super::simd::{LANES, Vec16};
use super::{Path, dispatch};
use crate::{Ask, DType, Mask, NotANumber, RowOutput, SampleRow, Sampling, TokenCounts};

/// Weights that are summed in f32 before their sum goes on in f64.
const CHUNK: usize = 16 * LANES;
/// Tokens that are looked at first where the most probable ones are wanted, and how many times more after that.
const FIRST: usize = 64;
const MORE: usize = 8;

/// Answers one row. `logits` is scratch afterwards.
pub fn answer(path: Path, ask: &Ask, logits: &mut [f32]) -> Result<RowOutput, NotANumber> {
    if !peaks(path, logits).0 {
        return Err(NotANumber);
    }
    match ask {
        Ask::Score { target, top_logprobs } => {
            let normaliser = log_sum_exp(path, logits);
            let logprob = logits.get(*target as usize).map_or(f32::NEG_INFINITY, |logit| logit - normaliser);
            Ok(RowOutput { token: *target, logprob, top: top(logits, normaliser, *top_logprobs) })
        }
        Ask::Sample(row) => {
            let report = row.top_logprobs.map(|count| {
                let normaliser = log_sum_exp(path, logits);
                (logits.to_vec(), normaliser, top(logits, normaliser, count))
            });
            let token = draw(path, row, logits);
            let (logprob, top) = match report {
                Some((raw, normaliser, top)) => (raw[token as usize] - normaliser, top),
                None => (0.0, Vec::new()),
            };
            Ok(RowOutput { token, logprob, top })
        }
    }
}

fn log_sum_exp(path: Path, logits: &[f32]) -> f32 {
    let peak = peak(path, logits);
    let mut weights = logits.to_vec();
    let sums = weigh(path, &mut weights, peak, 1.0);
    peak + sums.iter().sum::<f64>().ln() as f32
}

/// Whether all are finite, and the largest of `CHUNK` of them each.
fn peaks(path: Path, logits: &[f32]) -> (bool, Vec<f32>) {
    let (mut finite, mut peaks) = (true, Vec::with_capacity(logits.len().div_ceil(CHUNK)));
    path.peaks(DType::F32, Peaks { logits, finite: &mut finite, peaks: &mut peaks });
    (finite, peaks)
}

fn peak(path: Path, logits: &[f32]) -> f32 {
    peaks(path, logits).1.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

struct Peaks<'a> {
    logits: &'a [f32],
    finite: &'a mut bool,
    peaks: &'a mut Vec<f32>,
}

dispatch!(peaks, Peaks<'_>);

impl Peaks<'_> {
    #[inline(always)]
    unsafe fn run<A: Arithmetic>(self) {
        for chunk in self.logits.chunks(CHUNK) {
            let (vectors, rest) = chunk.as_chunks::<LANES>();
            // SAFETY: vectors are whole: what is left over is looked at one by one.
            let (mut peak, nothing) = unsafe {
                let zero = A::V::splat(0.0);
                let (mut peak, mut nothing) = (A::V::splat(f32::NEG_INFINITY), zero);
                for lanes in vectors {
                    let lanes = A::V::load(lanes.as_ptr());
                    peak = peak.max(lanes);
                    // Zero, or no number where one of them is infinite or none.
                    nothing = nothing.fma(lanes, zero);
                }
                (peak.largest(), nothing.sum())
            };
            *self.finite &= nothing == 0.0 && rest.iter().all(|logit| logit.is_finite());
            for &logit in rest {
                peak = peak.max(logit);
            }
            self.peaks.push(peak);
        }
    }
}

/// Puts e^((logit - peak) / temperature) into the place of each logit; returns the sums of `CHUNK` of them each.
fn weigh(path: Path, logits: &mut [f32], peak: f32, temperature: f32) -> Vec<f64> {
    let mut sums = Vec::with_capacity(logits.len().div_ceil(CHUNK));
    path.weigh(DType::F32, Weigh { logits, peak, scale: std::f32::consts::LOG2_E / temperature, sums: &mut sums });
    sums
}

struct Weigh<'a> {
    logits: &'a mut [f32],
    peak: f32,
    scale: f32,
    sums: &'a mut Vec<f64>,
}

dispatch!(weigh, Weigh<'_>);

impl Weigh<'_> {
    #[inline(always)]
    unsafe fn run<A: Arithmetic>(self) {
        for chunk in self.logits.chunks_mut(CHUNK) {
            // SAFETY: vectors are whole: what is left over goes through an array.
            unsafe {
                let (peak, scale) = (A::V::splat(self.peak), A::V::splat(self.scale));
                let mut sum = A::V::splat(0.0);
                for lanes in chunk.chunks_mut(LANES) {
                    let mut whole = [f32::NEG_INFINITY; LANES];
                    whole[..lanes.len()].copy_from_slice(lanes);
                    let weight = A::V::load(whole.as_ptr()).sub(peak).mul(scale).exp2();
                    sum = sum.add(weight);
                    weight.store(whole.as_mut_ptr());
                    lanes.copy_from_slice(&whole[..lanes.len()]);
                }
                self.sums.push(f64::from(sum.sum()));
            }
        }
    }
}

/// Descending by logit, ascending by token among equals.
fn before(logits: &[f32], a: u32, b: u32) -> std::cmp::Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// The `count` largest, in order.
fn largest(logits: &[f32], count: usize) -> Vec<u32> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let mut tokens: Vec<u32> = Vec::with_capacity(2 * count);
    // A token that comes later goes before the last of those that are kept only where its logit is larger.
    let mut last = None;
    for (token, &logit) in logits.iter().enumerate() {
        if last.is_some_and(|last| logit <= last) {
            continue;
        }
        tokens.push(token as u32);
        if tokens.len() == 2 * count {
            tokens.select_nth_unstable_by(count - 1, |&a, &b| before(logits, a, b));
            tokens.truncate(count);
            last = Some(logits[tokens[count - 1] as usize]);
        }
    }
    tokens.sort_unstable_by(|&a, &b| before(logits, a, b));
    tokens.truncate(count);
    tokens
}

fn top(logits: &[f32], normaliser: f32, count: u16) -> Vec<(u32, f32)> {
    let tokens = largest(logits, count as usize);
    tokens.into_iter().map(|token| (token, logits[token as usize] - normaliser)).collect()
}

fn draw(path: Path, row: &SampleRow, logits: &mut [f32]) -> u32 {
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
        let bits = mask.wait();
        for (token, logit) in logits.iter_mut().enumerate() {
            if !Mask::allows(bits, token) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    if sampling.temperature <= 0.0 {
        return greedy(path, logits);
    }
    if sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
        return any(path, sampling.temperature, row.uniform, logits);
    }
    nucleus(path, sampling, row.uniform, logits)
}

fn greedy(path: Path, logits: &[f32]) -> u32 {
    let peaks = peaks(path, logits).1;
    let peak = peaks.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let chunk = peaks.iter().position(|&other| other == peak).unwrap_or(0) * CHUNK;
    (chunk + logits[chunk..].iter().position(|&logit| logit == peak).unwrap_or(0)) as u32
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

/// One draw of all tokens by inversion, in the order of their ids.
fn any(path: Path, temperature: f32, uniform: f32, logits: &mut [f32]) -> u32 {
    let peak = peak(path, logits);
    let sums = weigh(path, logits, peak, temperature);
    let mut left = f64::from(uniform) * sums.iter().sum::<f64>();
    for (chunk, (weights, sum)) in logits.chunks(CHUNK).zip(&sums).enumerate() {
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (token, &weight) in weights.iter().enumerate() {
            left -= f64::from(weight);
            if left < 0.0 {
                return (chunk * CHUNK + token) as u32;
            }
        }
    }
    logits.iter().rposition(|&weight| weight > 0.0).unwrap_or(0) as u32
}

/// One draw of the most probable tokens by inversion, the most probable first: the order is a function of the logits alone.
fn nucleus(path: Path, sampling: &Sampling, uniform: f32, logits: &[f32]) -> u32 {
    let most = if sampling.top_k == 0 { logits.len() } else { logits.len().min(sampling.top_k as usize) };
    let peak = peak(path, logits);
    let whole = (sampling.top_k == 0 && sampling.top_p < 1.0)
        .then(|| weigh(path, &mut logits.to_vec(), peak, sampling.temperature).iter().sum::<f64>());
    let mut count = if sampling.top_k == 0 { most.min(FIRST) } else { most };
    loop {
        let tokens = largest(logits, count);
        let weight = |&token: &u32| f64::from((logits[token as usize] - peak) / sampling.temperature).exp();
        let mut weights: Vec<f64> = tokens.iter().map(weight).collect();
        let total = whole.unwrap_or_else(|| weights.iter().sum());
        match end(sampling, total, &weights) {
            None if count < most => count = most.min(count * MORE),
            end => {
                weights.truncate(end.unwrap_or(count));
                return invert(&tokens, &weights, uniform);
            }
        }
    }
}

/// How many of the most probable tokens are kept; `None` where the end is not among these.
fn end(sampling: &Sampling, total: f64, weights: &[f64]) -> Option<usize> {
    let mut sum = 0.0;
    let enough = |&weight: &f64| {
        sum += weight;
        sum >= f64::from(sampling.top_p) * total
    };
    let mass = if sampling.top_p < 1.0 { weights.iter().position(enough).map(|last| last + 1) } else { None };
    // Weights are relative to the largest, which is 1.
    let small = |&weight: &f64| weight < f64::from(sampling.min_p);
    let small = if sampling.min_p > 0.0 { weights.iter().position(small).map(|first| first.max(1)) } else { None };
    mass.into_iter().chain(small).min()
}

fn invert(tokens: &[u32], weights: &[f64], uniform: f32) -> u32 {
    let mut left = f64::from(uniform) * weights.iter().sum::<f64>();
    for (&token, &weight) in tokens.iter().zip(weights) {
        left -= weight;
        if left < 0.0 {
            return token;
        }
    }
    tokens[weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(seed: u32, count: usize) -> Vec<f32> {
        let number = |n: u32| (n.wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503)) >> 8) as f32;
        (0..count as u32).map(|n| (number(n) / 65536.0 - 128.0).round() / 16.0).collect()
    }

    /// Everything sorted, in f64.
    fn simple(sampling: &Sampling, uniform: f32, logits: &[f32]) -> u32 {
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        tokens.sort_by(|&a, &b| before(logits, a, b));
        if sampling.top_k > 0 {
            tokens.truncate(sampling.top_k as usize);
        }
        let weight = |&token: &u32| {
            f64::from((logits[token as usize] - logits[tokens[0] as usize]) / sampling.temperature).exp()
        };
        let mut weights: Vec<f64> = tokens.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        weights.truncate(end(sampling, total, &weights).unwrap_or(weights.len()));
        invert(&tokens, &weights, uniform)
    }

    #[test]
    fn a_draw_of_the_most_probable_is_the_one_that_sorting_everything_gives() {
        for (seed, path) in (0..40).flat_map(|seed| Path::ALL.map(|path| (seed, path))) {
            if !path.available() {
                continue;
            }
            let logits = logits(seed, 3_000);
            for (top_k, top_p, min_p) in
                [(0, 0.9, 0.0), (0, 0.05, 0.0), (40, 1.0, 0.0), (40, 0.5, 0.0), (0, 1.0, 0.02), (7, 0.9, 0.1)]
            {
                let sampling = Sampling { temperature: 0.8, top_k, top_p, min_p, ..Sampling::default() };
                let uniform = seed as f32 / 40.0;
                assert_eq!(
                    nucleus(path, &sampling, uniform, &logits),
                    simple(&sampling, uniform, &logits),
                    "{sampling:?}"
                );
            }
            let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
            sorted.sort_by(|&a, &b| before(&logits, a, b));
            for count in [1, 5, 64, 2_999, 5_000] {
                assert_eq!(largest(&logits, count), sorted[..count.min(sorted.len())]);
            }
            assert_eq!(greedy(path, &logits), sorted[0]);
        }
    }

    #[test]
    fn a_draw_of_all_tokens_has_their_probabilities() {
        let path = Path::detect();
        let logits: Vec<f32> = (0..600).map(|n| (n % 7) as f32 * 0.3).collect();
        let normaliser = log_sum_exp(path, &logits);
        let mut drawn = vec![0u32; logits.len()];
        let draws = 60_000;
        for draw in 0..draws {
            let uniform = (draw as f32 + 0.5) / draws as f32;
            drawn[any(path, 1.0, uniform, &mut logits.clone()) as usize] += 1;
        }
        for (logit, &drawn) in logits.iter().zip(&drawn) {
            let expected = f64::from(logit - normaliser).exp() * f64::from(draws);
            assert!((f64::from(drawn) - expected).abs() <= 2.0, "{drawn} of {expected}");
        }
    }
}
