//! The engine that runs a model with burn.
//!
//! Each step computes what the [`Scheduler`] has planned, all sequences together, and samples a token
//! for each of them. A row's numbers do not depend on the other rows, so a sequence's tokens are the
//! same as if it ran alone. Prompts are rendered before a job gets here (`prompt_renderer`), and text
//! and events are made after its tokens have left (`output_processor`): the engine's thread does nothing
//! but keep the device busy.

mod bad_words;
mod batch_sampler;
mod cache;
mod error;
mod load;
mod output_processor;
mod precision;
mod progress;
mod prompt_logprobs;
mod prompt_output;
mod prompt_renderer;
mod request;
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
use super::{Engine, EngineError, EngineStats, EventSink, PreparedRequest, Preprocessor, ResumedTokens};
use crate::clock;
use crate::constraint::Stuck;
use crate::device::ComputeDevice;
use crate::network::{ComputeError, Logits, MemoryUse, Network, NetworkStep, StepSpan};
use crate::scheduler::{CacheSalt, Scheduler, SchedulerStep, SequenceId, SequencePrompt};
use crate::speculation::Drafter;
use batch_sampler::{BatchSampler, SampleRequest, SampleRows, SampledToken, StepLogits};
pub use cache::{CacheDtype, CacheSize};
pub use error::LoadError;
pub use load::{LoadOptions, load};
use output_processor::{ChoiceOutput, NewOutput, OutputProcessor, OutputRecord};
pub use precision::PrecisionChoice;
pub use progress::LoadProgress;
use prompt_output::PromptOutput;
use prompt_renderer::PromptRenderer;
use request::Request;

/// A model on its device, and the jobs that it runs.
#[derive(Debug)]
pub struct InferenceEngine {
    network: Network,
    scheduler: Scheduler,
    sampler: BatchSampler,
    /// `None` without speculation.
    drafter: Option<Box<dyn Drafter>>,
    /// Whether it drafts; it learns in any case.
    drafts: bool,
    renderer: Arc<PromptRenderer>,
    outputs: OutputProcessor,
    facts: Facts,
    /// By the numbers that the scheduler knows them by.
    requests: BTreeMap<u64, Request>,
    numbers: HashMap<JobId, u64>,
    next_number: u64,
    counts: StepCounts,
    generated_tokens: u64,
    /// The log has the warning that keys or values don't fit the cache's type.
    warned_of_clamping: bool,
}

/// Why an answer that another worker began can't be continued here.
#[derive(Debug, thiserror::Error)]
enum Discontinued {
    #[error("The answer was begun with another version of the model, which wrote what this one can't.")]
    Grammar(#[from] Stuck),
    #[error("The answer was begun with another version of the model, whose tokens are others.")]
    Text,
}

/// What does not change once the model is loaded.
#[derive(Debug)]
struct Facts {
    served: ServedModel,
    fingerprint: String,
    device: ComputeDevice,
    slots: usize,
    prefill_budget: usize,
    memory: MemoryUse,
}

/// What an engine's steps have cost since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// Steps computed.
    pub steps: u64,
    /// Rows computed: one for each token of a prompt that was not cached, for each sampled token that was
    /// followed by another, and for each drafted token that did not follow.
    pub rows: u64,
    /// Largest number of rows in a single step.
    pub most_rows: usize,
    /// Rows of drafted tokens.
    pub drafted: u64,
    /// Of these, the ones whose tokens did follow: each has saved its sequence a step.
    pub accepted: u64,
    /// Time that the steps took.
    pub step_time: Duration,
    /// Masks of allowed tokens that were used.
    pub masks: u64,
    /// Time that computing them took, on other threads.
    pub mask_time: Duration,
    /// The part of `step_time` that was spent waiting for them.
    pub mask_wait: Duration,
}

impl Engine for InferenceEngine {
    fn models(&self) -> Vec<ServedModel> {
        vec![self.facts.served.clone()]
    }

    fn name(&self) -> &'static str {
        "burn"
    }

    fn device(&self) -> String {
        self.facts.device.description.clone()
    }

    fn capacity(&self) -> usize {
        self.facts.slots
    }

    fn memory(&self) -> Option<u64> {
        Some(self.facts.memory.total())
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            scheduler: self.scheduler.stats(),
            computed_tokens: self.counts.rows - (self.counts.drafted - self.counts.accepted),
            generated_tokens: self.generated_tokens,
            drafted_tokens: self.counts.drafted,
            accepted_tokens: self.counts.accepted,
        }
    }

    fn preprocessor(&self) -> Arc<dyn Preprocessor> {
        self.renderer.clone()
    }

    fn submit(&mut self, prepared: PreparedRequest, events: EventSink) {
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
        let prompt_output = PromptOutput::of(&prepared, &self.renderer.tokenizer);
        let prompt = scheduled(&prepared);
        let PreparedRequest { job, taken, acceptance, resumed, .. } = prepared;
        let cached_tokens = u32::try_from(self.scheduler.cached_tokens(&prompt)).unwrap_or(u32::MAX);
        for (choice, number) in choices.iter().zip(0..) {
            if let Some(tokens) = choice.tokens_at_end() {
                request.stop(number, tokens);
            }
        }
        let opening = NewOutput {
            request: number,
            events,
            accepted: EventKind::Accepted(Acceptance {
                prompt_tokens: request.prompt_tokens,
                cached_tokens,
                fingerprint: self.facts.fingerprint.clone(),
                ..acceptance
            }),
            prompt_tokens: request.prompt_tokens,
            prompt: prompt_output,
            choices,
            taken,
        };
        // If this fails, the next step reports it.
        let _ = self.outputs.send(vec![OutputRecord::Open(Box::new(opening))]);
        self.schedule(number, &request, prompt, &resumed);
        if let Some(older) = self.numbers.insert(job.id, number) {
            self.forget(older);
        }
        self.requests.insert(number, request);
        self.forget_if_ended(number);
    }

    fn cancel(&mut self, job: &JobId) -> Option<Usage> {
        let number = self.numbers.remove(job)?;
        let usage = self.requests.get(&number).map(Request::usage);
        let _ = self.outputs.send(vec![OutputRecord::Dropped { request: number }]);
        self.forget(number);
        usage
    }

    fn has_work(&self) -> bool {
        self.scheduler.has_work() || !self.outputs.is_alive()
    }

    fn step(&mut self) -> Result<(), EngineError> {
        let began = Instant::now();
        self.end_stopped();
        self.drop_unwanted()?;
        let mut step = self.scheduler.plan();
        self.add_drafts(&mut step);
        if step.spans.is_empty() {
            return if self.outputs.is_alive() { Ok(()) } else { Err(EngineError::OutputProcessor) };
        }
        let mut records = self.note_plan(&step);
        self.network.copy_blocks(&step.copies);
        let spans: Vec<StepSpan<'_>> = step.spans.iter().map(|span| self.scheduler.span(span)).collect();
        let turns = self.turns(&step);
        let samples = self.sampler.on_device(&self.sample_requests(&turns), self.network.vocabulary());
        let kept = prompt_logprobs::rows(&step);
        let step_of_network = NetworkStep { spans: &spans, kept: &kept, samples: &samples };
        let (logits, hidden) = self.network.step(step_of_network)?;
        self.warn_of_clamping();
        self.scheduler.complete(&step);
        if let Some(hidden) = hidden {
            self.score_prompts(&step, &hidden, &mut records)?;
        }
        if let Some(logits) = logits {
            self.sample(&step, turns, &logits, &mut records)?;
        }
        let took = began.elapsed();
        self.counts.step_time += took;
        if let Some(drafter) = &mut self.drafter {
            drafter.step_ended(step.rows(), step.prompt_rows(), took);
        }
        self.outputs.send(records)
    }

    fn close_all(&mut self) {
        self.requests.clear();
        self.numbers.clear();
        let _ = self.outputs.send(vec![OutputRecord::Shutdown]);
    }

    fn lost_device(&mut self) -> Option<String> {
        self.facts.device.lost()
    }

    fn unload(self: Box<Self>) {
        let device = self.facts.device.clone();
        drop(self);
        device.free_unused();
    }
}

impl InferenceEngine {
    /// Most rows of a step that go to prompts.
    pub fn prefill_budget(&self) -> usize {
        self.facts.prefill_budget
    }

    /// What the steps so far have cost.
    pub fn counts(&self) -> StepCounts {
        self.counts
    }

    /// Has tokens drafted from now on, or none; what steps cost is learnt in either case. An engine that was
    /// loaded without speculation never drafts.
    pub fn set_drafting(&mut self, drafts: bool) {
        self.drafts = drafts;
    }

    /// Empties the prefix cache.
    pub fn clear_prefix_cache(&mut self) {
        self.scheduler.clear_prefix_cache();
    }

    /// Waits until all events of the steps so far are sent, which otherwise happens a moment later.
    pub fn flush(&self) -> Result<(), EngineError> {
        self.outputs.flush()
    }

    /// A request and its choices, where the log ends.
    fn open(
        &self,
        prepared: &PreparedRequest,
        events: &EventSink,
    ) -> Result<(Request, Vec<ChoiceOutput>), Discontinued> {
        let tokenizer = &self.renderer.tokenizer;
        let request = Request::new(prepared, events.clone(), tokenizer.end_of_generation())?;
        let choices = (0..).take(request.choices.len()).map(|number| {
            let choice = ChoiceOutput::new(number, &prepared.job.request);
            match prepared.resumed.get(number as usize) {
                None => Ok(choice),
                Some(resumed) => {
                    choice.resume(resumed, request.end(number), tokenizer).ok_or(Discontinued::Text)
                }
            }
        });
        let choices = choices.collect::<Result<_, _>>()?;
        Ok((request, choices))
    }

    /// Schedules a request's prompt, or its unfinished choices if another worker began them.
    fn schedule(
        &mut self,
        number: u64,
        request: &Request,
        prompt: SequencePrompt,
        resumed: &[ResumedTokens],
    ) {
        if resumed.iter().all(ResumedTokens::is_empty) {
            let choices = u32::try_from(request.choices.len()).unwrap_or(u32::MAX);
            return self.scheduler.submit(number, prompt, choices);
        }
        let mut prompt = prompt;
        for ((choice, resumed), index) in request.choices.iter().zip(resumed).zip(0..) {
            if !choice.has_ended() {
                let id = SequenceId { request: number, choice: index };
                let tokens = [&prompt.tokens[..], &resumed.ids].concat();
                // The prompt's missing log-probabilities are computed with one choice only.
                let scored = std::mem::take(&mut prompt.scored);
                self.scheduler.resume(id, SequencePrompt { tokens, salt: prompt.salt, scored });
            }
        }
    }

    /// Ends a choice of a request that wants no tokens.
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

    /// Ends choices in which the output processor has found a stop string.
    fn end_stopped(&mut self) {
        let stopped: Vec<_> = self.outputs.stopped().collect();
        for stopped in stopped {
            self.scheduler.finish(stopped.id);
            let number = stopped.id.request;
            if let Some(request) = self.requests.get_mut(&number) {
                request.stop(stopped.id.choice, stopped.tokens);
                self.forget_if_ended(number);
            }
        }
    }

    /// Ends jobs whose deadline has passed and those whose event receiver is gone.
    fn drop_unwanted(&mut self) -> Result<(), EngineError> {
        let now = clock::unix_ms();
        let is_unwanted = |request: &Request| request.deadline <= now || request.events.is_closed();
        let unwanted = self.requests.iter().filter(|(_, request)| is_unwanted(request));
        let unwanted: Vec<u64> = unwanted.map(|(number, _)| *number).collect();
        let records = unwanted.iter().map(|&request| OutputRecord::Failed { request, error: too_late() });
        self.outputs.send(records.collect())?;
        unwanted.into_iter().for_each(|number| self.forget(number));
        Ok(())
    }

    /// Frees a request's blocks and state.
    fn forget(&mut self, number: u64) {
        self.scheduler.cancel(number);
        if let Some(drafter) = &mut self.drafter {
            drafter.forget(number);
        }
        if let Some(request) = self.requests.remove(&number)
            && self.numbers.get(&request.job) == Some(&number)
        {
            self.numbers.remove(&request.job);
        }
    }

    /// Adds drafted tokens to a planned step.
    fn add_drafts(&mut self, step: &mut SchedulerStep) {
        let (Some(drafter), requests) = (&mut self.drafter, &self.requests) else { return };
        if !self.drafts {
            return;
        }
        self.scheduler.add_drafts(step, |wanted| {
            let mut drafted = drafter.draft(wanted);
            let request = requests.get(&wanted.id.request);
            drafted.truncate(request.map_or(0, |request| request.possible(wanted.id.choice, &drafted)));
            drafted
        });
    }

    fn note_plan(&mut self, step: &SchedulerStep) -> Vec<OutputRecord> {
        let rows = step.rows();
        self.counts.steps += 1;
        self.counts.rows += rows as u64;
        self.counts.most_rows = self.counts.most_rows.max(rows);
        self.counts.drafted += step.spans.iter().map(|span| span.drafted as u64).sum::<u64>();
        if !step.preempted.is_empty() {
            tracing::debug!(
                sequences = step.preempted.len(),
                "the cache is full; preempted sequences are recomputed later"
            );
        }
        let at = Instant::now();
        let mut records = Vec::new();
        for started in &step.started {
            let Some(request) = self.requests.get_mut(&started.id.request) else { continue };
            if request.cached_tokens.is_none() {
                // The cache may have more than the prompt where an answer is continued.
                let cached_tokens = u32::try_from(started.cached).unwrap_or(u32::MAX);
                let cached_tokens = cached_tokens.min(request.prompt_tokens);
                request.cached_tokens = Some(cached_tokens);
                records.push(OutputRecord::Started { request: started.id.request, cached_tokens, at });
            }
        }
        records
    }

    /// Warns once that the model's keys or values don't fit the cache's type.
    fn warn_of_clamping(&mut self) {
        if self.network.has_clamped() && !self.warned_of_clamping {
            self.warned_of_clamping = true;
            tracing::warn!(
                model = %self.facts.served.name,
                "keys or values were larger than f16 can hold (65504) and were stored as that, so answers may be \
                 worse than the model's own; --cache-dtype f32 stores them as they are"
            );
        }
    }

    /// The choices for which a step samples tokens.
    fn turns(&self, step: &SchedulerStep) -> Vec<Turn> {
        let mut turns = Vec::new();
        let mut first = 0;
        for span in &step.spans {
            for choice in span.samples.clone() {
                let id = SequenceId { choice, ..span.id };
                let request = self.requests.get(&id.request);
                if request.is_some_and(|r| !r.ends_with_prompt() && r.choices.len() > choice as usize) {
                    let rows = SampleRows { place: turns.len(), first, taken: 0, drafted: span.drafted };
                    turns.push(Turn { id, rows });
                }
            }
            first += span.logit_rows();
        }
        turns
    }

    fn sample_request(&self, turn: &Turn) -> Option<SampleRequest<'_>> {
        let request = self.requests.get(&turn.id.request)?;
        let choice = request.choices.get(turn.id.choice as usize)?;
        let (progress, logprobs) = (choice.progress.as_ref(), request.alternatives());
        Some(SampleRequest { rows: turn.rows, sampler: &choice.sampler, progress, logprobs })
    }

    fn sample_requests(&self, turns: &[Turn]) -> Vec<SampleRequest<'_>> {
        turns.iter().filter_map(|turn| self.sample_request(turn)).collect()
    }

    /// Samples a token for every choice that needs one after this step, and further ones as long as they are
    /// the drafted ones.
    fn sample(
        &mut self,
        step: &SchedulerStep,
        mut turns: Vec<Turn>,
        logits: &Logits,
        records: &mut Vec<OutputRecord>,
    ) -> Result<(), ComputeError> {
        let logits = self.sampler.read(logits, &self.sample_requests(&turns))?;
        self.end_prompts(step, records);
        while !turns.is_empty() {
            turns = self.sample_once(&logits, turns, records);
        }
        Ok(())
    }

    /// Ends the choices of requests that want no tokens after their prompt.
    fn end_prompts(&mut self, step: &SchedulerStep, records: &mut Vec<OutputRecord>) {
        let at = Instant::now();
        for span in &step.spans {
            for choice in span.samples.clone() {
                let id = SequenceId { choice, ..span.id };
                if self.requests.get(&id.request).is_some_and(Request::ends_with_prompt) {
                    self.end_without_tokens(id);
                    records.push(OutputRecord::Ended { id, at });
                }
            }
        }
    }

    /// Samples one token for each of `turns`; returns the turns that go on, since their tokens were drafted.
    fn sample_once(
        &mut self,
        logits: &StepLogits,
        turns: Vec<Turn>,
        records: &mut Vec<OutputRecord>,
    ) -> Vec<Turn> {
        // A request whose other choice has failed is gone.
        let still_there = turns.into_iter().filter_map(|turn| Some((turn, self.sample_request(&turn)?)));
        let (turns, requests): (Vec<Turn>, Vec<SampleRequest<'_>>) = still_there.unzip();
        let (sampled, times) = logits.sample(&requests);
        self.counts.masks += times.masks;
        self.counts.mask_time += times.computed;
        self.counts.mask_wait += times.waited;
        let at = Instant::now();
        let mut going_on = Vec::new();
        for (turn, sampled) in turns.into_iter().zip(sampled) {
            if self.note_sampled(turn.id, sampled, at, records) {
                let rows = SampleRows { taken: turn.rows.taken + 1, ..turn.rows };
                going_on.push(Turn { rows, ..turn });
            }
        }
        going_on
    }

    /// Takes note of a choice's next token; returns whether the step has computed this token, too.
    fn note_sampled(
        &mut self,
        id: SequenceId,
        sampled: SampledToken,
        at: Instant,
        records: &mut Vec<OutputRecord>,
    ) -> bool {
        let Some(request) = self.requests.get_mut(&id.request) else { return false };
        let recorded = match sampled.token {
            Some(token) => request.record(id.choice, token).map(|end| (token, end)),
            None => Err(request.stuck(id.choice)),
        };
        let (token, end) = match recorded {
            Ok(recorded) => recorded,
            Err(stuck) => {
                tracing::warn!(job = %request.job, %stuck, "the grammar allows no next token; the answer fails");
                records.push(OutputRecord::Failed { request: id.request, error: stuck.to_api_error() });
                self.forget(id.request);
                return false;
            }
        };
        self.generated_tokens += 1;
        if let Some(drafter) = &mut self.drafter {
            drafter.sampled(id, token);
        }
        let is_computed = match end {
            None => self.scheduler.push(id, token),
            Some(_) => {
                self.scheduler.finish(id);
                false
            }
        };
        self.counts.accepted += u64::from(is_computed);
        if request.has_ended() {
            self.forget(id.request);
        }
        records.push(OutputRecord::Sampled { id, token, scores: sampled.scores, end, at });
        is_computed
    }
}

/// A choice whose next token is sampled.
#[derive(Debug, Clone, Copy)]
struct Turn {
    id: SequenceId,
    rows: SampleRows,
}

/// A job's prompt for the scheduler. If its log-probabilities are wanted, those that the log lacks are
/// computed from the row before each token.
fn scheduled(prepared: &PreparedRequest) -> SequencePrompt {
    let request = &prepared.job.request;
    let tokens = prepared.prompt.clone();
    let last = tokens.len().saturating_sub(1);
    let known = (prepared.resumed_prompt as usize).saturating_sub(1).min(last);
    let scored = if request.prompt_logprobs.is_some() { known..last } else { 0..0 };
    let salt = CacheSalt::of_request(request.cache_salt.as_deref());
    SequencePrompt { tokens, salt, scored }
}

#[cfg(test)]
mod tests;
