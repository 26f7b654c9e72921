//! The one fold of a job's event log: which of its events count, and what they say.
//!
//! A log may hold several attempts, events stored out of order, repeated, or missing, and events of a
//! worker that does not know of its successor. These rules decide what counts:
//!
//! 1. In the order of storage, an attempt counts up to where the next one begins.
//! 2. Within an attempt, events count in the order of their indexes, as far as none is missing.
//! 3. An attempt goes on from a position that is known; otherwise the rest of it does not count.
//! 4. Every attempt writes the same text, for sampling depends on seed, choice and position only. So what
//!    is known stays, and of an event only what reaches beyond it is new.
//!
//! The function's relay, a worker that takes a job over and `emberline jobs replay` each read this fold, so
//! they agree on every log. One that reads a log again and again while it grows may know more than one that
//! reads it at the end, but never anything else.

mod choice;
mod state;

use std::collections::BTreeMap;

pub use choice::ChoiceLog;
pub use state::{LogState, ResumedTokens};

use crate::event::{Acceptance, Event, EventKind, FinishReason};

/// What is known of a job by its log, or by several readings of it.
#[derive(Debug, Clone)]
pub struct EventLog {
    attempts: BTreeMap<u32, Attempt>,
    acceptance: Option<Acceptance>,
    prompt: PromptLog,
    choices: Vec<ChoiceLog>,
    end: Option<EventKind>,
    withdrawn: bool,
}

/// What is known of one attempt.
#[derive(Debug, Clone, Default)]
struct Attempt {
    /// Events below this index are applied.
    next_index: u32,
    /// The worker that took the job.
    worker: Option<String>,
    /// It added a token, or completed a choice.
    has_progress: bool,
    /// Its worker gave the job back unharmed.
    is_handed_back: bool,
}

/// How far the prompt's tokens are written.
#[derive(Debug, Clone)]
struct PromptLog {
    /// The job asks for them, so that they come before the answer.
    is_wanted: bool,
    /// Positions below this are written.
    next: u32,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It counts.
    Counted(Fresh),
    /// It was applied before, or the job has ended.
    Stale,
    /// An event of its attempt is missing before it. Nothing has changed.
    Gap,
    /// The position from which it goes on is not known. Nothing has changed.
    Unplaced,
}

/// Which part of an event that counts was not known before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fresh {
    /// Tokens before this index were known.
    pub first_token: usize,
}

/// Events that no correct worker writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum Conflict {
    #[error("event {index} of attempt {attempt} is for choice {choice}, which was not asked for")]
    Choice { attempt: u32, index: u32, choice: u32 },
    #[error("event {index} of attempt {attempt} is at position {position}, which does not follow")]
    Position { attempt: u32, index: u32, position: u32 },
    #[error("attempt {attempt} writes another text than an earlier one at position {position}")]
    Differs { attempt: u32, position: u32 },
    #[error("event {index} of attempt {attempt} comes before the job was accepted or after its choice ended")]
    OutOfOrder { attempt: u32, index: u32 },
}

/// What a reading of a stored log came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// The newest attempt has a hole, or goes on from a position that is not known.
    pub is_behind: bool,
    /// Another worker than before has begun an attempt of the same number: the log was lost and is written
    /// anew.
    pub is_new_log: bool,
    /// The first event that contradicts what is known. The rest of its attempt does not count.
    pub conflict: Option<Conflict>,
}

impl EventLog {
    /// An empty log of a job with so many choices; `has_prompt` if it asks for its prompt's tokens.
    pub fn new(choices: u32, has_prompt: bool) -> Self {
        Self {
            attempts: BTreeMap::new(),
            acceptance: None,
            prompt: PromptLog { is_wanted: has_prompt, next: 0 },
            choices: (0..choices).map(|_| ChoiceLog::default()).collect(),
            end: None,
            withdrawn: false,
        }
    }

    /// What a worker said when it accepted the job.
    pub fn acceptance(&self) -> Option<&Acceptance> {
        self.acceptance.as_ref()
    }

    /// The choices in their order.
    pub fn choices(&self) -> &[ChoiceLog] {
        &self.choices
    }

    /// The event that ended the job: [`EventKind::Done`] or [`EventKind::Error`].
    pub fn end(&self) -> Option<&EventKind> {
        self.end.as_ref()
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn
    }

    /// How many tokens of the prompt are written.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt.next
    }

    /// Whether all of the prompt is written that the job asks for.
    pub fn has_prompt(&self) -> bool {
        let is_written = |acceptance: &Acceptance| self.prompt.next >= acceptance.prompt_tokens;
        !self.prompt.is_wanted || self.acceptance.as_ref().is_some_and(is_written)
    }

    /// The newest attempt of which an event counts; 0 before the first.
    pub fn newest(&self) -> u32 {
        self.attempts
            .iter()
            .rev()
            .find(|(_, attempt)| attempt.next_index > 0)
            .map_or(0, |(number, _)| *number)
    }

    /// Whether `event` is of a later attempt than the first that is known. Its worker has read the log, so
    /// what it does not write again must be read there.
    pub fn follows_a_takeover(&self, event: &Event) -> bool {
        event.attempt > self.newest().max(1)
    }

    /// Whether `event` begins an attempt that another worker has begun, too: one of them was refused, or the
    /// log was lost and attempts are counted from the beginning again.
    pub fn rivals(&self, event: &Event) -> bool {
        let EventKind::Taken { worker } = &event.kind else { return false };
        let known = self.attempts.get(&event.attempt).and_then(|attempt| attempt.worker.as_ref());
        known.is_some_and(|known| known != worker)
    }

    /// Reads the whole log, in the order of storage, and tells `on_counted` of each event that counts now.
    /// Events that an earlier reading or [`Self::apply`] has seen are passed over.
    pub fn read(&mut self, stored: &[Event], mut on_counted: impl FnMut(&Event, Fresh)) -> Reading {
        let mut reading = Reading::default();
        self.withdrawn |= stored.iter().any(|event| event.kind == EventKind::Withdrawn);
        let counting = in_time(stored);
        if counting.iter().any(|event| self.rivals(event)) {
            reading.is_new_log = true;
            self.forget_attempts();
        }
        let newest = counting.last().map(|event| event.attempt);
        let mut broken_off = None;
        for event in counting {
            // Also an attempt of which nothing counts is one.
            self.attempts.entry(event.attempt).or_default();
            if broken_off == Some(event.attempt) {
                continue;
            }
            match self.apply(event) {
                Ok(Applied::Counted(fresh)) => on_counted(event, fresh),
                Ok(Applied::Stale) => {}
                Ok(Applied::Gap | Applied::Unplaced) => {
                    broken_off = Some(event.attempt);
                    reading.is_behind = broken_off == newest && event.attempt >= self.newest();
                }
                Err(conflict) => {
                    broken_off = Some(event.attempt);
                    reading.conflict.get_or_insert(conflict);
                }
            }
        }
        reading
    }

    /// Forgets who has written, but not what: the log that is read next is another one.
    fn forget_attempts(&mut self) {
        self.attempts.clear();
        self.choices.iter_mut().for_each(ChoiceLog::forget_attempts);
    }

    /// Applies one event, if it is the next of its attempt.
    pub fn apply(&mut self, event: &Event) -> Result<Applied, Conflict> {
        let expected = self.attempts.get(&event.attempt).map_or(0, |attempt| attempt.next_index);
        if self.end.is_some() || event.index < expected {
            return Ok(Applied::Stale);
        }
        if event.index > expected {
            return Ok(Applied::Gap);
        }
        let before = self.progress();
        let Some(fresh) = self.take(event)? else { return Ok(Applied::Unplaced) };
        let has_progress = self.progress() > before;
        let attempt = self.attempts.entry(event.attempt).or_default();
        attempt.next_index = event.index.saturating_add(1);
        attempt.has_progress |= has_progress;
        match &event.kind {
            EventKind::Taken { worker } => attempt.worker = Some(worker.clone()),
            EventKind::HandedBack => attempt.is_handed_back = true,
            _ => {}
        }
        Ok(Applied::Counted(fresh))
    }

    /// Takes in what `event` says; `None` if it can't be placed.
    fn take(&mut self, event: &Event) -> Result<Option<Fresh>, Conflict> {
        let out_of_order = Conflict::OutOfOrder { attempt: event.attempt, index: event.index };
        match &event.kind {
            EventKind::Accepted(acceptance) => {
                self.acceptance.get_or_insert_with(|| acceptance.clone());
            }
            EventKind::Taken { .. } | EventKind::HandedBack => {}
            EventKind::Withdrawn => self.withdrawn = true,
            EventKind::Error(_) | EventKind::Done { .. } => self.end = Some(event.kind.clone()),
            // That may be at any time, even of a choice that an earlier attempt completed.
            EventKind::Finish { choice, reason: reason @ FinishReason::Cancelled } => {
                self.choice_mut(event, *choice)?.cancel(*reason);
            }
            _ if self.acceptance.is_none() => return Err(out_of_order),
            EventKind::Prompt { position, tokens } => return Ok(self.prompt.write(*position, tokens.len())),
            _ if !self.has_prompt() => return Ok(None),
            EventKind::Finish { choice, reason } => {
                if !self.choice_mut(event, *choice)?.complete(*reason) {
                    return Err(out_of_order);
                }
            }
            EventKind::EndToken { choice, .. } => {
                let is_known = self.choice_mut(event, *choice)?.end();
                return Ok(Some(Fresh { first_token: usize::from(is_known) }));
            }
            EventKind::Tokens { choice, position, ids, text, .. } => {
                return self.choice_mut(event, *choice)?.write(event, *position, ids, text);
            }
        }
        Ok(Some(Fresh::default()))
    }

    fn choice_mut(&mut self, event: &Event, choice: u32) -> Result<&mut ChoiceLog, Conflict> {
        let conflict = Conflict::Choice { attempt: event.attempt, index: event.index, choice };
        usize::try_from(choice).ok().and_then(|choice| self.choices.get_mut(choice)).ok_or(conflict)
    }

    /// Grows with every token and every complete choice.
    fn progress(&self) -> usize {
        self.choices.iter().map(|choice| choice.ids().len() + usize::from(choice.finish().is_some())).sum()
    }
}

impl PromptLog {
    fn write(&mut self, position: u32, count: usize) -> Option<Fresh> {
        if !self.is_wanted {
            return Some(Fresh::default());
        }
        let known = self.next.checked_sub(position)?;
        let end = position.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        self.next = self.next.max(end);
        Some(Fresh { first_token: usize::try_from(known).unwrap_or(usize::MAX) })
    }
}

/// The events of a log that their attempts wrote before the next one began, by attempt and index.
fn in_time(stored: &[Event]) -> Vec<&Event> {
    let mut newest = 0;
    let is_in_time = |event: &&Event| {
        newest = newest.max(event.attempt);
        event.attempt == newest
    };
    let mut events: Vec<&Event> = stored.iter().filter(is_in_time).collect();
    events.sort_by_key(|event| (event.attempt, event.index));
    events
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
