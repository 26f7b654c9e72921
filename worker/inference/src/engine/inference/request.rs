//! What the engine knows of a request while its choices are computed.

use std::collections::HashSet;
use std::sync::Arc;

use emberline_protocol::event::Usage;
use emberline_protocol::subject::JobId;

use super::output::End;
use crate::constraint::{Progress, Stuck};
use crate::engine::{EventSink, Prepared};
use crate::sampling::{Alternatives, Sampler};

/// A job in the engine.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) job: JobId,
    /// Unix milliseconds.
    pub(super) deadline: u64,
    /// Watched only: events are sent by the publisher.
    pub(super) events: EventSink,
    pub(super) prompt_tokens: u32,
    /// Tokens that the cache had when the prompt was begun; `None` before.
    pub(super) cached_tokens: Option<u32>,
    /// Log-probabilities of so many tokens in each place; `None` for none.
    logprobs: Option<usize>,
    /// Tokens whose log-probabilities are wanted instead.
    logprob_token_ids: Vec<u32>,
    /// What is to be told of the prompt's log-probabilities, if anything is.
    pub(super) scored: Option<ScoredPrompt>,
    pub(super) choices: Vec<Choice>,
    /// Most tokens of a choice; 0 where only the prompt is of interest.
    limit: u32,
    /// Tokens that end a choice.
    ends: HashSet<u32>,
}

/// A prompt whose log-probabilities are wanted.
#[derive(Debug)]
pub(super) struct ScoredPrompt {
    pub(super) tokens: Vec<u32>,
    /// Log-probabilities of so many tokens in each place.
    pub(super) top: usize,
}

#[derive(Debug)]
pub(super) struct Choice {
    pub(super) sampler: Sampler,
    /// How far it has come in what it has to obey.
    pub(super) progress: Option<Progress>,
    /// Its tokens, once it has ended.
    ended: Option<u32>,
}

impl Choice {
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }
}

impl Request {
    /// With what is written of it already. `end_of_generation` are the model's own end tokens.
    pub(super) fn new(
        prepared: &Prepared,
        events: EventSink,
        end_of_generation: impl Iterator<Item = u32>,
    ) -> Result<Self, Stuck> {
        let Prepared { job, prompt, limit, grammar, bad_words, .. } = prepared;
        let sampling = &job.request.sampling;
        let mut ends: HashSet<u32> = sampling.stop_token_ids.iter().copied().collect();
        let own: Vec<u32> = end_of_generation.collect();
        let put_off: Vec<u32> = ends.iter().chain(&own).copied().collect();
        // Where a grammar allows them, an answer is complete.
        if !sampling.ignore_eos || grammar.is_some() {
            ends.extend(own);
        }
        let choice = |number: u32| {
            let written = prepared.written.get(number as usize);
            let ids = written.map_or(&[][..], |written| &written.ids);
            let sampler = Sampler::new(sampling.clone(), job.seed, number, prompt, put_off.clone());
            let mut sampler = sampler.avoiding(Arc::clone(bad_words));
            ids.iter().for_each(|id| sampler.record(*id));
            let progress = grammar.as_ref().map(|grammar| match ids {
                [] => Ok(grammar.begin()),
                ids => grammar.resume(ids),
            });
            Ok(Choice { sampler, progress: progress.transpose()?, ended: None })
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

    /// Why a choice can't go on after what is written of it.
    pub(super) fn end(&self, choice: u32) -> Option<End> {
        let choice = self.choices.get(choice as usize)?;
        if choice.progress.as_ref().is_some_and(Progress::is_complete) {
            return Some(End::Complete);
        }
        // One without tokens ends with its prompt, which may not be told yet.
        (choice.sampler.generated() >= self.limit.max(1)).then_some(End::Limit)
    }

    /// Which log-probabilities come with a token's own; `None` for not even that.
    pub(super) fn alternatives(&self) -> Option<Alternatives<'_>> {
        self.logprobs.map(|top| match &self.logprob_token_ids[..] {
            [] => Alternatives::MostProbable(top),
            named => Alternatives::Named(named),
        })
    }

    /// Whether its choices have no tokens.
    pub(super) fn ends_with_prompt(&self) -> bool {
        self.limit == 0
    }

    /// Takes note of a choice's next token; why that is its last, if it is.
    pub(super) fn record(&mut self, choice: u32, token: u32) -> Result<Option<End>, Stuck> {
        let Some(choice) = self.choices.get_mut(choice as usize) else { return Ok(None) };
        choice.sampler.record(token);
        let generated = choice.sampler.generated();
        let end = if self.ends.contains(&token) {
            Some(End::Token)
        } else if let Some(progress) = &mut choice.progress
            && progress.record(token)?
        {
            Some(End::Complete)
        } else {
            (generated >= self.limit).then_some(End::Limit)
        };
        choice.ended = end.map(|_| generated);
        Ok(end)
    }

    /// Why a choice has no next token.
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
        self.choices.iter().all(Choice::has_ended)
    }

    /// What has been computed so far.
    pub(super) fn usage(&self) -> Usage {
        let tokens = |choice: &Choice| choice.ended.unwrap_or(choice.sampler.generated());
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.choices.iter().map(tokens).sum(),
        }
    }
}
