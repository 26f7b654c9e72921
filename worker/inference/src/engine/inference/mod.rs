//! The engine that runs a model with burn.
//!
//! Each step computes what the [`Scheduler`] has planned, all sequences together, and picks a token
//! for each of them. A row's numbers do not depend on the other rows, so a sequence's tokens are
//! what they would be if it were alone. Prompts are made before a job gets here (`prompt`), events
//! after its tokens have left (`publish`): this thread does nothing but keep the device busy.

mod bad_words;
mod cache;
mod error;
mod load;
mod output;
mod preprocess;
mod prompt_events;
mod prompt_scores;
mod request;
mod sample;
mod tokenize;
mod warm_up;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::{Acceptance, EventKind, Usage};
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::subject::JobId;

use super::refusal::too_late;
use super::{Engine, EngineError, EventSink, Frontend, Prepared, Written};
use crate::clock;
use crate::constraint::Stuck;
use crate::network::{ComputeError, Logits, MemoryUse, Network, StepSpan};
use crate::scheduler::blocks::Salt;
use crate::scheduler::{Prompt, Scheduler, SequenceId, Step};
pub use cache::{CacheDtype, CacheSize};
pub use error::LoadError;
pub use load::{LoadOptions, load};
use output::{Choice, Opening, Publisher, Record};
use preprocess::PromptBuilder;
use prompt_events::ToldPrompt;
use request::Request;
use sample::{Picker, Wanted};

/// A model on its device, and the jobs it is working on.
#[derive(Debug)]
pub struct BurnEngine {
    network: Network,
    scheduler: Scheduler,
    picker: Picker,
    prompts: Arc<PromptBuilder>,
    publisher: Publisher,
    facts: Facts,
    /// By the numbers under which the scheduler knows them.
    requests: BTreeMap<u64, Request>,
    numbers: HashMap<JobId, u64>,
    next_number: u64,
    counts: Counts,
    /// The operator was told that numbers don't fit the cache.
    told_of_clamped: bool,
}

/// Why an answer that another worker began can't go on here.
#[derive(Debug, thiserror::Error)]
enum Discontinued {
    #[error("The answer was begun with another version of the model, which wrote what this one can't.")]
    Grammar(#[from] Stuck),
    #[error("The answer was begun with another version of the model, whose tokens are others.")]
    Text,
}

/// What the engine says of itself.
#[derive(Debug)]
struct Facts {
    served: ServedModel,
    fingerprint: String,
    device: String,
    slots: usize,
    prefill_budget: usize,
    memory: MemoryUse,
}

/// What an engine has done since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps computed.
    pub steps: u64,
    /// Tokens computed: of prompts, and each picked token that was followed by another.
    pub rows: u64,
    /// Of them, the most in one step.
    pub most_rows: usize,
    /// Times that a sequence had to give up its cache.
    pub preemptions: u64,
    /// Time that the steps took.
    pub step_time: Duration,
    /// Masks of allowed tokens.
    pub masks: u64,
    /// Time that computing them took, on other threads.
    pub mask_time: Duration,
    /// The part of `step_time` that went by waiting for them.
    pub mask_wait: Duration,
}

impl Engine for BurnEngine {
    fn models(&self) -> Vec<ServedModel> {
        vec![self.facts.served.clone()]
    }

    fn name(&self) -> &'static str {
        "burn"
    }

    fn device(&self) -> String {
        self.facts.device.clone()
    }

    fn capacity(&self) -> usize {
        self.facts.slots
    }

    fn memory(&self) -> Option<u64> {
        Some(self.facts.memory.total())
    }

    fn frontend(&self) -> Arc<dyn Frontend> {
        self.prompts.clone()
    }

    fn submit(&mut self, prepared: Prepared, events: EventSink) {
        let (mut request, choices) = match self.open(&prepared, &events) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(job = %prepared.job.id, %error, "an answer can't be continued");
                let error = ApiError::new(ErrorCode::WorkerFailed, error.to_string());
                // Nobody may be listening.
                return drop(events.send(EventKind::Error(error.into())));
            }
        };
        let number = self.next_number;
        self.next_number += 1;
        let told = ToldPrompt::of(&prepared, &self.prompts.tokenizer);
        let prompt = scheduled(&prepared);
        let Prepared { job, taken, acceptance, written, .. } = prepared;
        let cached_tokens = u32::try_from(self.scheduler.cached(&prompt)).unwrap_or(u32::MAX);
        for (choice, number) in choices.iter().zip(0..) {
            if let Some(tokens) = choice.tokens_at_end() {
                request.stop(number, tokens);
            }
        }
        let opening = Opening {
            request: number,
            events,
            accepted: EventKind::Accepted(Acceptance {
                prompt_tokens: request.prompt_tokens,
                cached_tokens,
                fingerprint: self.facts.fingerprint.clone(),
                ..acceptance
            }),
            prompt_tokens: request.prompt_tokens,
            prompt: told,
            choices,
            taken,
        };
        // If that fails, so does the next step.
        let _ = self.publisher.send(vec![Record::Open(Box::new(opening))]);
        self.schedule(number, &request, prompt, &written);
        if let Some(older) = self.numbers.insert(job.id, number) {
            self.forget(older);
        }
        self.requests.insert(number, request);
        self.forget_if_ended(number);
    }

    fn cancel(&mut self, job: &JobId) -> Option<Usage> {
        let number = self.numbers.remove(job)?;
        let usage = self.requests.get(&number).map(Request::usage);
        let _ = self.publisher.send(vec![Record::Dropped { request: number }]);
        self.forget(number);
        usage
    }

    fn has_work(&self) -> bool {
        self.scheduler.has_work() || !self.publisher.is_alive()
    }

    fn step(&mut self) -> Result<(), EngineError> {
        let began = Instant::now();
        self.end_stopped();
        self.drop_unwanted()?;
        let step = self.scheduler.plan();
        if step.spans.is_empty() {
            return if self.publisher.is_alive() { Ok(()) } else { Err(EngineError::Publisher) };
        }
        let mut records = self.note_plan(&step);
        self.network.copy_blocks(&step.copies);
        let spans: Vec<StepSpan<'_>> = step.spans.iter().map(|span| self.scheduler.span(span)).collect();
        let (logits, hidden) = self.network.forward_keeping(&spans, &prompt_scores::rows(&step))?;
        self.note_clamped();
        self.scheduler.complete(&step);
        if let Some(hidden) = hidden {
            self.score_prompts(&step, &hidden, &mut records)?;
        }
        if let Some(logits) = logits {
            self.pick(&step, logits, &mut records)?;
        }
        self.counts.step_time += began.elapsed();
        self.publisher.send(records)
    }

    fn hang_up(&mut self) {
        self.requests.clear();
        self.numbers.clear();
        let _ = self.publisher.send(vec![Record::HangUp]);
    }
}

impl BurnEngine {
    /// Rows of a step that go to prompts.
    pub fn prefill_budget(&self) -> usize {
        self.facts.prefill_budget
    }

    /// What has been done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Blocks of the cache that sequences hold, and all there are.
    pub fn cache_usage(&self) -> (usize, usize) {
        self.scheduler.usage()
    }

    /// Forgets what is kept of prompts and answers that have ended.
    pub fn forget_prefixes(&mut self) {
        self.scheduler.forget();
    }

    /// Waits until all events of the steps so far are sent, which otherwise happens some time later.
    pub fn settle(&self) -> Result<(), EngineError> {
        self.publisher.settle()
    }

    /// A request and its choices, with what is written of them.
    fn open(&self, prepared: &Prepared, events: &EventSink) -> Result<(Request, Vec<Choice>), Discontinued> {
        let tokenizer = &self.prompts.tokenizer;
        let request = Request::new(prepared, events.clone(), tokenizer.end_of_generation())?;
        let choices = (0..).take(request.choices.len()).map(|number| {
            let choice = Choice::new(number, &prepared.job.request);
            match prepared.written.get(number as usize) {
                None => Ok(choice),
                Some(written) => {
                    choice.resume(written, request.end(number), tokenizer).ok_or(Discontinued::Text)
                }
            }
        });
        let choices = choices.collect::<Result<_, _>>()?;
        Ok((request, choices))
    }

    /// Has the scheduler compute a request's prompt and what goes on from there.
    fn schedule(&mut self, number: u64, request: &Request, prompt: Prompt, written: &[Written]) {
        if written.iter().all(Written::is_empty) {
            let choices = u32::try_from(request.choices.len()).unwrap_or(u32::MAX);
            return self.scheduler.submit(number, prompt, choices);
        }
        let mut prompt = prompt;
        for ((choice, written), index) in request.choices.iter().zip(written).zip(0..) {
            if !choice.has_ended() {
                let id = SequenceId { request: number, choice: index };
                let tokens = [&prompt.tokens[..], &written.ids].concat();
                // What the log lacks of the prompt is computed once.
                let scored = std::mem::take(&mut prompt.scored);
                self.scheduler.resume(id, Prompt { tokens, salt: prompt.salt, scored });
            }
        }
    }

    /// Ends a choice that is to have no tokens.
    fn end_without_tokens(&mut self, id: SequenceId) {
        self.scheduler.finish(id);
        if let Some(request) = self.requests.get_mut(&id.request) {
            request.stop(id.choice, 0);
        }
        self.forget_if_ended(id.request);
    }

    fn forget_if_ended(&mut self, number: u64) {
        if self.requests.get(&number).is_some_and(Request::has_ended) {
            self.forget(number);
        }
    }

    /// Ends choices that have come to a stop string.
    fn end_stopped(&mut self) {
        let stopped: Vec<_> = self.publisher.stopped().collect();
        for stopped in stopped {
            self.scheduler.finish(stopped.id);
            let number = stopped.id.request;
            if let Some(request) = self.requests.get_mut(&number) {
                request.stop(stopped.id.choice, stopped.tokens);
                self.forget_if_ended(number);
            }
        }
    }

    /// Ends jobs whose deadline has passed and those that nobody listens to.
    fn drop_unwanted(&mut self) -> Result<(), EngineError> {
        let now = clock::unix_ms();
        let is_unwanted = |request: &Request| request.deadline <= now || request.events.is_closed();
        let unwanted = self.requests.iter().filter(|(_, request)| is_unwanted(request));
        let unwanted: Vec<u64> = unwanted.map(|(number, _)| *number).collect();
        // Those that nobody listens to are told, too.
        let records = unwanted
            .iter()
            .map(|&request| Record::Failed { request, error: EventKind::Error(too_late().into()) });
        self.publisher.send(records.collect())?;
        unwanted.into_iter().for_each(|number| self.forget(number));
        Ok(())
    }

    /// Frees what a request holds.
    fn forget(&mut self, number: u64) {
        self.scheduler.cancel(number);
        if let Some(request) = self.requests.remove(&number)
            && self.numbers.get(&request.job) == Some(&number)
        {
            self.numbers.remove(&request.job);
        }
    }

    fn note_plan(&mut self, step: &Step) -> Vec<Record> {
        let rows = step.rows();
        self.counts.steps += 1;
        self.counts.rows += rows as u64;
        self.counts.most_rows = self.counts.most_rows.max(rows);
        self.counts.preemptions += step.preempted.len() as u64;
        if !step.preempted.is_empty() {
            tracing::debug!(
                sequences = step.preempted.len(),
                "the cache is full: some will be computed again"
            );
        }
        let at = Instant::now();
        let mut records = Vec::new();
        for started in &step.started {
            let Some(request) = self.requests.get_mut(&started.id.request) else { continue };
            if request.cached_tokens.is_none() {
                // Of the prompt: an answer that goes on may be found there, too.
                let cached_tokens = u32::try_from(started.cached).unwrap_or(u32::MAX);
                let cached_tokens = cached_tokens.min(request.prompt_tokens);
                request.cached_tokens = Some(cached_tokens);
                records.push(Record::Started { request: started.id.request, cached_tokens, at });
            }
        }
        records
    }

    /// Tells the operator, once, that the model's numbers don't fit its cache.
    fn note_clamped(&mut self) {
        if self.network.has_clamped() && !self.told_of_clamped {
            self.told_of_clamped = true;
            tracing::warn!(
                model = %self.facts.served.name,
                "keys or values were larger than f16 can hold (65504) and were stored as that, so answers may be \
                 worse than the model's own; --cache-dtype f32 stores them as they are"
            );
        }
    }

    /// Picks a token for every sequence whose last token was computed.
    fn pick(&mut self, step: &Step, logits: Logits, records: &mut Vec<Record>) -> Result<(), ComputeError> {
        let with_logits = step.spans.iter().filter(|span| !span.picks.is_empty()).enumerate();
        let (mut ids, mut wanted, mut without) = (Vec::new(), Vec::new(), Vec::new());
        for (row, span) in with_logits {
            let Some(request) = self.requests.get(&span.id.request) else { continue };
            for number in span.picks.clone() {
                let Some(choice) = request.choices.get(number as usize) else { continue };
                let id = SequenceId { choice: number, ..span.id };
                if request.ends_with_prompt() {
                    without.push(id);
                    continue;
                }
                ids.push(id);
                let (progress, logprobs) = (choice.progress.as_ref(), request.alternatives());
                wanted.push(Wanted { row, sampler: &choice.sampler, progress, logprobs });
            }
        }
        let (picked, times) = self.picker.pick(logits, &wanted)?;
        self.counts.masks += times.masks;
        self.counts.mask_time += times.computed;
        self.counts.mask_wait += times.waited;
        let at = Instant::now();
        for id in without {
            self.end_without_tokens(id);
            records.push(Record::Ended { id, at });
        }
        for (id, picked) in ids.into_iter().zip(picked) {
            let Some(request) = self.requests.get_mut(&id.request) else { continue };
            let recorded = match picked.token {
                Some(token) => request.record(id.choice, token).map(|end| (token, end)),
                None => Err(request.stuck(id.choice)),
            };
            let (token, end) = match recorded {
                Ok(recorded) => recorded,
                Err(stuck) => {
                    tracing::warn!(job = %request.job, %stuck, "an answer can't go on");
                    let error = EventKind::Error(stuck.to_api_error().into());
                    records.push(Record::Failed { request: id.request, error });
                    self.forget(id.request);
                    continue;
                }
            };
            match end {
                None => self.scheduler.push(id, token),
                Some(_) => self.scheduler.finish(id),
            }
            if request.has_ended() {
                self.forget(id.request);
            }
            records.push(Record::Picked { id, token, scores: picked.scores, end, at });
        }
        Ok(())
    }
}

/// A job's prompt as the scheduler takes it. The row before each token that the log lacks has its
/// log-probabilities, if these are wanted.
fn scheduled(prepared: &Prepared) -> Prompt {
    let request = &prepared.job.request;
    let tokens = prepared.prompt.clone();
    let last = tokens.len().saturating_sub(1);
    let known = (prepared.prompt_written as usize).saturating_sub(1).min(last);
    let scored = if request.prompt_logprobs.is_some() { known..last } else { 0..0 };
    let salt = request.cache_salt.as_deref().map(Salt::of).unwrap_or_default();
    Prompt { tokens, salt, scored }
}

#[cfg(test)]
mod tests;
