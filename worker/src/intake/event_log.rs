//! A job's event log: reads what is there and writes one attempt's part of it.
//!
//! The first event of an attempt is stored only if nothing was written since the log was read. Each
//! other event is sent as soon as it happens, for relays read it live, and kept until JetStream has
//! confirmed it. When one may be lost, it and all that follow are sent again in order; what is
//! stored already is known by its message id and not stored twice.
//!
//! The log of a job that goes on though nobody listens lies in a stream of its own, so that others
//! don't crowd it out. Each event says how long it is to be kept: as long as its job may run.

use std::collections::{HashSet, VecDeque};
use std::error::Error as _;
use std::time::{Duration, SystemTime};

use async_nats::StatusCode;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{self, ErrorCode};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::event::{Event, EventKind, FinishReason, Timings, Usage};
use emberline_protocol::job::Job;
use emberline_protocol::subject::{self, JobId};
use futures::StreamExt;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::nats::Bus;

/// How long the end of a log may take to be stored: longer than nats-server takes to restart.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after an event that was not stored.
const PAUSE: Duration = Duration::from_millis(500);
/// How much longer than its request a log is kept, so that there is a log as long as there is a
/// request.
const KEPT_LONGER: Duration = Duration::from_secs(60);
/// How long the log of something that is no job is kept.
const UNREADABLE_KEPT: Duration = Duration::from_secs(600);
/// Events on their way at once.
const WINDOW: usize = 256;
/// How long reading may take.
const READ_TIME: Duration = Duration::from_secs(5);
/// How long handing a job back may take.
const HAND_BACK_TIME: Duration = Duration::from_secs(1);
/// Events asked for at once.
const BATCH: u32 = 1000;
/// The status that ends a batch (NATS ADR-31).
const END_OF_BATCH: u16 = 204;

type Answer = <PublishAckFuture as IntoFuture>::IntoFuture;

/// The log of one attempt at a job.
pub struct EventLog {
    bus: Bus,
    link: watch::Receiver<bool>,
    job: JobId,
    stream: &'static str,
    subject: String,
    /// When it may be forgotten.
    kept_until: SystemTime,
    attempt: u32,
    next: u32,
    finished: HashSet<u32>,
    /// Events that are stored, or were: nats-server may have lost its memory. At most what the job
    /// writes, as the others.
    stored: Vec<PublishMessage>,
    /// Events not known to be stored, in order.
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

/// A log as it is stored.
#[derive(Debug, Default)]
pub struct Stored {
    /// In the order in which they were stored.
    pub events: Vec<Event>,
    /// The last one's sequence in the stream; 0 if there is none.
    pub last_sequence: u64,
}

/// Whether something else was stored first; a cluster has two ways to say so.
fn is_changed(error: &PublishError) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    error.kind() == PublishErrorKind::WrongLastSequence
        || source.is_some_and(|e| e.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
}

/// A log can't be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ReadError {
    #[error("NATS does not answer: {0}")]
    Bus(String),
    #[error("stream {stream} answers with status {status}")]
    Status { stream: &'static str, status: StatusCode },
    #[error("an event can't be read: {0}")]
    Event(#[from] serde_json::Error),
    #[error("an event has version {0}, this worker knows {PROTOCOL_VERSION}: upgrade the worker")]
    Version(u32),
}

/// An attempt was not begun.
#[derive(Debug, thiserror::Error)]
#[error("the log has changed since it was read")]
pub struct LogChanged;

impl EventLog {
    /// The log of `job`.
    pub fn new(bus: Bus, job: &Job) -> Self {
        let (stream, subject) = job.log();
        let kept = Duration::from_millis(job.deadline)
            + Duration::from_secs(job.background.unwrap_or_default().into())
            + KEPT_LONGER;
        let log = Self::of_unreadable(bus, job.id.clone());
        let kept_until = SystemTime::UNIX_EPOCH.checked_add(kept).unwrap_or(log.kept_until);
        Self { stream, subject, kept_until, ..log }
    }

    /// The log of a job of which the id is all that is known, to be written as the first attempt.
    pub fn of_unreadable(bus: Bus, job: JobId) -> Self {
        Self {
            link: bus.link(),
            bus,
            stream: subject::EVENTS_STREAM,
            subject: subject::events(&job),
            kept_until: SystemTime::now() + UNREADABLE_KEPT,
            job,
            attempt: 1,
            next: 0,
            finished: HashSet::new(),
            stored: Vec::new(),
            unconfirmed: VecDeque::new(),
            answers: VecDeque::new(),
            resume: Instant::now(),
        }
    }

    /// The attempt that this writes.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Reads all that is stored. A server that lags behind may leave out the end.
    pub async fn read(&mut self) -> Result<Stored, ReadError> {
        let mut stored = Stored::default();
        let mut from = Some(1);
        while let Some(sequence) = from {
            from = tokio::time::timeout(READ_TIME, self.read_batch(sequence, &mut stored))
                .await
                .map_err(|_| ReadError::Bus("the time is up".to_owned()))??;
        }
        Ok(stored)
    }

    /// Reads up to a batch from `sequence` on; where the next one begins, if there is more.
    async fn read_batch(&mut self, sequence: u64, stored: &mut Stored) -> Result<Option<u64>, ReadError> {
        let bus = |error: &dyn std::error::Error| ReadError::Bus(error.to_string());
        let client = self.bus.client();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|e| bus(&e))?;
        let query = json!({ "next_by_subj": self.subject, "seq": sequence, "batch": BATCH }).to_string();
        let target = format!("$JS.API.DIRECT.GET.{}", self.stream);
        client.publish_with_reply(target, inbox, query.into()).await.map_err(|e| bus(&e))?;
        while let Some(message) = answers.next().await {
            let number = |name: &str| message.headers.as_ref()?.get(name)?.as_str().parse::<u64>().ok();
            match message.status {
                None => {
                    let event: Event = serde_json::from_slice(&message.payload)?;
                    if event.v > PROTOCOL_VERSION {
                        return Err(ReadError::Version(event.v));
                    }
                    stored.last_sequence = number("Nats-Sequence").unwrap_or(stored.last_sequence);
                    stored.events.push(event);
                }
                Some(status) if status.as_u16() == END_OF_BATCH => {
                    let has_more = number("Nats-Num-Pending").is_some_and(|pending| pending > 0);
                    return Ok(has_more.then_some(stored.last_sequence + 1));
                }
                Some(StatusCode::NOT_FOUND) => return Ok(None),
                Some(status) => return Err(ReadError::Status { stream: self.stream, status }),
            }
        }
        Err(ReadError::Bus("the connection was closed".to_owned()))
    }

    /// The newest attempt that has written anything, as the stream's leader knows it; `None` if there
    /// is no log.
    pub async fn newest_attempt(&mut self) -> Result<Option<u32>, ReadError> {
        let bus = |error: &dyn std::error::Error| ReadError::Bus(error.to_string());
        let stream = self.bus.jetstream().get_stream_no_info(self.stream).await.map_err(|e| bus(&e))?;
        match stream.get_last_raw_message_by_subject(&self.subject).await {
            Ok(message) => Ok(Some(serde_json::from_slice::<Event>(&message.payload)?.attempt)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(bus(&error)),
        }
    }

    /// Is of the attempt after so many.
    pub fn follow(&mut self, attempts: u32) {
        (self.attempt, self.next) = (attempts + 1, 0);
    }

    /// Has everything stored again: nothing of it is there any more.
    pub fn rewrite(&mut self) {
        tracing::warn!(job = %self.job, events = self.stored.len(), "its log is lost; writing it again");
        self.answers.clear();
        let later = std::mem::take(&mut self.unconfirmed);
        self.unconfirmed = std::mem::take(&mut self.stored).into_iter().chain(later).collect();
    }

    /// Begins the attempt by `worker`, unless something was written after sequence `after`.
    pub async fn begin(&mut self, worker: &str, after: u64) -> Result<(), LogChanged> {
        // Another worker's beginning of the same attempt must not pass for this one.
        let id = format!("{}-{}-{worker}", self.job, self.attempt);
        let message = self.message(EventKind::Taken { worker: worker.to_owned() }, id);
        let again = message.clone();
        let message = message.expected_last_subject_sequence(after);
        loop {
            let _ = self.link.wait_for(|up| *up).await;
            let jetstream = self.bus.jetstream();
            let stored = match jetstream.send_publish(self.subject.clone(), message.clone()).await {
                Ok(answer) => answer.await.map(drop),
                Err(error) => Err(error),
            };
            match stored {
                Ok(()) => {
                    self.stored.push(again);
                    return Ok(());
                }
                Err(error) if is_changed(&error) => return Err(LogChanged),
                Err(error) => {
                    tracing::warn!(job = %self.job, %error, "an attempt was not begun; trying again");
                    self.bus.doubt();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The next event as a message; what is known of it by its id is not stored again.
    fn message(&mut self, kind: EventKind, id: String) -> PublishMessage {
        let event = Event { v: PROTOCOL_VERSION, attempt: self.attempt, index: self.next, kind };
        self.next += 1;
        // Can't fail: string keys, and serde_json writes a float that is no number as null.
        let payload = serde_json::to_vec(&event).unwrap_or_default();
        let rest = self.kept_until.duration_since(SystemTime::now()).unwrap_or_default();
        let rest = rest.max(Duration::from_secs(1));
        PublishMessage::build().payload(payload.into()).message_id(id).ttl(rest)
    }

    /// Appends an event; [`EventLog::store`] sends it.
    pub fn append(&mut self, kind: EventKind) {
        if let EventKind::Finish { choice, .. } = kind {
            self.finished.insert(choice);
        }
        let id = format!("{}-{}-{}", self.job, self.attempt, self.next);
        let message = self.message(kind, id);
        self.unconfirmed.push_back(message);
    }

    /// Choices that need no end any more: an earlier attempt has written it.
    pub fn note_finished(&mut self, choices: impl IntoIterator<Item = u32>) {
        self.finished.extend(choices);
    }

    /// Appends that nobody wants the rest of the `choices`; the event that is to end the log.
    pub fn cancel(&mut self, choices: u32, usage: Usage) -> EventKind {
        for choice in 0..choices {
            if !self.finished.contains(&choice) {
                self.append(EventKind::Finish { choice, reason: FinishReason::Cancelled });
            }
        }
        EventKind::Done { usage, timings: Timings::default(), at: None }
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

    /// Appends that another worker is to go on and stores everything, so that it finds all there is;
    /// not at any price, for it can do without.
    pub async fn hand_back(&mut self) {
        self.append(EventKind::HandedBack);
        if tokio::time::timeout(HAND_BACK_TIME, self.store()).await.is_err() {
            tracing::warn!(job = %self.job, "handed back without the end of its log");
        }
    }

    /// Sends what is to be sent and waits for one answer.
    async fn advance(&mut self) -> Result<(), PublishError> {
        while self.answers.len() < WINDOW
            && let Some(event) = self.unconfirmed.get(self.answers.len())
        {
            let sent = self.bus.jetstream().send_publish(self.subject.clone(), event.clone());
            self.answers.push_back(sent.await?.into_future());
        }
        let Some(answer) = self.answers.front_mut() else { return Ok(()) };
        tokio::select! {
            stored = answer => {
                stored?;
                self.answers.pop_front();
                self.stored.extend(self.unconfirmed.pop_front());
            }
            Ok(()) = self.link.changed() => self.answers.clear(),
        }
        Ok(())
    }
}
