//! Dead letters: the jobs that workers gave up, in the stream `DEAD`.

use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::dead_letter::{ATTEMPTS_HEADER, PROMPTS_HEADER, QUEUED_ON_HEADER, REASON_HEADER};
use emberline_protocol::job::Job;
use emberline_protocol::subject::{DEAD_STREAM, DEAD_SUBJECTS, JobId, model_of_dead};
use serde_json::{Value, json};

use crate::nats::access::AccessError;
use crate::nats::access::NatsConnection;
use crate::nats::jetstream_api::{self, JetStreamError};
use crate::nats::stored::{Start, StoredMessage, each_stored};
use crate::time_format;

/// The stream of dead letters.
pub(super) struct DeadLetters {
    client: NatsConnection,
}

/// A job that was given up.
#[derive(Debug)]
pub(super) struct DeadLetter {
    sequence: u64,
    pub(super) id: Option<JobId>,
    pub(super) model: String,
    /// When it was given up, in Unix milliseconds.
    pub(super) given_up_at: Option<u64>,
    pub(super) attempts: Option<String>,
    pub(super) reason: String,
    queued_on: Option<String>,
    /// What its worker did to the prompts, if they are not as they were queued.
    prompts: Option<String>,
    payload: Vec<u8>,
}

/// Why a dead letter can't be read or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeadLetterError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("no job with the id {0} was given up; `emberline jobs list` shows the jobs that were")]
    Unknown(JobId),
    #[error(
        "the job can't be run again: its prompts are not kept ({0}), as its worker's --dead-letter-prompts says; `emberline jobs show` prints what is"
    )]
    NoPrompts(String),
    #[error("the job can't be read: {0}; `emberline jobs show` prints it as it is stored")]
    Unreadable(String),
    #[error(
        "the job has version {0}, but this program knows versions up to {PROTOCOL_VERSION}; upgrade emberline"
    )]
    Version(u64),
    #[error("the job was not removed: {0}")]
    NotRemoved(#[from] JetStreamError),
}

impl DeadLetters {
    pub(super) fn new(client: NatsConnection) -> Self {
        Self { client }
    }

    /// All dead letters, the oldest first.
    pub(super) async fn list(&self) -> Result<Vec<DeadLetter>, DeadLetterError> {
        let mut letters = Vec::new();
        let take = |stored| letters.push(DeadLetter::from(stored));
        each_stored(&self.client, DEAD_STREAM, DEAD_SUBJECTS, Start::FIRST, take).await?;
        Ok(letters)
    }

    /// The dead letter of a job.
    pub(super) async fn find(&self, id: &JobId) -> Result<DeadLetter, DeadLetterError> {
        let mut found = None;
        let take = |stored| {
            let letter = DeadLetter::from(stored);
            if letter.id.as_ref() == Some(id) {
                found = Some(letter);
            }
        };
        each_stored(&self.client, DEAD_STREAM, DEAD_SUBJECTS, Start::FIRST, take).await?;
        found.ok_or_else(|| DeadLetterError::Unknown(id.clone()))
    }

    /// Removes a dead letter for good; it is no error if it is already gone.
    pub(super) async fn remove(&self, letter: &DeadLetter) -> Result<(), DeadLetterError> {
        match jetstream_api::delete_message(&self.client, DEAD_STREAM, letter.sequence).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl DeadLetter {
    /// The job that was given up.
    pub(super) fn job(&self) -> Result<Job, DeadLetterError> {
        if let Some(prompts) = &self.prompts {
            return Err(DeadLetterError::NoPrompts(prompts.clone()));
        }
        let unreadable = |error: serde_json::Error| DeadLetterError::Unreadable(error.to_string());
        let job: Value = serde_json::from_slice(&self.payload).map_err(unreadable)?;
        // The version comes first: a newer job may have other fields.
        match job["v"].as_u64() {
            Some(version) if version > u64::from(PROTOCOL_VERSION) => Err(DeadLetterError::Version(version)),
            _ => serde_json::from_value(job).map_err(unreadable),
        }
    }

    /// The fields that `emberline jobs list` shows.
    pub(super) fn summary(&self) -> Value {
        json!({
            "id": self.id,
            "model": self.model,
            "given_up": self.given_up_at.map(time_format::rfc3339),
            "attempts": self.attempts.as_ref().and_then(|attempts| attempts.parse::<u32>().ok()),
            "reason": self.reason,
            "prompts": self.prompts.as_deref().unwrap_or("keep"),
        })
    }

    /// All fields, with the job as JSON, or as text if it is not valid JSON.
    pub(super) fn details(&self) -> Value {
        let text = || Value::from(String::from_utf8_lossy(&self.payload));
        let mut all = self.summary();
        all["queued_on"] = json!(self.queued_on);
        all["job"] = serde_json::from_slice(&self.payload).unwrap_or_else(|_| text());
        all
    }
}

impl From<StoredMessage> for DeadLetter {
    fn from(stored: StoredMessage) -> Self {
        let header = |name: &str| stored.header(name).map(str::to_owned);
        let id = header("Nats-Msg-Id").and_then(|id| JobId::try_from(id).ok());
        let model = model_of_dead(&stored.subject).unwrap_or_else(|| stored.subject.clone());
        Self {
            sequence: stored.sequence,
            id,
            model,
            given_up_at: stored.header("Nats-Time-Stamp").and_then(time_format::parse_rfc3339),
            attempts: header(ATTEMPTS_HEADER),
            reason: header(REASON_HEADER).unwrap_or_default(),
            queued_on: header(QUEUED_ON_HEADER),
            prompts: header(PROMPTS_HEADER),
            payload: stored.payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::HeaderMap;

    fn letter(payload: &[u8]) -> DeadLetter {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", JobId::from_random(7).as_str());
        headers.insert("Nats-Time-Stamp", "2026-11-23T08:41:40.042123456Z");
        headers.insert(ATTEMPTS_HEADER, "3");
        headers.insert(REASON_HEADER, "its workers died");
        let subject = emberline_protocol::subject::dead("a=2Eb");
        DeadLetter::from(StoredMessage { subject, sequence: 5, headers, payload: payload.to_vec() })
    }

    #[test]
    fn the_details_hold_what_the_worker_recorded() {
        let details = letter(br#"{"v":3}"#).details();
        let wanted = json!({
            "id": "00000000000000000000000000000007",
            "model": "a.b",
            "given_up": "2026-11-23T08:41:40.042Z",
            "attempts": 3,
            "reason": "its workers died",
            "prompts": "keep",
            "queued_on": null,
            "job": {"v": 3},
        });
        assert_eq!(details, wanted);
    }

    #[test]
    fn a_job_without_its_prompts_is_shown_and_not_run() {
        let redacted = DeadLetter { prompts: Some("hash".into()), ..letter(br#"{"v":3}"#) };
        assert_eq!(redacted.details()["prompts"], "hash");
        assert!(redacted.job().unwrap_err().to_string().contains("not kept (hash)"));
    }

    #[test]
    fn what_is_not_a_job_is_shown_as_text_and_not_run() {
        let broken = letter(b"no job");
        assert_eq!(broken.details()["job"], "no job");
        assert!(matches!(broken.job(), Err(DeadLetterError::Unreadable(_))));
        let newer = letter(br#"{"v":99,"new":true}"#);
        assert!(matches!(newer.job(), Err(DeadLetterError::Version(99))));
        assert!(matches!(letter(br#"{"v":3}"#).job(), Err(DeadLetterError::Unreadable(_))));
    }
}
