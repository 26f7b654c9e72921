//! Samples tokens from logits.
//!
//! The logits are adjusted first (see [`adjust`]); if the answer follows a grammar, tokens that it does
//! not allow are dropped. With temperature 0 the largest logit is taken. Otherwise the logits are divided
//! by the temperature and become probabilities, and in vLLM's order
//! 1. `min_p` drops tokens that have less than this share of the most probable token's probability
//!    (Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs",
//!    2024),
//! 2. `top_k` keeps this many of the most probable (Fan, Lewis and Dauphin, "Hierarchical neural story
//!    generation", 2018),
//! 3. `top_p` keeps the smallest set of the most probable whose share of what is left is at least this
//!    (Holtzman et al., "The curious case of neural text degeneration", 2019),
//!
//! and one of the rest is drawn. Equal probabilities are ordered by id, lowest first. Rows that need only
//! this can be sampled on the device: see [`Sampler::for_device`].
//!
//! Every random number is a pure function of (seed, choice, position). So a token depends neither on what
//! else is in the batch nor on the worker: one that takes a job over draws what the first would have
//! drawn.

mod adjust;
mod bad_words;
mod distribution;
mod logprobs;
mod random;

use std::sync::Arc;

use emberline_kernels::SamplingParams;
use emberline_protocol::job::SamplingOptions;

use crate::constraint::TokenSet;
use adjust::Adjustments;
use bad_words::BadWords;
use distribution::{Candidates, argmax};
pub use logprobs::{Alternatives, Scores, rank, score};
use random::uniform;

/// Samples the tokens of one choice, one after the other.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    seed: u64,
    choice: u32,
    /// Position of the next token.
    position: u32,
    adjustments: Adjustments,
}

impl Sampler {
    /// Before the first token. `min_tokens` puts off the tokens in `ends`.
    pub fn new(options: SamplingOptions, seed: u64, choice: u32, prompt: &[u32], ends: Vec<u32>) -> Self {
        let adjustments = Adjustments::new(&options, prompt, ends);
        Self { options, seed, choice, position: 0, adjustments }
    }

    /// Also keeps these token sequences from appearing.
    pub fn with_bad_words(self, bad_words: Arc<[Vec<u32>]>) -> Self {
        let adjustments = self.adjustments.with_bad_words(BadWords::new(bad_words));
        Self { adjustments, ..self }
    }

    /// Number of tokens recorded so far.
    pub fn generated(&self) -> u32 {
        self.position
    }

    /// Samples the next token from its logits.
    ///
    /// NaN counts as minus infinity. Without any candidate the result is token 0.
    pub fn sample(&self, logits: &[f32]) -> u32 {
        let adjusted = self.adjustments.apply(logits, self.position);
        sample_adjusted(&adjusted, &self.options, self.random()).unwrap_or(0)
    }

    /// Samples the next token among the allowed ones; `None` if there is none.
    ///
    /// If only end tokens are allowed, `min_tokens` does not put them off.
    pub fn sample_allowed(&self, logits: &[f32], allowed: &TokenSet) -> Option<u32> {
        let among = |position| {
            let mut adjusted = self.adjustments.apply(logits, position).into_owned();
            let forbid =
                |id: usize| adjusted.get_mut(id).into_iter().for_each(|logit| *logit = f32::NEG_INFINITY);
            allowed.iter_unset_entries(forbid);
            sample_adjusted(&adjusted, &self.options, self.random())
        };
        among(self.position).or_else(|| among(u32::MAX))
    }

    /// The parameters with which the device samples the token after the next `ahead` ones, whatever they are;
    /// `None` if it needs more than logits.
    ///
    /// Depends on nothing outside this choice, as its tokens must not depend on the batch.
    pub fn for_device(&self, ahead: u32) -> Option<SamplingParams> {
        let position = self.position.saturating_add(ahead);
        let SamplingOptions { temperature, top_k, top_p, min_p, .. } = self.options;
        // Rounded down: 1 must not be drawn.
        let random = uniform(self.seed, self.choice, position);
        let random = (random * f64::from(1 << 24)).floor() / f64::from(1 << 24);
        let temperature = if temperature.is_nan() { 0.0 } else { temperature };
        let row = SamplingParams { temperature, top_k, top_p, min_p, random: random as f32 };
        (!self.adjustments.apply_at(position)).then_some(row)
    }

    /// Records the token that was sampled.
    pub fn record(&mut self, token: u32) {
        self.adjustments.record(token);
        self.position += 1;
    }

    fn random(&self) -> f64 {
        uniform(self.seed, self.choice, self.position)
    }
}

/// Samples from adjusted logits; `None` if all are minus infinity. `random` is in [0, 1).
fn sample_adjusted(logits: &[f32], options: &SamplingOptions, random: f64) -> Option<u32> {
    let (best, max) = argmax(logits)?;
    if options.temperature.is_nan() || options.temperature <= 0.0 {
        return Some(best);
    }
    let mut candidates = Candidates::new(logits, max, options.temperature);
    candidates.min_p(options.min_p);
    candidates.top_k(options.top_k as usize);
    candidates.top_p(f64::from(options.top_p));
    Some(candidates.draw(random).unwrap_or(best))
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
