//! One job in a worker, from its message to its acknowledgement.

use std::time::Duration;

use async_nats::Subscriber;
use async_nats::jetstream::Message;
use async_nats::jetstream::stream::DirectGetErrorKind;
use emberline_inference::clock;
use emberline_protocol::control::{ALIVE_INTERVAL_S, Control};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::{ErrorEvent, EventKind, FinishReason, Usage};
use emberline_protocol::job::Job;
use emberline_protocol::log::LogState;
use emberline_protocol::malformed::Malformed;
use emberline_protocol::subject;
use emberline_protocol::usage::Outcome;
use futures::StreamExt;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::charge::{Charge, JobTotals};
use super::dead_letter;
use super::lease::Lease;
use super::log_size::NoRoom;
use super::log_writer::{LogWriter, NotStored};
use super::slots::Slot;
use super::takeover::Claim;
use super::{Intake, Phase, reached};
use crate::stored_request::{RequestState, StateUnknown, erase_log, state_of};

/// How long a job waits for its relay's first control message. Relays send one every
/// [`ALIVE_INTERVAL_S`]; those sent while the job was queued, perhaps a cancel, were not received.
const FIRST_WORD: Duration = Duration::from_secs(ALIVE_INTERVAL_S + 2);

/// How long it may take to ask whether another worker has the job.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before that is asked again.
const RECHECK_PAUSE: Duration = Duration::from_millis(100);

/// How long an ended job may wait for its charge to be stored without a slot: longer than a restart of nats-server.
const SLOTLESS_CHARGE: Duration = Duration::from_secs(30);
/// How long an ended job waits for its charge when jobs are to be requeued.
const LAST_CHARGE: Duration = Duration::from_secs(1);

/// Most events that are published as one chunk: far below what a message may have, whatever each of them holds.
const MAX_STEP: usize = 64;

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
    /// The log has no room for more of the answer.
    LogFull(NoRoom),
    /// The log has no room for the prompt.
    TooLarge(NoRoom),
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
        let mut lease = Lease::new(&self.intake.nats, self.message);
        let deadline = until(self.job.deadline);
        if deadline.is_zero() {
            drop(slot);
            return self.end_unrun(lease, log, None).await;
        }
        // Subscribe first, so that no cancel is missed.
        let control = match self.intake.nats.client().subscribe(subject::control(&id)).await {
            Ok(control) => control,
            Err(error) => {
                tracing::error!(job = %id, %error, "can't subscribe to control messages");
                return self.requeue(lease, &mut log, "it has no control messages").await;
            }
        };
        let claimed = tokio::time::timeout(deadline, self.claim(&mut log));
        let written = match lease.during(claimed).await {
            Ok(Claim::Open(written)) => written,
            other => {
                drop(slot);
                return self.end_unrun(lease, log, other.ok()).await;
            }
        };
        tracing::info!(job = %id, attempt = log.attempt(), "started");
        let finished = written.choices.iter().zip(0..).filter(|(choice, _)| choice.finish.is_some());
        log.note_finished(finished.map(|(_, number)| number));
        let engine = &self.intake.engine;
        // What earlier attempts have computed is charged, whatever this one comes to.
        let known = written.usage;
        let events = engine.resume(self.job.clone(), written.choices, written.prompt);
        let end = self.follow(&mut lease, &mut log, events, control, until(self.job.deadline)).await;
        match end {
            RunEnd::Finished(last) => {
                drop(slot);
                let last = charged_at_least(last, known);
                let totals = JobTotals::of(&last);
                self.settle(lease, log, last, totals).await;
            }
            RunEnd::Abandoned(why) => {
                let usage = engine.cancel(&id).await.unwrap_or_default().at_least(known);
                drop(slot);
                tracing::info!(job = %id, why, tokens = usage.completion_tokens, "abandoned");
                let totals = JobTotals::stopped(usage, Outcome::Cancelled);
                let last = log.end_choices(self.job.request.n, FinishReason::Cancelled, usage).await;
                self.settle(lease, log, last, totals).await;
            }
            RunEnd::LogFull(no_room) => {
                let usage = engine.cancel(&id).await.unwrap_or_default().at_least(known);
                drop(slot);
                tracing::warn!(job = %id, %no_room, tokens = usage.completion_tokens, "the answer ends early");
                let last = log.end_choices(self.job.request.n, FinishReason::Length, usage).await;
                self.settle(lease, log, last, JobTotals::stopped(usage, Outcome::Done)).await;
            }
            RunEnd::TooLarge(no_room) => {
                let usage = engine.cancel(&id).await.unwrap_or_default().at_least(known);
                drop(slot);
                tracing::warn!(job = %id, %no_room, "the job is refused");
                self.fail(lease, log, too_large(no_room), usage).await;
            }
            RunEnd::Late => {
                let usage = engine.cancel(&id).await.unwrap_or_default().at_least(known);
                drop(slot);
                self.fail(lease, log, late(), usage).await;
            }
            RunEnd::Requeued(why) => {
                // The other worker need not wait for the end of this worker's step.
                log.hand_back().await;
                self.requeue(lease, &mut log, why).await;
                engine.cancel(&id).await;
                drop(slot);
            }
            RunEnd::EngineFailed => {
                self.requeue(lease, &mut log, "the engine failed").await;
                drop(slot);
            }
            RunEnd::Replaced => {
                self.note_replaced(&log);
                engine.cancel(&id).await;
                drop(slot);
            }
        }
    }

    /// Ends a job that is not run; `None` if its deadline has passed.
    async fn end_unrun(&self, mut lease: Lease<'_>, mut log: LogWriter, claim: Option<Claim>) {
        match claim {
            // It is run instead.
            Some(Claim::Open(_)) => {}
            Some(Claim::Ended(end)) => self.acknowledge_ended(lease, &mut log, &end).await,
            Some(Claim::Unwanted(usage)) => {
                let totals = JobTotals::stopped(usage, Outcome::Cancelled);
                let last = log.end_choices(self.job.request.n, FinishReason::Cancelled, usage).await;
                self.settle(lease, log, last, totals).await;
            }
            Some(Claim::GivenUp(attempts, usage)) => {
                let reason = format!("{attempts} workers in a row died before they added a token");
                tracing::error!(job = %self.job.id, reason, "the job is given up");
                let stored =
                    dead_letter::store(self.intake, self.message, Some(&self.job), &reason, attempts);
                if let Err(error) = lease.during(stored).await {
                    tracing::error!(job = %self.job.id, %error, "the job can't be stored as a dead letter");
                    return self.requeue(lease, &mut log, "the job can't be stored as a dead letter").await;
                }
                let message = format!("This request was given up: {reason}.");
                self.fail(lease, log, ApiError::new(ErrorCode::WorkerFailed, message), usage).await;
            }
            None => match lease.during(self.written(&mut log)).await {
                Ok(LogState { end: Some(end), .. }) => self.acknowledge_ended(lease, &mut log, &end).await,
                Ok(written) => self.fail(lease, log, late(), written.usage).await,
                Err(error) => {
                    tracing::warn!(job = %self.job.id, %error, "the event log of a late job can't be read");
                    self.requeue(lease, &mut log, "its log can't be read").await;
                }
            },
        }
    }

    /// Charges and acknowledges a job whose log is complete.
    async fn acknowledge_ended(&self, mut lease: Lease<'_>, log: &mut LogWriter, end: &EventKind) {
        let totals = JobTotals::of(end);
        let mut charge = Charge::new(self.intake.nats.clone(), &self.job, &totals);
        charge.send().await;
        lease.during(self.erase_if_deleted()).await;
        // Whoever has the job by now: its log is complete.
        self.acknowledge(lease, log, &mut charge, totals.outcome).await;
    }

    /// Whether nobody wants the answer any more: the stored request of a background job was cancelled or deleted,
    /// or another job was withdrawn.
    pub(super) async fn is_unwanted(&self) -> Result<bool, StateUnknown> {
        if self.job.background.is_none() {
            return Ok(self.is_withdrawn().await);
        }
        Ok(state_of(&self.intake.nats, &self.job.id).await? != RequestState::Wanted)
    }

    /// Whether the client of a job that is not in the background went before a worker had it.
    pub(super) async fn is_withdrawn(&self) -> bool {
        let id = &self.job.id;
        let found = match self.intake.nats.jetstream().get_stream_no_info(subject::WITHDRAWN_STREAM).await {
            Ok(stream) => stream.direct_get_last_for_subject(subject::withdrawn(id)).await,
            Err(error) => {
                tracing::warn!(job = %id, %error, "can't find out whether the job was withdrawn");
                return false;
            }
        };
        match found {
            Ok(_) => true,
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!(job = %id, %error, "can't find out whether the job was withdrawn");
                false
            }
        }
    }

    /// Erases the log of a background job if its stored request was deleted, perhaps while the job ran.
    async fn erase_if_deleted(&self) {
        if self.job.background.is_none() {
            return;
        }
        let (nats, id) = (&self.intake.nats, &self.job.id);
        match state_of(nats, id).await {
            Ok(RequestState::Deleted) => {
                if let Err(error) = erase_log(nats, id).await {
                    tracing::warn!(job = %id, %error, "the log of a deleted request is not erased; it expires by itself");
                }
            }
            Ok(RequestState::Wanted | RequestState::Cancelled) => {}
            Err(error) => tracing::warn!(job = %id, %error, "can't find out whether the request was deleted"),
        }
    }

    /// Appends the engine's events to the log and obeys control messages until the run ends.
    async fn follow(
        &self,
        lease: &mut Lease<'_>,
        log: &mut LogWriter,
        mut events: UnboundedReceiver<EventKind>,
        mut control: Subscriber,
        deadline: Duration,
    ) -> RunEnd {
        let alive_timeout = self.intake.alive_timeout;
        let silence = tokio::time::sleep(alive_timeout.min(FIRST_WORD));
        let late = tokio::time::sleep(deadline);
        let mut phase = self.intake.phase.clone();
        let mut connected = self.intake.nats.connected();
        let needs_listener = self.job.background.is_none();
        tokio::pin!(silence, late);
        loop {
            if lease.is_in_doubt() && lease.is_connected() && self.is_replaced(lease, log).await == Some(true)
            {
                return RunEnd::Replaced;
            }
            let in_doubt = lease.is_in_doubt();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => {
                        let (step, last) = step_of(event, &mut events);
                        log.set_live(!in_doubt);
                        let is_prompt = step.iter().any(is_of_prompt);
                        // The last tokens go out with the job's end, which waits until it is charged.
                        let appended =
                            if last.is_some() { log.hold(step).await } else { log.append(step).await };
                        match appended {
                            Ok(()) => {}
                            Err(no_room) if is_prompt && log.attempt() == 1 => return RunEnd::TooLarge(no_room),
                            Err(no_room) => return RunEnd::LogFull(no_room),
                        }
                        if let Some(last) = last {
                            return RunEnd::Finished(last);
                        }
                    }
                    None => {
                        // Keep the slot, so that the failed engine is not given the job again before all jobs are requeued.
                        reached(&mut phase, Phase::Requeue).await;
                        return RunEnd::EngineFailed;
                    }
                },
                stored = log.store(), if !log.is_stored() => {
                    if stored.is_err() {
                        return RunEnd::Replaced;
                    }
                }
                message = control.next() => match message.map(|m| serde_json::from_slice(&m.payload)) {
                    Some(Ok(Control::Cancel)) => return RunEnd::Abandoned("cancelled"),
                    Some(Ok(Control::Probe)) => {}
                    Some(Ok(Control::Alive)) => silence.as_mut().reset(Instant::now() + alive_timeout),
                    Some(Err(error)) => {
                        let error = Malformed::from(error);
                        tracing::warn!(job = %self.job.id, %error, "ignored an unknown control message");
                    }
                    None => return RunEnd::Requeued("NATS is closed"),
                },
                // Without a connection, silence says nothing about the relay.
                Ok(()) = connected.changed() => {
                    silence.as_mut().reset(Instant::now() + alive_timeout);
                }
                () = &mut silence, if needs_listener && *connected.borrow() => return RunEnd::Abandoned("client disconnected"),
                () = &mut late => return RunEnd::Late,
                () = lease.renewal() => lease.renew().await,
                () = reached(&mut phase, Phase::Requeue) => return RunEnd::Requeued("the model is being unloaded"),
            }
        }
    }

    /// Whether another attempt has begun, which is asked of the log; `None` if it does not answer. A log that
    /// was lost is written again.
    async fn is_replaced(&self, lease: &mut Lease<'_>, log: &mut LogWriter) -> Option<bool> {
        lease.connection().await;
        let replaced = match tokio::time::timeout(RECHECK_TIMEOUT, log.is_replaced()).await {
            Ok(Ok(replaced)) => replaced,
            Ok(Err(error)) => {
                tracing::warn!(job = %self.job.id, %error, "can't find out whether another worker has the job");
                return None;
            }
            Err(_) => return None,
        };
        if !replaced {
            lease.confirm();
        }
        Some(replaced)
    }

    fn note_replaced(&self, log: &LogWriter) {
        tracing::warn!(job = %self.job.id, attempt = log.attempt(), "another worker has taken the job over");
    }

    /// Whether this worker still has the job. Where that is in doubt it waits for an answer, until the model
    /// is unloaded; then JetStream delivers the job again.
    async fn has_job(&self, lease: &mut Lease<'_>, log: &mut LogWriter) -> bool {
        let mut phase = self.intake.phase.clone();
        while lease.is_in_doubt() {
            let replaced = tokio::select! {
                replaced = self.is_replaced(lease, log) => replaced,
                () = reached(&mut phase, Phase::Requeue) => return false,
            };
            match replaced {
                Some(true) => {
                    self.note_replaced(log);
                    return false;
                }
                Some(false) => {}
                None => tokio::time::sleep(RECHECK_PAUSE).await,
            }
        }
        true
    }

    /// Ends a job with an error, after this much was computed for it.
    async fn fail(&self, lease: Lease<'_>, log: LogWriter, error: ApiError, usage: Usage) {
        let last = EventKind::Error(ErrorEvent::after(error, usage));
        let totals = JobTotals::of(&last);
        self.settle(lease, log, last, totals).await;
    }

    /// Requeues the job: JetStream redelivers it at once. A job that another worker may have is left alone.
    async fn requeue(&self, mut lease: Lease<'_>, log: &mut LogWriter, why: &str) {
        let is_known = !lease.is_in_doubt()
            || lease.is_connected() && self.is_replaced(&mut lease, log).await == Some(false);
        if is_known {
            tracing::warn!(job = %self.job.id, why, "requeued");
            lease.give_back().await;
        } else {
            tracing::warn!(job = %self.job.id, why, "left to whoever has it now, or to its next delivery");
        }
    }

    /// Charges the job, stores the rest of its log, and only then acknowledges its message; does nothing of
    /// that if another worker has the job.
    async fn settle(&self, mut lease: Lease<'_>, mut log: LogWriter, last: EventKind, totals: JobTotals) {
        if !self.has_job(&mut lease, &mut log).await {
            return;
        }
        let mut charge = Charge::new(self.intake.nats.clone(), &self.job, &totals);
        charge.send().await;
        log.set_live(true);
        log.append_end(vec![last]).await;
        // More than once if nats-server loses the log meanwhile.
        while !log.is_stored() {
            match lease.during(log.complete()).await {
                Ok(()) => {}
                Err(NotStored::Replaced(_)) => return self.note_replaced(&log),
                Err(error) => {
                    tracing::error!(job = %self.job.id, %error, "the event log can't be completed");
                    return self.requeue(lease, &mut log, "its log has gaps").await;
                }
            }
            if !self.has_job(&mut lease, &mut log).await {
                return;
            }
        }
        lease.during(self.erase_if_deleted()).await;
        self.acknowledge(lease, &mut log, &mut charge, totals.outcome).await;
    }

    /// Acknowledges the job's message once its charge is stored.
    async fn acknowledge(
        &self,
        mut lease: Lease<'_>,
        log: &mut LogWriter,
        charge: &mut Charge,
        outcome: Outcome,
    ) {
        let id = &self.job.id;
        if !lease.during(self.is_charged(charge)).await {
            charge.report_unconfirmed();
            return self.requeue(lease, log, "its charge is not stored").await;
        }
        match self.message.double_ack().await {
            Ok(()) => tracing::info!(job = %id, ?outcome, "ended"),
            Err(error) => {
                tracing::warn!(job = %id, ?outcome, %error, "ended, but its message was not acknowledged");
            }
        }
    }

    /// Waits until the charge is stored; false if it is not when the job has to be requeued. A job that waits for
    /// long holds a slot, so that a worker whose charges can't be stored does not gather ever more jobs.
    async fn is_charged(&self, charge: &mut Charge) -> bool {
        let mut phase = self.intake.phase.clone();
        let confirmed = async {
            if tokio::time::timeout(SLOTLESS_CHARGE, charge.confirm()).await.is_err() {
                let _slot = self.intake.slots.hold();
                charge.confirm().await;
            }
        };
        let requeued = async {
            reached(&mut phase, Phase::Requeue).await;
            tokio::time::sleep(LAST_CHARGE).await;
        };
        tokio::select! {
            () = confirmed => true,
            () = requeued => false,
        }
    }
}

/// Whether it is written before the first token.
fn is_of_prompt(event: &EventKind) -> bool {
    matches!(event, EventKind::Accepted(_) | EventKind::Prompt { .. })
}

/// What the engine has sent, from `first` on and as far as a chunk takes it, and apart from it the job's last event.
fn step_of(
    first: EventKind,
    events: &mut UnboundedReceiver<EventKind>,
) -> (Vec<EventKind>, Option<EventKind>) {
    let mut step = Vec::new();
    let mut next = Some(first);
    while let Some(event) = next {
        if matches!(event, EventKind::Done { .. } | EventKind::Error(_)) {
            return (step, Some(event));
        }
        step.push(event);
        next = if step.len() < MAX_STEP { events.try_recv().ok() } else { None };
    }
    (step, None)
}

/// The last event of a job of which this much is known to be computed, if it failed.
fn charged_at_least(last: EventKind, known: Usage) -> EventKind {
    match last {
        EventKind::Error(error) => EventKind::Error(error.charged_at_least(known)),
        last => last,
    }
}

fn late() -> ApiError {
    ApiError::new(
        ErrorCode::Timeout,
        "The request's deadline passed. Ask for fewer tokens, or try again later.",
    )
}

fn too_large(no_room: NoRoom) -> ApiError {
    let message = format!(
        "The prompt can't be part of the answer: {no_room}. Ask without 'echo', 'prompt_logprobs' and \
         'return_token_ids', or shorten the prompt."
    );
    ApiError::new(ErrorCode::RequestTooLarge, message)
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

    #[test]
    fn a_failure_is_charged_what_all_attempts_have_computed() {
        let usage = |completion_tokens| Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens };
        let charged = |error| match charged_at_least(EventKind::Error(error), usage(7)) {
            EventKind::Error(error) => error.usage,
            other => panic!("{other:?}"),
        };
        assert_eq!(charged(late().into()), Some(usage(7)));
        assert_eq!(charged(ErrorEvent::after(late(), usage(9))), Some(usage(9)));
        assert_eq!(charged_at_least(EventKind::HandedBack, usage(7)), EventKind::HandedBack);
    }
}
