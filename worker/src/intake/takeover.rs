//! What a worker does with a job that it receives, by the job's event log: go on where the attempts before
//! came to, finish what one of them has completed, or give the job up.

use std::time::Duration;

use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::control::{SENT_TIMEOUT_MS, Sent, SentQuestion};
use emberline_protocol::event::{EventKind, Usage};
use emberline_protocol::log::{LogState, ResumedTokens, summary};
use emberline_protocol::malformed::Malformed;
use emberline_protocol::subject;

use super::job::JobRun;
use super::log_reader::{ReadError, Stored};
use super::log_writer::{LogChanged, LogWriter};

/// Attempts in a row that may die without having added a token. The next one is not made: the job
/// seems to kill its workers.
pub const MAX_FRUITLESS: u32 = 3;
/// Pause before a job's log is read again.
const CLAIM_PAUSE: Duration = Duration::from_millis(100);

/// What is to be done with a job that was delivered.
pub(super) enum Claim {
    /// Run it from here on.
    Open(LogState),
    /// Nothing: its log is complete.
    Ended(EventKind),
    /// End it: its client is gone or has cancelled it. The attempts so far have computed this much.
    Unwanted(Usage),
    /// Give it up: this many attempts in a row failed. All of them have computed this much.
    GivenUp(u32, Usage),
}

impl JobRun<'_> {
    /// Decides what to do with the job, and begins the next attempt if it is to be run.
    pub(super) async fn claim(&self, log: &mut LogWriter) -> Claim {
        let mut stored = Stored::default();
        // At the first delivery the log is empty.
        let mut is_known = self.deliveries == 1;
        loop {
            if !is_known {
                match log.read().await {
                    Ok(read) => stored = read,
                    Err(error) => {
                        tracing::warn!(job = %self.job.id, %error, "the event log can't be read; trying again");
                        self.intake.nats.recheck();
                        tokio::time::sleep(CLAIM_PAUSE).await;
                        continue;
                    }
                }
            }
            let state = self.follow_attempts(log, &stored);
            if let Some(end) = state.end {
                return Claim::Ended(end);
            }
            if is_known && self.job.background.is_none() {
                // The usual case, in one round trip: whether the client has left is asked while the attempt begins.
                match tokio::join!(self.is_withdrawn(), self.begin(log)) {
                    (true, Ok(())) => return Claim::Unwanted(state.usage),
                    (false, Ok(())) => return Claim::Open(state),
                    (_, Err(LogChanged)) => {
                        is_known = false;
                        continue;
                    }
                }
            }
            // A cancel from before this worker subscribed.
            let is_unwanted = match self.is_unwanted().await {
                Ok(is_unwanted) => is_unwanted,
                Err(error) => {
                    tracing::warn!(job = %self.job.id, %error, "the stored request can't be read; trying again");
                    self.intake.nats.recheck();
                    tokio::time::sleep(CLAIM_PAUSE).await;
                    continue;
                }
            };
            if is_unwanted {
                return Claim::Unwanted(state.usage);
            }
            if state.fruitless >= MAX_FRUITLESS {
                return Claim::GivenUp(state.fruitless, state.usage);
            }
            let sent =
                if state.attempts > 0 { self.sent_beyond(&state, log.attempt()).await } else { Vec::new() };
            match self.begin(log).await {
                Ok(()) => {
                    let state = state.with(&sent);
                    log.store_sent(sent);
                    return Claim::Open(state);
                }
                // Another worker wrote in between, or the replica that was read lags behind.
                Err(LogChanged) if is_known => is_known = false,
                Err(LogChanged) => tokio::time::sleep(CLAIM_PAUSE).await,
            }
        }
    }

    async fn begin(&self, log: &mut LogWriter) -> Result<(), LogChanged> {
        let ack = self.message.reply.as_ref().map(ToString::to_string);
        log.begin(&self.intake.worker, ack).await
    }

    /// What the relay has sent beyond the log: its last chunk may be lost, and the client has it. Another kind of
    /// device may write something else in its place.
    async fn sent_beyond(&self, state: &LogState, attempt: u32) -> Vec<EventKind> {
        // The prompt's tokens come before the answer's, and the relay has no log-probabilities any more.
        if self.job.request.logs_prompt() || self.job.request.alternatives().is_some() {
            return Vec::new();
        }
        let tokens: Vec<u32> = state.choices.iter().map(ResumedTokens::count).collect();
        let question = SentQuestion { v: PROTOCOL_VERSION, attempt, tokens };
        // Can't fail: numbers only.
        let payload = serde_json::to_vec(&question).unwrap_or_default();
        let asked = self.intake.nats.client().request(subject::sent(&self.job.id), payload.into());
        match tokio::time::timeout(Duration::from_millis(SENT_TIMEOUT_MS), asked).await {
            Ok(Ok(answer)) => match serde_json::from_slice::<Sent>(&answer.payload) {
                Ok(sent) => sent.into_events(&question.tokens),
                Err(error) => {
                    let error = Malformed::from(error);
                    tracing::warn!(job = %self.job.id, %error, "the relay's answer can't be read");
                    Vec::new()
                }
            },
            // Nobody follows the job now, or the relay is cut off. Then the log says what counts.
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    /// What the log of a job says that is not to be run.
    pub(super) async fn written(&self, log: &mut LogWriter) -> Result<LogState, ReadError> {
        let stored = log.read().await?;
        Ok(self.follow_attempts(log, &stored))
    }

    /// Has `log` continue what is stored of it; what that says.
    fn follow_attempts(&self, log: &mut LogWriter, stored: &Stored) -> LogState {
        let (choices, has_prompt) = (self.job.request.n, self.job.request.logs_prompt());
        let state = LogState::of(&stored.chunks, choices, has_prompt);
        // A lost log shows no attempt, but one may still run: a higher number tells it that it is replaced.
        let attempts = state.attempts.max(self.deliveries.saturating_sub(1));
        log.follow(attempts, summary(&stored.chunks, choices, has_prompt), stored.last_sequence);
        state
    }
}
