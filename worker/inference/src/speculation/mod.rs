//! Speculation: tokens that may follow are drafted and computed together with a sequence's last token. What
//! sampling then finds to be right needs no step of its own.
//!
//! A row's numbers do not depend on the step's other rows, and random numbers are keyed by position. So the
//! tokens are those that single steps give, to the bit; a draft decides nothing but the time they take.
//!
//! [`PromptLookup`] drafts what followed an earlier occurrence of the latest tokens, in prompt or answer
//! (Saxena, "Prompt lookup decoding", 2023). It drafts a token only where that is likely to pay: the chance
//! that the token is right is estimated by [`Acceptance`], and what a row costs by [`StepCost`].

mod acceptance;
mod cost;
mod ngrams;

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;

use crate::device::DeviceClass;
use crate::scheduler::{DraftRequest, SequenceId};
use acceptance::Acceptance;
use cost::StepCost;
use ngrams::NgramIndex;

/// Whether tokens are drafted, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Speculation {
    /// Prompt look-up on the CPU, nothing on a GPU.
    #[default]
    Auto,
    /// From earlier occurrences of the latest tokens.
    PromptLookup,
    /// One token a step.
    Off,
}

impl Speculation {
    /// What drafts on a device of this class.
    pub(crate) fn drafter(self, class: DeviceClass) -> Option<Box<dyn Drafter>> {
        match (self, class) {
            (Self::Off, _) | (Self::Auto, DeviceClass::Gpu | DeviceClass::Software) => None,
            (Self::PromptLookup, _) | (Self::Auto, DeviceClass::Host) => Some(Box::<PromptLookup>::default()),
        }
    }
}

/// Drafts the tokens that may follow.
pub(crate) trait Drafter: Debug + Send {
    /// Tokens that may follow a sequence's last one, at most [`DraftRequest::most`].
    fn draft(&mut self, request: &DraftRequest<'_>) -> Vec<u32>;

    /// Takes note of the token that did follow.
    fn sampled(&mut self, id: SequenceId, token: u32);

    /// Takes note of a step's end: how many rows it computed, how many of these were of prompts, and how long
    /// it took. What is drafted from now on is for the next step.
    fn step_ended(&mut self, rows: usize, prompt_rows: usize, time: Duration);

    /// Forgets a request's sequences.
    fn forget(&mut self, request: u64);
}

/// Drafts by prompt look-up; see the module.
#[derive(Debug, Default)]
pub(crate) struct PromptLookup {
    sequences: HashMap<SequenceId, SequenceLookup>,
    cost: StepCost,
}

/// The look-up of one sequence.
#[derive(Debug, Default)]
struct SequenceLookup {
    ngrams: NgramIndex,
    acceptance: Acceptance,
    /// Tokens that are expected to follow, drafted or not; those that did follow are counted in `right`.
    expected: Vec<u32>,
    right: usize,
    /// How many tokens before `expected` occurred before.
    matched: usize,
}

impl Drafter for PromptLookup {
    fn draft(&mut self, request: &DraftRequest<'_>) -> Vec<u32> {
        let sequence = self.sequences.entry(request.id).or_default();
        sequence.look_up(request, &mut self.cost)
    }

    fn sampled(&mut self, id: SequenceId, token: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.sampled(token);
        }
    }

    fn step_ended(&mut self, rows: usize, prompt_rows: usize, time: Duration) {
        // The rows of a long span cost less than those of short ones.
        if prompt_rows == 0 {
            self.cost.observe(rows, time.as_secs_f64());
        }
        self.cost.begin_step();
    }

    fn forget(&mut self, request: u64) {
        self.sequences.retain(|id, _| id.request != request);
    }
}

impl SequenceLookup {
    /// Drafts as many tokens as pay. At least one is expected in any case: whether it is right is found out
    /// without a row of its own, so a sequence for which drafts stopped paying notices when they pay again.
    fn look_up(&mut self, request: &DraftRequest<'_>, cost: &mut StepCost) -> Vec<u32> {
        self.expected.clear();
        self.right = 0;
        self.ngrams.extend(request.tokens);
        let Some(found) = self.ngrams.find(request.tokens) else { return Vec::new() };
        self.matched = found.length;
        let mut chance = 1.0;
        for drafted in 0..=request.most {
            let from = found.at + drafted;
            // What is copied may reach into what was copied.
            let token = match request.tokens.get(from) {
                Some(token) => Some(token),
                None => self.expected.get(from - request.tokens.len()),
            };
            let Some(token) = token.copied() else { break };
            self.expected.push(token);
            chance *= self.acceptance.chance(self.matched + drafted);
            if drafted == request.most || !cost.try_row(request.rows + drafted, chance) {
                return self.expected.get(..drafted).unwrap_or_default().to_vec();
            }
        }
        self.expected.clone()
    }

    fn sampled(&mut self, token: u32) {
        let Some(expected) = self.expected.get(self.right) else { return };
        let is_right = *expected == token;
        self.acceptance.observe(self.matched + self.right, is_right);
        if is_right {
            self.right += 1;
        } else {
            self.expected.clear();
        }
    }
}

#[cfg(test)]
mod tests;
