//! Makes events of picked tokens, on a thread of its own: the device does not wait for text to be
//! assembled, stop strings to be found and log-probabilities to be written.
//!
//! When a stop string is complete the engine is told. What it has picked for that choice in the
//! meantime is dropped and does not count.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use emberline_protocol::event::{EventKind, FinishReason, Timings, TokenLogprob, TokenLogprobs, Usage};
use emberline_protocol::job::GenerationRequest;

use super::prompt_events::{PromptScores, ToldPrompt};
use crate::clock;
use crate::detokenizer::TextAssembler;
use crate::engine::{EngineError, EventSink, Written};
use crate::sampling::Scores;
use crate::scheduler::SequenceId;
use crate::tokenizer::ModelTokenizer;

/// What the engine has to say of a request.
#[derive(Debug)]
pub(super) enum Record {
    /// It is accepted.
    Open(Box<Opening>),
    /// Its prompt is being computed.
    Started { request: u64, cached_tokens: u32, at: Instant },
    /// Log-probabilities of its prompt.
    Scored { request: u64, scores: PromptScores },
    /// A choice has its prompt and is to have no tokens.
    Ended { id: SequenceId, at: Instant },
    /// A token of one choice.
    Picked { id: SequenceId, token: u32, scores: Option<Scores>, end: Option<End>, at: Instant },
    /// Something else than tokens is its last event.
    Failed { request: u64, error: EventKind },
    /// Nobody wants more of it.
    Dropped { request: u64 },
    /// Nobody will hear more of any; the thread ends.
    HangUp,
    /// Answers when everything before it is published.
    Settle(mpsc::Sender<()>),
}

/// A request as it begins.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) request: u64,
    pub(super) events: EventSink,
    pub(super) accepted: EventKind,
    pub(super) prompt_tokens: u32,
    /// What is to be told of the prompt's tokens, if anything is.
    pub(super) prompt: Option<ToldPrompt>,
    pub(super) choices: Vec<Choice>,
    pub(super) taken: Instant,
}

/// Why the engine ends a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The token ends the answer and is not part of it.
    Token,
    /// With it the answer is all that it may be.
    Complete,
    /// There is room for no more.
    Limit,
}

/// A choice has come to a stop string.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopped {
    pub(super) id: SequenceId,
    /// Its tokens up to there.
    pub(super) tokens: u32,
}

/// The engine's end of the thread.
#[derive(Debug)]
pub(super) struct Publisher {
    records: mpsc::Sender<Vec<Record>>,
    stopped: mpsc::Receiver<Stopped>,
    thread: JoinHandle<()>,
}

impl Publisher {
    /// Starts the thread.
    pub(super) fn spawn(tokenizer: Arc<ModelTokenizer>) -> std::io::Result<Self> {
        let (records, receiver) = mpsc::channel::<Vec<Record>>();
        let (sender, stopped) = mpsc::channel();
        let mut desk = Desk { tokenizer, answers: HashMap::new(), stopped: sender };
        let run = move || {
            let records = receiver.into_iter().flatten();
            records
                .take_while(|record| !matches!(record, Record::HangUp))
                .for_each(|record| desk.take(record));
        };
        let thread = std::thread::Builder::new().name("publisher".to_owned()).spawn(run)?;
        Ok(Self { records, stopped, thread })
    }

    /// Hands a step's records over.
    pub(super) fn send(&self, records: Vec<Record>) -> Result<(), EngineError> {
        if records.is_empty() {
            return Ok(());
        }
        self.records.send(records).map_err(|_| EngineError::Publisher)
    }

    /// Choices that have come to a stop string since the last call.
    pub(super) fn stopped(&self) -> impl Iterator<Item = Stopped> {
        self.stopped.try_iter()
    }

    /// Waits until everything sent is published.
    pub(super) fn settle(&self) -> Result<(), EngineError> {
        let (sender, receiver) = mpsc::channel();
        self.send(vec![Record::Settle(sender)])?;
        receiver.recv().map_err(|_| EngineError::Publisher)
    }

    /// Whether the thread runs.
    pub(super) fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

/// The thread's own.
struct Desk {
    tokenizer: Arc<ModelTokenizer>,
    answers: HashMap<u64, Answer>,
    stopped: mpsc::Sender<Stopped>,
}

/// A request on its way.
struct Answer {
    events: EventSink,
    usage: Usage,
    clock: Clock,
    prompt: Option<ToldPrompt>,
    choices: Vec<Choice>,
}

/// One choice of it.
#[derive(Debug)]
pub(super) struct Choice {
    number: u32,
    text: TextAssembler,
    /// Every byte counts, also a space before the first word.
    verbatim: bool,
    /// Whether the token that ends it is told, and with its log-probability.
    tells_end: bool,
    tells_ends_logprobs: bool,
    /// Its tokens so far, the one that ended it included.
    tokens: u32,
    /// Tokens whose text is not complete yet or may begin a stop string.
    held: Vec<u32>,
    held_logprobs: Vec<TokenLogprobs>,
    ended: bool,
    /// Why it ended in what is written of it, where that does not say so.
    untold: Option<FinishReason>,
}

struct Clock {
    taken: Instant,
    prefill_began: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Desk {
    fn take(&mut self, record: Record) {
        match record {
            Record::Open(opening) => {
                let Opening { request, events, accepted, prompt_tokens, prompt, mut choices, taken } =
                    *opening;
                publish(&events, accepted);
                let told = prompt.as_ref().map(|prompt| prompt.opening(&self.tokenizer));
                told.into_iter().flatten().for_each(|event| publish(&events, event));
                for choice in &mut choices {
                    if let Some(reason) = choice.untold.take() {
                        publish(&events, EventKind::Finish { choice: choice.number, reason });
                    }
                }
                let usage = Usage { prompt_tokens, ..Usage::default() };
                let clock = Clock { taken, prefill_began: None, first_token: None, last_token: None };
                let answer = Answer { events, usage, clock, prompt, choices };
                if !answer.end_if_complete() {
                    self.answers.insert(request, answer);
                }
            }
            Record::Started { request, cached_tokens, at } => {
                if let Some(answer) = self.answers.get_mut(&request) {
                    answer.usage.cached_tokens = cached_tokens;
                    answer.clock.prefill_began = Some(at);
                }
            }
            Record::Scored { request, scores } => {
                let Some(answer) = self.answers.get(&request) else { return };
                let told = answer.prompt.as_ref().map(|prompt| prompt.scored(scores, &self.tokenizer));
                told.into_iter().flatten().for_each(|event| publish(&answer.events, event));
            }
            Record::Ended { id, at } => {
                let Some(answer) = self.answers.get_mut(&id.request) else { return };
                if answer.end_without_tokens(id, at) {
                    self.answers.remove(&id.request);
                }
            }
            Record::Picked { id, token, scores, end, at } => {
                let Some(answer) = self.answers.get_mut(&id.request) else { return };
                if answer.add(id, Token { token, scores, end, at }, &self.tokenizer, &self.stopped) {
                    self.answers.remove(&id.request);
                }
            }
            Record::Failed { request, error } => {
                if let Some(answer) = self.answers.remove(&request) {
                    publish(&answer.events, error);
                }
            }
            Record::Dropped { request } => drop(self.answers.remove(&request)),
            Record::HangUp => {}
            // Nobody may be waiting any more.
            Record::Settle(reply) => drop(reply.send(())),
        }
    }
}

/// A token as it comes from the engine.
struct Token {
    token: u32,
    scores: Option<Scores>,
    end: Option<End>,
    at: Instant,
}

impl Answer {
    /// Adds a token to a choice; whether that was the last of the whole answer.
    fn add(
        &mut self,
        id: SequenceId,
        token: Token,
        tokenizer: &ModelTokenizer,
        stopped: &mpsc::Sender<Stopped>,
    ) -> bool {
        let Some(choice) = self.choices.get_mut(id.choice as usize).filter(|choice| !choice.ended) else {
            return false;
        };
        self.clock.first_token.get_or_insert(token.at);
        self.clock.last_token = Some(token.at);
        let finish = choice.add(token, tokenizer, &self.events);
        if let Some(reason) = finish {
            choice.ended = true;
            publish(&self.events, EventKind::Finish { choice: choice.number, reason });
            // The engine knows the other ends; hearing of them again does it no harm.
            let _ = stopped.send(Stopped { id, tokens: choice.tokens });
        }
        self.end_if_complete()
    }

    /// Ends a choice that is to have no tokens; whether that was the last of the whole answer.
    fn end_without_tokens(&mut self, id: SequenceId, at: Instant) -> bool {
        self.clock.first_token.get_or_insert(at);
        if let Some(choice) = self.choices.get_mut(id.choice as usize).filter(|choice| !choice.ended) {
            choice.ended = true;
            let reason = FinishReason::Length;
            publish(&self.events, EventKind::Finish { choice: choice.number, reason });
        }
        self.end_if_complete()
    }

    /// Says that the answer is complete, if it is.
    fn end_if_complete(&self) -> bool {
        if self.choices.iter().any(|choice| !choice.ended) {
            return false;
        }
        let completion_tokens = self.choices.iter().map(|choice| choice.tokens).sum();
        let usage = Usage { completion_tokens, ..self.usage };
        let at = Some(clock::unix_time().as_secs());
        publish(&self.events, EventKind::Done { usage, timings: self.clock.timings(), at });
        true
    }
}

impl Choice {
    /// One of which nothing is written.
    pub(super) fn new(number: u32, request: &GenerationRequest) -> Self {
        Self {
            number,
            text: TextAssembler::new(&request.stop),
            // Behind text, too, a space before the first word counts.
            verbatim: request.constraint.is_some()
                || request.prompt.is_some()
                || request.continue_final_message,
            tells_end: request.tells_end(),
            tells_ends_logprobs: request.tells_ends_logprobs(),
            tokens: 0,
            held: Vec::new(),
            held_logprobs: Vec::new(),
            ended: false,
            untold: None,
        }
    }

    /// As it is after `written`, where `end` is what ended it apart from stop strings and end tokens;
    /// `None` if these tokens have another text in this model.
    pub(super) fn resume(
        self,
        written: &Written,
        end: Option<End>,
        tokenizer: &ModelTokenizer,
    ) -> Option<Self> {
        let mut choice = self;
        let (mut text, mut stopped) = (String::new(), false);
        for id in &written.ids {
            choice.tokens += 1;
            let pushed = choice.text.push(choice.bytes(*id, tokenizer));
            text.push_str(&pushed.text);
            stopped |= pushed.stopped;
        }
        let reason = match end {
            _ if stopped => Some(FinishReason::Stop),
            Some(End::Limit) => Some(FinishReason::Length),
            Some(_) => Some(FinishReason::Stop),
            None => None,
        };
        // All that was held back is written only if a token has ended the answer, which counts though
        // it is not written itself.
        let has_all = reason.is_none() && text != written.text;
        if reason.is_some() || has_all {
            text.push_str(&choice.text.finish());
        }
        if text != written.text {
            return None;
        }
        // One that is told is picked again.
        let by_token = (has_all && !choice.tells_end)
            || (reason.is_none() && written.finish == Some(FinishReason::Stop));
        choice.tokens += u32::from(by_token);
        let reason = reason.or(by_token.then_some(FinishReason::Stop));
        choice.ended = reason.or(written.finish).is_some();
        choice.untold = reason.filter(|_| written.finish.is_none());
        Some(choice)
    }

    /// Its tokens, if it has ended.
    pub(super) fn tokens_at_end(&self) -> Option<u32> {
        self.ended.then_some(self.tokens)
    }

    /// What the token that was counted last stands for.
    fn bytes<'a>(&self, token: u32, tokenizer: &'a ModelTokenizer) -> &'a [u8] {
        match self.tokens {
            1 if !self.verbatim => tokenizer.first_token_bytes(token),
            _ => tokenizer.token_bytes(token),
        }
    }

    /// Takes the next token in and sends what it completes; why the choice ends, if it does.
    ///
    /// The token that ends an answer counts, as it does in vLLM and OpenAI's API, but is no part of it.
    fn add(&mut self, token: Token, tokenizer: &ModelTokenizer, events: &EventSink) -> Option<FinishReason> {
        if token.end == Some(End::Token) {
            let text = self.text.finish();
            self.release(text, events);
            self.tokens += 1;
            if self.tells_end {
                let (choice, id) = (self.number, token.token);
                let scores = token.scores.filter(|_| self.tells_ends_logprobs);
                let logprobs = scores.map(|scores| logprobs(id, scores, tokenizer));
                publish(events, EventKind::EndToken { choice, id, logprobs });
            }
            return Some(FinishReason::Stop);
        }
        self.tokens += 1;
        self.held.push(token.token);
        self.held_logprobs.extend(token.scores.map(|scores| logprobs(token.token, scores, tokenizer)));
        let pushed = self.text.push(self.bytes(token.token, tokenizer));
        if pushed.stopped {
            self.release(pushed.text, events);
            Some(FinishReason::Stop)
        } else if token.end.is_some() {
            let text = pushed.text + &self.text.finish();
            self.release(text, events);
            let complete = token.end == Some(End::Complete);
            Some(if complete { FinishReason::Stop } else { FinishReason::Length })
        } else {
            if !pushed.text.is_empty() {
                self.release(pushed.text, events);
            }
            None
        }
    }

    /// Sends everything that was held back.
    fn release(&mut self, text: String, events: &EventSink) {
        let ids = std::mem::take(&mut self.held);
        let logprobs = std::mem::take(&mut self.held_logprobs);
        if ids.is_empty() && text.is_empty() {
            return;
        }
        let position = self.tokens.saturating_sub(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        publish(events, EventKind::Tokens { choice: self.number, position, ids, text, logprobs });
    }
}

impl Clock {
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

fn logprobs(token: u32, scores: Scores, tokenizer: &ModelTokenizer) -> TokenLogprobs {
    let named = |id: u32, logprob| TokenLogprob { id, bytes: tokenizer.token_bytes(id).to_vec(), logprob };
    let top = scores.top.into_iter().map(|(id, logprob)| named(id, logprob)).collect();
    TokenLogprobs { token: named(token, scores.logprob), top }
}

/// Sends an event. If nobody listens, the engine will notice.
fn publish(events: &EventSink, kind: EventKind) {
    let _ = events.send(kind);
}
