//! One job's life in a worker, from its message to its acknowledgement.

use std::time::{Duration, SystemTime};

use async_nats::Subscriber;
use async_nats::jetstream::{AckKind, Message};
use emberline_shared::PROTOCOL_VERSION;
use emberline_shared::control::Control;
use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::event::{EventKind, Timings, Usage};
use emberline_shared::job::Job;
use emberline_shared::subject::{self, JobId};
use futures::StreamExt;
use serde::Deserialize;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior};

use super::event_log::EventLog;
use super::slots::Slot;
use super::{Intake, Phase, reached};
use crate::bus::ACK_WAIT;

/// Deliveries after which a job is given up: it seems to kill its workers.
pub const MAX_ATTEMPTS: u32 = 5;

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
        let mut log = EventLog::new(self.intake.bus.clone(), id.clone(), self.attempt);
        if self.attempt > MAX_ATTEMPTS {
            tracing::error!(job = %id, attempts = MAX_ATTEMPTS, "given up");
            let message = format!("Every one of {MAX_ATTEMPTS} attempts at this request failed.");
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
                return self.hand_back(&id, "no control messages").await;
            }
        };
        tracing::info!(job = %id, attempt = self.attempt, "started");
        let deadline = until(self.job.deadline);
        let (intake, message) = (self.intake, self.message);
        let events = intake.engine.submit(self.job.clone());
        let end = self.follow(&mut log, events, control, deadline).await;
        let usage = match end {
            End::Finished(_) => None,
            _ => intake.engine.cancel(&id).await,
        };
        drop(slot);
        match end {
            End::Finished(kind) => settle(message, &mut log, &id, kind).await,
            End::Late => self.fail(log, late()).await,
            End::HandedBack(why) => self.hand_back(&id, why).await,
            End::Abandoned(why) => {
                let usage = usage.unwrap_or_default();
                tracing::info!(job = %id, why, tokens = usage.completion_tokens, "abandoned");
                settle(message, &mut log, &id, done(usage)).await;
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
        let silence = tokio::time::sleep(alive_timeout);
        let late = tokio::time::sleep(deadline);
        let mut progress = tokio::time::interval_at(Instant::now() + ACK_WAIT / 3, ACK_WAIT / 3);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut phase = self.intake.phase.clone();
        let mut link = self.intake.bus.link();
        tokio::pin!(silence, late);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(kind @ (EventKind::Done { .. } | EventKind::Error(_))) => return End::Finished(kind),
                    Some(kind) => log.append(kind).await,
                    None => return End::HandedBack("the engine failed"),
                },
                message = control.next() => match message.map(|m| serde_json::from_slice(&m.payload)) {
                    Some(Ok(Control::Cancel)) => return End::Abandoned("cancelled"),
                    Some(Ok(Control::Alive)) => silence.as_mut().reset(Instant::now() + alive_timeout),
                    Some(Err(error)) => tracing::warn!(job = %self.job.id, %error, "unknown control message"),
                    None => return End::HandedBack("NATS is closed"),
                },
                // Without a connection silence says nothing about the relay.
                Ok(()) = link.changed() => silence.as_mut().reset(Instant::now() + alive_timeout),
                () = &mut silence, if *link.borrow() => return End::Abandoned("its relay is silent"),
                () = &mut late => return End::Late,
                _ = progress.tick() => self.acknowledge(AckKind::Progress).await,
                () = reached(&mut phase, Phase::HandBack) => return End::HandedBack("the worker is stopping"),
            }
        }
    }

    async fn fail(&self, mut log: EventLog, error: ApiError) {
        settle(self.message, &mut log, &self.job.id, EventKind::Error(error.into())).await;
    }

    async fn hand_back(&self, id: &JobId, why: &str) {
        tracing::warn!(job = %id, why, "handed back");
        self.acknowledge(AckKind::Nak(None)).await;
    }

    async fn acknowledge(&self, kind: AckKind) {
        if let Err(error) = self.message.ack_with(kind).await {
            tracing::warn!(job = %self.job.id, %error, "nats-server was not told how the job stands");
        }
    }
}

/// Stores the last event, and only then takes the job off the queue.
async fn settle(message: &Message, log: &mut EventLog, id: &JobId, last: EventKind) {
    let outcome = match &last {
        EventKind::Error(error) => format!("{:?}", error.code),
        _ => "done".to_owned(),
    };
    if let Err(error) = log.finish(last).await {
        // Not acknowledged, so it is delivered again.
        tracing::error!(job = %id, %error, "the job will be run again");
        return;
    }
    match message.double_ack().await {
        Ok(()) => tracing::info!(job = %id, outcome, "ended"),
        Err(error) => tracing::warn!(job = %id, outcome, %error, "ended, but not acknowledged"),
    }
}

/// Tells whoever waits for a message that can't be run, and takes it off the queue.
pub(super) async fn refuse(intake: &Intake, message: &Message, attempt: u32, refusal: &Refusal) {
    let id = id_of(&message.message);
    tracing::error!(job = ?id, subject = %message.subject, %refusal, "refused a message");
    if let Some(id) = id {
        let text = format!("The job could not be read by the worker: {refusal}.");
        let mut log = EventLog::new(intake.bus.clone(), id.clone(), attempt);
        let error = ApiError::new(ErrorCode::InternalError, text);
        if let Err(error) = log.finish(EventKind::Error(error.into())).await {
            tracing::warn!(job = %id, %error, "its relay was not told");
        }
    }
    if let Err(error) = message.double_ack_with(AckKind::Term).await {
        tracing::warn!(%error, "a refused message stays in the queue");
    }
}

fn done(usage: Usage) -> EventKind {
    EventKind::Done { usage, timings: Timings::default() }
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
