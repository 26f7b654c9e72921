//! Messages between a relay and the worker that runs its job, beside the job's events.

use serde::{Deserialize, Serialize};

use crate::event::{EventKind, FinishReason};
use crate::subject::JobId;

/// Interval at which a relay sends [`Control::Alive`], in seconds.
pub const ALIVE_INTERVAL_S: u64 = 5;
/// Time without [`Control::Alive`] after which a worker cancels the job, in seconds: more than the interval, a cut of ten
/// seconds between relay and NATS, and the time to connect again.
pub const ALIVE_TIMEOUT_S: u64 = 20;

/// A message on a job's control subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Control {
    /// The client is still reading.
    Alive,
    /// The client disconnected: stop the job and free its slot.
    Cancel,
    /// Nothing to do. Sent with a reply subject, on which NATS says at once if nobody is there.
    Probe,
}

/// How often a relay that hears nothing looks whether the job's worker is there, in milliseconds.
pub const PROBE_INTERVAL_MS: u64 = 150;
/// How long a worker that is not connected has to come back before its job is given to another one, in
/// milliseconds.
pub const ORPHAN_GRACE_MS: u64 = 100;

/// A relay says to any worker of the model that a job's worker is not connected. The worker looks for itself, and
/// has JetStream deliver the job again, which would otherwise wait for the acknowledgement to be overdue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The job.
    pub job: JobId,
    /// What acknowledges its delivery to the worker that is gone.
    pub ack: String,
}

/// How long a worker that takes a job over waits for a relay's [`Sent`], in milliseconds.
pub const SENT_TIMEOUT_MS: u64 = 250;

/// A worker that is about to begin an attempt asks the relay what the client has beyond the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentQuestion {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The attempt. What earlier ones publish from now on counts only if the log has it.
    pub attempt: u32,
    /// How many tokens of each choice the log has.
    pub tokens: Vec<u32>,
}

/// A relay's answer: for each choice what it has sent beyond the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// One entry for each choice.
    pub choices: Vec<SentTokens>,
}

/// Tokens that a client has and the log has not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentTokens {
    /// Their ids.
    pub ids: Vec<u32>,
    /// The text that they complete.
    pub text: String,
    /// Why the choice ended; `None` if it has not.
    pub finish: Option<FinishReason>,
}

impl Sent {
    /// The same as the events that the log lacks, after these numbers of tokens.
    pub fn into_events(self, tokens: &[u32]) -> Vec<EventKind> {
        let choices = self.choices.into_iter().zip(tokens).zip(0..);
        let events = choices.flat_map(|((sent, position), choice)| {
            let SentTokens { ids, text, finish } = sent;
            let position = *position;
            let tokens = (!ids.is_empty()).then(|| EventKind::Tokens {
                choice,
                position,
                ids,
                text,
                logprobs: Vec::new(),
            });
            tokens.into_iter().chain(finish.map(|reason| EventKind::Finish { choice, reason }))
        });
        events.collect()
    }
}
