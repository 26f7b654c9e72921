//! Picks tokens.
//!
//! First the logits are adjusted (see [`adjust`]); where an answer has to obey a grammar, tokens that
//! it does not allow are dropped then. Temperature 0 then picks the largest. Otherwise
//! they are divided by the temperature and made probabilities, and in vLLM's order
//! 1. `min_p` drops tokens less probable than that share of the most probable one's probability
//!    (Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs",
//!    2024),
//! 2. `top_k` keeps so many of the most probable (Fan, Lewis and Dauphin, "Hierarchical neural story
//!    generation", 2018),
//! 3. `top_p` keeps the shortest list of the most probable that has this share of what is left
//!    (Holtzman et al., "The curious case of neural text degeneration", 2019),
//!
//! and one of the rest is drawn. Equal probabilities are ordered by id, lowest first. Where a row needs
//! nothing else, the device can do all this itself: see [`Sampler::on_device`].
//!
//! Every random number is a pure function of (seed, choice, position), so that a token does not
//! depend on what else is in the batch, nor on which worker computes it: one that takes a job over
//! draws what the first one would have drawn.

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

    /// The same for an answer that must not have these words, each of which is its tokens.
    pub fn avoiding(self, bad_words: Arc<[Vec<u32>]>) -> Self {
        let adjustments = self.adjustments.avoiding(BadWords::new(bad_words));
        Self { adjustments, ..self }
    }

    /// Tokens recorded so far.
    pub fn generated(&self) -> u32 {
        self.position
    }

    /// Picks the next token from its logits.
    ///
    /// A logit that is not a number counts as minus infinity. Without any candidate the answer is 0.
    pub fn pick(&self, logits: &[f32]) -> u32 {
        let adjusted = self.adjustments.apply(logits, self.position);
        sample(&adjusted, &self.options, self.random()).unwrap_or(0)
    }

    /// Picks the next token among those that are allowed; `None` if there is none.
    ///
    /// If only tokens are allowed that would end the answer, `min_tokens` does not put them off.
    pub fn pick_allowed(&self, logits: &[f32], allowed: &TokenSet) -> Option<u32> {
        let among = |position| {
            let mut adjusted = self.adjustments.apply(logits, position).into_owned();
            let forbid =
                |id: usize| adjusted.get_mut(id).into_iter().for_each(|logit| *logit = f32::NEG_INFINITY);
            allowed.iter_unset_entries(forbid);
            sample(&adjusted, &self.options, self.random())
        };
        among(self.position).or_else(|| among(u32::MAX))
    }

    /// How the device is to pick the next token; `None` if it takes more than its logits.
    ///
    /// Depends on nothing outside this choice: its tokens must not depend on its company.
    pub fn on_device(&self) -> Option<SamplingParams> {
        let SamplingOptions { temperature, top_k, top_p, min_p, .. } = self.options;
        // Rounded down: 1 is not among the numbers that may be drawn.
        let random = (self.random() * f64::from(1 << 24)).floor() / f64::from(1 << 24);
        let temperature = if temperature.is_nan() { 0.0 } else { temperature };
        let row = SamplingParams { temperature, top_k, top_p, min_p, random: random as f32 };
        (!self.adjustments.apply_at(self.position)).then_some(row)
    }

    /// Takes note of the token that was picked.
    pub fn record(&mut self, token: u32) {
        self.adjustments.record(token);
        self.position += 1;
    }

    fn random(&self) -> f64 {
        uniform(self.seed, self.choice, self.position)
    }
}

/// Picks a token from adjusted logits, `None` if all are minus infinity; `random` is in [0, 1).
fn sample(logits: &[f32], options: &SamplingOptions, random: f64) -> Option<u32> {
    let (best, max) = argmax(logits)?;
    if options.temperature.is_nan() || options.temperature <= 0.0 {
        return Some(best);
    }
    let mut candidates = Candidates::new(logits, max, options.temperature);
    candidates.drop_below(options.min_p);
    candidates.keep_most_probable(options.top_k as usize);
    candidates.keep_share(f64::from(options.top_p));
    Some(candidates.draw(random).unwrap_or(best))
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
