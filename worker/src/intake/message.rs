//! Reads a job from a message of the queue.

use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::job::Job;
use emberline_protocol::malformed::Malformed;
use emberline_protocol::subject::{self, JobId};
use serde::Deserialize;

/// Why a message can't be run. It is logged and becomes a header, so it quotes nothing of the message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Its payload is not a job.
    #[error("it is not a job: {0}")]
    NotAJob(#[from] Malformed),
    /// A function of another version wrote it.
    #[error("{}", emberline_protocol::upgrade(*.0, "function", "worker"))]
    Version(u32),
    /// It is in another model's queue.
    #[error("it is for another model than its queue")]
    WrongModel,
}

/// Parses a job from a message on `subject`.
pub(super) fn parse(payload: &[u8], subject: &str) -> Result<Job, Refusal> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    // The version comes first: another job may have other fields.
    let Version { v } = serde_json::from_slice(payload).map_err(Malformed::from)?;
    if v != PROTOCOL_VERSION {
        return Err(Refusal::Version(v));
    }
    let job: Job = serde_json::from_slice(payload).map_err(Malformed::from)?;
    if subject::model_of_jobs(subject).as_ref() != Some(&job.model) {
        return Err(Refusal::WrongModel);
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
