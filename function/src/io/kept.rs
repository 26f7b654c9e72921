//! Requests and logs that are kept in NATS, written and read.

use std::future::poll_fn;

use emberline_protocol::error::ApiError;
use emberline_protocol::event::Event;
use emberline_protocol::job::Job;
use emberline_protocol::subject::{JobId, REQUESTS_STREAM, request};
use watermelon_proto::MessageBase;

use super::clock::{unix_ms, within};
use super::connection::{BusError, Connection, REPLY_TIMEOUT};
use super::{bus, log};
use crate::config::Endpoint;
use crate::generation::stored_request;
use crate::generation::stored_request::record::Record;
use crate::http::reply::internal_error;
use crate::nats::jetstream::{self, PublishError};
use crate::relay::read_event;

/// The record of a job's request, if it has one and that was not deleted.
pub(super) async fn record(endpoint: &Endpoint, job: &JobId) -> Result<Option<Record>, ApiError> {
    let asked = ask(endpoint, async |connection| {
        let last = jetstream::last_by_subject([request(job)]);
        Ok(connection.direct_get(REQUESTS_STREAM, last).await?.into_payloads())
    });
    let payloads = asked.await.map_err(|error| unavailable(job, &error))?;
    let record = payloads.last().map(|payload| kept::read(payload)).transpose();
    record.map_err(|error| {
        log(&format!("job {job}"), error);
        internal_error()
    })
}

/// Keeps a new record; whether there was none before.
pub(super) async fn create(endpoint: &Endpoint, record: &Record) -> Result<bool, ApiError> {
    let stored =
        store(endpoint, &record.job, |max_payload| kept::message(record, true, unix_ms(), max_payload));
    match stored.await? {
        Ok(()) => Ok(true),
        Err(PublishError::Exists) => Ok(false),
        Err(error) => Err(refused(&record.job, &error)),
    }
}

/// Keeps a record in place of the one that is there.
pub(super) async fn replace(endpoint: &Endpoint, record: &Record) -> Result<(), ApiError> {
    let stored =
        store(endpoint, &record.job, |max_payload| kept::message(record, false, unix_ms(), max_payload));
    stored.await?.map_err(|error| refused(&record.job, &error))
}

/// Deletes a record.
pub(super) async fn delete(endpoint: &Endpoint, job: &Job) -> Result<(), ApiError> {
    let stored = store(endpoint, job, |_| kept::deletion(job, unix_ms())).await?;
    stored.map_err(|error| refused(job, &error))
}

/// Deletes the record of a job that was not queued after all.
pub(super) async fn withdraw(endpoint: &Endpoint, job: &Job) {
    if let Ok(Err(error)) = store(endpoint, job, |_| kept::withdrawal(job)).await {
        log(&format!("job {}", job.id), error);
    }
}

/// A job's log as far as it is written.
pub(super) async fn event_log(endpoint: &Endpoint, job: &Job) -> Result<Vec<Event>, ApiError> {
    let (stream, subject) = job.log();
    let asked = ask(endpoint, async |connection| {
        let (mut payloads, mut from) = (Vec::new(), Some(1));
        while let Some(first) = from {
            let batch = connection.direct_get(stream, jetstream::next_by_subject(&subject, first)).await?;
            from = batch.more();
            payloads.extend(batch.into_payloads());
        }
        Ok(payloads)
    });
    let payloads = asked.await.map_err(|error| unavailable(&job.id, &error))?;
    let events: Result<Vec<Event>, _> = payloads.iter().map(|payload| read_event(payload)).collect();
    events.map_err(|fault| {
        log(&format!("job {}", job.id), &fault);
        ApiError::from(&fault)
    })
}

/// Stores a message of a bucket, which may be done twice.
async fn store(
    endpoint: &Endpoint,
    job: &Job,
    message: impl Fn(usize) -> Result<MessageBase, ApiError>,
) -> Result<Result<(), PublishError>, ApiError> {
    let asked = ask(endpoint, async |connection| match message(connection.max_payload()) {
        Ok(message) => publish(connection, message).await.map(Ok),
        Err(error) => Ok(Err(error)),
    });
    asked.await.map_err(|error| unavailable(&job.id, &error))?
}

async fn publish(
    connection: &mut Connection,
    message: MessageBase,
) -> Result<Result<(), PublishError>, BusError> {
    let inbox = connection.new_inbox()?;
    connection.publish(MessageBase { reply_subject: Some(inbox.clone()), ..message });
    let reply = async {
        loop {
            let message = poll_fn(|cx| connection.poll_message(cx)).await?;
            if message.base.subject == inbox {
                return Ok(jetstream::read_ack(&message));
            }
        }
    };
    within(REPLY_TIMEOUT, reply).await.unwrap_or(Err(BusError::Timeout("keeping a request")))
}

/// Asks NATS, over an idle connection if one lives.
async fn ask<T>(
    endpoint: &Endpoint,
    ask: impl AsyncFn(&mut Connection) -> Result<T, BusError>,
) -> Result<T, BusError> {
    let reused = match bus::idle(endpoint) {
        Some(mut connection) => match ask(&mut connection).await {
            // One that died while it waited is no reason to fail.
            Err(BusError::Closed | BusError::Refused(_)) => None,
            answer => Some((connection, answer)),
        },
        None => None,
    };
    let (connection, answer) = match reused {
        Some(answered) => answered,
        None => {
            let mut connection = bus::connect_unless_resting(endpoint).await?;
            let answer = ask(&mut connection).await;
            (connection, answer)
        }
    };
    match &answer {
        Ok(_) => bus::give_back(endpoint, connection),
        Err(BusError::Timeout(_)) => bus::rest(endpoint),
        Err(_) => {}
    }
    answer
}

fn unavailable(job: &JobId, error: &BusError) -> ApiError {
    log(&format!("job {job}"), error);
    ApiError::from(error)
}

fn refused(job: &Job, error: &PublishError) -> ApiError {
    log(&format!("job {}", job.id), error);
    ApiError::from(error)
}
