//! An engine without a model: fixed words at a set rate, for protocol tests and for benchmarks of
//! everything around a model.
//!
//! A prompt's tokens are its words. A job that sets `max_tokens` gets exactly that many words and
//! ends with `length`; one that doesn't gets [`DEFAULT_TOKENS`], or `min_tokens` if that is more, and
//! ends with `stop`, or with `ignore_eos` what the context leaves. Stop strings and the context's
//! limit work as in a real engine. Each word is certain, so temperature, `top_p`, `top_k`, `min_p`
//! and seed have nothing to choose from, and log-probabilities are 0; options that need logits,
//! token ids or a chat template, tools and response formats are refused. Each choice begins a word
//! later than the one before it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::{
    Acceptance, EventKind, FinishReason, IMPOSSIBLE_LOGPROB, Timings, TokenLogprob, TokenLogprobs, Usage,
};
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::job::MAX_CHOICES;
use emberline_protocol::job::{GenerationRequest, Job, RawPrompt};
use emberline_protocol::log_budget;
use emberline_protocol::subject::JobId;
use emberline_protocol::tokens::{TokensReply, TokensRequest};

use super::refusal::{no_room_for, too_long};
use super::{Engine, EngineError, EngineStats, EventSink, PreparedRequest, Preprocessor, ResumedTokens};
use crate::clock;
use crate::detokenizer::Detokenizer;
use crate::scheduler::SchedulerStats;

/// Prompt and completion together.
pub const CONTEXT_LENGTH: u32 = 32_768;
/// Tokens of a job that does not say how many it wants.
pub const DEFAULT_TOKENS: u32 = 64;

/// What it generates, over and over.
const WORDS: [&str; 8] = ["The", " quick", " ember", " glows", " along", " the", " line", ". "];
/// Longest wait of a step for a token to be due, so that commands are handled soon.
const LONGEST_WAIT: Duration = Duration::from_millis(5);

/// Generates fixed words; see the module.
#[derive(Debug)]
pub struct SimulatedEngine {
    model: ServedModel,
    capacity: usize,
    pace: Duration,
    running: Vec<SimulatedRequest>,
    generated_tokens: u64,
}

/// Makes a prompt of as many tokens as there are words.
#[derive(Debug)]
struct WordPreprocessor;

#[derive(Debug)]
struct SimulatedRequest {
    job: JobId,
    events: EventSink,
    choices: Vec<SimulatedChoice>,
    prompt_tokens: u32,
    logprobs: Option<u32>,
    limit: u32,
    at_limit: FinishReason,
    taken: Instant,
    first_token: Option<Instant>,
    due: Instant,
}

#[derive(Debug)]
struct SimulatedChoice {
    number: u32,
    text: Detokenizer,
    generated: u32,
    /// A stop string is complete.
    stopped: bool,
    finished: bool,
}

impl SimulatedEngine {
    /// Serves `name` to `capacity` jobs at once, each at `tokens_per_s` (0 for no limit);
    /// `created` is in unix seconds.
    pub fn new(name: String, capacity: usize, tokens_per_s: f64, created: u64) -> Self {
        // For a rate whose pause is too long for a Duration, an hour will do.
        let pace = if tokens_per_s > 0.0 {
            Duration::try_from_secs_f64(tokens_per_s.recip()).unwrap_or(Duration::from_secs(3600))
        } else {
            Duration::ZERO
        };
        let model = ServedModel { name, context_length: CONTEXT_LENGTH, created };
        Self { model, capacity, pace, running: Vec::new(), generated_tokens: 0 }
    }
}

impl Engine for SimulatedEngine {
    fn models(&self) -> Vec<ServedModel> {
        vec![self.model.clone()]
    }

    fn name(&self) -> &'static str {
        "simulated"
    }

    fn device(&self) -> String {
        "simulated".to_owned()
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn stats(&self) -> EngineStats {
        let running = self.running.len();
        let scheduler = SchedulerStats { running, ..SchedulerStats::default() };
        let tokens = self.generated_tokens;
        EngineStats { scheduler, computed_tokens: tokens, generated_tokens: tokens, ..EngineStats::default() }
    }

    fn preprocessor(&self) -> Arc<dyn Preprocessor> {
        Arc::new(WordPreprocessor)
    }

    fn submit(&mut self, prepared: PreparedRequest, events: EventSink) {
        let acceptance = prepared.acceptance.clone();
        let mut request = SimulatedRequest::new(prepared, events, self.pace);
        request.send(EventKind::Accepted(Acceptance {
            prompt_tokens: request.prompt_tokens,
            fingerprint: format!("{}-{}", self.model.name, env!("CARGO_PKG_VERSION")),
            ..acceptance
        }));
        if !request.send_ends() {
            self.running.push(request);
        }
    }

    fn cancel(&mut self, job: &JobId) -> Option<Usage> {
        let index = self.running.iter().position(|request| request.job == *job)?;
        Some(self.running.swap_remove(index).usage())
    }

    fn has_work(&self) -> bool {
        !self.running.is_empty()
    }

    fn step(&mut self) -> Result<(), EngineError> {
        self.running.retain(|request| !request.events.is_closed());
        if let Some(due) = self.running.iter().map(|request| request.due).min() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()).min(LONGEST_WAIT));
        }
        let (now, pace) = (Instant::now(), self.pace);
        let generated_tokens = &mut self.generated_tokens;
        self.running.retain_mut(|request| {
            if request.due > now {
                return true;
            }
            let before = request.usage().completion_tokens;
            let is_complete = request.advance(now, pace);
            *generated_tokens += u64::from(request.usage().completion_tokens - before);
            !is_complete
        });
        Ok(())
    }

    fn close_all(&mut self) {
        self.running.clear();
    }
}

impl Preprocessor for WordPreprocessor {
    fn prepare(&self, job: Job, taken: Instant) -> Result<PreparedRequest, ApiError> {
        let sampling = &job.request.sampling;
        refuse_unsupported(&job.request)?;
        let words = match &job.request.prompt {
            Some(RawPrompt::Text(text)) => text.split_whitespace().count(),
            Some(RawPrompt::Tokens(ids)) => ids.len(),
            None => job.request.messages.iter().map(|m| m.content.split_whitespace().count()).sum(),
        };
        let prompt_tokens = u32::try_from(words).unwrap_or(u32::MAX);
        let room = CONTEXT_LENGTH.saturating_sub(prompt_tokens);
        let most = room.min(log_budget::most_tokens(&job.request, prompt_tokens.into()));
        let limit = match job.request.max_tokens {
            Some(limit) => limit,
            None if sampling.ignore_eos => most,
            None => DEFAULT_TOKENS.max(sampling.min_tokens).min(most),
        };
        if limit > room || (limit == 0 && job.request.max_tokens != Some(0)) {
            return Err(too_long(&prompt_tokens.to_string(), &job.request, CONTEXT_LENGTH));
        }
        log_budget::check(&job.request, prompt_tokens.into(), CONTEXT_LENGTH)?;
        if sampling.min_tokens > limit {
            return Err(no_room_for(sampling.min_tokens, limit, &job.request));
        }
        // Its words have no ids; nothing is computed from them.
        let prompt_text = match &job.request.prompt {
            Some(RawPrompt::Text(text)) if job.request.echo => Some(text.clone()),
            _ => None,
        };
        let prompt = vec![0; words];
        let acceptance = Acceptance { prompt_text, ..Acceptance::default() };
        Ok(PreparedRequest {
            job,
            taken,
            prompt,
            limit,
            acceptance,
            grammar: None,
            bad_words: [].into(),
            resumed: Vec::new(),
            resumed_prompt: 0,
        })
    }

    fn convert(&self, _: TokensRequest) -> Result<TokensReply, ApiError> {
        let message = "The simulated engine has no tokenizer. Ask another model.";
        Err(ApiError::field(ErrorCode::UnsupportedParameter, "model", message))
    }
}

impl SimulatedRequest {
    fn new(prepared: PreparedRequest, events: EventSink, pace: Duration) -> Self {
        let PreparedRequest { job, taken, prompt, limit, resumed, .. } = prepared;
        let request = job.request;
        let ends_by_itself = request.max_tokens.is_none() && !request.sampling.ignore_eos;
        let choices = (0..request.n.clamp(1, MAX_CHOICES)).map(|number| {
            let text = Detokenizer::new(&request.stop);
            let mut choice = SimulatedChoice { number, text, generated: 0, stopped: false, finished: false };
            if let Some(resumed) = resumed.get(number as usize) {
                choice.resume(resumed);
            }
            choice
        });
        Self {
            job: job.id,
            events,
            choices: choices.collect(),
            prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            logprobs: request.logprobs,
            limit,
            at_limit: if ends_by_itself { FinishReason::Stop } else { FinishReason::Length },
            taken,
            first_token: None,
            due: Instant::now() + pace,
        }
    }

    /// Sends an event. If its receiver is gone, the next step notices.
    fn send(&self, kind: EventKind) {
        let _ = self.events.send(kind);
    }

    /// Sends the ends of choices that are complete though the log does not say so; returns whether all are.
    fn send_ends(&mut self) -> bool {
        let mut events = Vec::new();
        for choice in self.choices.iter_mut().filter(|choice| !choice.finished) {
            events.extend(choice.end(self.limit, self.at_limit));
        }
        self.send_all(events, Instant::now())
    }

    /// Generates the next word of each choice; returns whether these were the last.
    fn advance(&mut self, now: Instant, pace: Duration) -> bool {
        self.due += pace;
        self.first_token.get_or_insert(now);
        let mut events = Vec::new();
        for choice in self.choices.iter_mut().filter(|choice| !choice.finished) {
            choice.advance(self.limit, self.at_limit, self.logprobs, &mut events);
        }
        self.send_all(events, now)
    }

    /// Sends `events` and, once all choices have ended, the last event; returns whether they have.
    fn send_all(&self, mut events: Vec<EventKind>, now: Instant) -> bool {
        let finished = self.choices.iter().all(|choice| choice.finished);
        if finished {
            let at = Some(clock::unix_time().as_secs());
            events.push(EventKind::Done { usage: self.usage(), timings: self.timings(now), at });
        }
        events.into_iter().for_each(|kind| self.send(kind));
        finished
    }

    fn usage(&self) -> Usage {
        let completion_tokens = self.choices.iter().map(|choice| choice.generated).sum();
        Usage { prompt_tokens: self.prompt_tokens, cached_tokens: 0, completion_tokens }
    }

    fn timings(&self, now: Instant) -> Timings {
        let first = self.first_token.unwrap_or(now);
        let ms = |later: Instant, earlier: Instant| later.duration_since(earlier).as_secs_f64() * 1000.0;
        Timings {
            queue_ms: 0.0,
            prefill_ms: 0.0,
            first_token_ms: ms(first, self.taken),
            decode_ms: ms(now, first),
        }
    }
}

impl SimulatedChoice {
    fn advance(
        &mut self,
        limit: u32,
        at_limit: FinishReason,
        logprobs: Option<u32>,
        events: &mut Vec<EventKind>,
    ) {
        let (choice, position) = (self.number, self.generated);
        let (id, word) = self.next_word();
        let mut text = self.push(word);
        let end = self.end(limit, at_limit);
        if end.is_some() {
            text.push_str(&self.text.finish());
        }
        let logprobs = logprobs.map(|top| certainty(word, top)).into_iter().collect();
        events.push(EventKind::Tokens { choice, position, ids: vec![id], text, logprobs });
        events.extend(end);
    }

    /// Continues after the tokens that are in the log.
    fn resume(&mut self, resumed: &ResumedTokens) {
        for _ in &resumed.ids {
            let (_, word) = self.next_word();
            self.push(word);
        }
        self.finished = resumed.finish.is_some();
    }

    fn next_word(&self) -> (u32, &'static str) {
        let id = self.number.wrapping_add(self.generated) % 8;
        (id, WORDS.get(id as usize).copied().unwrap_or_default())
    }

    /// Adds a word; returns the text that can be sent now.
    fn push(&mut self, word: &str) -> String {
        let pushed = self.text.push(word.as_bytes());
        self.generated += 1;
        self.stopped |= pushed.stopped;
        pushed.text
    }

    /// Ends the choice if it is complete.
    fn end(&mut self, limit: u32, at_limit: FinishReason) -> Option<EventKind> {
        let reason = match self.stopped {
            true => FinishReason::Stop,
            false if self.generated >= limit => at_limit,
            false => return None,
        };
        self.finished = true;
        Some(EventKind::Finish { choice: self.number, reason })
    }
}

/// The log-probabilities in a place where only `word` is possible.
fn certainty(word: &str, top: u32) -> TokenLogprobs {
    let token = |word: &str, logprob| {
        let id = WORDS.iter().position(|known| *known == word).and_then(|id| u32::try_from(id).ok());
        TokenLogprob { id: id.unwrap_or(0), bytes: word.into(), logprob }
    };
    let others = WORDS.iter().filter(|other| **other != word).map(|other| token(other, IMPOSSIBLE_LOGPROB));
    let top = std::iter::once(token(word, 0.0)).chain(others).take(top as usize);
    TokenLogprobs { token: token(word, 0.0), top: top.collect() }
}

/// Refuses options that would have to change the words.
fn refuse_unsupported(request: &GenerationRequest) -> Result<(), ApiError> {
    let options = &request.sampling;
    let has_ids = matches!(request.prompt, Some(RawPrompt::Tokens(_)));
    let unsupported = [
        ("response_format", request.constraint.is_some()),
        ("tools", !request.tools.is_empty()),
        ("chat_template_kwargs", !request.template_variables.is_empty()),
        ("echo", has_ids && request.echo),
        // Its words have no ids, and a prompt no log-probabilities.
        ("return_token_ids", request.return_token_ids),
        ("prompt_logprobs", request.prompt_logprobs.is_some()),
        ("logprob_token_ids", !request.logprob_token_ids.is_empty()),
        ("continue_final_message", request.continue_final_message),
        ("bad_words", !options.bad_words.is_empty()),
        ("logit_bias", !options.logit_bias.is_empty()),
        ("presence_penalty", options.presence_penalty != 0.0),
        ("frequency_penalty", options.frequency_penalty != 0.0),
        ("repetition_penalty", options.repetition_penalty != 1.0),
        ("stop_token_ids", !options.stop_token_ids.is_empty()),
    ];
    match unsupported.iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((name, _)) => {
            let message = format!("'{name}' is not supported by the simulated engine. Leave it out.");
            Err(ApiError::field(ErrorCode::UnsupportedParameter, *name, message))
        }
    }
}

#[cfg(test)]
#[path = "simulated_tests.rs"]
mod tests;
