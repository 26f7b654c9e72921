//! Turns sampled tokens into events, on a thread of its own: the device does not wait for text to be
//! decoded, stop strings to be found and log-probabilities to be written.
//!
//! When a stop string is complete, the engine is notified. Tokens that it has sampled for that choice in
//! the meantime are dropped and not counted.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use emberline_protocol::error::ApiError;
use emberline_protocol::event::{
    ErrorEvent, EventKind, FinishReason, Timings, TokenLogprob, TokenLogprobs, Usage,
};
use emberline_protocol::job::GenerationRequest;

use super::prompt_output::{PromptLogprobs, PromptOutput};
use crate::clock;
use crate::detokenizer::Detokenizer;
use crate::engine::{EngineError, EventSink, ResumedTokens};
use crate::sampling::Scores;
use crate::scheduler::SequenceId;
use crate::tokenizer::ModelTokenizer;

/// What the engine reports of a request.
#[derive(Debug)]
pub(super) enum OutputRecord {
    /// It is accepted.
    Open(Box<NewOutput>),
    /// Its prompt has started.
    Started { request: u64, cached_tokens: u32, at: Instant },
    /// Log-probabilities of tokens of its prompt.
    Scored { request: u64, scores: PromptLogprobs },
    /// A choice is complete with its prompt: no tokens are wanted.
    Ended { id: SequenceId, at: Instant },
    /// A token of one choice.
    Sampled { id: SequenceId, token: u32, scores: Option<Scores>, end: Option<EndReason>, at: Instant },
    /// It ends with an error; what was computed for it is charged.
    Failed { request: u64, error: ApiError },
    /// It was cancelled.
    Dropped { request: u64 },
    /// The engine has failed; the thread ends.
    Shutdown,
    /// Answered once everything before it is sent.
    Flush(mpsc::Sender<()>),
}

/// A new request.
#[derive(Debug)]
pub(super) struct NewOutput {
    pub(super) request: u64,
    pub(super) events: EventSink,
    pub(super) accepted: EventKind,
    pub(super) prompt_tokens: u32,
    /// What is sent of the prompt's tokens, if anything is.
    pub(super) prompt: Option<PromptOutput>,
    pub(super) choices: Vec<ChoiceOutput>,
    pub(super) taken: Instant,
}

/// Why the engine ends a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndReason {
    /// An end token, which is not part of the text.
    Token,
    /// The grammar allows no further token.
    Complete,
    /// The limit of tokens is reached.
    Limit,
}

/// A choice in which a stop string was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoppedChoice {
    pub(super) id: SequenceId,
    /// Its tokens up to the stop string.
    pub(super) tokens: u32,
}

/// The engine's handle of the thread.
#[derive(Debug)]
pub(super) struct OutputProcessor {
    records: mpsc::Sender<Vec<OutputRecord>>,
    stopped: mpsc::Receiver<StoppedChoice>,
    thread: JoinHandle<()>,
}

impl OutputProcessor {
    /// Starts the thread.
    pub(super) fn spawn(tokenizer: Arc<ModelTokenizer>) -> std::io::Result<Self> {
        let (records, receiver) = mpsc::channel::<Vec<OutputRecord>>();
        let (sender, stopped) = mpsc::channel();
        let mut thread = OutputThread { tokenizer, requests: HashMap::new(), stopped: sender };
        let run = move || {
            let records = receiver.into_iter().flatten();
            records
                .take_while(|record| !matches!(record, OutputRecord::Shutdown))
                .for_each(|record| thread.process(record));
        };
        let thread = std::thread::Builder::new().name("outputs".to_owned()).spawn(run)?;
        Ok(Self { records, stopped, thread })
    }

    /// Hands over the records of a step.
    pub(super) fn send(&self, records: Vec<OutputRecord>) -> Result<(), EngineError> {
        if records.is_empty() {
            return Ok(());
        }
        self.records.send(records).map_err(|_| EngineError::OutputProcessor)
    }

    /// Choices in which a stop string was found since the last call.
    pub(super) fn stopped(&self) -> impl Iterator<Item = StoppedChoice> {
        self.stopped.try_iter()
    }

    /// Waits until the events of all records so far are sent.
    pub(super) fn flush(&self) -> Result<(), EngineError> {
        let (sender, receiver) = mpsc::channel();
        self.send(vec![OutputRecord::Flush(sender)])?;
        receiver.recv().map_err(|_| EngineError::OutputProcessor)
    }

    /// Whether the thread still runs.
    pub(super) fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

/// The state of the thread.
struct OutputThread {
    tokenizer: Arc<ModelTokenizer>,
    requests: HashMap<u64, RequestOutput>,
    stopped: mpsc::Sender<StoppedChoice>,
}

/// The output of a request.
struct RequestOutput {
    events: EventSink,
    usage: Usage,
    clock: RequestClock,
    prompt: Option<PromptOutput>,
    choices: Vec<ChoiceOutput>,
}

/// The output of one choice.
#[derive(Debug)]
pub(super) struct ChoiceOutput {
    number: u32,
    text: Detokenizer,
    /// Whether a space before the first word counts.
    verbatim: bool,
    /// Whether an end token is sent, and whether with its log-probability.
    sends_end: bool,
    sends_end_logprobs: bool,
    /// Number of its tokens, an end token included.
    tokens: u32,
    /// Tokens whose text is incomplete or may begin a stop string.
    held: Vec<u32>,
    held_logprobs: Vec<TokenLogprobs>,
    ended: bool,
    /// Why it ended, if the log lacks the event that says so.
    unsent_reason: Option<FinishReason>,
}

struct RequestClock {
    taken: Instant,
    prefill_began: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl OutputThread {
    fn process(&mut self, record: OutputRecord) {
        match record {
            OutputRecord::Open(opening) => {
                let NewOutput { request, events, accepted, prompt_tokens, prompt, mut choices, taken } =
                    *opening;
                send(&events, accepted);
                let events_of_prompt = prompt.as_ref().map(|prompt| prompt.opening(&self.tokenizer));
                events_of_prompt.into_iter().flatten().for_each(|event| send(&events, event));
                for choice in &mut choices {
                    if let Some(reason) = choice.unsent_reason.take() {
                        send(&events, EventKind::Finish { choice: choice.number, reason });
                    }
                }
                let usage = Usage { prompt_tokens, ..Usage::default() };
                let clock = RequestClock { taken, prefill_began: None, first_token: None, last_token: None };
                let request_output = RequestOutput { events, usage, clock, prompt, choices };
                if !request_output.end_if_complete() {
                    self.requests.insert(request, request_output);
                }
            }
            OutputRecord::Started { request, cached_tokens, at } => {
                if let Some(request_output) = self.requests.get_mut(&request) {
                    request_output.usage.cached_tokens = cached_tokens;
                    request_output.clock.prefill_began = Some(at);
                }
            }
            OutputRecord::Scored { request, scores } => {
                let Some(request_output) = self.requests.get(&request) else { return };
                let events_of_prompt =
                    request_output.prompt.as_ref().map(|prompt| prompt.scored(scores, &self.tokenizer));
                events_of_prompt.into_iter().flatten().for_each(|event| send(&request_output.events, event));
            }
            OutputRecord::Ended { id, at } => {
                let Some(request_output) = self.requests.get_mut(&id.request) else { return };
                if request_output.end_without_tokens(id, at) {
                    self.requests.remove(&id.request);
                }
            }
            OutputRecord::Sampled { id, token, scores, end, at } => {
                let Some(request_output) = self.requests.get_mut(&id.request) else { return };
                if request_output.add(id, Token { token, scores, end, at }, &self.tokenizer, &self.stopped) {
                    self.requests.remove(&id.request);
                }
            }
            OutputRecord::Failed { request, error } => {
                if let Some(request_output) = self.requests.remove(&request) {
                    let error = ErrorEvent::after(error, request_output.usage());
                    send(&request_output.events, EventKind::Error(error));
                }
            }
            OutputRecord::Dropped { request } => drop(self.requests.remove(&request)),
            OutputRecord::Shutdown => {}
            // The engine may have gone.
            OutputRecord::Flush(reply) => drop(reply.send(())),
        }
    }
}

/// A sampled token.
struct Token {
    token: u32,
    scores: Option<Scores>,
    end: Option<EndReason>,
    at: Instant,
}

impl RequestOutput {
    /// Adds a token to a choice; returns whether the whole request is complete.
    fn add(
        &mut self,
        id: SequenceId,
        token: Token,
        tokenizer: &ModelTokenizer,
        stopped: &mpsc::Sender<StoppedChoice>,
    ) -> bool {
        let Some(choice) = self.choices.get_mut(id.choice as usize).filter(|choice| !choice.ended) else {
            return false;
        };
        self.clock.first_token.get_or_insert(token.at);
        self.clock.last_token = Some(token.at);
        let finish = choice.add(token, tokenizer, &self.events);
        if let Some(reason) = finish {
            choice.ended = true;
            send(&self.events, EventKind::Finish { choice: choice.number, reason });
            // The engine knows of the other ends already, and ignores them.
            let _ = stopped.send(StoppedChoice { id, tokens: choice.tokens });
        }
        self.end_if_complete()
    }

    /// Ends a choice that wants no tokens; returns whether the whole request is complete.
    fn end_without_tokens(&mut self, id: SequenceId, at: Instant) -> bool {
        self.clock.first_token.get_or_insert(at);
        if let Some(choice) = self.choices.get_mut(id.choice as usize).filter(|choice| !choice.ended) {
            choice.ended = true;
            let reason = FinishReason::Length;
            send(&self.events, EventKind::Finish { choice: choice.number, reason });
        }
        self.end_if_complete()
    }

    /// Sends the last event if all choices have ended; returns whether they have.
    fn end_if_complete(&self) -> bool {
        if self.choices.iter().any(|choice| !choice.ended) {
            return false;
        }
        let at = Some(clock::unix_time().as_secs());
        send(&self.events, EventKind::Done { usage: self.usage(), timings: self.clock.timings(), at });
        true
    }

    /// The tokens so far.
    fn usage(&self) -> Usage {
        let completion_tokens = self.choices.iter().map(|choice| choice.tokens).sum();
        Usage { completion_tokens, ..self.usage }
    }
}

impl ChoiceOutput {
    /// A choice without tokens.
    pub(super) fn new(number: u32, request: &GenerationRequest) -> Self {
        Self {
            number,
            text: Detokenizer::new(&request.stop),
            // After text, too, a space before the first word counts.
            verbatim: request.constraint.is_some()
                || request.prompt.is_some()
                || request.continue_final_message,
            sends_end: request.logs_end_token(),
            sends_end_logprobs: request.logs_end_token_logprobs(),
            tokens: 0,
            held: Vec::new(),
            held_logprobs: Vec::new(),
            ended: false,
            unsent_reason: None,
        }
    }

    /// Continues after `resumed`, where `end` is why the engine would end the choice there; `None` if these
    /// tokens have another text in this model.
    pub(super) fn resume(
        self,
        resumed: &ResumedTokens,
        end: Option<EndReason>,
        tokenizer: &ModelTokenizer,
    ) -> Option<Self> {
        let mut choice = self;
        let (mut text, mut stopped) = (String::new(), false);
        for id in &resumed.ids {
            choice.tokens += 1;
            let pushed = choice.text.push(choice.bytes(*id, tokenizer));
            text.push_str(&pushed.text);
            stopped |= pushed.stopped;
        }
        let reason = match end {
            _ if stopped => Some(FinishReason::Stop),
            Some(EndReason::Limit) => Some(FinishReason::Length),
            Some(_) => Some(FinishReason::Stop),
            None => None,
        };
        // Held-back text is in the log only if an end token followed, which counts though the log does not
        // show it.
        let has_all = reason.is_none() && text != resumed.text;
        if reason.is_some() || has_all {
            text.push_str(&choice.text.finish());
        }
        if text != resumed.text {
            return None;
        }
        // An end token that is to be sent is sampled again.
        let by_token = (has_all && !choice.sends_end)
            || (reason.is_none() && resumed.finish == Some(FinishReason::Stop));
        choice.tokens += u32::from(by_token);
        let reason = reason.or(by_token.then_some(FinishReason::Stop));
        choice.ended = reason.or(resumed.finish).is_some();
        choice.unsent_reason = reason.filter(|_| resumed.finish.is_none());
        Some(choice)
    }

    /// Number of its tokens, if it has ended.
    pub(super) fn tokens_at_end(&self) -> Option<u32> {
        self.ended.then_some(self.tokens)
    }

    /// The bytes of the token that was counted last.
    fn bytes<'a>(&self, token: u32, tokenizer: &'a ModelTokenizer) -> &'a [u8] {
        match self.tokens {
            1 if !self.verbatim => tokenizer.first_token_bytes(token),
            _ => tokenizer.token_bytes(token),
        }
    }

    /// Adds the next token and sends the text that it completes; returns why the choice ends, if it does.
    ///
    /// An end token counts, as in vLLM and OpenAI's API, but is not part of the text.
    fn add(&mut self, token: Token, tokenizer: &ModelTokenizer, events: &EventSink) -> Option<FinishReason> {
        if token.end == Some(EndReason::Token) {
            let text = self.text.finish();
            self.release(text, events);
            self.tokens += 1;
            if self.sends_end {
                let (choice, id) = (self.number, token.token);
                let scores = token.scores.filter(|_| self.sends_end_logprobs);
                let logprobs = scores.map(|scores| token_logprobs(id, scores, tokenizer));
                send(events, EventKind::EndToken { choice, id, logprobs });
            }
            return Some(FinishReason::Stop);
        }
        self.tokens += 1;
        self.held.push(token.token);
        self.held_logprobs.extend(token.scores.map(|scores| token_logprobs(token.token, scores, tokenizer)));
        let pushed = self.text.push(self.bytes(token.token, tokenizer));
        if pushed.stopped {
            self.release(pushed.text, events);
            Some(FinishReason::Stop)
        } else if token.end.is_some() {
            let text = pushed.text + &self.text.finish();
            self.release(text, events);
            let complete = token.end == Some(EndReason::Complete);
            Some(if complete { FinishReason::Stop } else { FinishReason::Length })
        } else {
            if !pushed.text.is_empty() {
                self.release(pushed.text, events);
            }
            None
        }
    }

    /// Sends all held-back tokens with this text.
    fn release(&mut self, text: String, events: &EventSink) {
        let ids = std::mem::take(&mut self.held);
        let logprobs = std::mem::take(&mut self.held_logprobs);
        if ids.is_empty() && text.is_empty() {
            return;
        }
        let position = self.tokens.saturating_sub(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        send(events, EventKind::Tokens { choice: self.number, position, ids, text, logprobs });
    }
}

impl RequestClock {
    fn timings(&self) -> Timings {
        let Self { taken, prefill_began, first_token, last_token } = *self;
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64() * 1000.0,
            _ => 0.0,
        };
        Timings {
            queue_ms: between(Some(taken), prefill_began),
            prefill_ms: between(prefill_began, first_token),
            first_token_ms: between(Some(taken), first_token),
            decode_ms: between(first_token, last_token),
        }
    }
}

fn token_logprobs(token: u32, scores: Scores, tokenizer: &ModelTokenizer) -> TokenLogprobs {
    let named = |id: u32, logprob| TokenLogprob { id, bytes: tokenizer.token_bytes(id).to_vec(), logprob };
    let top = scores.top.into_iter().map(|(id, logprob)| named(id, logprob)).collect();
    TokenLogprobs { token: named(token, scores.logprob), top }
}

/// Sends an event. If the receiver is gone, the engine notices.
fn send(events: &EventSink, kind: EventKind) {
    let _ = events.send(kind);
}
