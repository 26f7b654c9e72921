//! What a worker does with a job that it receives, by the job's event log: go on where the attempts before
//! came to, finish what one of them has completed, or give the job up.

use std::time::Duration;

use emberline_protocol::event::{Event, EventKind};
use emberline_protocol::log::LogState;

use super::job::JobRun;
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
    /// End it: its client is gone or has cancelled it.
    Unwanted,
    /// Give it up: this many attempts in a row failed.
    GivenUp(u32),
}

impl JobRun<'_> {
    /// Decides what to do with the job, and begins the next attempt if it is to be run.
    pub(super) async fn claim(&self, log: &mut LogWriter) -> Claim {
        let request = &self.job.request;
        let state_of = |stored: &[Event]| LogState::of(stored, request.n, request.logs_prompt());
        let mut state = state_of(&[]);
        let mut last_sequence = 0;
        // At the first delivery the log is empty, unless the client is gone already.
        let mut is_known = self.deliveries == 1;
        loop {
            if !is_known {
                match log.read().await {
                    Ok(stored) => {
                        last_sequence = stored.last_sequence;
                        state = state_of(&stored.events);
                    }
                    Err(error) => {
                        tracing::warn!(job = %self.job.id, %error, "the event log can't be read; trying again");
                        self.intake.nats.recheck();
                        tokio::time::sleep(CLAIM_PAUSE).await;
                        continue;
                    }
                }
            }
            // A lost log shows no attempt, but one may still run: a higher number tells it that it is replaced.
            log.follow(state.attempts.max(self.deliveries.saturating_sub(1)));
            if let Some(end) = state.end {
                return Claim::Ended(end);
            }
            // A cancel from before this worker subscribed.
            if state.withdrawn || (self.job.background.is_some() && self.is_cancelled().await) {
                return Claim::Unwanted;
            }
            if state.fruitless >= MAX_FRUITLESS {
                return Claim::GivenUp(state.fruitless);
            }
            match log.begin(&self.intake.worker, last_sequence).await {
                Ok(()) => return Claim::Open(state),
                // Another worker wrote in between, or the replica that was read lags behind.
                Err(LogChanged) if is_known => is_known = false,
                Err(LogChanged) => tokio::time::sleep(CLAIM_PAUSE).await,
            }
        }
    }
}
