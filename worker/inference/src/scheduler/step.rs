//! What a scheduler is given, and what it plans.

use std::ops::Range;

use super::cache_salt::CacheSalt;

/// What a scheduler may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Sequences that run at once. A request with more choices runs alone.
    pub sequences: usize,
    /// Most rows of a step that go to prompts.
    pub prefill_budget: usize,
    /// Most rows of a step that go to drafts.
    pub draft_budget: usize,
    /// Blocks of the cache.
    pub blocks: usize,
}

/// One choice of a request. Requests are numbered by age, so the greatest is the youngest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    /// The request's number.
    pub request: u64,
    /// Which of its choices.
    pub choice: u32,
}

/// A sequence that is to be computed.
#[derive(Debug, Clone, Default)]
pub struct SequencePrompt {
    /// The prompt's tokens, and those generated already.
    pub tokens: Vec<u32>,
    /// Only prompts with the same salt share blocks.
    pub salt: CacheSalt,
    /// Positions whose logits are wanted for the prompt's own log-probabilities; may be empty.
    pub scored: Range<usize>,
}

/// What a step computes.
#[derive(Debug, Default)]
pub struct SchedulerStep {
    /// Blocks to copy before anything else, as `(from, to)`; no block is on both sides.
    pub copies: Vec<(u32, u32)>,
    /// Rows to compute; see [`Scheduler::span`].
    pub spans: Vec<ScheduledSpan>,
    /// Prompts that start with this step.
    pub started: Vec<StartedPrompt>,
    /// Sequences that lost their blocks and wait again.
    pub preempted: Vec<SequenceId>,
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledSpan {
    /// The sequence.
    pub id: SequenceId,
    /// The tokens' positions.
    pub positions: Range<usize>,
    /// How many of the last tokens are drafted.
    pub drafted: usize,
    /// Those of the positions whose logits are wanted for the prompt's own log-probabilities.
    pub scored: Range<usize>,
    /// Choices for which a token is sampled after the last position that is not drafted, and further ones as
    /// long as they are the drafted ones; empty within a prompt.
    pub samples: Range<u32>,
}

impl ScheduledSpan {
    /// How many of the last rows' logits are needed to sample tokens.
    pub fn logit_rows(&self) -> usize {
        if self.samples.is_empty() { 0 } else { 1 + self.drafted }
    }
}

/// A decoding sequence for which a step may have room for a draft.
#[derive(Debug, Clone, Copy)]
pub struct DraftRequest<'a> {
    /// The sequence.
    pub id: SequenceId,
    /// Its prompt and generated tokens.
    pub tokens: &'a [u32],
    /// Rows that the step has so far.
    pub rows: usize,
    /// Most tokens that can be taken.
    pub most: usize,
}

/// A sequence that got its first blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartedPrompt {
    /// The sequence.
    pub id: SequenceId,
    /// Tokens whose keys and values were cached.
    pub cached: usize,
}

impl SchedulerStep {
    /// Tokens that the step computes.
    pub fn rows(&self) -> usize {
        self.spans.iter().map(|span| span.positions.len()).sum()
    }

    /// Of these, the ones in spans of more than a token and its draft: those of prompts.
    pub fn prompt_rows(&self) -> usize {
        let prompts = self.spans.iter().filter(|span| span.positions.len() > 1 + span.drafted);
        prompts.map(|span| span.positions.len()).sum()
    }
}

/// How busy a scheduler is, and what it has done since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences with blocks: prompts that are prefilled, and choices that decode.
    pub running: usize,
    /// Sequences without blocks; a request whose choices have not begun counts as one.
    pub waiting: usize,
    /// Blocks that running sequences use.
    pub blocks_used: usize,
    /// All blocks.
    pub blocks_total: usize,
    /// Tokens of sequences that started, each time that they did.
    pub prefix_queries: u64,
    /// Of these, the tokens that were in the prefix cache.
    pub prefix_hits: u64,
    /// Times that a sequence was preempted.
    pub preemptions: u64,
}
