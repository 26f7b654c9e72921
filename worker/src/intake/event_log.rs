//! Writes one attempt's part of a job's event log.

use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use emberline_shared::PROTOCOL_VERSION;
use emberline_shared::event::{Event, EventKind};
use emberline_shared::subject::{self, JobId};

use crate::bus::Bus;

/// How often the last event is tried, and how long to wait in between: together longer than
/// nats-server takes to restart.
const LAST_EVENT_TRIES: u32 = 5;
const LAST_EVENT_PAUSE: Duration = Duration::from_millis(500);

/// The log of one attempt at a job.
pub struct EventLog {
    bus: Bus,
    job: JobId,
    subject: String,
    attempt: u32,
    next: u32,
}

/// The last event could not be stored, so the job must not be acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("the last event could not be stored: {0}")]
pub struct NotStored(PublishError);

impl EventLog {
    /// The log of `job`'s delivery number `attempt`; nothing written yet.
    pub fn new(bus: Bus, job: JobId, attempt: u32) -> Self {
        let subject = subject::events(&job);
        Self { bus, job, subject, attempt, next: 0 }
    }

    /// Appends an event. A relay reads it live; if it is lost, the relay sees the gap.
    pub async fn append(&mut self, kind: EventKind) {
        let payload = self.encode(kind);
        if let Err(error) = self.bus.client().publish(self.subject.clone(), payload).await {
            tracing::warn!(job = %self.job, %error, "an event was not sent");
        }
    }

    /// Appends the last event and waits until it is stored.
    pub async fn finish(&mut self, kind: EventKind) -> Result<(), NotStored> {
        let index = self.next;
        let payload = self.encode(kind);
        // The id makes a second try harmless if only the first one's answer was lost.
        let id = format!("{}-{}-{index}", self.job, self.attempt);
        let mut tries = 1;
        loop {
            let error = match self.store(&id, payload.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if tries == LAST_EVENT_TRIES {
                return Err(NotStored(error));
            }
            tracing::warn!(job = %self.job, %error, "the last event was not stored; trying again");
            self.bus.doubt();
            tries += 1;
            tokio::time::sleep(LAST_EVENT_PAUSE).await;
        }
    }

    async fn store(&self, id: &str, payload: Bytes) -> Result<(), PublishError> {
        let message = PublishMessage::build().payload(payload).message_id(id);
        self.bus.jetstream().send_publish(self.subject.clone(), message).await?.await?;
        Ok(())
    }

    fn encode(&mut self, kind: EventKind) -> Bytes {
        let event = Event { v: PROTOCOL_VERSION, attempt: self.attempt, index: self.next, kind };
        self.next += 1;
        // Can't fail: string keys, and serde_json writes a float that is no number as null.
        serde_json::to_vec(&event).unwrap_or_default().into()
    }
}
