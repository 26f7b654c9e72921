//! The fold of a job's events: which of its chunks count, and the state of the answer after them.
//!
//! A log may hold several attempts, and a reader that follows the live subject may receive chunks out of
//! order, twice, not at all, or from a worker that does not know that another has taken over. These rules
//! decide which chunks count:
//!
//! 1. In storage order, chunks of an attempt count until the first chunk of a later attempt.
//! 2. Within an attempt, chunks count in the order of their indexes, up to the first missing index. Of a chunk
//!    that sums up known events and new ones, the new ones count.
//! 3. An attempt continues from a known position; otherwise the rest of it does not count.
//! 4. Every attempt generates the same text, because sampling depends only on seed, choice and position. So
//!    known tokens stay, and only the part of an event beyond them is new.
//!
//! The function's relay, a worker that takes a job over, and `emberline jobs replay` all use this fold, so
//! they agree on every log. A reader that follows a growing log may know more tokens than one that reads it
//! once at the end, but never different ones.

mod choice;
mod state;
mod summary;

use std::collections::BTreeMap;

pub use choice::ChoiceLog;
pub use state::{LogState, ResumedTokens};
pub use summary::summary;

use crate::chunk::Chunk;
use crate::event::{Acceptance, EventKind, FinishReason};

/// The state of a job after one or more readings of its log.
#[derive(Debug, Clone)]
pub struct EventLog {
    attempts: BTreeMap<u32, Attempt>,
    acceptance: Option<Acceptance>,
    prompt: PromptLog,
    choices: Vec<ChoiceLog>,
    end: Option<EventKind>,
}

/// The state of one attempt.
#[derive(Debug, Clone, Default)]
struct Attempt {
    /// Events with a lower index are applied.
    next_index: u32,
    /// The worker that took the job.
    worker: Option<String>,
    /// Whether it added a token or completed a choice.
    has_progress: bool,
    /// Whether its worker requeued the healthy job.
    is_handed_back: bool,
}

/// The state of the prompt's tokens.
#[derive(Debug, Clone)]
struct PromptLog {
    /// Whether the job asks for them. Then all of them precede the answer.
    is_wanted: bool,
    /// Tokens at lower positions are written.
    next: u32,
}

/// The result of applying a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It counts.
    Counted,
    /// It was applied before, or the job has ended. Nothing has changed.
    Stale,
    /// An earlier event of its attempt is missing. Nothing has changed.
    Gap,
    /// A position from which it continues is not known. Its events up to there count; it can be applied again.
    Unplaced,
}

/// The part of a counted event that was not known before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fresh {
    /// Index in the event of its first new token.
    pub first_token: usize,
    /// Offset in the event's text of its first new byte.
    pub first_byte: usize,
}

/// A contradiction between chunks, which no correct worker writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum Conflict {
    #[error("chunk {index} of attempt {attempt} is for choice {choice}, which the job does not have")]
    Choice { attempt: u32, index: u32, choice: u32 },
    #[error(
        "chunk {index} of attempt {attempt} is at position {position}, which does not continue its attempt"
    )]
    Position { attempt: u32, index: u32, position: u32 },
    #[error("attempt {attempt} writes different text than an earlier one at position {position}")]
    Differs { attempt: u32, position: u32 },
    #[error("chunk {index} of attempt {attempt} precedes the acceptance or follows the end of its choice")]
    OutOfOrder { attempt: u32, index: u32 },
}

/// The result of [`EventLog::read`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// The newest attempt has a gap, or continues from a position that is not known.
    pub is_behind: bool,
    /// A different worker than before has begun an attempt of the same number: the log was lost and is being
    /// written anew.
    pub is_new_log: bool,
    /// The first contradiction. The rest of its attempt does not count.
    pub conflict: Option<Conflict>,
}

impl EventLog {
    /// An empty log of a job with `choices` choices; `has_prompt` if the job asks for its prompt's tokens.
    pub fn new(choices: u32, has_prompt: bool) -> Self {
        Self {
            attempts: BTreeMap::new(),
            acceptance: None,
            prompt: PromptLog { is_wanted: has_prompt, next: 0 },
            choices: (0..choices).map(|_| ChoiceLog::default()).collect(),
            end: None,
        }
    }

    /// The first acceptance of the job, if a worker has accepted it.
    pub fn acceptance(&self) -> Option<&Acceptance> {
        self.acceptance.as_ref()
    }

    /// The choices, in order.
    pub fn choices(&self) -> &[ChoiceLog] {
        &self.choices
    }

    /// The event that ended the job: [`EventKind::Done`] or [`EventKind::Error`]; `None` if it has not ended.
    pub fn end(&self) -> Option<&EventKind> {
        self.end.as_ref()
    }

    /// Number of the prompt's tokens that are written.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt.next
    }

    /// Whether the log has all of the prompt's tokens, or the job does not ask for them.
    pub fn has_prompt(&self) -> bool {
        let is_written = |acceptance: &Acceptance| self.prompt.next >= acceptance.prompt_tokens;
        !self.prompt.is_wanted || self.acceptance.as_ref().is_some_and(is_written)
    }

    /// Number of the newest attempt with a counted chunk; 0 if there is none.
    pub fn newest(&self) -> u32 {
        self.attempts
            .iter()
            .rev()
            .find(|(_, attempt)| attempt.next_index > 0)
            .map_or(0, |(number, _)| *number)
    }

    /// Whether `chunk` belongs to an attempt that took the job over, and that is newer than all counted ones.
    /// Its worker continues from the log, so events that the reader has missed must be read from there.
    pub fn follows_a_takeover(&self, chunk: &Chunk) -> bool {
        chunk.attempt > self.newest().max(1)
    }

    /// Whether `chunk` begins an attempt that a different worker has begun, too: the log was lost, and attempts
    /// are numbered from 1 again.
    pub fn rivals(&self, chunk: &Chunk) -> bool {
        let known = self.attempts.get(&chunk.attempt).and_then(|attempt| attempt.worker.as_ref());
        let Some(known) = known else { return false };
        chunk.events.iter().any(|event| matches!(event, EventKind::Taken { worker, .. } if worker != known))
    }

    /// Reads the whole log, in storage order, and calls `on_counted` with each event that counts and was not
    /// applied before, by an earlier call or by [`Self::apply`].
    pub fn read(
        &mut self,
        stored: &[Chunk],
        mut on_counted: impl FnMut(&Chunk, &EventKind, Fresh),
    ) -> Reading {
        let mut reading = Reading::default();
        let candidates = before_next_attempt(stored);
        if candidates.iter().any(|chunk| self.rivals(chunk)) {
            reading.is_new_log = true;
            self.forget_attempts();
        }
        let newest = candidates.last().map(|chunk| chunk.attempt);
        let mut stopped_attempt = None;
        for chunk in candidates {
            // An attempt without a counted event is an attempt, too.
            self.attempts.entry(chunk.attempt).or_default();
            if stopped_attempt == Some(chunk.attempt) {
                continue;
            }
            match self.apply(chunk, |event, fresh| on_counted(chunk, event, fresh)) {
                Ok(Applied::Counted | Applied::Stale) => {}
                Ok(Applied::Gap | Applied::Unplaced) => {
                    stopped_attempt = Some(chunk.attempt);
                    reading.is_behind = stopped_attempt == newest && chunk.attempt >= self.newest();
                }
                Err(conflict) => {
                    stopped_attempt = Some(chunk.attempt);
                    reading.conflict.get_or_insert(conflict);
                }
            }
        }
        reading
    }

    /// Forgets the attempts but keeps the tokens, before another log of the same job is read.
    fn forget_attempts(&mut self) {
        self.attempts.clear();
        self.choices.iter_mut().for_each(ChoiceLog::forget_attempts);
    }

    /// Applies `chunk` if it continues its attempt, and calls `on_counted` with each event that counts.
    pub fn apply(
        &mut self,
        chunk: &Chunk,
        mut on_counted: impl FnMut(&EventKind, Fresh),
    ) -> Result<Applied, Conflict> {
        let expected = self.attempts.get(&chunk.attempt).map_or(0, |attempt| attempt.next_index);
        if self.end.is_some() || chunk.end <= expected {
            return Ok(Applied::Stale);
        }
        if chunk.index > expected {
            return Ok(Applied::Gap);
        }
        let before = self.progress();
        let mut applied = Ok(Applied::Counted);
        for event in &chunk.events {
            match self.update(chunk, event) {
                Ok(Some(fresh)) => on_counted(event, fresh),
                Ok(None) => applied = Ok(Applied::Unplaced),
                Err(conflict) => applied = Err(conflict),
            }
            if applied != Ok(Applied::Counted) {
                break;
            }
        }
        let has_progress = self.progress() > before;
        let attempt = self.attempts.entry(chunk.attempt).or_default();
        attempt.has_progress |= has_progress;
        if applied != Ok(Applied::Counted) {
            return applied;
        }
        attempt.next_index = chunk.end;
        for event in &chunk.events {
            match event {
                EventKind::Taken { worker, .. } => attempt.worker = Some(worker.clone()),
                EventKind::HandedBack => attempt.is_handed_back = true,
                _ => {}
            }
        }
        applied
    }

    /// Updates the state with an event of `chunk`; `None` if the position from which it continues is not known.
    fn update(&mut self, chunk: &Chunk, event: &EventKind) -> Result<Option<Fresh>, Conflict> {
        let out_of_order = Conflict::OutOfOrder { attempt: chunk.attempt, index: chunk.index };
        match event {
            EventKind::Accepted(acceptance) => {
                self.acceptance.get_or_insert_with(|| acceptance.clone());
            }
            EventKind::Taken { .. } | EventKind::HandedBack => {}
            EventKind::Error(_) | EventKind::Done { .. } => self.end = Some(event.clone()),
            // Cancelling is allowed at any time, even for a choice that an earlier attempt completed.
            EventKind::Finish { choice, reason: reason @ FinishReason::Cancelled } => {
                self.choice_mut(chunk, *choice)?.cancel(*reason);
            }
            _ if self.acceptance.is_none() => return Err(out_of_order),
            EventKind::Prompt { position, tokens } => return Ok(self.prompt.write(*position, tokens.len())),
            _ if !self.has_prompt() => return Ok(None),
            EventKind::Finish { choice, reason } => {
                if !self.choice_mut(chunk, *choice)?.complete(*reason) {
                    return Err(out_of_order);
                }
            }
            EventKind::EndToken { choice, .. } => {
                let is_known = self.choice_mut(chunk, *choice)?.end();
                return Ok(Some(Fresh { first_token: usize::from(is_known), ..Fresh::default() }));
            }
            EventKind::Tokens { choice, position, ids, text, .. } => {
                return self.choice_mut(chunk, *choice)?.write(chunk, *position, ids, text);
            }
        }
        Ok(Some(Fresh::default()))
    }

    fn choice_mut(&mut self, chunk: &Chunk, choice: u32) -> Result<&mut ChoiceLog, Conflict> {
        let conflict = Conflict::Choice { attempt: chunk.attempt, index: chunk.index, choice };
        usize::try_from(choice).ok().and_then(|choice| self.choices.get_mut(choice)).ok_or(conflict)
    }

    /// A measure of progress: it grows with every token and every completed choice.
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
        let first_token = usize::try_from(known).unwrap_or(usize::MAX);
        Some(Fresh { first_token, ..Fresh::default() })
    }
}

/// The chunks that are stored before any chunk of a later attempt, ordered by attempt and index.
fn before_next_attempt(stored: &[Chunk]) -> Vec<&Chunk> {
    let mut newest = 0;
    let is_before_next = |chunk: &&Chunk| {
        newest = newest.max(chunk.attempt);
        chunk.attempt == newest
    };
    let mut chunks: Vec<&Chunk> = stored.iter().filter(is_before_next).collect();
    chunks.sort_by_key(|chunk| (chunk.attempt, chunk.index));
    chunks
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
