//! One job's life in a worker, from its message to its acknowledgement.

use std::time::Duration;

use async_nats::Subscriber;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{AckKind, Message};
use emberline_inference::clock;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::control::{ALIVE_INTERVAL_S, Control};
use emberline_protocol::dead_letter;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::{EventKind, Usage};
use emberline_protocol::job::Job;
use emberline_protocol::stored_request::CancelState;
use emberline_protocol::subject::{self, JobId};
use emberline_protocol::usage::Outcome;
use futures::StreamExt;
use serde::Deserialize;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::charge::{Charge, Tally};
use super::event_log::{EventLog, LogChanged};
use super::slots::Slot;
use super::takeover::{MAX_FRUITLESS, Past};
use super::{Intake, Phase, reached};
use crate::nats::ACK_WAIT;

/// How long a job waits for the first word of its relay, which speaks every [`ALIVE_INTERVAL_S`]:
/// what it said while the job was queued, a cancel perhaps, nobody heard.
const FIRST_WORD: Duration = Duration::from_secs(ALIVE_INTERVAL_S + 2);

/// How often nats-server hears that a job is in hand.
const PROGRESS: Duration = Duration::from_millis(500);
/// Pause before a job's log is looked at again.
const CLAIM_PAUSE: Duration = Duration::from_millis(100);
/// After so long without a word nats-server may be about to give a job to another worker.
const DOUBT_AFTER: Duration = ACK_WAIT.saturating_sub(PROGRESS);
/// How long the question may take whether another worker has the job.
const DOUBT_TIME: Duration = Duration::from_secs(1);

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
    if subject::model_of_jobs(subject).as_ref() != Some(&job.model) {
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

/// How a job stands when its message comes.
enum Claim {
    /// It is this worker's to go on with.
    Open(Past),
    /// Its log is complete.
    Ended(EventKind),
    /// Nobody waits for it.
    Unwanted,
    /// So many workers in a row died of it.
    Hopeless(u32),
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
    /// The engine failed; whether because of this job, nobody knows.
    EngineFailed,
    /// Another worker has it: this one was not heard of for too long.
    Replaced,
}

/// A job that has a slot.
pub(super) struct Run<'a> {
    pub(super) intake: &'a Intake,
    pub(super) message: &'a Message,
    pub(super) job: Job,
    /// How often it was delivered, this time included; 0 if nobody says.
    pub(super) deliveries: u32,
}

impl Run<'_> {
    /// Runs the job to its end, whatever that is.
    pub(super) async fn run(self, slot: Slot) {
        let id = self.job.id.clone();
        let mut log = EventLog::new(self.intake.bus.clone(), &self.job);
        let deadline = until(self.job.deadline);
        if deadline.is_zero() {
            drop(slot);
            return self.fail(log, late()).await;
        }
        // Listening comes first, so that no cancel falls between.
        let control = match self.intake.bus.client().subscribe(subject::control(&id)).await {
            Ok(control) => control,
            Err(error) => {
                tracing::error!(job = %id, %error, "can't listen for control messages");
                return self.give_back("no control messages").await;
            }
        };
        let claimed = tokio::time::timeout(deadline, self.claim(&mut log));
        let past = match in_hand(self.message, claimed).await {
            Ok(Claim::Open(past)) => past,
            other => {
                drop(slot);
                return self.end_unrun(log, other.ok()).await;
            }
        };
        tracing::info!(job = %id, attempt = log.attempt(), "started");
        let finished = past.written.iter().zip(0..).filter(|(choice, _)| choice.finish.is_some());
        log.note_finished(finished.map(|(_, number)| number));
        let engine = &self.intake.engine;
        let events = engine.resume(self.job.clone(), past.written, past.prompt);
        let end = self.follow(&mut log, events, control, until(self.job.deadline)).await;
        match end {
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
                log.hand_back().await;
                self.give_back(why).await;
                engine.cancel(&id).await;
                drop(slot);
            }
            End::EngineFailed => {
                self.give_back("the engine failed").await;
                drop(slot);
            }
            End::Replaced => {
                tracing::warn!(job = %id, attempt = log.attempt(), "another worker has taken it over");
                engine.cancel(&id).await;
                drop(slot);
            }
        }
    }

    /// Begins the next attempt, where there is to be one.
    async fn claim(&self, log: &mut EventLog) -> Claim {
        let mut past = Past::of([], self.job.request.n);
        let mut last_sequence = 0;
        // Nobody can have written to the log of a new job, but for a client that has gone.
        let mut is_known = self.deliveries == 1;
        loop {
            if !is_known {
                match log.read().await {
                    Ok(stored) => {
                        last_sequence = stored.last_sequence;
                        past = Past::of(stored.events, self.job.request.n);
                    }
                    Err(error) => {
                        tracing::warn!(job = %self.job.id, %error, "its log can't be read; trying again");
                        self.intake.bus.doubt();
                        tokio::time::sleep(CLAIM_PAUSE).await;
                        continue;
                    }
                }
            }
            // A log that was lost tells of no attempt, but one may go on: it must see that it is replaced.
            log.follow(past.attempts.max(self.deliveries.saturating_sub(1)));
            if let Some(end) = past.end {
                return Claim::Ended(end);
            }
            // A cancel from before anybody listened.
            if past.withdrawn || (self.job.background.is_some() && self.is_cancelled().await) {
                return Claim::Unwanted;
            }
            if past.fruitless >= MAX_FRUITLESS {
                return Claim::Hopeless(past.fruitless);
            }
            match log.begin(&self.intake.worker, last_sequence).await {
                Ok(()) => return Claim::Open(past),
                // Somebody wrote meanwhile, or the server that was asked lags behind.
                Err(LogChanged) if is_known => is_known = false,
                Err(LogChanged) => tokio::time::sleep(CLAIM_PAUSE).await,
            }
        }
    }

    /// Ends a job for which nothing is to be computed; `None` if its time is up.
    async fn end_unrun(&self, mut log: EventLog, claim: Option<Claim>) {
        match claim {
            // It is never run.
            Some(Claim::Open(_)) => {}
            Some(Claim::Ended(end)) => {
                let mut charge = Charge::new(self.intake.bus.clone(), &self.job, &Tally::of(&end));
                charge.send().await;
                self.acknowledge(&mut charge, Tally::of(&end).outcome).await;
            }
            Some(Claim::Unwanted) => {
                let tally = Tally::stopped(Usage::default(), Outcome::Cancelled);
                let last = log.cancel(self.job.request.n, Usage::default());
                self.settle(&mut log, last, tally).await;
            }
            Some(Claim::Hopeless(attempts)) => {
                let reason = format!("{attempts} workers in a row died before they added a token");
                tracing::error!(job = %self.job.id, reason, "given up");
                if let Err(error) =
                    in_hand(self.message, set_aside(self.intake, self.message, &reason, attempts)).await
                {
                    tracing::error!(job = %self.job.id, %error, "it can't be set aside");
                    return self.give_back("it can't be set aside").await;
                }
                let message = format!("This request was given up: {reason}.");
                self.fail(log, ApiError::new(ErrorCode::WorkerFailed, message)).await;
            }
            None => self.fail(log, late()).await,
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
                serde_json::from_slice::<CancelState>(&message.payload).is_ok_and(|state| state.cancelled)
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
        // When nats-server last heard that this worker has the job, and whether it may have given it
        // to another since.
        let (mut told, mut in_doubt) = (Instant::now(), false);
        tokio::pin!(silence, late);
        loop {
            in_doubt |= told.elapsed() > DOUBT_AFTER;
            if in_doubt && *link.borrow() {
                match self.is_replaced(log).await {
                    Some(true) => return End::Replaced,
                    Some(false) => (told, in_doubt) = (Instant::now(), false),
                    None => {}
                }
            }
            tokio::select! {
                event = events.recv() => match event {
                    Some(kind @ (EventKind::Done { .. } | EventKind::Error(_))) => return End::Finished(kind),
                    Some(kind) => log.append(kind),
                    None => {
                        // The same engine must not take the job again: it keeps its slot until none is taken.
                        reached(&mut phase, Phase::HandBack).await;
                        return End::EngineFailed;
                    }
                },
                () = log.store(), if !log.is_stored() && !in_doubt => {}
                message = control.next() => match message.map(|m| serde_json::from_slice(&m.payload)) {
                    Some(Ok(Control::Cancel)) => return End::Abandoned("cancelled"),
                    Some(Ok(Control::Alive)) => silence.as_mut().reset(Instant::now() + alive_timeout),
                    Some(Err(error)) => tracing::warn!(job = %self.job.id, %error, "unknown control message"),
                    None => return End::HandedBack("NATS is closed"),
                },
                // Without a connection silence says nothing about the relay.
                Ok(()) = link.changed() => {
                    silence.as_mut().reset(Instant::now() + alive_timeout);
                    in_doubt = true;
                }
                () = &mut silence, if needs_listener && *link.borrow() => return End::Abandoned("its relay is silent"),
                () = &mut late => return End::Late,
                _ = progress.tick() => {
                    // This may be the first thing that happens after a long sleep.
                    in_doubt |= told.elapsed() > DOUBT_AFTER;
                    if !in_doubt && acknowledge(self.message, AckKind::Progress).await && *link.borrow() {
                        told = Instant::now();
                    }
                }
                () = reached(&mut phase, Phase::HandBack) => return End::HandedBack("the model is being unloaded"),
            }
        }
    }

    /// Whether another attempt was begun; `None` if nobody says. A log that is lost is written again.
    async fn is_replaced(&self, log: &mut EventLog) -> Option<bool> {
        match tokio::time::timeout(DOUBT_TIME, log.newest_attempt()).await {
            Ok(Ok(Some(newest))) => Some(newest > log.attempt()),
            Ok(Ok(None)) => {
                log.rewrite();
                Some(false)
            }
            Ok(Err(error)) => {
                tracing::warn!(job = %self.job.id, %error, "whether it was given to another is not known");
                None
            }
            Err(_) => None,
        }
    }

    async fn fail(&self, mut log: EventLog, error: ApiError) {
        let last = EventKind::Error(error.into());
        let tally = Tally::of(&last);
        self.settle(&mut log, last, tally).await;
    }

    /// Has the job delivered again at once.
    async fn give_back(&self, why: &str) {
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
            return self.give_back("its log has gaps").await;
        }
        self.acknowledge(&mut charge, outcome).await;
    }

    /// Takes the job off the queue once its charge is stored.
    async fn acknowledge(&self, charge: &mut Charge, outcome: Outcome) {
        let id = &self.job.id;
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
            _ = progress.tick() => {
                acknowledge(message, AckKind::Progress).await;
            }
        }
    }
}

/// Ticks whenever nats-server is to hear of a job, so that nobody else is given it.
fn progress() -> Interval {
    let mut progress = tokio::time::interval_at(Instant::now() + PROGRESS, PROGRESS);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    progress
}

/// Tells nats-server how a job stands; whether that was sent.
async fn acknowledge(message: &Message, kind: AckKind) -> bool {
    let told = message.ack_with(kind).await;
    if let Err(error) = &told {
        tracing::warn!(subject = %message.subject, %error, "nats-server was not told how a job stands");
    }
    told.is_ok()
}

/// Keeps a message that is given up, for whoever looks after the queue.
async fn set_aside(
    intake: &Intake,
    message: &Message,
    reason: &str,
    attempts: u32,
) -> Result<(), PublishError> {
    // emberline.jobs.<model>.<…>
    let model = message.subject.split('.').nth(2).unwrap_or_default();
    let letter = PublishMessage::build()
        .payload(message.payload.clone())
        .header(dead_letter::REASON_HEADER, reason)
        .header(dead_letter::ATTEMPTS_HEADER, attempts.to_string())
        .header(dead_letter::QUEUED_ON_HEADER, message.subject.as_str());
    let letter = match id_of(&message.message) {
        Some(id) => letter.message_id(id),
        None => letter,
    };
    let jetstream = intake.bus.jetstream();
    jetstream.send_publish(subject::dead(model), letter).await?.await?;
    Ok(())
}

/// Tells whoever waits for a message that can't be run, and takes it off the queue.
pub(super) async fn refuse(intake: &Intake, message: &Message, refusal: &Refusal) {
    let id = id_of(&message.message);
    tracing::error!(job = ?id, subject = %message.subject, %refusal, "refused a message");
    if let Err(error) = in_hand(message, set_aside(intake, message, &refusal.to_string(), 0)).await {
        tracing::error!(%error, "it can't be set aside; its message is delivered again");
        return;
    }
    if let Some(id) = id {
        let text = format!("The job could not be read by the worker: {refusal}.");
        let mut log = EventLog::of_unreadable(intake.bus.clone(), id.clone());
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
    Duration::from_millis(deadline).saturating_sub(clock::unix_time())
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
