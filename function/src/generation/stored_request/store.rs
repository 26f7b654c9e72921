//! Writes stored requests to NATS, and reads them and the event logs of their jobs.

use std::future::poll_fn;
use std::time::Duration;

use emberline_protocol::chunk::Chunk;
use emberline_protocol::error::ApiError;
use emberline_protocol::read_index::RecordBucket;
use emberline_protocol::stored_request::{EraseReply, EraseRequest};
use emberline_protocol::subject::{self, JobId};
use watermelon_proto::headers::HeaderMap;
use watermelon_proto::{MessageBase, Subject};

use super::deleted;
use super::message::{self, Found, NotQueued, Stored};
use super::record::{StoredJob, StoredRequest};
use crate::nats::bus::Bus;
use crate::nats::connection::{BusError, Connection, REPLY_TIMEOUT};
use crate::nats::current;
use crate::nats::jetstream::{self, Ack, PublishError};
use crate::platform::{Host, report};
use crate::relay::read_chunk;

/// How long a worker may take to erase a log.
const ERASE_TIME: Duration = Duration::from_secs(2);
/// How often a write is tried while others change the same request.
const TRIES: u32 = 5;

/// The outcome of [`create`].
#[derive(Debug)]
pub enum Created {
    /// The request is stored, with this sequence.
    New(u64),
    /// Another one was stored first.
    Existing(Box<StoredRequest>),
}

/// What is stored of the request of a job, as the leader of the bucket's stream knows it.
pub async fn read(bus: &Bus, job: &JobId) -> Result<Stored, ApiError> {
    let read = current::read(bus, RecordBucket::Requests, &subject::request(job), &[]).await;
    let (record, _) = read.map_err(|error| unavailable(job, &error))?;
    Stored::of(record, job)
}

/// Stores a new request, unless there is one; `after` is the sequence of a withdrawn one.
pub async fn create(bus: &Bus, request: &StoredRequest, after: u64) -> Result<Created, ApiError> {
    let (job, mut after) = (&request.job, after);
    for _ in 0..TRIES {
        match put(bus, request, after).await? {
            Ok(sequence) => return Ok(Created::New(sequence)),
            Err(PublishError::Changed) => match read(bus, &job.id).await? {
                // Its first acknowledgement was lost.
                Stored::Found(found) if *found.request == *request => {
                    return Ok(Created::New(found.sequence));
                }
                Stored::Found(found) => return Ok(Created::Existing(found.request)),
                Stored::Deleted => return Err(deleted()),
                Stored::Vacant(sequence) => after = sequence,
            },
            Err(error) => return Err(refused(job, &error)),
        }
    }
    Err(contended(job))
}

/// Notes that the answer to a request is no longer wanted; the request as it is stored then, `None` if it was deleted
/// meanwhile.
pub async fn cancel(bus: &Bus, found: Found) -> Result<Option<StoredRequest>, ApiError> {
    let mut found = found;
    for _ in 0..TRIES {
        if found.request.cancel.cancelled {
            return Ok(Some(*found.request));
        }
        found.request.cancel.cancelled = true;
        match put(bus, &found.request, found.sequence).await? {
            Ok(_) => return Ok(Some(*found.request)),
            Err(PublishError::Changed) => match read(bus, &found.request.job.id).await? {
                Stored::Found(changed) => found = changed,
                Stored::Deleted | Stored::Vacant(_) => return Ok(None),
            },
            Err(error) => return Err(refused(&found.request.job, &error)),
        }
    }
    Err(contended(&found.request.job))
}

/// Deletes the stored request of `job`.
pub async fn delete(bus: &Bus, job: &StoredJob) -> Result<(), ApiError> {
    let now_ms = bus.host().unix_ms();
    let stored = store(bus, job, |_| message::deletion(job, now_ms)).await?;
    stored.map(drop).map_err(|error| refused(job, &error))
}

/// Takes back the request with this `sequence`, whose jobs were not queued after all.
pub async fn withdraw(bus: &Bus, job: &StoredJob, sequence: u64, failure: NotQueued) {
    let now_ms = bus.host().unix_ms();
    let stored = store(bus, job, |_| message::withdrawal(job, sequence, failure, now_ms)).await;
    match stored {
        // Its client has deleted it meanwhile.
        Ok(Ok(_) | Err(PublishError::Changed)) => {}
        Ok(Err(error)) => report(&format!("job {}", job.id), error),
        Err(error) => report(&format!("job {}", job.id), error),
    }
}

/// Has a worker remove the event log of a job whose request is deleted. If none does, the log expires by itself; a
/// worker that still runs the job removes it, too.
pub async fn erase_log(bus: &Bus, job: &JobId) {
    let context = format!("job {job}");
    let question = serde_json::to_vec(&EraseRequest { job: job.clone() }).unwrap_or_default();
    let question = MessageBase {
        subject: Subject::from_static(subject::ERASE_SUBJECT),
        reply_subject: None,
        headers: HeaderMap::new(),
        payload: question.into(),
    };
    let asked = bus.with_connection(async |connection| connection.ask(question.clone(), ERASE_TIME).await);
    let failure = match asked.await {
        Ok(answer) => match serde_json::from_slice(&answer.base.payload) {
            Ok(EraseReply::Erased) => return,
            Ok(EraseReply::Failed(reason)) => reason,
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    report(&context, format_args!("the log of a deleted request was not erased: {failure}"));
}

/// A job's event log, as far as it is written.
pub async fn event_log(bus: &Bus, job: &StoredJob) -> Result<Vec<Chunk>, ApiError> {
    let (stream, subject) = job.log();
    let asked = bus.with_connection(async |connection| {
        let (mut payloads, mut from) = (Vec::new(), Some(1));
        while let Some(first) = from {
            let batch = connection.direct_get(stream, jetstream::next_by_subject(&subject, first)).await?;
            from = batch.more();
            payloads.extend(batch.into_payloads());
        }
        Ok(payloads)
    });
    let payloads = asked.await.map_err(|error| unavailable(&job.id, &error))?;
    let chunks: Result<Vec<Chunk>, _> = payloads.iter().map(|payload| read_chunk(payload)).collect();
    chunks.map_err(|fault| {
        report(&format!("job {}", job.id), &fault);
        ApiError::from(&fault)
    })
}

/// Stores a request in place of the message with sequence `after`; its own sequence.
async fn put(bus: &Bus, request: &StoredRequest, after: u64) -> Result<Result<u64, PublishError>, ApiError> {
    let (job, now_ms) = (&request.job, bus.host().unix_ms());
    let encoded = message::encode(request)?;
    let message = |max_payload| message::request(job, encoded.clone(), after, now_ms, max_payload);
    store(bus, job, message).await
}

/// Stores a message of the bucket, which may be done twice.
async fn store(
    bus: &Bus,
    job: &StoredJob,
    message: impl Fn(usize) -> Result<MessageBase, ApiError>,
) -> Result<Result<u64, PublishError>, ApiError> {
    let asked = bus.with_connection(async |connection| match message(connection.max_payload()) {
        Ok(message) => publish(bus.host(), connection, message).await.map(Ok),
        Err(error) => Ok(Err(error)),
    });
    asked.await.map_err(|error| unavailable(&job.id, &error))?
}

async fn publish(
    host: &Host,
    connection: &mut Connection,
    message: MessageBase,
) -> Result<Result<u64, PublishError>, BusError> {
    let inbox = connection.new_inbox()?;
    connection.publish(MessageBase { reply_subject: Some(inbox.clone()), ..message });
    let reply = async {
        loop {
            let message = poll_fn(|cx| connection.poll_message(cx)).await?;
            if message.base.subject == inbox {
                return Ok(match jetstream::read_ack(&message) {
                    Ok(Ack::New(sequence)) => Ok(sequence),
                    // These messages have no id by which one could be known.
                    Ok(Ack::Before) => Err(PublishError::Malformed),
                    Err(error) => Err(error),
                });
            }
        }
    };
    host.within(REPLY_TIMEOUT, reply).await.unwrap_or(Err(BusError::Timeout("storing a request")))
}

fn unavailable(job: &JobId, error: &BusError) -> ApiError {
    report(&format!("job {job}"), error);
    ApiError::from(error)
}

fn refused(job: &StoredJob, error: &PublishError) -> ApiError {
    report(&format!("job {}", job.id), error);
    ApiError::from(error)
}

fn contended(job: &StoredJob) -> ApiError {
    report(&format!("job {}", job.id), "others change its stored request all the time");
    jetstream::bus_unavailable()
}
