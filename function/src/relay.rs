//! From a job's events to what its client is told: every character exactly once.
//!
//! Events come over a plain subscription, which may lose, repeat or (between two workers)
//! reorder them. The truth is the job's log. A [`Relay`] follows the subscription as long as
//! it is without holes; where it is not, [`Relay::has_gap`] says so, and the caller brings the
//! whole log to [`Relay::rebuild`]. What was told already is known, so the rest follows from
//! there and nothing is told twice.

mod joined;
mod transcript;
mod whole;

use emberline_shared::PROTOCOL_VERSION;
use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::event::{Event, FinishReason, TokenLogprobs, Usage};
use emberline_shared::tools::ToolFormat;

pub use joined::Joined;
pub use transcript::Fault;
use transcript::{Applied, End, Transcript};
pub use whole::Whole;

/// Most events that are held back for each choice while a gap is being closed.
const MAX_WAITING: usize = 4096;

/// What a job may produce at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Choices.
    pub choices: u32,
    /// Tokens of one choice.
    pub tokens: u32,
    /// Alternatives in each token's log-probabilities, if those are asked for.
    pub logprobs: Option<u32>,
}

/// What is known of an answer as it begins.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Acceptance {
    /// Names weights and engine.
    pub fingerprint: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// How calls of functions are written in the text, if it may have any.
    pub tool_format: Option<ToolFormat>,
    /// The prompt's text, if it was asked for.
    pub prompt_text: Option<String>,
}

/// What the client is to be told next.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// A worker took the job: the answer begins.
    Accepted(Acceptance),
    /// More text of a choice.
    Text {
        /// Which choice.
        choice: u32,
        /// The text; empty where tokens complete no character, but their log-probabilities are
        /// asked for.
        text: String,
        /// Of the tokens that this tells of, if they are asked for.
        logprobs: Option<Vec<TokenLogprobs>>,
    },
    /// A choice is complete.
    Finish {
        /// Which choice.
        choice: u32,
        /// Why it ended.
        reason: FinishReason,
    },
    /// Everything is complete.
    Done(Usage),
    /// The job failed; nothing follows.
    Failed(ApiError),
}

/// What of one choice has been told.
#[derive(Debug, Clone, Default)]
struct Told {
    bytes: usize,
    finished: bool,
}

/// Follows one job.
#[derive(Debug)]
pub struct Relay {
    limits: Limits,
    transcript: Transcript,
    told: Vec<Told>,
    accepted: bool,
    ended: bool,
    /// Events that came after a hole.
    waiting: Vec<Event>,
}

impl Relay {
    /// A relay that has told nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            transcript: Transcript::new(limits),
            told: (0..limits.choices).map(|_| Told::default()).collect(),
            accepted: false,
            ended: false,
            waiting: Vec::new(),
        }
    }

    /// Takes the next event of the subscription.
    pub fn on_event(&mut self, event: Event) -> Result<Vec<Output>, Fault> {
        if self.has_gap() || self.transcript.follows_a_takeover(&event) {
            return self.hold_back(event);
        }
        match self.transcript.apply(&event)? {
            Applied::Taken => self.tell(),
            Applied::Stale => Ok(Vec::new()),
            Applied::Gap => self.hold_back(event),
        }
    }

    fn hold_back(&mut self, event: Event) -> Result<Vec<Output>, Fault> {
        if self.waiting.len() >= MAX_WAITING.saturating_mul(self.told.len()) {
            return Err(Fault::TooManyWaiting);
        }
        self.waiting.push(event);
        Ok(Vec::new())
    }

    /// Whether events are missing, so that the log is needed.
    pub fn has_gap(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the job has ended and been told of.
    pub fn is_over(&self) -> bool {
        self.ended
    }

    /// Takes the whole log, in which an event that had to be sent again lies behind later ones.
    /// A log that is not yet as far as the subscription leaves the gap open: bring it again a
    /// little later.
    pub fn rebuild(&mut self, log: &[Event]) -> Result<Vec<Output>, Fault> {
        let mut rebuilt = self.transcript.restarted();
        let mut log: Vec<&Event> = log.iter().collect();
        log.sort_by_key(|event| (event.attempt, event.index));
        for event in log {
            if rebuilt.apply(event)? == Applied::Gap {
                break;
            }
        }
        if !rebuilt.extends(&self.transcript)? {
            return Ok(Vec::new());
        }
        self.transcript = rebuilt;
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_by_key(|event| (event.attempt, event.index));
        for event in waiting {
            if self.has_gap()
                || self.transcript.follows_a_takeover(&event)
                || self.transcript.apply(&event)? == Applied::Gap
            {
                self.waiting.push(event);
            }
        }
        self.tell()
    }

    /// Whatever is known and has not been told.
    fn tell(&mut self) -> Result<Vec<Output>, Fault> {
        let mut outputs = Vec::new();
        if let Some(acceptance) = self.transcript.acceptance()
            && !std::mem::replace(&mut self.accepted, true)
        {
            outputs.push(Output::Accepted(acceptance.clone()));
        }
        let asked = self.limits.logprobs;
        for ((told, known), choice) in self.told.iter_mut().zip(self.transcript.choices_mut()).zip(0..) {
            let logprobs = asked.map(|_| known.take_logprobs());
            let text = known.text.get(told.bytes..).unwrap_or_default().to_owned();
            if !text.is_empty() || logprobs.as_ref().is_some_and(|logprobs| !logprobs.is_empty()) {
                told.bytes = known.text.len().max(told.bytes);
                outputs.push(Output::Text { choice, text, logprobs });
            }
            if let Some(reason) = known.finish
                && !std::mem::replace(&mut told.finished, true)
            {
                outputs.push(Output::Finish { choice, reason });
            }
        }
        match self.transcript.end() {
            Some(_) if self.ended => {}
            Some(End::Done(_)) if self.told.iter().any(|told| !told.finished) => {
                return Err(Fault::Unfinished);
            }
            Some(End::Done(usage)) => outputs.push(Output::Done(*usage)),
            Some(End::Failed(error)) => outputs.push(Output::Failed(error.clone())),
            None => {}
        }
        self.ended = self.transcript.end().is_some();
        Ok(outputs)
    }
}

/// Reads one event of the log.
pub fn read_event(payload: &[u8]) -> Result<Event, Fault> {
    let event: Event = serde_json::from_slice(payload).map_err(|e| Fault::Unreadable(e.to_string()))?;
    if event.v > PROTOCOL_VERSION { Err(Fault::Version(event.v)) } else { Ok(event) }
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
