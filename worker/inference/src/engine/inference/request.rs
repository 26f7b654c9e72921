//! A request's state in the engine while its choices are computed.

use std::collections::HashSet;
use std::sync::Arc;

use emberline_protocol::event::Usage;
use emberline_protocol::subject::JobId;

use super::output_processor::EndReason;
use crate::constraint::{Progress, Stuck};
use crate::engine::{EventSink, PreparedRequest};
use crate::sampling::{Alternatives, Sampler};

/// A job in the engine.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) job: JobId,
    /// Unix milliseconds.
    pub(super) deadline: u64,
    /// Only watched for being closed; the output processor sends events.
    pub(super) events: EventSink,
    pub(super) prompt_tokens: u32,
    /// Cached tokens when the prompt started; `None` before.
    pub(super) cached_tokens: Option<u32>,
    /// How many alternatives' log-probabilities to return with each token's; `None` for none at all.
    logprobs: Option<usize>,
    /// Tokens whose log-probabilities are returned instead.
    logprob_token_ids: Vec<u32>,
    /// The prompt, if its log-probabilities are wanted.
    pub(super) scored: Option<ScoredPrompt>,
    pub(super) choices: Vec<RunningChoice>,
    /// Most tokens of a choice; 0 if only the prompt is of interest.
    limit: u32,
    /// End tokens.
    ends: HashSet<u32>,
}

/// A prompt whose log-probabilities are wanted.
#[derive(Debug)]
pub(super) struct ScoredPrompt {
    pub(super) tokens: Vec<u32>,
    /// How many alternatives to return with each token.
    pub(super) top: usize,
}

#[derive(Debug)]
pub(super) struct RunningChoice {
    pub(super) sampler: Sampler,
    /// Its state in the grammar, if there is one.
    pub(super) progress: Option<Progress>,
    /// Number of its tokens, once it has ended.
    ended: Option<u32>,
}

impl RunningChoice {
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }
}

impl Request {
    /// With what other workers have generated. `end_of_generation` are the model's own end tokens.
    pub(super) fn new(
        prepared: &PreparedRequest,
        events: EventSink,
        end_of_generation: impl Iterator<Item = u32>,
    ) -> Result<Self, Stuck> {
        let PreparedRequest { job, prompt, limit, grammar, bad_words, .. } = prepared;
        let sampling = &job.request.sampling;
        let mut ends: HashSet<u32> = sampling.stop_token_ids.iter().copied().collect();
        let own: Vec<u32> = end_of_generation.collect();
        let put_off: Vec<u32> = ends.iter().chain(&own).copied().collect();
        // A grammar allows an end token only where the answer is complete.
        if !sampling.ignore_eos || grammar.is_some() {
            ends.extend(own);
        }
        let choice = |number: u32| {
            let resumed = prepared.resumed.get(number as usize);
            let ids = resumed.map_or(&[][..], |resumed| &resumed.ids);
            let sampler = Sampler::new(sampling.clone(), job.seed, number, prompt, put_off.clone());
            let mut sampler = sampler.with_bad_words(Arc::clone(bad_words));
            ids.iter().for_each(|id| sampler.record(*id));
            let progress = grammar.as_ref().map(|grammar| match ids {
                [] => Ok(grammar.begin()),
                ids => grammar.resume(ids),
            });
            Ok(RunningChoice { sampler, progress: progress.transpose()?, ended: None })
        };
        Ok(Self {
            job: job.id.clone(),
            deadline: job.deadline,
            events,
            prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            cached_tokens: None,
            logprobs: job.request.logprobs.map(|top| top as usize),
            logprob_token_ids: job.request.logprob_token_ids.clone(),
            scored: job
                .request
                .prompt_logprobs
                .map(|top| ScoredPrompt { tokens: prompt.clone(), top: top as usize }),
            choices: (0..job.request.n.max(1)).map(choice).collect::<Result<_, _>>()?,
            limit: *limit,
            ends,
        })
    }

    /// Why a choice ends after what was resumed, if it does.
    pub(super) fn end(&self, choice: u32) -> Option<EndReason> {
        let choice = self.choices.get(choice as usize)?;
        if choice.progress.as_ref().is_some_and(Progress::is_complete) {
            return Some(EndReason::Complete);
        }
        // A choice without tokens ends when its prompt is computed, which the log may not show yet.
        (choice.sampler.generated() >= self.limit.max(1)).then_some(EndReason::Limit)
    }

    /// Which log-probabilities to return with a token's own; `None` for none at all.
    pub(super) fn alternatives(&self) -> Option<Alternatives<'_>> {
        self.logprobs.map(|top| match &self.logprob_token_ids[..] {
            [] => Alternatives::MostProbable(top),
            named => Alternatives::Named(named),
        })
    }

    /// How many of `drafted` tokens may follow in a choice: fewer than it has left, and no end token, since
    /// nothing is sampled after the last one.
    pub(super) fn possible(&self, choice: u32, drafted: &[u32]) -> usize {
        let Some(choice) = self.choices.get(choice as usize) else { return 0 };
        let left = self.limit.saturating_sub(choice.sampler.generated()).saturating_sub(1);
        drafted.iter().take(left as usize).take_while(|token| !self.ends.contains(token)).count()
    }

    /// Whether its choices have no tokens.
    pub(super) fn ends_with_prompt(&self) -> bool {
        self.limit == 0
    }

    /// Records a choice's next token; returns why the choice ends with it, if it does.
    pub(super) fn record(&mut self, choice: u32, token: u32) -> Result<Option<EndReason>, Stuck> {
        let Some(choice) = self.choices.get_mut(choice as usize) else { return Ok(None) };
        choice.sampler.record(token);
        let generated = choice.sampler.generated();
        let end = if self.ends.contains(&token) {
            Some(EndReason::Token)
        } else if let Some(progress) = &mut choice.progress
            && progress.record(token)?
        {
            Some(EndReason::Complete)
        } else {
            (generated >= self.limit).then_some(EndReason::Limit)
        };
        choice.ended = end.map(|_| generated);
        Ok(end)
    }

    /// Why a choice has no possible next token.
    pub(super) fn stuck(&self, choice: u32) -> Stuck {
        let progress = self.choices.get(choice as usize).and_then(|choice| choice.progress.as_ref());
        progress.and_then(|progress| progress.mask().err().cloned()).unwrap_or_else(Stuck::dead_end)
    }

    /// Ends a choice after its first `tokens`.
    pub(super) fn stop(&mut self, choice: u32, tokens: u32) {
        if let Some(choice) = self.choices.get_mut(choice as usize) {
            choice.ended = Some(tokens);
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.choices.iter().all(RunningChoice::has_ended)
    }

    /// The tokens computed so far.
    pub(super) fn usage(&self) -> Usage {
        let tokens = |choice: &RunningChoice| choice.ended.unwrap_or(choice.sampler.generated());
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.choices.iter().map(tokens).sum(),
        }
    }
}
