//! Writes stored requests to NATS, and reads them and the event logs of their jobs.

use std::future::poll_fn;

use emberline_protocol::chunk::Chunk;
use emberline_protocol::error::ApiError;
use emberline_protocol::job::Job;
use emberline_protocol::subject::{JobId, REQUESTS_STREAM, request};
use watermelon_proto::MessageBase;

use super::StoredRequest;
use crate::http::reply::internal_error;
use crate::nats::bus::Bus;
use crate::nats::connection::{BusError, Connection, REPLY_TIMEOUT};
use crate::nats::jetstream::{self, PublishError};
use crate::platform::{Host, report};
use crate::relay::read_chunk;

/// The stored request of a job, if it has one that was not deleted.
pub async fn read(bus: &Bus, job: &JobId) -> Result<Option<StoredRequest>, ApiError> {
    let asked = bus
        .with_connection(async |connection| connection.direct_get_last(REQUESTS_STREAM, &request(job)).await);
    let payload = asked.await.map_err(|error| unavailable(job, &error))?;
    let stored = payload.map(|payload| super::read(&payload)).transpose();
    stored.map_err(|error| {
        report(&format!("job {job}"), error);
        internal_error()
    })
}

/// Stores a new request; whether there was none before.
pub async fn create(bus: &Bus, request: &StoredRequest) -> Result<bool, ApiError> {
    let now_ms = bus.host().unix_ms();
    let stored = store(bus, &request.job, |max_payload| super::message(request, true, now_ms, max_payload));
    match stored.await? {
        Ok(()) => Ok(true),
        Err(PublishError::Exists) => Ok(false),
        Err(error) => Err(refused(&request.job, &error)),
    }
}

/// Stores a request in place of the one that is there.
pub async fn replace(bus: &Bus, request: &StoredRequest) -> Result<(), ApiError> {
    let now_ms = bus.host().unix_ms();
    let stored = store(bus, &request.job, |max_payload| super::message(request, false, now_ms, max_payload));
    stored.await?.map_err(|error| refused(&request.job, &error))
}

/// Deletes the stored request of `job`.
pub async fn delete(bus: &Bus, job: &Job) -> Result<(), ApiError> {
    let now_ms = bus.host().unix_ms();
    let stored = store(bus, job, |_| super::deletion(job, now_ms)).await?;
    stored.map_err(|error| refused(job, &error))
}

/// Deletes the stored request of a job that was not queued after all.
pub async fn withdraw(bus: &Bus, job: &Job) {
    if let Ok(Err(error)) = store(bus, job, |_| super::withdrawal(job)).await {
        report(&format!("job {}", job.id), error);
    }
}

/// A job's event log, as far as it is written.
pub async fn event_log(bus: &Bus, job: &Job) -> Result<Vec<Chunk>, ApiError> {
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

/// Stores a message of the bucket, which may be done twice.
async fn store(
    bus: &Bus,
    job: &Job,
    message: impl Fn(usize) -> Result<MessageBase, ApiError>,
) -> Result<Result<(), PublishError>, ApiError> {
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
) -> Result<Result<(), PublishError>, BusError> {
    let inbox = connection.new_inbox()?;
    connection.publish(MessageBase { reply_subject: Some(inbox.clone()), ..message });
    let reply = async {
        loop {
            let message = poll_fn(|cx| connection.poll_message(cx)).await?;
            if message.base.subject == inbox {
                return Ok(jetstream::read_ack(&message).map(drop));
            }
        }
    };
    host.within(REPLY_TIMEOUT, reply).await.unwrap_or(Err(BusError::Timeout("storing a request")))
}

fn unavailable(job: &JobId, error: &BusError) -> ApiError {
    report(&format!("job {job}"), error);
    ApiError::from(error)
}

fn refused(job: &Job, error: &PublishError) -> ApiError {
    report(&format!("job {}", job.id), error);
    ApiError::from(error)
}
