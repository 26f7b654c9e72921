//! A job's event log: writes the events of one attempt after what `log_reader` has read.
//!
//! Each step's events are published at once on the job's live subject, which relays follow, and stored by nobody.
//! The log takes [`Chunk`]s that sum up what happened within [`CHUNK_TIME`] or [`CHUNK_TOKENS`], one after the
//! other. Each is stored only if the log still ends with this worker's previous chunk
//! (`Nats-Expected-Last-Subject-Sequence`), so that a worker that was replaced finds out from the log and can't
//! write into its successor's. Now and then, and at the end, a snapshot takes the place of the whole log.
//!
//! Background jobs have their logs in a stream of their own, so that other logs do not crowd them out.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use emberline_protocol::chunk::{Chunk, merge};
use emberline_protocol::event::{EventKind, FinishReason, Timings, Usage};
use emberline_protocol::job::Job;
use emberline_protocol::size::max_message;
use emberline_protocol::subject::{self, JobId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::log_reader::{self, LastChunk, ReadError, Stored};
use super::log_size::{HEADERS, LogSize, NoRoom};
use crate::nats::{Nats, is_changed};

/// How long events may wait for the log.
const CHUNK_TIME: Duration = Duration::from_millis(100);
/// How many tokens may wait for the log.
const CHUNK_TOKENS: usize = 32;
/// Size in bytes beyond which a chunk takes no more events.
const CHUNK_BYTES: usize = 256 * 1024;
/// Size in bytes up to which the last tokens of an answer are published with its end.
const HELD_BYTES: usize = 64 * 1024;
/// How many chunks a log has before a snapshot takes their place.
const SNAPSHOT_AFTER: u32 = 64;
/// How long storing the end of a log may take: longer than a restart of nats-server.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a chunk that was not stored.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How much longer a log is kept than its job's stored request, so that the log outlives the request.
const KEPT_LONGER: Duration = Duration::from_secs(60);
/// How long a log is kept after its end if nobody can ask for the answer again: longer than a relay takes to
/// connect again.
const ENDED_KEPT: Duration = Duration::from_secs(60);
/// How long the log of an unreadable job is kept.
const UNREADABLE_KEPT: Duration = Duration::from_secs(600);
/// How long storing the end of a log may take when its job is requeued.
const HAND_BACK_TIMEOUT: Duration = Duration::from_secs(1);

type Answer = <PublishAckFuture as IntoFuture>::IntoFuture;

/// The log of one attempt.
pub struct LogWriter {
    nats: Nats,
    connected: watch::Receiver<bool>,
    job: JobId,
    stream: &'static str,
    subject: String,
    live: String,
    /// When the log of a running job may be deleted.
    kept_until: SystemTime,
    /// Whether the answer can be asked for again after its end.
    is_background: bool,
    attempt: u32,
    /// Index of the next event.
    next: u32,
    size: LogSize,
    finished: HashSet<u32>,
    /// What the client has beyond the log; it follows the acceptance.
    sent_before: Vec<EventKind>,
    /// Events that are appended with the next ones.
    held: Vec<EventKind>,
    /// Everything that counts of the log: what earlier attempts have stored, and this one.
    stored: Vec<EventKind>,
    /// Index after the last event that is stored.
    stored_end: u32,
    /// The sequence of the last chunk.
    last_sequence: u64,
    /// Chunks since the last snapshot.
    chunks: u32,
    /// Events to store, in order.
    pending: VecDeque<PendingChunk>,
    /// The chunk that was sent and is not known to be stored.
    sent: Option<SentChunk>,
    /// A question for the end of the log that is under way.
    asked: Option<Pin<Box<dyn Future<Output = LastChunk> + Send>>>,
    /// Whether events are published live, too.
    is_live: bool,
    /// The stream has lost the log, so that the next chunk is a snapshot.
    is_lost: bool,
    /// The last event is appended.
    is_ended: bool,
    /// When pending events are stored.
    due: Instant,
    /// Nothing is sent before this time.
    resume: Instant,
}

/// Events that are summed up, and not sent yet.
#[derive(Debug, Default)]
struct PendingChunk {
    events: Vec<EventKind>,
    end: u32,
    tokens: usize,
    bytes: usize,
}

struct SentChunk {
    chunk: PendingChunk,
    is_snapshot: bool,
    /// `None` if the acknowledgement may be lost.
    answer: Option<Answer>,
}

/// Another worker has begun an attempt since.
#[derive(Debug, thiserror::Error)]
#[error("another worker has taken the job over")]
pub struct Replaced;

/// Why a log is not complete.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// Another worker has begun an attempt since.
    #[error(transparent)]
    Replaced(#[from] Replaced),
    /// Events are not known to be stored.
    #[error("nats-server did not confirm the end of the log in {} s. Check the limits of stream {stream}", STORE_TIMEOUT.as_secs())]
    Unconfirmed {
        /// Where they belong.
        stream: &'static str,
    },
}

/// Why a chunk is not stored.
#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error(transparent)]
    Replaced(#[from] Replaced),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Read(#[from] ReadError),
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
        Self { stream, subject, kept_until, is_background: job.background.is_some(), ..log }
    }

    /// The log of a job of which only the id is known, to be written as its first attempt.
    pub fn of_unreadable(nats: Nats, job: JobId) -> Self {
        Self {
            connected: nats.connected(),
            nats,
            stream: subject::EVENTS_STREAM,
            subject: subject::events(&job),
            live: subject::live(&job),
            kept_until: SystemTime::now() + UNREADABLE_KEPT,
            is_background: false,
            job,
            attempt: 1,
            next: 0,
            size: LogSize::default(),
            finished: HashSet::new(),
            sent_before: Vec::new(),
            held: Vec::new(),
            stored: Vec::new(),
            stored_end: 0,
            last_sequence: 0,
            chunks: 0,
            pending: VecDeque::new(),
            sent: None,
            asked: None,
            is_live: true,
            is_lost: false,
            is_ended: false,
            due: Instant::now(),
            resume: Instant::now(),
        }
    }

    /// The attempt that is written.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Reads all chunks. A replica that lags behind may leave out the end.
    pub(super) async fn read(&mut self) -> Result<Stored, ReadError> {
        let stored = log_reader::read(&self.nats, self.stream, &self.subject).await?;
        self.size = stored.size;
        Ok(stored)
    }

    /// Whether another worker has begun an attempt since, as the stream's leader knows it.
    pub(super) async fn is_replaced(&mut self) -> Result<bool, ReadError> {
        match self.resolve().await {
            Ok(()) => Ok(false),
            Err(StoreError::Replaced(_)) => Ok(true),
            Err(StoreError::Read(error)) => Err(error),
            Err(StoreError::Publish(error)) => Err(ReadError::Bus(error.to_string())),
        }
    }

    /// Continues after this many attempts. They have stored `stored`, the last of it at `last_sequence`.
    pub fn follow(&mut self, attempts: u32, stored: Vec<EventKind>, last_sequence: u64) {
        (self.attempt, self.next) = (attempts + 1, 0);
        (self.stored, self.last_sequence) = (stored, last_sequence);
    }

    /// Whether events are published live, too. A worker that may be replaced publishes none, for its successor
    /// may write other ones.
    pub fn set_live(&mut self, is_live: bool) {
        self.is_live = is_live;
    }

    /// Begins the attempt of `worker`, unless something was written since the log was read. `ack` acknowledges its
    /// delivery of the job.
    pub async fn begin(&mut self, worker: &str, ack: Option<String>) -> Result<(), LogChanged> {
        let taken = EventKind::Taken { worker: worker.to_owned(), ack };
        let chunk = Chunk::of(self.attempt, self.next, taken.clone());
        // It may be sent twice. The id contains the worker, so that two workers' beginnings of one attempt differ.
        let id = format!("{}-{}-{worker}", self.job, self.attempt);
        let payload = Bytes::from(encode(&chunk));
        let message = self.message(payload.clone());
        let message = message.message_id(id).expected_last_subject_sequence(self.last_sequence);
        loop {
            let _ = self.connected.wait_for(|up| *up).await;
            let jetstream = self.nats.jetstream();
            let stored = match jetstream.send_publish(self.subject.clone(), message.clone()).await {
                Ok(answer) => answer.await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(stored) => {
                    self.last_sequence = stored.sequence;
                    (self.next, self.stored_end) = (chunk.end, chunk.end);
                    self.stored.insert(0, taken);
                    self.publish(payload).await;
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

    /// An encoded chunk as a message that lives as long as its job may run.
    fn message(&self, chunk: Bytes) -> PublishMessage {
        let rest = self.kept_until.duration_since(SystemTime::now()).unwrap_or_default();
        let rest = if self.is_ended && !self.is_background { rest.min(ENDED_KEPT) } else { rest };
        PublishMessage::build().payload(chunk).ttl(rest.max(Duration::from_secs(1)))
    }

    /// Publishes an encoded chunk live. What is lost on the way is read from the log.
    async fn publish(&mut self, chunk: Bytes) {
        if self.is_live
            && *self.connected.borrow()
            && let Err(error) = self.nats.client().publish(self.live.clone(), chunk).await
        {
            tracing::warn!(job = %self.job, %error, "events were not published live; relays read them from the log");
        }
    }

    /// Appends events and publishes them live, if there is room for them; [`LogWriter::store`] stores them.
    pub async fn append(&mut self, events: Vec<EventKind>) -> Result<(), NoRoom> {
        let (chunk, payload) = self.checked_chunk(events)?;
        self.push(chunk, payload).await;
        Ok(())
    }

    /// Has `events` appended together with the log's end, if there is room for them; at once if they are large.
    pub async fn hold(&mut self, events: Vec<EventKind>) -> Result<(), NoRoom> {
        let (chunk, payload) = self.checked_chunk(events)?;
        if payload.len() > HELD_BYTES {
            self.push(chunk, payload).await;
        } else {
            self.held = chunk.events;
        }
        Ok(())
    }

    /// The next events as a chunk, and encoded, if there is room for them.
    fn checked_chunk(&mut self, events: Vec<EventKind>) -> Result<(Chunk, Bytes), NoRoom> {
        let chunk = self.next_chunk(events);
        let payload = Bytes::from(encode(&chunk));
        let max_payload = self.nats.client().server_info().max_payload;
        self.size.check(&self.subject, payload.len() + HEADERS, max_payload)?;
        Ok((chunk, payload))
    }

    /// Appends events of the log's end, for which room is kept.
    pub async fn append_end(&mut self, events: Vec<EventKind>) {
        let chunk = self.next_chunk(events);
        let payload = encode(&chunk).into();
        self.push(chunk, payload).await;
    }

    /// The next events as a chunk, summed up.
    fn next_chunk(&mut self, more: Vec<EventKind>) -> Chunk {
        let mut chunk = Chunk::new(self.attempt, self.next, Vec::new());
        let mut events = std::mem::take(&mut self.held);
        events.extend(more);
        if let Some(accepted) = events.iter().position(|event| matches!(event, EventKind::Accepted(_))) {
            let follows = accepted + 1;
            events.splice(follows..follows, self.sent_before.drain(..));
        }
        for event in events {
            chunk.end += 1;
            merge(&mut chunk.events, event);
        }
        chunk
    }

    /// Publishes a chunk live, and adds it to what is to be stored now or a little later.
    async fn push(&mut self, chunk: Chunk, payload: Bytes) {
        let mut is_urgent = false;
        for event in &chunk.events {
            match event {
                EventKind::Finish { choice, .. } => {
                    self.finished.insert(*choice);
                    is_urgent = true;
                }
                EventKind::Done { .. } | EventKind::Error(_) => (self.is_ended, is_urgent) = (true, true),
                EventKind::HandedBack => is_urgent = true,
                _ => {}
            }
        }
        self.next = chunk.end;
        let bytes = payload.len();
        self.size.add(&self.subject, bytes + HEADERS);
        self.publish(payload).await;
        let was_stored = self.pending.is_empty();
        if self.pending.back().is_none_or(|last| last.bytes + bytes > CHUNK_BYTES) {
            self.pending.push_back(PendingChunk::default());
        }
        let Some(last) = self.pending.back_mut() else { return };
        (last.end, last.bytes) = (chunk.end, last.bytes + bytes);
        for event in chunk.events {
            if let EventKind::Tokens { ids, .. } = &event {
                last.tokens += ids.len();
            }
            merge(&mut last.events, event);
        }
        let is_full = last.tokens >= CHUNK_TOKENS || self.pending.len() > 1;
        if is_urgent || is_full {
            self.due = self.due.min(Instant::now());
        } else if was_stored {
            self.due = Instant::now() + CHUNK_TIME;
        }
    }

    /// Has what an earlier attempt has sent to the client, and not stored, follow the acceptance.
    pub fn store_sent(&mut self, sent: Vec<EventKind>) {
        self.sent_before = sent;
    }

    /// Notes choices whose end an earlier attempt has written.
    pub fn note_finished(&mut self, choices: impl IntoIterator<Item = u32>) {
        self.finished.extend(choices);
    }

    /// Appends `reason` as the end of all unfinished choices; returns the log's last event.
    pub async fn end_choices(&mut self, choices: u32, reason: FinishReason, usage: Usage) -> EventKind {
        let unfinished = (0..choices).filter(|choice| !self.finished.contains(choice));
        let ends: Vec<EventKind> = unfinished.map(|choice| EventKind::Finish { choice, reason }).collect();
        if !ends.is_empty() {
            self.append_end(ends).await;
        }
        EventKind::Done { usage, timings: Timings::default(), at: None }
    }

    /// Whether all appended events are stored.
    pub fn is_stored(&self) -> bool {
        self.pending.is_empty() && self.sent.is_none() && !self.is_lost
    }

    /// Stores the appended events, however long that takes. Cancel-safe: no event is lost if the future is
    /// dropped.
    pub async fn store(&mut self) -> Result<(), Replaced> {
        while !self.is_stored() {
            let time = if self.sent.is_none() { self.due.max(self.resume) } else { self.resume };
            tokio::time::sleep_until(time).await;
            let _ = self.connected.wait_for(|up| *up).await;
            match self.advance().await {
                Ok(()) => {}
                Err(StoreError::Replaced(replaced)) => return Err(replaced),
                Err(error) => {
                    tracing::warn!(job = %self.job, %error, "events were not stored; trying again");
                    self.resume = Instant::now() + RETRY_PAUSE;
                    self.nats.recheck();
                }
            }
        }
        Ok(())
    }

    /// Waits until the whole log is stored, its last event included.
    pub async fn complete(&mut self) -> Result<(), NotStored> {
        self.due = Instant::now();
        match tokio::time::timeout(STORE_TIMEOUT, self.store()).await {
            Ok(stored) => Ok(stored?),
            Err(_) => Err(NotStored::Unconfirmed { stream: self.stream }),
        }
    }

    /// Appends that the job is requeued, and stores what it can in a short time: the next worker can do
    /// without the rest.
    pub async fn hand_back(&mut self) {
        self.append_end(vec![EventKind::HandedBack]).await;
        if !matches!(tokio::time::timeout(HAND_BACK_TIMEOUT, self.store()).await, Ok(Ok(()))) {
            tracing::warn!(job = %self.job, "requeued without the end of its log");
        }
    }

    /// Sends a chunk, or waits for the acknowledgement of the one that was sent.
    async fn advance(&mut self) -> Result<(), StoreError> {
        let Some(sent) = &mut self.sent else { return self.send().await };
        let Some(answer) = &mut sent.answer else { return self.resolve().await };
        let stored = tokio::select! {
            stored = answer => stored,
            // What is on its way over a lost connection may be lost.
            Ok(()) = self.connected.changed() => {
                sent.answer = None;
                return Ok(());
            }
        };
        sent.answer = None;
        match stored {
            Ok(stored) => self.confirm(stored.sequence),
            Err(error) if is_changed(&error) => return self.resolve().await,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Sends the next chunk. It counts as sent from the first moment, for it may be sent though the future is
    /// dropped.
    async fn send(&mut self) -> Result<(), StoreError> {
        let next =
            self.pending.pop_front().unwrap_or(PendingChunk { end: self.next, ..PendingChunk::default() });
        let is_last = self.is_ended && self.pending.is_empty();
        // What was never begun here may be another worker's.
        let wants_snapshot = self.is_begun() && (self.is_lost || is_last || self.chunks >= SNAPSHOT_AFTER);
        let snapshot = wants_snapshot.then(|| self.snapshot(&next)).flatten();
        let is_snapshot = snapshot.is_some();
        let message = snapshot.unwrap_or_else(|| {
            let mut chunk = Chunk::new(self.attempt, self.stored_end, next.events.clone());
            chunk.end = next.end;
            self.message(encode(&chunk).into())
        });
        let message = message.expected_last_subject_sequence(self.last_sequence);
        self.sent = Some(SentChunk { chunk: next, is_snapshot, answer: None });
        let answer = self.nats.jetstream().send_publish(self.subject.clone(), message).await?;
        if let Some(sent) = &mut self.sent {
            sent.answer = Some(answer.into_future());
        }
        Ok(())
    }

    /// The whole log with `next` as one message that takes the place of what is stored; `None` if no message may
    /// be as large.
    fn snapshot(&self, next: &PendingChunk) -> Option<PublishMessage> {
        let most = max_message(self.nats.client().server_info().max_payload);
        if usize::try_from(self.size.bytes()).is_ok_and(|size| size > most) {
            return None;
        }
        let mut chunk = Chunk::new(self.attempt, 0, self.stored.clone());
        next.events.iter().cloned().for_each(|event| merge(&mut chunk.events, event));
        chunk.end = next.end;
        let payload = encode(&chunk);
        let fits = payload.len() + HEADERS <= most;
        fits.then(|| self.message(payload.into()).header("Nats-Rollup", "sub"))
    }

    /// The chunk that was sent is stored.
    fn confirm(&mut self, sequence: u64) {
        let Some(SentChunk { chunk, is_snapshot, .. }) = self.sent.take() else { return };
        chunk.events.into_iter().for_each(|event| merge(&mut self.stored, event));
        (self.stored_end, self.last_sequence) = (chunk.end, sequence);
        self.chunks = if is_snapshot { 0 } else { self.chunks + 1 };
        self.is_lost = false;
    }

    /// The chunk that was sent is not stored, so it is to be sent again.
    fn take_back(&mut self) {
        if let Some(SentChunk { chunk, .. }) = self.sent.take()
            && !chunk.events.is_empty()
        {
            self.pending.push_front(chunk);
        }
    }

    /// Whether the attempt's first event is stored.
    fn is_begun(&self) -> bool {
        self.stored_end > 0
    }

    /// Asks the stream's leader how the log ends, and whether the chunk that was sent is there.
    async fn resolve(&mut self) -> Result<(), StoreError> {
        let ask = || -> Pin<Box<dyn Future<Output = LastChunk> + Send>> {
            Box::pin(log_reader::last_chunk(self.nats.clone(), self.stream, self.subject.clone()))
        };
        let last = self.asked.get_or_insert_with(ask).await;
        self.asked = None;
        let last = last?;
        if !self.is_begun() {
            self.resolve_unbegun(last);
            return Ok(());
        }
        let sent_end = self.sent.as_ref().map(|sent| sent.chunk.end);
        match last {
            Some((_, chunk)) if chunk.attempt > self.attempt => return Err(Replaced.into()),
            Some((sequence, chunk)) if chunk.attempt == self.attempt => {
                if sent_end == Some(chunk.end) {
                    self.confirm(sequence);
                } else if chunk.end == self.stored_end {
                    self.take_back();
                    self.last_sequence = sequence;
                } else {
                    // After the log was lost another worker has begun an attempt of the same number.
                    return Err(Replaced.into());
                }
            }
            last => {
                tracing::warn!(job = %self.job, "the event log was lost; writing it again");
                self.take_back();
                self.last_sequence = last.map_or(0, |(sequence, _)| sequence);
                self.is_lost = true;
            }
        }
        Ok(())
    }

    /// The same for the end of a job that is not run here: it follows whatever the log has.
    fn resolve_unbegun(&mut self, last: Option<(u64, Chunk)>) {
        let Some((sequence, chunk)) = last else {
            self.last_sequence = 0;
            return self.take_back();
        };
        if self.sent.as_ref().is_some_and(|sent| sent.chunk.events == chunk.events) {
            return self.confirm(sequence);
        }
        self.take_back();
        self.attempt = self.attempt.max(chunk.attempt.saturating_add(1));
        self.last_sequence = sequence;
    }
}

/// Can't fail: string keys, and serde_json writes NaN and infinities as null.
fn encode(chunk: &Chunk) -> Vec<u8> {
    serde_json::to_vec(chunk).unwrap_or_default()
}
