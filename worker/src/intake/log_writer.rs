//! A job's event log: reads what is stored and appends the events of one attempt.
//!
//! The first event of an attempt is stored only if nothing was written since the log was read. Every
//! later event is sent as soon as it happens, because relays read it live, and kept until JetStream has
//! acknowledged it. When one may be lost, it and all later ones are sent again in order; JetStream
//! recognises those that are stored already by their message ids.
//!
//! Background jobs have their logs in a stream of their own, so that other logs do not crowd them out.
//! Each event carries a time to live: as long as its job may run.

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

use crate::nats::Nats;

/// How long storing the end of a log may take: longer than a restart of nats-server.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after an event that was not stored.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How much longer a log is kept than its job's stored request, so that the log outlives the request.
const KEPT_LONGER: Duration = Duration::from_secs(60);
/// How long the log of an unreadable job is kept.
const UNREADABLE_KEPT: Duration = Duration::from_secs(600);
/// Most events that are sent and not acknowledged yet.
const WINDOW: usize = 256;
/// How long reading a batch may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long storing the end of a log may take when its job is requeued.
const HAND_BACK_TIMEOUT: Duration = Duration::from_secs(1);
/// Events in a batch.
const BATCH: u32 = 1000;
/// The status that ends a batch (NATS ADR-31).
const END_OF_BATCH: u16 = 204;

type Answer = <PublishAckFuture as IntoFuture>::IntoFuture;

/// The log of one attempt at a job.
pub struct LogWriter {
    nats: Nats,
    connected: watch::Receiver<bool>,
    job: JobId,
    stream: &'static str,
    subject: String,
    /// When the log may be deleted.
    kept_until: SystemTime,
    attempt: u32,
    next: u32,
    finished: HashSet<u32>,
    /// Events that were acknowledged, kept because nats-server may lose a stream in memory. Like the other
    /// lists it is at most as long as the job's output.
    stored: Vec<PublishMessage>,
    /// Events not known to be stored, in order.
    unconfirmed: VecDeque<PublishMessage>,
    /// Pending acknowledgements of the first of them; the others are not sent yet.
    answers: VecDeque<Answer>,
    /// Nothing is sent before this time.
    resume: Instant,
}

/// Events are not known to be stored, so the job must not be acknowledged.
#[derive(Debug, thiserror::Error)]
#[error(
    "nats-server did not confirm {unconfirmed} of its events in {} s. Check the limits of stream {stream}",
    STORE_TIMEOUT.as_secs()
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
    /// The stream sequence of the last one; 0 if there is none.
    pub last_sequence: u64,
}

/// Whether another event was stored first; a cluster reports it in two ways.
fn is_changed(error: &PublishError) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    error.kind() == PublishErrorKind::WrongLastSequence
        || source.is_some_and(|e| e.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
}

/// Why a log can't be read.
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

/// An attempt did not begin.
#[derive(Debug, thiserror::Error)]
#[error("the log has changed since it was read")]
pub struct LogChanged;

impl LogWriter {
    /// The log of `job`.
    pub fn new(nats: Nats, job: &Job) -> Self {
        let (stream, subject) = job.log();
        let kept = Duration::from_millis(job.deadline)
            + Duration::from_secs(job.background.unwrap_or_default().into())
            + KEPT_LONGER;
        let log = Self::of_unreadable(nats, job.id.clone());
        let kept_until = SystemTime::UNIX_EPOCH.checked_add(kept).unwrap_or(log.kept_until);
        Self { stream, subject, kept_until, ..log }
    }

    /// The log of a job of which only the id is known, to be written as its first attempt.
    pub fn of_unreadable(nats: Nats, job: JobId) -> Self {
        Self {
            connected: nats.connected(),
            nats,
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

    /// The attempt that is written.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Reads all events. A replica that lags behind may leave out the end.
    pub async fn read(&mut self) -> Result<Stored, ReadError> {
        let mut stored = Stored::default();
        let mut from = Some(1);
        while let Some(sequence) = from {
            from = tokio::time::timeout(READ_TIMEOUT, self.read_batch(sequence, &mut stored))
                .await
                .map_err(|_| ReadError::Bus("the time is up".to_owned()))??;
        }
        Ok(stored)
    }

    /// Reads a batch from `sequence` on; returns where the next one begins, if there is one.
    async fn read_batch(&mut self, sequence: u64, stored: &mut Stored) -> Result<Option<u64>, ReadError> {
        let nats = |error: &dyn std::error::Error| ReadError::Bus(error.to_string());
        let client = self.nats.client();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|e| nats(&e))?;
        let query = json!({ "next_by_subj": self.subject, "seq": sequence, "batch": BATCH }).to_string();
        let target = format!("$JS.API.DIRECT.GET.{}", self.stream);
        client.publish_with_reply(target, inbox, query.into()).await.map_err(|e| nats(&e))?;
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

    /// The newest attempt in the log, as the stream's leader knows it; `None` for an empty log.
    pub async fn newest_attempt(&mut self) -> Result<Option<u32>, ReadError> {
        let nats = |error: &dyn std::error::Error| ReadError::Bus(error.to_string());
        let stream = self.nats.jetstream().get_stream_no_info(self.stream).await.map_err(|e| nats(&e))?;
        match stream.get_last_raw_message_by_subject(&self.subject).await {
            Ok(message) => Ok(Some(serde_json::from_slice::<Event>(&message.payload)?.attempt)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(nats(&error)),
        }
    }

    /// Continues after this many attempts.
    pub fn follow(&mut self, attempts: u32) {
        (self.attempt, self.next) = (attempts + 1, 0);
    }

    /// Has all events stored again, because the stream has lost them.
    pub fn rewrite(&mut self) {
        tracing::warn!(job = %self.job, events = self.stored.len(), "the event log was lost; writing it again");
        self.answers.clear();
        let later = std::mem::take(&mut self.unconfirmed);
        self.unconfirmed = std::mem::take(&mut self.stored).into_iter().chain(later).collect();
    }

    /// Begins the attempt of `worker`, unless something was written after sequence `after`.
    pub async fn begin(&mut self, worker: &str, after: u64) -> Result<(), LogChanged> {
        // The id contains the worker, so that two workers' beginnings of one attempt differ.
        let id = format!("{}-{}-{worker}", self.job, self.attempt);
        let message = self.message(EventKind::Taken { worker: worker.to_owned() }, id);
        let again = message.clone();
        let message = message.expected_last_subject_sequence(after);
        loop {
            let _ = self.connected.wait_for(|up| *up).await;
            let jetstream = self.nats.jetstream();
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
                    tracing::warn!(job = %self.job, %error, "the attempt's first event was not stored; trying again");
                    self.nats.recheck();
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// The next event as a message; JetStream stores one message of each id.
    fn message(&mut self, kind: EventKind, id: String) -> PublishMessage {
        let event = Event { v: PROTOCOL_VERSION, attempt: self.attempt, index: self.next, kind };
        self.next += 1;
        // Can't fail: string keys, and serde_json writes NaN and infinities as null.
        let payload = serde_json::to_vec(&event).unwrap_or_default();
        let rest = self.kept_until.duration_since(SystemTime::now()).unwrap_or_default();
        let rest = rest.max(Duration::from_secs(1));
        PublishMessage::build().payload(payload.into()).message_id(id).ttl(rest)
    }

    /// Appends an event; [`LogWriter::store`] sends it.
    pub fn append(&mut self, kind: EventKind) {
        if let EventKind::Finish { choice, .. } = kind {
            self.finished.insert(choice);
        }
        let id = format!("{}-{}-{}", self.job, self.attempt, self.next);
        let message = self.message(kind, id);
        self.unconfirmed.push_back(message);
    }

    /// Notes choices whose end an earlier attempt has written.
    pub fn note_finished(&mut self, choices: impl IntoIterator<Item = u32>) {
        self.finished.extend(choices);
    }

    /// Appends the end of all unfinished choices of a cancelled job; returns the log's last event.
    pub fn cancel(&mut self, choices: u32, usage: Usage) -> EventKind {
        for choice in 0..choices {
            if !self.finished.contains(&choice) {
                self.append(EventKind::Finish { choice, reason: FinishReason::Cancelled });
            }
        }
        EventKind::Done { usage, timings: Timings::default(), at: None }
    }

    /// Whether all appended events are stored.
    pub fn is_stored(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// Sends the appended events and waits until they are stored, however long that takes. Cancel-safe: no
    /// event is lost if the future is dropped.
    pub async fn store(&mut self) {
        while !self.is_stored() {
            tokio::time::sleep_until(self.resume).await;
            // Messages in flight on a lost connection may be lost, and no later one may overtake them.
            if self.connected.has_changed().unwrap_or(false) {
                self.answers.clear();
            }
            let _ = self.connected.wait_for(|up| *up).await;
            if let Err(error) = self.advance().await {
                tracing::warn!(job = %self.job, %error, "an event was not stored; sending it again");
                self.answers.clear();
                self.resume = Instant::now() + RETRY_PAUSE;
                self.nats.recheck();
            }
        }
    }

    /// Appends the last event and waits until the whole log is stored.
    pub async fn finish(&mut self, kind: EventKind) -> Result<(), NotStored> {
        self.append(kind);
        let stored = tokio::time::timeout(STORE_TIMEOUT, self.store()).await;
        stored.map_err(|_| NotStored { unconfirmed: self.unconfirmed.len(), stream: self.stream })
    }

    /// Appends that the job is requeued, and stores what it can in a short time: the next worker can do
    /// without the rest.
    pub async fn hand_back(&mut self) {
        self.append(EventKind::HandedBack);
        if tokio::time::timeout(HAND_BACK_TIMEOUT, self.store()).await.is_err() {
            tracing::warn!(job = %self.job, "requeued without the end of its log");
        }
    }

    /// Sends unsent events and waits for one acknowledgement.
    async fn advance(&mut self) -> Result<(), PublishError> {
        while self.answers.len() < WINDOW
            && let Some(event) = self.unconfirmed.get(self.answers.len())
        {
            let sent = self.nats.jetstream().send_publish(self.subject.clone(), event.clone());
            self.answers.push_back(sent.await?.into_future());
        }
        let Some(answer) = self.answers.front_mut() else { return Ok(()) };
        tokio::select! {
            stored = answer => {
                stored?;
                self.answers.pop_front();
                self.stored.extend(self.unconfirmed.pop_front());
            }
            Ok(()) = self.connected.changed() => self.answers.clear(),
        }
        Ok(())
    }
}
