//! The fold over a job's log: who writes, what is written, how it ended.
//!
//! Each attempt writes the same text (sampling is a function of seed, choice and position),
//! from some position of its own on. So an attempt's output is a run of bytes that begins
//! where its first position lies in the text, and only what reaches beyond the text is new.
//! Log-probabilities belong to positions; those of a position are whatever was written first.
//! Nothing that is known is ever taken back: a log that was lost and is written again must agree
//! with it.

use std::collections::BTreeMap;

use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::error::ApiError;
use emberline_protocol::event::{Event, EventKind, FinishReason, TokenLogprob, TokenLogprobs};
use emberline_protocol::prompt::PromptToken;

use super::prompt::PromptLog;
use super::{Acceptance, Ending, Limits};

/// Most bytes of text that one token stands for. The longest tokens of known vocabularies,
/// runs of blanks, have 128; text held back over several tokens comes with the last of them.
pub(super) const MAX_TOKEN_BYTES: usize = 1024;

/// Events that no correct worker writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum Fault {
    #[error("an event can't be read: {0}")]
    Unreadable(String),
    #[error("an event has version {0}; update the function, which reads up to {PROTOCOL_VERSION}")]
    Version(u32),
    #[error("event {index} of attempt {attempt} is for choice {choice}, which was not asked for")]
    Choice { attempt: u32, index: u32, choice: u32 },
    #[error("event {index} of attempt {attempt} is at position {position}, which does not follow")]
    Position { attempt: u32, index: u32, position: u32 },
    #[error("attempt {attempt} writes another text than was told at position {position}")]
    Differs { attempt: u32, position: u32 },
    #[error("attempt {0} writes more than the job allows")]
    TooLong(u32),
    #[error(
        "event {index} of attempt {attempt} lacks the log-probabilities that the job asks for, or has others"
    )]
    Logprobs { attempt: u32, index: u32 },
    #[error("event {index} of attempt {attempt} comes before the job was accepted or after its choice ended")]
    OutOfOrder { attempt: u32, index: u32 },
    #[error("the job is done, but not all of its choices or not its prompt are")]
    Unfinished,
    #[error("too many events wait for a gap to be closed")]
    TooManyWaiting,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    /// It is part of the transcript now.
    Taken,
    /// It was known, or comes from an attempt that has been replaced.
    Stale,
    /// An event of its attempt is missing before it; it has changed nothing.
    Gap,
    /// What its attempt goes on from is not known; it has changed nothing.
    Unplaced,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    Done(Ending),
    Failed(ApiError),
}

/// One choice, as far as it is written.
#[derive(Debug, Clone, Default)]
pub(super) struct ChoiceLog {
    pub(super) text: String,
    pub(super) finish: Option<FinishReason>,
    /// Positions below this are written.
    next: u32,
    /// Of the positions from `untold` on, if the job asks for them.
    logprobs: Vec<TokenLogprobs>,
    ids: Vec<u32>,
    /// Whether a token that ends it is among them, or was.
    ended: bool,
    /// Nobody needs ids and log-probabilities of the positions below this any more.
    untold: u32,
    /// Where in `text` each position begins that an event began with or ended before; ascending.
    offsets: Vec<(u32, usize)>,
    cursor: Option<Cursor>,
}

/// Where an attempt writes on.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    attempt: u32,
    position: u32,
    byte: usize,
}

/// What is known of an attempt.
#[derive(Debug, Default)]
struct Attempt {
    next_index: u32,
    worker: Option<String>,
}

/// The log so far.
#[derive(Debug)]
pub(super) struct Transcript {
    limits: Limits,
    attempts: BTreeMap<u32, Attempt>,
    acceptance: Option<Acceptance>,
    prompt: PromptLog,
    choices: Vec<ChoiceLog>,
    end: Option<End>,
}

impl Transcript {
    pub(super) fn new(limits: Limits) -> Self {
        let choices = (0..limits.choices).map(|_| ChoiceLog::default()).collect();
        let prompt = PromptLog::default();
        Self { limits, attempts: BTreeMap::new(), acceptance: None, prompt, choices, end: None }
    }

    pub(super) fn acceptance(&self) -> Option<&Acceptance> {
        self.acceptance.as_ref()
    }

    /// Whether everything is known that is to be told of the prompt.
    pub(super) fn has_prompt(&self) -> bool {
        let is_written = |acceptance: &Acceptance| self.prompt.is_complete(acceptance.prompt_tokens);
        self.limits.prompt.is_none() || self.acceptance.as_ref().is_some_and(is_written)
    }

    /// Hands out the prompt's tokens, if they are to be told, are all there and nobody has been told of
    /// them.
    pub(super) fn take_prompt(&mut self) -> Option<Vec<PromptToken>> {
        let is_due = self.limits.prompt.is_some() && self.has_prompt();
        is_due.then(|| self.prompt.take()).flatten()
    }

    pub(super) fn choices(&self) -> &[ChoiceLog] {
        &self.choices
    }

    pub(super) fn choices_mut(&mut self) -> &mut [ChoiceLog] {
        &mut self.choices
    }

    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The newest attempt; 0 before the first.
    pub(super) fn newest(&self) -> u32 {
        self.attempts.last_key_value().map_or(0, |(attempt, _)| *attempt)
    }

    /// Whether `event` is of a later attempt than the first that is known. Its worker has read
    /// the log, so what it does not write again must be read there, too.
    pub(super) fn follows_a_takeover(&self, event: &Event) -> bool {
        event.attempt > self.newest().max(1)
    }

    /// Whether `event` begins an attempt that another worker has begun, too: one of them was
    /// refused, or the log was lost and attempts are counted from the beginning again.
    pub(super) fn rivals(&self, event: &Event) -> bool {
        let EventKind::Taken { worker } = &event.kind else { return false };
        let known = self.attempts.get(&event.attempt).and_then(|attempt| attempt.worker.as_ref());
        known.is_some_and(|known| known != worker)
    }

    /// Forgets who has written, but not what: the log that is to be applied next is another one.
    pub(super) fn forget_attempts(&mut self) {
        self.attempts.clear();
        self.choices.iter_mut().for_each(|choice| choice.cursor = None);
    }

    /// Takes the next event.
    pub(super) fn apply(&mut self, event: &Event) -> Result<Applied, Fault> {
        let expected = self.attempts.get(&event.attempt).map_or(0, |attempt| attempt.next_index);
        if self.end.is_some() || event.index < expected {
            return Ok(Applied::Stale);
        }
        if event.index > expected {
            return Ok(Applied::Gap);
        }
        if !self.take(event)? {
            return Ok(Applied::Unplaced);
        }
        let attempt = self.attempts.entry(event.attempt).or_default();
        attempt.next_index = event.index.saturating_add(1);
        if let EventKind::Taken { worker } = &event.kind {
            attempt.worker = Some(worker.clone());
        }
        Ok(Applied::Taken)
    }

    /// Whether the event could be placed.
    fn take(&mut self, event: &Event) -> Result<bool, Fault> {
        let out_of_order = Fault::OutOfOrder { attempt: event.attempt, index: event.index };
        match &event.kind {
            EventKind::Accepted(acceptance) => {
                self.acceptance.get_or_insert_with(|| acceptance.clone());
            }
            // They tell workers how far others came, and clients nothing.
            EventKind::Taken { .. } | EventKind::HandedBack | EventKind::Withdrawn => {}
            EventKind::Error(error) => self.end = Some(End::Failed(error.clone().into())),
            &EventKind::Done { usage, at, .. } => self.end = Some(End::Done(Ending { usage, at })),
            // That may be at any time, even of a choice that was finished by an earlier attempt.
            EventKind::Finish { choice, reason: reason @ FinishReason::Cancelled } => {
                choice_mut(&mut self.choices, event, *choice)?.finish.get_or_insert(*reason);
            }
            _ if self.acceptance.is_none() => return Err(out_of_order),
            EventKind::Prompt { position, tokens } => {
                let Some(limits) = self.limits.prompt else { return Ok(true) };
                return self.prompt.write(event, *position, tokens, limits);
            }
            // The prompt comes first, from this attempt or one before.
            _ if !self.has_prompt() => return Ok(false),
            EventKind::Finish { choice, reason } => {
                let log = choice_mut(&mut self.choices, event, *choice)?;
                if log.finish.is_some_and(|finish| finish != *reason) {
                    return Err(out_of_order);
                }
                log.finish = Some(*reason);
            }
            EventKind::EndToken { choice, id, logprobs } => {
                let limits = self.limits;
                let is_asked =
                    |token: &TokenLogprobs| limits.logprobs.is_some_and(|top| is_sound(token, top));
                if !logprobs.iter().all(is_asked) {
                    return Err(Fault::Logprobs { attempt: event.attempt, index: event.index });
                }
                let log = choice_mut(&mut self.choices, event, *choice)?;
                if !std::mem::replace(&mut log.ended, true) {
                    log.ids.extend(limits.ids.then_some(*id));
                    log.logprobs.extend(logprobs.clone());
                }
            }
            EventKind::Tokens { choice, position, ids, text, logprobs } => {
                let limits = self.limits;
                let log = choice_mut(&mut self.choices, event, *choice)?;
                let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
                if !log.write(event, *position, count, text)? {
                    return Ok(false);
                }
                if let Some(top) = limits.logprobs {
                    if logprobs.len() != ids.len() || !logprobs.iter().all(|token| is_sound(token, top)) {
                        return Err(Fault::Logprobs { attempt: event.attempt, index: event.index });
                    }
                    let fresh = log.fresh(log.logprobs.len(), *position, logprobs);
                    log.logprobs.extend_from_slice(fresh);
                }
                if limits.ids {
                    let fresh = log.fresh(log.ids.len(), *position, ids);
                    log.ids.extend_from_slice(fresh);
                }
                let most = usize::try_from(limits.tokens).unwrap_or(usize::MAX).saturating_add(1);
                if log.next > limits.tokens || log.text.len() > most.saturating_mul(MAX_TOKEN_BYTES) {
                    return Err(Fault::TooLong(event.attempt));
                }
            }
        }
        Ok(true)
    }
}

/// Whether these are finite and within what a token of any vocabulary needs.
fn is_sound(token: &TokenLogprobs, top: u32) -> bool {
    let mut all = std::iter::once(&token.token).chain(&token.top);
    u32::try_from(token.top.len()).is_ok_and(|count| count <= top) && all.all(is_sound_alone)
}

pub(super) fn is_sound_alone(token: &TokenLogprob) -> bool {
    token.logprob.is_finite() && token.bytes.len() <= MAX_TOKEN_BYTES
}

fn choice_mut<'a>(
    choices: &'a mut [ChoiceLog],
    event: &Event,
    choice: u32,
) -> Result<&'a mut ChoiceLog, Fault> {
    let fault = Fault::Choice { attempt: event.attempt, index: event.index, choice };
    usize::try_from(choice).ok().and_then(|choice| choices.get_mut(choice)).ok_or(fault)
}

impl ChoiceLog {
    /// Whether it is known where `position` lies.
    fn write(&mut self, event: &Event, position: u32, count: u32, text: &str) -> Result<bool, Fault> {
        let (attempt, index) = (event.attempt, event.index);
        let start = match self.cursor.filter(|cursor| cursor.attempt == attempt) {
            Some(cursor) if cursor.position == position => cursor.byte,
            Some(_) => return Err(Fault::Position { attempt, index, position }),
            None => match self.offset_of(position) {
                Some(offset) => offset,
                None => return Ok(false),
            },
        };
        let written = self.text.get(start..).unwrap_or_default();
        let shared = written.len().min(text.len());
        if written.as_bytes().get(..shared) != text.as_bytes().get(..shared) {
            return Err(Fault::Differs { attempt, position });
        }
        let fresh = text.get(shared..).unwrap_or_default();
        let next = position.saturating_add(count);
        if self.finish.is_some() && (!fresh.is_empty() || next > self.next) {
            return Err(Fault::OutOfOrder { attempt, index });
        }
        self.note_offset(position, start);
        self.text.push_str(fresh);
        let end = start.saturating_add(text.len());
        self.note_offset(next, end);
        self.next = self.next.max(next);
        self.cursor = Some(Cursor { attempt, position: next, byte: end });
        Ok(true)
    }

    /// What is new in something of the positions from `position` on, which follow those that are known, if
    /// so many that nobody has been told of are kept.
    fn fresh<'a, T>(&self, kept: usize, position: u32, written: &'a [T]) -> &'a [T] {
        let kept = u32::try_from(kept).unwrap_or(u32::MAX);
        let known = self.untold.saturating_add(kept).saturating_sub(position);
        let fresh = usize::try_from(known).ok().and_then(|known| written.get(known..));
        fresh.unwrap_or_default()
    }

    /// How many tokens are written, with the one that ended the choice if the log has it.
    pub(super) fn written(&self) -> u32 {
        self.next.saturating_add(u32::from(self.ended))
    }

    /// Hands out ids and log-probabilities that nobody has been told of.
    pub(super) fn take_tokens(&mut self) -> (Vec<u32>, Vec<TokenLogprobs>) {
        self.untold = self.untold.max(self.next);
        (std::mem::take(&mut self.ids), std::mem::take(&mut self.logprobs))
    }

    /// Where in the text `position` begins.
    fn offset_of(&self, position: u32) -> Option<usize> {
        if position == 0 {
            return Some(0);
        }
        let at = self.offsets.binary_search_by_key(&position, |(position, _)| *position).ok()?;
        self.offsets.get(at).map(|(_, offset)| *offset)
    }

    fn note_offset(&mut self, position: u32, offset: usize) {
        if let Err(at) = self.offsets.binary_search_by_key(&position, |(position, _)| *position)
            && at <= self.offsets.len()
        {
            self.offsets.insert(at, (position, offset));
        }
    }
}
