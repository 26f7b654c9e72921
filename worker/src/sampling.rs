//! Picks tokens.
//!
//! First the logits are adjusted (see [`adjust`]). Temperature 0 then picks the largest. Otherwise
//! they are divided by the temperature and made probabilities, and in vLLM's order
//! 1. `min_p` drops tokens less probable than that share of the most probable one's probability
//!    (Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs",
//!    2024),
//! 2. `top_k` keeps so many of the most probable (Fan, Lewis and Dauphin, "Hierarchical neural story
//!    generation", 2018),
//! 3. `top_p` keeps the shortest list of the most probable that has this share of what is left
//!    (Holtzman et al., "The curious case of neural text degeneration", 2019),
//!
//! and one of the rest is drawn. Equal probabilities are ordered by id, lowest first.
//!
//! Every random number is a pure function of (seed, choice, position), so that a token does not
//! depend on what else is in the batch, nor on which worker computes it: one that takes a job over
//! draws what the first one would have drawn.

mod adjust;
mod random;

use std::cmp::Ordering;

use emberline_shared::job::SamplingOptions;

use adjust::Adjustments;
use random::uniform;

/// Picks the tokens of one choice, one after the other.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    seed: u64,
    choice: u32,
    /// Of the next token.
    position: u32,
    adjustments: Adjustments,
}

impl Sampler {
    /// Before the first token. `ends` are the tokens that `min_tokens` puts off.
    pub fn new(options: SamplingOptions, seed: u64, choice: u32, prompt: &[u32], ends: Vec<u32>) -> Self {
        let adjustments = Adjustments::new(&options, prompt, ends);
        Self { options, seed, choice, position: 0, adjustments }
    }

    /// Picks the next token from its logits.
    ///
    /// A logit that is not a number counts as minus infinity. Without any candidate the answer is 0.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        let adjusted = self.adjustments.apply(logits, self.position);
        let token = sample(&adjusted, &self.options, uniform(self.seed, self.choice, self.position));
        self.adjustments.record(token);
        self.position += 1;
        token
    }
}

/// Picks a token from adjusted logits; `random` is in [0, 1).
fn sample(logits: &[f32], options: &SamplingOptions, random: f64) -> u32 {
    let Some((best, max)) = argmax(logits) else { return 0 };
    if options.temperature.is_nan() || options.temperature <= 0.0 {
        return best;
    }
    let mut weights = weights(logits, f64::from(max), f64::from(options.temperature));
    drop_below(&mut weights, f64::from(options.min_p));
    keep_most_probable(&mut weights, options.top_k as usize);
    if options.top_p >= 1.0 {
        draw((0..).zip(weights.iter().copied()), random * weights.iter().sum::<f64>(), best)
    } else {
        let (nucleus, mass) = nucleus(&weights, f64::from(options.top_p));
        draw(nucleus.into_iter(), random * mass, best)
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

/// Drops what has less than `min_p` of the most probable token's weight, which is 1.
fn drop_below(weights: &mut [f64], min_p: f64) {
    if min_p > 0.0 {
        weights.iter_mut().filter(|weight| **weight < min_p).for_each(|weight| *weight = 0.0);
    }
}

/// Drops all but the `top_k` most probable; 0 drops none.
fn keep_most_probable(weights: &mut [f64], top_k: usize) {
    if top_k == 0 || top_k >= weights.len() {
        return;
    }
    let mut candidates: Vec<(u32, f64)> = (0..).zip(weights.iter().copied()).collect();
    let (_, &mut last, _) = candidates.select_nth_unstable_by(top_k - 1, by_probability);
    for (id, weight) in (0..).zip(weights) {
        if by_probability(&(id, *weight), &last).is_gt() {
            *weight = 0.0;
        }
    }
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

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
