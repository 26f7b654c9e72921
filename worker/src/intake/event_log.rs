//! Writes one attempt's part of a job's event log.
//!
//! Each event is sent as soon as it happens, for relays read it live, and kept until JetStream has
//! confirmed it. When one may be lost, it and all that follow are sent again in order; what is
//! stored already is known by its message id and not stored twice.
//!
//! The log of a job that goes on though nobody listens lies in a stream of its own, so that others
//! don't crowd it out, and each of its events says how long it is to be kept.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::jetstream::message::PublishMessage;
use emberline_shared::PROTOCOL_VERSION;
use emberline_shared::event::{Event, EventKind, FinishReason, Timings, Usage};
use emberline_shared::job::Job;
use emberline_shared::subject::{self, JobId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::bus::Bus;

/// How long the end of a log may take to be stored: longer than nats-server takes to restart.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after an event that was not stored.
const PAUSE: Duration = Duration::from_millis(500);
/// How much longer than its request a log is kept, so that there is a log as long as there is a
/// request.
const KEPT_LONGER: Duration = Duration::from_secs(60);

type Answer = <PublishAckFuture as IntoFuture>::IntoFuture;

/// The log of one attempt at a job.
pub struct EventLog {
    bus: Bus,
    link: watch::Receiver<bool>,
    job: JobId,
    stream: &'static str,
    subject: String,
    /// When it may be forgotten, if not with all others.
    kept_until: Option<SystemTime>,
    attempt: u32,
    next: u32,
    finished: HashSet<u32>,
    /// Events not known to be stored, in order; at most what the job writes.
    unconfirmed: VecDeque<PublishMessage>,
    /// Answers to come to the first of them; the others are to be sent.
    answers: VecDeque<Answer>,
    /// Nothing is sent before this.
    resume: Instant,
}

/// Events are missing from the log, so the job must not be acknowledged.
#[derive(Debug, thiserror::Error)]
#[error(
    "nats-server did not confirm {unconfirmed} of its events in {} s. Check the limits of stream {stream}",
    PATIENCE.as_secs()
)]
pub struct NotStored {
    unconfirmed: usize,
    stream: &'static str,
}

impl EventLog {
    /// The log of `job`'s delivery number `attempt`; nothing written yet.
    pub fn new(bus: Bus, job: &Job, attempt: u32) -> Self {
        let (stream, subject) = job.log();
        let kept = |after: u32| {
            let end = Duration::from_millis(job.deadline) + Duration::from_secs(after.into()) + KEPT_LONGER;
            SystemTime::UNIX_EPOCH.checked_add(end)
        };
        let kept_until = job.background.and_then(kept);
        Self { stream, subject, kept_until, ..Self::of_unreadable(bus, job.id.clone(), attempt) }
    }

    /// The log of a job of which the id is all that is known.
    pub fn of_unreadable(bus: Bus, job: JobId, attempt: u32) -> Self {
        Self {
            link: bus.link(),
            bus,
            stream: subject::EVENTS_STREAM,
            subject: subject::events(&job),
            kept_until: None,
            job,
            attempt,
            next: 0,
            finished: HashSet::new(),
            unconfirmed: VecDeque::new(),
            answers: VecDeque::new(),
            resume: Instant::now(),
        }
    }

    /// Appends an event; [`EventLog::store`] sends it.
    pub fn append(&mut self, kind: EventKind) {
        let id = format!("{}-{}-{}", self.job, self.attempt, self.next);
        let event = Event { v: PROTOCOL_VERSION, attempt: self.attempt, index: self.next, kind };
        self.next += 1;
        if let EventKind::Finish { choice, .. } = event.kind {
            self.finished.insert(choice);
        }
        // Can't fail: string keys, and serde_json writes a float that is no number as null.
        let payload = serde_json::to_vec(&event).unwrap_or_default();
        let mut message = PublishMessage::build().payload(payload.into()).message_id(id);
        if let Some(until) = self.kept_until {
            let rest = until.duration_since(SystemTime::now()).unwrap_or_default();
            message = message.ttl(rest.max(Duration::from_secs(1)));
        }
        self.unconfirmed.push_back(message);
    }

    /// Appends that nobody wants the rest of the `choices`; the event that is to end the log.
    pub fn cancel(&mut self, choices: u32, usage: Usage) -> EventKind {
        for choice in 0..choices {
            if !self.finished.contains(&choice) {
                self.append(EventKind::Finish { choice, reason: FinishReason::Cancelled });
            }
        }
        EventKind::Done { usage, timings: Timings::default() }
    }

    /// Whether all that was appended is stored.
    pub fn is_stored(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// Sends what was appended and waits until it is stored, however long that takes. Stopping to
    /// poll loses nothing.
    pub async fn store(&mut self) {
        while !self.is_stored() {
            tokio::time::sleep_until(self.resume).await;
            // What was on its way over a lost connection may be lost, and nothing may overtake it.
            if self.link.has_changed().unwrap_or(false) {
                self.answers.clear();
            }
            let _ = self.link.wait_for(|up| *up).await;
            if let Err(error) = self.advance().await {
                tracing::warn!(job = %self.job, %error, "an event was not stored; sending it again");
                self.answers.clear();
                self.resume = Instant::now() + PAUSE;
                self.bus.doubt();
            }
        }
    }

    /// Appends the last event and waits until the whole log is stored.
    pub async fn finish(&mut self, kind: EventKind) -> Result<(), NotStored> {
        self.append(kind);
        let stored = tokio::time::timeout(PATIENCE, self.store()).await;
        stored.map_err(|_| NotStored { unconfirmed: self.unconfirmed.len(), stream: self.stream })
    }

    /// Sends what is to be sent and waits for one answer.
    async fn advance(&mut self) -> Result<(), PublishError> {
        while let Some(event) = self.unconfirmed.get(self.answers.len()) {
            let sent = self.bus.jetstream().send_publish(self.subject.clone(), event.clone());
            self.answers.push_back(sent.await?.into_future());
        }
        let Some(answer) = self.answers.front_mut() else { return Ok(()) };
        tokio::select! {
            stored = answer => {
                stored?;
                self.answers.pop_front();
                self.unconfirmed.pop_front();
            }
            Ok(()) = self.link.changed() => self.answers.clear(),
        }
        Ok(())
    }
}
