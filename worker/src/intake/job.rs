//! One job in a worker, from its message to its acknowledgement.

use std::time::Duration;

use async_nats::Subscriber;
use async_nats::jetstream::{AckKind, Message};
use emberline_inference::clock;
use emberline_protocol::control::{ALIVE_INTERVAL_S, Control};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::{EventKind, Usage};
use emberline_protocol::job::Job;
use emberline_protocol::stored_request::CancelState;
use emberline_protocol::subject;
use emberline_protocol::usage::Outcome;
use futures::StreamExt;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::acknowledge::{PROGRESS_INTERVAL, progress_interval, send_ack, with_progress};
use super::charge::{Charge, JobTotals};
use super::dead_letter;
use super::log_writer::LogWriter;
use super::slots::Slot;
use super::takeover::Claim;
use super::{Intake, Phase, reached};
use crate::nats::ACK_WAIT;

/// How long a job waits for its relay's first control message. Relays send one every
/// [`ALIVE_INTERVAL_S`]; those sent while the job was queued, perhaps a cancel, were not received.
const FIRST_WORD: Duration = Duration::from_secs(ALIVE_INTERVAL_S + 2);

/// Without an in-progress acknowledgement for this long, JetStream may be about to redeliver the job.
const RECHECK_AFTER: Duration = ACK_WAIT.saturating_sub(PROGRESS_INTERVAL);
/// How long it may take to ask whether another worker has the job.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// How a job's run ended.
enum RunEnd {
    /// The engine sent its last event.
    Finished(EventKind),
    /// Nobody wants the rest.
    Abandoned(&'static str),
    /// The deadline has passed.
    Late,
    /// Another worker is to go on.
    Requeued(&'static str),
    /// The engine failed; whether this job caused it is not known.
    EngineFailed,
    /// Another worker has taken the job over, because this one was silent for too long.
    Replaced,
}

/// A job that holds a slot.
pub(super) struct JobRun<'a> {
    pub(super) intake: &'a Intake,
    pub(super) message: &'a Message,
    pub(super) job: Job,
    /// How often it was delivered, including this time; 0 if not known.
    pub(super) deliveries: u32,
}

impl JobRun<'_> {
    /// Runs the job until it ends, is requeued or is taken over.
    pub(super) async fn run(self, slot: Slot) {
        let id = self.job.id.clone();
        let mut log = LogWriter::new(self.intake.nats.clone(), &self.job);
        let deadline = until(self.job.deadline);
        if deadline.is_zero() {
            drop(slot);
            return self.fail(log, late()).await;
        }
        // Subscribe first, so that no cancel is missed.
        let control = match self.intake.nats.client().subscribe(subject::control(&id)).await {
            Ok(control) => control,
            Err(error) => {
                tracing::error!(job = %id, %error, "can't subscribe to control messages");
                return self.requeue("it has no control messages").await;
            }
        };
        let claimed = tokio::time::timeout(deadline, self.claim(&mut log));
        let written = match with_progress(self.message, claimed).await {
            Ok(Claim::Open(written)) => written,
            other => {
                drop(slot);
                return self.end_unrun(log, other.ok()).await;
            }
        };
        tracing::info!(job = %id, attempt = log.attempt(), "started");
        let finished = written.choices.iter().zip(0..).filter(|(choice, _)| choice.finish.is_some());
        log.note_finished(finished.map(|(_, number)| number));
        let engine = &self.intake.engine;
        let events = engine.resume(self.job.clone(), written.choices, written.prompt);
        let end = self.follow(&mut log, events, control, until(self.job.deadline)).await;
        match end {
            RunEnd::Finished(last) => {
                drop(slot);
                let totals = JobTotals::of(&last);
                self.settle(&mut log, last, totals).await;
            }
            RunEnd::Abandoned(why) => {
                let usage = engine.cancel(&id).await.unwrap_or_default();
                drop(slot);
                tracing::info!(job = %id, why, tokens = usage.completion_tokens, "abandoned");
                let totals = JobTotals::stopped(usage, Outcome::Cancelled);
                let last = log.cancel(self.job.request.n, usage);
                self.settle(&mut log, last, totals).await;
            }
            RunEnd::Late => {
                let usage = engine.cancel(&id).await.unwrap_or_default();
                drop(slot);
                let totals = JobTotals::stopped(usage, Outcome::Failed(ErrorCode::Timeout));
                self.settle(&mut log, EventKind::Error(late().into()), totals).await;
            }
            RunEnd::Requeued(why) => {
                // The other worker need not wait for the end of this worker's step.
                log.hand_back().await;
                self.requeue(why).await;
                engine.cancel(&id).await;
                drop(slot);
            }
            RunEnd::EngineFailed => {
                self.requeue("the engine failed").await;
                drop(slot);
            }
            RunEnd::Replaced => {
                tracing::warn!(job = %id, attempt = log.attempt(), "another worker has taken the job over");
                engine.cancel(&id).await;
                drop(slot);
            }
        }
    }

    /// Ends a job that is not run; `None` if its deadline has passed.
    async fn end_unrun(&self, mut log: LogWriter, claim: Option<Claim>) {
        match claim {
            // It is run instead.
            Some(Claim::Open(_)) => {}
            Some(Claim::Ended(end)) => {
                let mut charge = Charge::new(self.intake.nats.clone(), &self.job, &JobTotals::of(&end));
                charge.send().await;
                self.acknowledge(&mut charge, JobTotals::of(&end).outcome).await;
            }
            Some(Claim::Unwanted) => {
                let totals = JobTotals::stopped(Usage::default(), Outcome::Cancelled);
                let last = log.cancel(self.job.request.n, Usage::default());
                self.settle(&mut log, last, totals).await;
            }
            Some(Claim::GivenUp(attempts)) => {
                let reason = format!("{attempts} workers in a row died before they added a token");
                tracing::error!(job = %self.job.id, reason, "the job is given up");
                if let Err(error) = with_progress(
                    self.message,
                    dead_letter::store(self.intake, self.message, &reason, attempts),
                )
                .await
                {
                    tracing::error!(job = %self.job.id, %error, "the job can't be stored as a dead letter");
                    return self.requeue("the job can't be stored as a dead letter").await;
                }
                let message = format!("This request was given up: {reason}.");
                self.fail(log, ApiError::new(ErrorCode::WorkerFailed, message)).await;
            }
            None => self.fail(log, late()).await,
        }
    }

    /// Whether the stored request of a background job was cancelled or deleted.
    pub(super) async fn is_cancelled(&self) -> bool {
        let jetstream = self.intake.nats.jetstream();
        let found = match jetstream.get_stream_no_info(subject::REQUESTS_STREAM).await {
            Ok(bucket) => bucket.direct_get_last_for_subject(subject::request(&self.job.id)).await,
            Err(error) => {
                tracing::warn!(job = %self.job.id, %error, "the stored request can't be read");
                return false;
            }
        };
        match found {
            Ok(message) if message.payload.is_empty() => true,
            Ok(message) => {
                serde_json::from_slice::<CancelState>(&message.payload).is_ok_and(|state| state.cancelled)
            }
            Err(error) => {
                tracing::warn!(job = %self.job.id, %error, "the stored request was not found");
                false
            }
        }
    }

    /// Appends the engine's events to the log and obeys control messages until the run ends.
    async fn follow(
        &self,
        log: &mut LogWriter,
        mut events: UnboundedReceiver<EventKind>,
        mut control: Subscriber,
        deadline: Duration,
    ) -> RunEnd {
        let alive_timeout = self.intake.alive_timeout;
        let silence = tokio::time::sleep(alive_timeout.min(FIRST_WORD));
        let late = tokio::time::sleep(deadline);
        let mut progress = progress_interval();
        let mut phase = self.intake.phase.clone();
        let mut connected = self.intake.nats.connected();
        let needs_listener = self.job.background.is_none();
        // When JetStream last received an in-progress acknowledgement, and whether it may have redelivered
        // the job since.
        let (mut confirmed, mut must_recheck) = (Instant::now(), false);
        tokio::pin!(silence, late);
        loop {
            must_recheck |= confirmed.elapsed() > RECHECK_AFTER;
            if must_recheck && *connected.borrow() {
                match self.is_replaced(log).await {
                    Some(true) => return RunEnd::Replaced,
                    Some(false) => (confirmed, must_recheck) = (Instant::now(), false),
                    None => {}
                }
            }
            tokio::select! {
                event = events.recv() => match event {
                    Some(kind @ (EventKind::Done { .. } | EventKind::Error(_))) => return RunEnd::Finished(kind),
                    Some(kind) => log.append(kind),
                    None => {
                        // Keep the slot, so that the failed engine is not given the job again before all jobs are requeued.
                        reached(&mut phase, Phase::Requeue).await;
                        return RunEnd::EngineFailed;
                    }
                },
                () = log.store(), if !log.is_stored() && !must_recheck => {}
                message = control.next() => match message.map(|m| serde_json::from_slice(&m.payload)) {
                    Some(Ok(Control::Cancel)) => return RunEnd::Abandoned("cancelled"),
                    Some(Ok(Control::Alive)) => silence.as_mut().reset(Instant::now() + alive_timeout),
                    Some(Err(error)) => tracing::warn!(job = %self.job.id, %error, "ignored an unknown control message"),
                    None => return RunEnd::Requeued("NATS is closed"),
                },
                // Without a connection, silence says nothing about the relay.
                Ok(()) = connected.changed() => {
                    silence.as_mut().reset(Instant::now() + alive_timeout);
                    must_recheck = true;
                }
                () = &mut silence, if needs_listener && *connected.borrow() => return RunEnd::Abandoned("client disconnected"),
                () = &mut late => return RunEnd::Late,
                _ = progress.tick() => {
                    // This may be the first tick after the machine was suspended.
                    must_recheck |= confirmed.elapsed() > RECHECK_AFTER;
                    if !must_recheck && send_ack(self.message, AckKind::Progress).await && *connected.borrow() {
                        confirmed = Instant::now();
                    }
                }
                () = reached(&mut phase, Phase::Requeue) => return RunEnd::Requeued("the model is being unloaded"),
            }
        }
    }

    /// Whether another attempt has begun; `None` if not known. A log that was lost is written again.
    async fn is_replaced(&self, log: &mut LogWriter) -> Option<bool> {
        match tokio::time::timeout(RECHECK_TIMEOUT, log.newest_attempt()).await {
            Ok(Ok(Some(newest))) => Some(newest > log.attempt()),
            Ok(Ok(None)) => {
                log.rewrite();
                Some(false)
            }
            Ok(Err(error)) => {
                tracing::warn!(job = %self.job.id, %error, "can't find out whether another worker has the job");
                None
            }
            Err(_) => None,
        }
    }

    async fn fail(&self, mut log: LogWriter, error: ApiError) {
        let last = EventKind::Error(error.into());
        let totals = JobTotals::of(&last);
        self.settle(&mut log, last, totals).await;
    }

    /// Requeues the job: JetStream redelivers it at once.
    async fn requeue(&self, why: &str) {
        tracing::warn!(job = %self.job.id, why, "requeued");
        send_ack(self.message, AckKind::Nak(None)).await;
    }

    /// Charges the job, stores the rest of its log, and only then acknowledges its message.
    async fn settle(&self, log: &mut LogWriter, last: EventKind, totals: JobTotals) {
        let (id, outcome) = (&self.job.id, totals.outcome);
        let mut charge = Charge::new(self.intake.nats.clone(), &self.job, &totals);
        charge.send().await;
        if let Err(error) = with_progress(self.message, log.finish(last)).await {
            tracing::error!(job = %id, %error, "the event log can't be completed");
            return self.requeue("its log has gaps").await;
        }
        self.acknowledge(&mut charge, outcome).await;
    }

    /// Acknowledges the job's message once its charge is stored.
    async fn acknowledge(&self, charge: &mut Charge, outcome: Outcome) {
        let id = &self.job.id;
        if let Err(error) = with_progress(self.message, charge.confirm()).await {
            // The client has its answer; running the job again would cost more than the missing charge.
            tracing::error!(job = %id, %error, "the job is not charged in full");
        }
        match self.message.double_ack().await {
            Ok(()) => tracing::info!(job = %id, ?outcome, "ended"),
            Err(error) => {
                tracing::warn!(job = %id, ?outcome, %error, "ended, but its message was not acknowledged");
            }
        }
    }
}

fn late() -> ApiError {
    ApiError::new(
        ErrorCode::Timeout,
        "The request's deadline passed. Ask for fewer tokens, or try again later.",
    )
}

/// Time until `deadline`, in unix milliseconds; zero when it has passed.
fn until(deadline: u64) -> Duration {
    Duration::from_millis(deadline).saturating_sub(clock::unix_time())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_has_passed_leaves_no_time() {
        assert!(until(1).is_zero());
        assert!(until(u64::MAX) > Duration::from_secs(1 << 40));
    }
}
