//! Reads a job from a message of the queue.

use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::job::Job;
use emberline_protocol::subject::{self, JobId};
use serde::Deserialize;

/// Why a message can't be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Its payload is not a job.
    #[error("it is not a job: {0}")]
    NotAJob(String),
    /// A function of another version wrote it.
    #[error("{}", emberline_protocol::upgrade(*.0, "function", "worker"))]
    Version(u32),
    /// It is in another model's queue.
    #[error("it is for model '{0}', but was queued for another")]
    WrongModel(String),
}

/// Parses a job from a message on `subject`.
pub(super) fn parse(payload: &[u8], subject: &str) -> Result<Job, Refusal> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    // The version comes first: another job may have other fields.
    let not_a_job = |e: serde_json::Error| Refusal::NotAJob(e.to_string());
    let Version { v } = serde_json::from_slice(payload).map_err(not_a_job)?;
    if v != PROTOCOL_VERSION {
        return Err(Refusal::Version(v));
    }
    let job: Job = serde_json::from_slice(payload).map_err(not_a_job)?;
    if subject::model_of_jobs(subject).as_ref() != Some(&job.model) {
        return Err(Refusal::WrongModel(job.model));
    }
    Ok(job)
}

/// The id of a message that may not be a job: its `id` field, or else its message id.
pub(super) fn id_of(message: &async_nats::Message) -> Option<JobId> {
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

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
