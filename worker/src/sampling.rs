//! Picks tokens.
//!
//! Every random number is a pure function of (seed, choice, position), so that a token does not
//! depend on what else is in the batch, nor on which worker computes it: one that takes a job over
//! draws what the first one would have drawn.

use std::cmp::Ordering;

/// How to pick a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// 0 picks the most probable token.
    pub temperature: f32,
    /// Share of the probability mass that is drawn from; the most probable token always counts.
    pub top_p: f32,
    /// The job's.
    pub seed: u64,
}

/// Picks the token at `position` of `choice`.
///
/// A logit that is not a number counts as minus infinity. Equal probabilities are ordered by id,
/// lowest first. Without any candidate the answer is 0.
pub fn sample(logits: &[f32], params: &SamplingParams, choice: u32, position: u32) -> u32 {
    let Some((best, max)) = argmax(logits) else { return 0 };
    if params.temperature.is_nan() || params.temperature <= 0.0 {
        return best;
    }
    let weights = weights(logits, f64::from(max), f64::from(params.temperature));
    let target = uniform(params.seed, choice, position);
    if params.top_p >= 1.0 {
        draw((0..).zip(weights.iter().copied()), target * weights.iter().sum::<f64>(), best)
    } else {
        let (nucleus, mass) = nucleus(&weights, f64::from(params.top_p));
        draw(nucleus.into_iter(), target * mass, best)
    }
}

/// The largest logit and its id, the lowest one of several.
fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (id, &logit) in (0..).zip(logits) {
        if logit > max {
            max = logit;
            best = Some((id, logit));
        }
    }
    best
}

/// Unnormalised probabilities; the most probable token has 1.
fn weights(logits: &[f32], max: f64, temperature: f64) -> Vec<f64> {
    let weight = |logit: f64| {
        if logit == max {
            1.0
        } else if logit.is_nan() || max.is_infinite() {
            0.0
        } else {
            ((logit - max) / temperature).exp()
        }
    };
    logits.iter().map(|&logit| weight(f64::from(logit))).collect()
}

/// The shortest list of most probable tokens that reaches `top_p` of the mass, and its mass.
///
/// Only as much of the vocabulary is sorted as the nucleus turns out to need.
fn nucleus(weights: &[f64], top_p: f64) -> (Vec<(u32, f64)>, f64) {
    let wanted = top_p * weights.iter().sum::<f64>();
    let mut candidates: Vec<(u32, f64)> = (0..).zip(weights.iter().copied()).collect();
    let mut sorted = 256;
    loop {
        let count = sorted.min(candidates.len());
        if count < candidates.len() {
            candidates.select_nth_unstable_by(count, by_probability);
        }
        let (head, _) = candidates.split_at_mut(count);
        head.sort_unstable_by(by_probability);
        let mut mass = 0.0;
        for (kept, &(_, weight)) in head.iter().enumerate() {
            mass += weight;
            if mass >= wanted {
                candidates.truncate(kept + 1);
                return (candidates, mass);
            }
        }
        if count == candidates.len() {
            return (candidates, mass);
        }
        sorted *= 8;
    }
}

fn by_probability(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Walks the candidates until their mass exceeds `target`.
///
/// `fallback` answers where rounding leaves the target at or above the whole mass.
fn draw(candidates: impl Iterator<Item = (u32, f64)>, target: f64, fallback: u32) -> u32 {
    let mut mass = 0.0;
    for (id, weight) in candidates {
        mass += weight;
        if target < mass {
            return id;
        }
    }
    fallback
}

/// A number in [0, 1) with 53 random bits, a pure function of its arguments.
pub fn uniform(seed: u64, choice: u32, position: u32) -> f64 {
    let [a, b, _, _] = philox4x32_10([position, choice, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = ((u64::from(b) << 32) | u64::from(a)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

/// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
/// (SC 2011).
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counter;
        let (high0, low0) = wide_product(0xD251_1F53, c0);
        let (high1, low1) = wide_product(0xCD9E_8D57, c2);
        counter = [high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
