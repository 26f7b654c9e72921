//! From a job's events to what its client gets: every character exactly once.
//!
//! Chunks of events come over a plain subscription, which may lose, repeat or (between two workers) reorder
//! them. A [`Relay`] follows the subscription as long as it has no holes; where it has one,
//! [`Relay::has_gap`] says so, and the caller brings the whole log to [`Relay::rebuild`], which lays it over
//! what is known. So nothing is sent twice, even if the log was lost and is written again.

mod fault;
mod held;
mod joined;
mod output_limits;
mod prompt;
mod sound;
mod whole;

use std::sync::Arc;

use emberline_api::paths::Paths;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::control::{Sent, SentQuestion, SentTokens};
use emberline_protocol::error::{ApiError, ErrorCode};
pub use emberline_protocol::event::Acceptance;
use emberline_protocol::event::{EventKind, FinishReason, TokenLogprobs, Usage};
use emberline_protocol::log::{Applied, ChoiceLog, Conflict, EventLog, Fresh};
use emberline_protocol::prompt::PromptToken;
use emberline_protocol::versioned::Unreadable;

pub use fault::Fault;
pub use held::{LOGPROB_BYTES, TOKEN_BYTES};
pub use joined::Joined;
pub use output_limits::OutputLimits;
pub use prompt::PromptLimits;
use prompt::PromptTokens;
use sound::MAX_TOKEN_BYTES;
pub use whole::Whole;

/// Most chunks that are held back for each choice while a gap is being closed.
const MAX_WAITING: usize = 4096;

/// What the client gets next.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// A worker took the job: the answer begins.
    Accepted(Acceptance),
    /// All tokens of a prompt, if they are asked for; before any text that follows it.
    Prompt {
        /// The first choice that follows it.
        first: u32,
        /// How many choices do.
        choices: u32,
        /// The tokens.
        tokens: Arc<[PromptToken]>,
    },
    /// More text of a choice.
    Text {
        /// Which choice.
        choice: u32,
        /// The text; empty where tokens complete no character, but their ids or log-probabilities are
        /// asked for.
        text: String,
        /// Those of the same tokens, if they are asked for.
        logprobs: Option<Vec<TokenLogprobs>>,
        /// The same tokens' ids, if they are asked for.
        ids: Option<Vec<u32>>,
        /// How many tokens of the choice were written since the last output of it.
        tokens: u32,
    },
    /// A choice is complete.
    Finish {
        /// Which choice.
        choice: u32,
        /// Why it ended.
        reason: FinishReason,
    },
    /// Everything is complete.
    Done(Ending),
    /// The job failed; nothing follows.
    Failed(ApiError),
}

/// How a job ended that is complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ending {
    /// All its tokens.
    pub usage: Usage,
    /// When that was, in Unix seconds, if its worker said so.
    pub at: Option<u64>,
}

impl Output {
    /// The same, with fields called as the client's body calls them.
    pub fn called_by(self, paths: &Paths) -> Self {
        match self {
            Self::Accepted(acceptance) => {
                let relaxed = paths.relaxed(&acceptance.relaxed);
                Self::Accepted(Acceptance { relaxed, ..acceptance })
            }
            Self::Failed(error) => Self::Failed(paths.error(error)),
            output => output,
        }
    }
}

/// What of one choice was sent, and what is to be sent next beside its text.
#[derive(Debug, Clone, Default)]
struct SentChoice {
    bytes: usize,
    tokens: u32,
    finished: bool,
    /// Of tokens that were not sent yet, if the job asks for them.
    logprobs: Vec<TokenLogprobs>,
    ids: Vec<u32>,
}

/// Follows one job.
#[derive(Debug)]
pub struct Relay {
    log: EventLog,
    sent: SentOutput,
    accepted: bool,
    ended: bool,
    /// The highest number of an attempt that was seen; 0 before a worker has the job.
    highest: u32,
    /// Chunks that came after a hole.
    waiting: Vec<Chunk>,
    /// The log had a hole, or did not hold what its newest attempt goes on from.
    behind: bool,
    /// Nothing is applied before the log was read.
    must_read: bool,
    /// What acknowledges the job's delivery to the newest worker, with the number of its attempt.
    ack: (u32, Option<String>),
    /// Chunks of attempts before this one count only if the log has them: a worker that begins it has been told
    /// what was sent, or the log was lost and the attempts are numbered anew.
    from_log: u32,
}

/// What is sent of the log.
#[derive(Debug)]
struct SentOutput {
    limits: OutputLimits,
    prompt: PromptTokens,
    choices: Vec<SentChoice>,
}

impl Relay {
    /// A relay that has sent nothing yet.
    pub fn new(limits: OutputLimits) -> Self {
        let choices = (0..limits.choices).map(|_| SentChoice::default()).collect();
        Self {
            log: EventLog::new(limits.choices, limits.prompt.is_some()),
            sent: SentOutput { limits, prompt: PromptTokens::default(), choices },
            accepted: false,
            ended: false,
            highest: 0,
            waiting: Vec::new(),
            behind: false,
            must_read: false,
            ack: (0, None),
            from_log: 0,
        }
    }

    /// Takes the next chunk of the subscription.
    pub fn on_chunk(&mut self, chunk: Chunk) -> Result<Vec<Output>, Fault> {
        self.note_attempt(&chunk);
        self.must_read |= self.log.rivals(&chunk);
        if self.ended || self.is_of_no_use(&chunk) {
            return Ok(Vec::new());
        }
        if chunk.attempt < self.from_log {
            self.must_read = true;
            return Ok(Vec::new());
        }
        if self.must_wait(&chunk)? {
            return self.hold_back(chunk);
        }
        self.settle()?;
        self.outputs()
    }

    fn hold_back(&mut self, chunk: Chunk) -> Result<Vec<Output>, Fault> {
        if self.waiting.len() >= MAX_WAITING.saturating_mul(self.log.choices().len()) {
            return Err(Fault::TooManyWaiting);
        }
        self.waiting.push(chunk);
        Ok(Vec::new())
    }

    /// Whether the chunk is of a worker that was replaced, or a takeover alone: what follows it shows whether the
    /// log has it.
    fn is_of_no_use(&self, chunk: &Chunk) -> bool {
        chunk.attempt < self.log.newest()
            || self.log.follows_a_takeover(chunk) && matches!(chunk.events[..], [EventKind::Taken { .. }])
    }

    /// Applies a chunk of the subscription, and says whether the log must be read before. If an event is in
    /// the wrong place, the log also shows whether another worker than before wrote it.
    fn must_wait(&mut self, chunk: &Chunk) -> Result<bool, Fault> {
        if self.must_read || self.log.follows_a_takeover(chunk) {
            return Ok(true);
        }
        let (sent, mut taken) = (&mut self.sent, Ok(()));
        let applied = self.log.apply(chunk, |event, fresh| {
            if taken.is_ok() {
                taken = sent.take(chunk, event, fresh);
            }
        });
        taken?;
        match applied {
            Ok(Applied::Counted | Applied::Stale) => Ok(false),
            Ok(Applied::Gap | Applied::Unplaced) | Err(Conflict::Position { .. }) => Ok(true),
            Err(conflict) => Err(conflict.into()),
        }
    }

    /// Applies the chunks that wait, as far as they need not wait any more.
    fn settle(&mut self) -> Result<(), Fault> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_by_key(|chunk| (chunk.attempt, chunk.index));
        for chunk in waiting {
            if !self.is_of_no_use(&chunk) && self.must_wait(&chunk)? {
                self.waiting.push(chunk);
            }
        }
        Ok(())
    }

    /// Whether events may be missing, so that the log is needed.
    pub fn has_gap(&self) -> bool {
        !self.ended && (self.must_read || self.behind || !self.waiting.is_empty())
    }

    /// Events may have been missed: what comes next waits until the log was read.
    pub fn recheck(&mut self) {
        self.must_read = true;
    }

    /// Tells the worker that is about to take the job over what was sent beyond the log. Log-probabilities are not
    /// kept once they are sent, so of an answer with them it tells nothing; the worker computes it again.
    pub fn sent(&mut self, question: &SentQuestion) -> Sent {
        self.from_log = self.from_log.max(question.attempt);
        let has_more = self.sent.limits.logprobs.is_some();
        let choices = self.log.choices().iter().zip(&question.tokens).map(|(choice, position)| {
            let Some((ids, text)) = choice.tokens_from(*position).filter(|_| !has_more) else {
                return SentTokens::default();
            };
            SentTokens { ids: ids.to_vec(), text: text.to_owned(), finish: choice.finish() }
        });
        Sent { v: PROTOCOL_VERSION, choices: choices.collect() }
    }

    fn note_attempt(&mut self, chunk: &Chunk) {
        self.highest = self.highest.max(chunk.attempt);
        for event in &chunk.events {
            if let EventKind::Taken { ack, .. } = event
                && chunk.attempt >= self.ack.0
            {
                self.ack = (chunk.attempt, ack.clone());
            }
        }
    }

    /// What acknowledges the job's delivery to the worker that runs it, if that has said so.
    pub fn ack(&self) -> Option<&str> {
        self.ack.1.as_deref()
    }

    /// The highest number of an attempt that was seen; 0 before a worker has the job.
    pub fn attempt(&self) -> u32 {
        self.highest
    }

    /// Whether a worker has the job, or had it.
    pub fn is_taken(&self) -> bool {
        self.highest > 0
    }

    /// Whether the job has ended, and the client knows.
    pub fn is_over(&self) -> bool {
        self.ended
    }

    /// Takes the whole log, in the order in which it was stored. One that is not yet as far as the
    /// subscription, or lacks what it goes on from, leaves the gap open: bring it again a little later.
    pub fn rebuild(&mut self, stored: &[Chunk]) -> Result<Vec<Output>, Fault> {
        self.must_read = false;
        stored.iter().for_each(|chunk| self.note_attempt(chunk));
        let mut taken = Ok(());
        let reading = self.log.read(stored, |chunk, event, fresh| {
            if taken.is_ok() {
                taken = self.sent.take(chunk, event, fresh);
            }
        });
        taken?;
        if let Some(conflict) = reading.conflict {
            return Err(conflict.into());
        }
        if reading.is_new_log {
            // A chunk does not say whose it is: one of a number that was seen may be of a worker of the lost log.
            self.from_log = self.from_log.max(self.highest.saturating_add(1));
            self.waiting.clear();
        }
        self.behind = reading.is_behind;
        self.settle()?;
        self.outputs()
    }

    /// Whatever is known and was not sent.
    fn outputs(&mut self) -> Result<Vec<Output>, Fault> {
        self.check_length()?;
        let mut outputs = Vec::new();
        if let Some(acceptance) = self.log.acceptance()
            && !std::mem::replace(&mut self.accepted, true)
        {
            outputs.push(Output::Accepted(acceptance.clone()));
        }
        let SentOutput { limits, prompt, choices } = &mut self.sent;
        if limits.prompt.is_some()
            && self.log.has_prompt()
            && let Some(tokens) = prompt.take()
        {
            outputs.push(Output::Prompt { first: 0, choices: limits.choices, tokens: tokens.into() });
        }
        for ((sent, known), choice) in choices.iter_mut().zip(self.log.choices()).zip(0..) {
            let (ids, logprobs) = (std::mem::take(&mut sent.ids), std::mem::take(&mut sent.logprobs));
            let text = known.text().get(sent.bytes..).unwrap_or_default().to_owned();
            if !(text.is_empty() && ids.is_empty() && logprobs.is_empty()) {
                sent.bytes = known.text().len();
                let tokens = known.token_count().saturating_sub(sent.tokens);
                sent.tokens = sent.tokens.saturating_add(tokens);
                let (logprobs, ids) = (limits.logprobs.map(|_| logprobs), limits.ids.then_some(ids));
                outputs.push(Output::Text { choice, text, logprobs, ids, tokens });
            }
            if let Some(reason) = known.finish()
                && !std::mem::replace(&mut sent.finished, true)
            {
                outputs.push(Output::Finish { choice, reason });
            }
        }
        let end = self.log.end().filter(|_| !self.ended);
        match end {
            Some(EventKind::Error(error)) => outputs.push(Output::Failed(error.clone().into())),
            Some(EventKind::Done { .. }) if self.is_unfinished() => return Err(Fault::Unfinished),
            Some(&EventKind::Done { usage, at, .. }) => outputs.push(Output::Done(Ending { usage, at })),
            _ => {}
        }
        self.ended = self.log.end().is_some();
        Ok(outputs)
    }

    /// Refuses more than the job may produce.
    fn check_length(&self) -> Result<(), Fault> {
        let tokens = usize::try_from(self.sent.limits.tokens).unwrap_or(usize::MAX);
        let bytes = tokens.saturating_add(1).saturating_mul(MAX_TOKEN_BYTES);
        let is_too_long = |choice: &ChoiceLog| choice.ids().len() > tokens || choice.text().len() > bytes;
        let any = self.log.choices().iter().any(is_too_long);
        if any { Err(Fault::TooLong(self.log.newest())) } else { Ok(()) }
    }

    /// Whether a choice is not complete, or the prompt is missing of an answer that nobody has cancelled.
    fn is_unfinished(&self) -> bool {
        let choices = self.log.choices();
        choices.iter().any(|choice| choice.finish().is_none())
            || !self.log.has_prompt()
                && choices.iter().all(|choice| choice.finish() != Some(FinishReason::Cancelled))
    }
}

impl SentOutput {
    /// Keeps what an event that counts has beside its text, if it is asked for.
    fn take(&mut self, chunk: &Chunk, event: &EventKind, fresh: Fresh) -> Result<(), Fault> {
        let (attempt, index) = (chunk.attempt, chunk.index);
        let limits = self.limits;
        match event {
            EventKind::Prompt { position, tokens } => {
                if let Some(limits) = limits.prompt {
                    self.prompt.write(chunk, *position, tokens, fresh, limits)?;
                }
            }
            EventKind::EndToken { choice, id, logprobs } => {
                let is_asked = |token| limits.logprobs.is_some_and(|top| sound::is_sound(token, top));
                if !logprobs.iter().all(is_asked) {
                    return Err(Fault::Logprobs { attempt, index });
                }
                if let Some(sent) = self.choice_mut(*choice)
                    && fresh.first_token == 0
                {
                    sent.ids.extend(limits.ids.then_some(*id));
                    sent.logprobs.extend(logprobs.clone());
                }
            }
            EventKind::Tokens { choice, ids, logprobs, .. } => {
                let is_asked = |top| {
                    logprobs.len() == ids.len() && logprobs.iter().all(|token| sound::is_sound(token, top))
                };
                if !limits.logprobs.is_none_or(is_asked) {
                    return Err(Fault::Logprobs { attempt, index });
                }
                if let Some(sent) = self.choice_mut(*choice) {
                    if limits.logprobs.is_some() {
                        let fresh = logprobs.get(fresh.first_token..).unwrap_or_default();
                        sent.logprobs.extend_from_slice(fresh);
                    }
                    if limits.ids {
                        sent.ids.extend_from_slice(ids.get(fresh.first_token..).unwrap_or_default());
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn choice_mut(&mut self, choice: u32) -> Option<&mut SentChoice> {
        usize::try_from(choice).ok().and_then(|choice| self.choices.get_mut(choice))
    }
}

/// Reads one chunk, live or of the log.
pub fn read_chunk(payload: &[u8]) -> Result<Chunk, Fault> {
    Chunk::read(payload).map_err(|error| match error {
        Unreadable::Version(version) => Fault::Version(version),
        Unreadable::Malformed(error) => Fault::Unreadable(error),
    })
}

impl From<&Fault> for ApiError {
    fn from(_: &Fault) -> Self {
        Self::new(ErrorCode::WorkerFailed, "The worker's answer could not be used. Try again.")
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "relay/takeover_tests.rs"]
mod takeover_tests;
