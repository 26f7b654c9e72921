//! Adjusts logits before a token is sampled.
//!
//! In this order, which is vLLM's:
//! 1. `logit_bias` is added (OpenAI's API reference).
//! 2. `repetition_penalty` θ, for each token in prompt or answer: a positive logit becomes x/θ, a
//!    negative one xθ. Keskar et al., "CTRL: A conditional transformer language model for controllable
//!    generation" (2019), section 4.1, always divides; that would strengthen tokens with negative
//!    logits, so implementations multiply these.
//! 3. `frequency_penalty` times the token's count in the answer is subtracted, and `presence_penalty` if
//!    the answer has it at all (OpenAI's API reference). The prompt does not count.
//! 4. Before `min_tokens`, end tokens become impossible, and at any time tokens that would complete one
//!    of `bad_words`.

use std::borrow::Cow;
use std::collections::HashMap;

use emberline_protocol::job::SamplingOptions;

use super::bad_words::BadWords;

/// The adjustments of one choice, and the token counts that they need.
#[derive(Debug, Clone)]
pub(super) struct Adjustments {
    logit_bias: Vec<(u32, f32)>,
    repetition: f32,
    frequency: f32,
    presence: f32,
    /// How often the answer has each penalised token; 0 for tokens of the prompt only.
    occurrences: HashMap<u32, u32>,
    min_tokens: u32,
    /// End tokens.
    ends: Vec<u32>,
    bad_words: BadWords,
}

impl Adjustments {
    pub(super) fn new(options: &SamplingOptions, prompt: &[u32], ends: Vec<u32>) -> Self {
        let repeats = options.repetition_penalty != 1.0;
        let prompt = if repeats { prompt } else { &[] };
        Self {
            logit_bias: options.logit_bias.clone(),
            repetition: options.repetition_penalty,
            frequency: options.frequency_penalty,
            presence: options.presence_penalty,
            occurrences: prompt.iter().map(|&token| (token, 0)).collect(),
            min_tokens: options.min_tokens,
            ends,
            bad_words: BadWords::default(),
        }
    }

    /// Also keeps these words from appearing.
    pub(super) fn with_bad_words(self, bad_words: BadWords) -> Self {
        Self { bad_words, ..self }
    }

    /// Whether the logits of the token at `position` are adjusted at all.
    pub(super) fn apply_at(&self, position: u32) -> bool {
        let masks = position < self.min_tokens && !self.ends.is_empty();
        masks || !self.logit_bias.is_empty() || self.penalises() || !self.bad_words.is_empty()
    }

    fn penalises(&self) -> bool {
        self.repetition != 1.0 || self.frequency != 0.0 || self.presence != 0.0
    }

    /// The adjusted logits of the token at `position`.
    pub(super) fn apply<'a>(&self, logits: &'a [f32], position: u32) -> Cow<'a, [f32]> {
        let masked = if position < self.min_tokens { &self.ends[..] } else { &[] };
        let mut masked = masked.iter().copied().chain(self.bad_words.forbidden()).peekable();
        if self.logit_bias.is_empty() && self.occurrences.is_empty() && masked.peek().is_none() {
            return Cow::Borrowed(logits);
        }
        let mut logits = logits.to_vec();
        let mut change = |token: u32, change: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = change(*logit);
            }
        };
        for &(token, bias) in &self.logit_bias {
            change(token, &|logit| logit + bias);
        }
        for (&token, &count) in &self.occurrences {
            change(token, &|logit| self.penalised(logit, count));
        }
        for token in masked {
            change(token, &|_| f32::NEG_INFINITY);
        }
        Cow::Owned(logits)
    }

    fn penalised(&self, logit: f32, count: u32) -> f32 {
        let logit = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        let presence = if count > 0 { self.presence } else { 0.0 };
        logit - self.frequency * count as f32 - presence
    }

    /// Records a token of the answer.
    pub(super) fn record(&mut self, token: u32) {
        if self.penalises() {
            *self.occurrences.entry(token).or_default() += 1;
        }
        self.bad_words.record(token);
    }
}

#[cfg(test)]
#[path = "adjust_tests.rs"]
mod tests;
