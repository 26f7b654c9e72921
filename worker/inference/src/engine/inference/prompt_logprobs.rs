//! Log-probabilities of prompts: of each token, given those before it.
//!
//! They are computed with the chunk that contains the token before, some rows at a time, and each group
//! of rows is reduced to the few numbers that are wanted before the next: so memory grows neither with
//! the prompt nor with the chunk. A row's logits have the same bits as if it were the last of a prompt.

use rayon::prelude::*;

use super::InferenceEngine;
use super::output_processor::OutputRecord;
use super::prompt_output::PromptLogprobs;
use crate::network::{ComputeError, Hidden};
use crate::sampling::{Alternatives, Scores, rank, score};
use crate::scheduler::SchedulerStep;

/// Rows whose logits are in memory at the same time.
const ROWS_AT_ONCE: usize = 64;

/// The token that follows a row, and how many alternatives to return with it.
#[derive(Debug, Clone, Copy)]
struct Target {
    token: u32,
    top: usize,
}

/// The rows of a step whose logits are wanted for prompts' log-probabilities.
pub(super) fn rows(step: &SchedulerStep) -> Vec<usize> {
    let mut rows = Vec::new();
    let mut first = 0;
    for span in &step.spans {
        let scored = span.scored.clone().map(|position| first + (position - span.positions.start));
        rows.extend(scored);
        first += span.positions.len();
    }
    rows
}

impl InferenceEngine {
    /// Computes the log-probabilities of the tokens that follow the [`rows`] of a step.
    pub(super) fn score_prompts(
        &mut self,
        step: &SchedulerStep,
        hidden: &Hidden,
        records: &mut Vec<OutputRecord>,
    ) -> Result<(), ComputeError> {
        let mut targets = Vec::with_capacity(hidden.rows());
        for span in &step.spans {
            let scored = self.requests.get(&span.id.request).and_then(|request| request.scored.as_ref());
            targets.extend(span.scored.clone().map(|position| {
                let token = scored.and_then(|prompt| prompt.tokens.get(position + 1));
                Target { token: token.copied().unwrap_or(0), top: scored.map_or(0, |prompt| prompt.top) }
            }));
        }
        let mut scores = Vec::with_capacity(targets.len());
        for (chunk, first) in targets.chunks(ROWS_AT_ONCE).zip((0..).step_by(ROWS_AT_ONCE)) {
            let logits = self.network.logits(hidden, first..first + chunk.len())?;
            let width = logits.vocabulary();
            let tokens = self.sampler.vocabulary.min(width);
            let numbers = logits.into_host()?;
            let score_one = |(row, target): (&[f32], &Target)| {
                let logits = row.get(..tokens).unwrap_or(row);
                let scores = score(logits, target.token, Alternatives::MostProbable(target.top));
                (scores, rank(logits, target.token))
            };
            let rows = numbers.par_chunks(width.max(1)).zip(chunk);
            scores.extend(rows.map(score_one).collect::<Vec<(Scores, u32)>>());
        }
        let mut scores = scores.into_iter();
        for span in step.spans.iter().filter(|span| !span.scored.is_empty()) {
            let position = u32::try_from(span.scored.start + 1).unwrap_or(u32::MAX);
            let scores = scores.by_ref().take(span.scored.len()).collect();
            records.push(OutputRecord::Scored {
                request: span.id.request,
                scores: PromptLogprobs { position, scores },
            });
        }
        Ok(())
    }
}
