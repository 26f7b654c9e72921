//! One job's life in a worker, from its message to its acknowledgement.

use std::time::{Duration, SystemTime};

use async_nats::Subscriber;
use async_nats::jetstream::{AckKind, Message};
use emberline_shared::PROTOCOL_VERSION;
use emberline_shared::control::{ALIVE_INTERVAL_S, Control};
use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::event::{EventKind, Usage};
use emberline_shared::job::Job;
use emberline_shared::record::Standing;
use emberline_shared::subject::{self, JobId};
use emberline_shared::usage::Outcome;
use futures::StreamExt;
use serde::Deserialize;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::account::{Charge, Tally};
use super::event_log::EventLog;
use super::slots::Slot;
use super::{Intake, Phase, reached};
use crate::bus::ACK_WAIT;

/// Deliveries after which a job is given up: it seems to kill its workers. nats-server counts those
/// that were handed back, too, so this lies well above the drains that a job may live through.
pub const MAX_DELIVERIES: u32 = 20;
/// How long a job waits for the first word of its relay, which speaks every [`ALIVE_INTERVAL_S`]:
/// what it said while the job was queued, a cancel perhaps, nobody heard.
const FIRST_WORD: Duration = Duration::from_secs(ALIVE_INTERVAL_S + 2);

/// Why a job's message can't be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not say what a job says.
    #[error("it is not a job: {0}")]
    NotAJob(String),
    /// It was written by a newer function.
    #[error("it has version {0}, this worker knows {PROTOCOL_VERSION}: upgrade the worker")]
    Version(u32),
    /// It lies in another model's queue.
    #[error("it is for model '{0}', but was queued for another")]
    WrongModel(String),
}

/// Reads a job, found on `subject`.
pub fn parse(payload: &[u8], subject: &str) -> Result<Job, Refusal> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    // The version first: a newer job may look different.
    let not_a_job = |e: serde_json::Error| Refusal::NotAJob(e.to_string());
    let Version { v } = serde_json::from_slice(payload).map_err(not_a_job)?;
    if v > PROTOCOL_VERSION {
        return Err(Refusal::Version(v));
    }
    let job: Job = serde_json::from_slice(payload).map_err(not_a_job)?;
    if subject::jobs(&job.model) != subject {
        return Err(Refusal::WrongModel(job.model));
    }
    Ok(job)
}

/// The id of a message that may be no job: its `id` field, or else its message id.
pub fn id_of(message: &async_nats::Message) -> Option<JobId> {
    #[derive(Deserialize)]
    struct Id {
        id: JobId,
    }
    let header = || {
        let headers = message.headers.as_ref()?;
        let id = headers.get(async_nats::header::NATS_MESSAGE_ID)?.as_str();
        JobId::try_from(id.to_owned()).ok()
    };
    serde_json::from_slice::<Id>(&message.payload).map(|id| id.id).ok().or_else(header)
}

/// How a job's run ended.
enum End {
    /// The engine said its last event, and it is this one.
    Finished(EventKind),
    /// Nobody wants the rest.
    Abandoned(&'static str),
    /// The deadline passed.
    Late,
    /// Another worker is to go on.
    HandedBack(&'static str),
}

/// A job that has a slot.
pub(super) struct Run<'a> {
    pub(super) intake: &'a Intake,
    pub(super) message: &'a Message,
    pub(super) job: Job,
    pub(super) attempt: u32,
}

impl Run<'_> {
    /// Runs the job to its end, whatever that is.
    pub(super) async fn run(self, slot: Slot) {
        let id = self.job.id.clone();
        let mut log = EventLog::new(self.intake.bus.clone(), &self.job, self.attempt);
        if self.attempt > MAX_DELIVERIES {
            tracing::error!(job = %id, deliveries = MAX_DELIVERIES, "given up");
            let message =
                format!("This request was given to a worker {MAX_DELIVERIES} times; none finished it.");
            drop(slot);
            return self.fail(log, ApiError::new(ErrorCode::WorkerFailed, message)).await;
        }
        if until(self.job.deadline).is_zero() {
            drop(slot);
            return self.fail(log, late()).await;
        }
        // Listening comes first, so that no cancel falls between.
        let control = match self.intake.bus.client().subscribe(subject::control(&id)).await {
            Ok(control) => control,
            Err(error) => {
                tracing::error!(job = %id, %error, "can't listen for control messages");
                return self.hand_back("no control messages").await;
            }
        };
        // A cancel from before anybody listened.
        if self.job.background.is_some() && self.is_cancelled().await {
            drop(slot);
            let tally = Tally::stopped(Usage::default(), Outcome::Cancelled);
            let last = log.cancel(self.job.request.n, Usage::default());
            return self.settle(&mut log, last, tally).await;
        }
        tracing::info!(job = %id, attempt = self.attempt, "started");
        let deadline = until(self.job.deadline);
        let engine = &self.intake.engine;
        let events = engine.submit(self.job.clone());
        match self.follow(&mut log, events, control, deadline).await {
            End::Finished(last) => {
                drop(slot);
                let tally = Tally::of(&last);
                self.settle(&mut log, last, tally).await;
            }
            End::Abandoned(why) => {
                let usage = engine.cancel(&id).await.unwrap_or_default();
                drop(slot);
                tracing::info!(job = %id, why, tokens = usage.completion_tokens, "abandoned");
                let tally = Tally::stopped(usage, Outcome::Cancelled);
                let last = log.cancel(self.job.request.n, usage);
                self.settle(&mut log, last, tally).await;
            }
            End::Late => {
                let usage = engine.cancel(&id).await.unwrap_or_default();
                drop(slot);
                let tally = Tally::stopped(usage, Outcome::Failed(ErrorCode::Timeout));
                self.settle(&mut log, EventKind::Error(late().into()), tally).await;
            }
            End::HandedBack(why) => {
                // Another worker need not wait for the end of this one's step.
                self.hand_back(why).await;
                engine.cancel(&id).await;
                drop(slot);
            }
        }
    }

    /// Whether the request's record says that its answer is wanted no more: cancelled, or deleted.
    async fn is_cancelled(&self) -> bool {
        let jetstream = self.intake.bus.jetstream();
        let found = match jetstream.get_stream_no_info(subject::REQUESTS_STREAM).await {
            Ok(bucket) => bucket.direct_get_last_for_subject(subject::request(&self.job.id)).await,
            Err(error) => {
                tracing::warn!(job = %self.job.id, %error, "its request can't be looked up");
                return false;
            }
        };
        match found {
            Ok(message) if message.payload.is_empty() => true,
            Ok(message) => {
                serde_json::from_slice::<Standing>(&message.payload).is_ok_and(|standing| standing.cancelled)
            }
            Err(error) => {
                tracing::warn!(job = %self.job.id, %error, "its request was not found");
                false
            }
        }
    }

    /// Passes events on and listens to the relay until the job ends.
    async fn follow(
        &self,
        log: &mut EventLog,
        mut events: UnboundedReceiver<EventKind>,
        mut control: Subscriber,
        deadline: Duration,
    ) -> End {
        let alive_timeout = self.intake.alive_timeout;
        let silence = tokio::time::sleep(alive_timeout.min(FIRST_WORD));
        let late = tokio::time::sleep(deadline);
        let mut progress = progress();
        let mut phase = self.intake.phase.clone();
        let mut link = self.intake.bus.link();
        let needs_listener = self.job.background.is_none();
        tokio::pin!(silence, late);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(kind @ (EventKind::Done { .. } | EventKind::Error(_))) => return End::Finished(kind),
                    Some(kind) => log.append(kind),
                    None => {
                        // The same engine must not take the job again: it keeps its slot until none is taken.
                        reached(&mut phase, Phase::HandBack).await;
                        return End::HandedBack("the engine failed");
                    }
                },
                () = log.store(), if !log.is_stored() => {}
                message = control.next() => match message.map(|m| serde_json::from_slice(&m.payload)) {
                    Some(Ok(Control::Cancel)) => return End::Abandoned("cancelled"),
                    Some(Ok(Control::Alive)) => silence.as_mut().reset(Instant::now() + alive_timeout),
                    Some(Err(error)) => tracing::warn!(job = %self.job.id, %error, "unknown control message"),
                    None => return End::HandedBack("NATS is closed"),
                },
                // Without a connection silence says nothing about the relay.
                Ok(()) = link.changed() => silence.as_mut().reset(Instant::now() + alive_timeout),
                () = &mut silence, if needs_listener && *link.borrow() => return End::Abandoned("its relay is silent"),
                () = &mut late => return End::Late,
                _ = progress.tick() => acknowledge(self.message, AckKind::Progress).await,
                () = reached(&mut phase, Phase::HandBack) => return End::HandedBack("the model is being unloaded"),
            }
        }
    }

    async fn fail(&self, mut log: EventLog, error: ApiError) {
        let last = EventKind::Error(error.into());
        let tally = Tally::of(&last);
        self.settle(&mut log, last, tally).await;
    }

    async fn hand_back(&self, why: &str) {
        tracing::warn!(job = %self.job.id, why, "handed back");
        acknowledge(self.message, AckKind::Nak(None)).await;
    }

    /// Charges the job, stores the rest of the log, and only then takes the job off the queue.
    async fn settle(&self, log: &mut EventLog, last: EventKind, tally: Tally) {
        let (id, outcome) = (&self.job.id, tally.outcome);
        let mut charge = Charge::new(self.intake.bus.clone(), &self.job, &tally);
        charge.send().await;
        if let Err(error) = in_hand(self.message, log.finish(last)).await {
            tracing::error!(job = %id, %error, "the log can't be completed");
            return self.hand_back("its log has gaps").await;
        }
        if let Err(error) = in_hand(self.message, charge.confirm()).await {
            // The client has its answer; computing it once more would cost more than it brings.
            tracing::error!(job = %id, %error, "its key is not charged in full");
        }
        match self.message.double_ack().await {
            Ok(()) => tracing::info!(job = %id, ?outcome, "ended"),
            Err(error) => tracing::warn!(job = %id, ?outcome, %error, "ended, but not acknowledged"),
        }
    }
}

/// Does what a job ends with; nats-server hears meanwhile that the job is in hand.
async fn in_hand<T>(message: &Message, work: impl Future<Output = T>) -> T {
    let mut progress = progress();
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = progress.tick() => acknowledge(message, AckKind::Progress).await,
        }
    }
}

/// Ticks whenever nats-server is to hear of a job, so that nobody else is given it.
fn progress() -> Interval {
    let mut progress = tokio::time::interval_at(Instant::now() + ACK_WAIT / 3, ACK_WAIT / 3);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    progress
}

async fn acknowledge(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::warn!(subject = %message.subject, %error, "nats-server was not told how a job stands");
    }
}

/// Tells whoever waits for a message that can't be run, and takes it off the queue.
pub(super) async fn refuse(intake: &Intake, message: &Message, attempt: u32, refusal: &Refusal) {
    let id = id_of(&message.message);
    tracing::error!(job = ?id, subject = %message.subject, %refusal, "refused a message");
    if let Some(id) = id {
        let text = format!("The job could not be read by the worker: {refusal}.");
        let mut log = EventLog::of_unreadable(intake.bus.clone(), id.clone(), attempt);
        let error = ApiError::new(ErrorCode::InternalError, text);
        if let Err(error) = in_hand(message, log.finish(EventKind::Error(error.into()))).await {
            tracing::warn!(job = %id, %error, "its relay was not told");
        }
    }
    if let Err(error) = message.double_ack_with(AckKind::Term).await {
        tracing::warn!(%error, "a refused message stays in the queue");
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
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(deadline).saturating_sub(now)
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
