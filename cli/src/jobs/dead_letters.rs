//! The dead letters: jobs that were given up, in the stream that workers put them into.

use async_nats::Client;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::dead_letter::{ATTEMPTS_HEADER, QUEUED_ON_HEADER, REASON_HEADER};
use emberline_protocol::job::Job;
use emberline_protocol::subject::{DEAD_STREAM, DEAD_SUBJECTS, JobId, model_of_dead};
use serde_json::{Value, json};

use crate::nats::access::AccessError;
use crate::nats::jetstream_api::{self, JetStreamError};
use crate::nats::stored::{Start, Stored, each_stored};
use crate::time_format;

/// All of them.
pub(super) struct DeadLetters {
    client: Client,
}

/// A job that was given up.
#[derive(Debug)]
pub(super) struct Letter {
    sequence: u64,
    pub(super) id: Option<JobId>,
    pub(super) model: String,
    /// When it was given up, unix milliseconds.
    pub(super) when: Option<u64>,
    pub(super) attempts: Option<String>,
    pub(super) reason: String,
    queued_on: Option<String>,
    payload: Vec<u8>,
}

/// A dead letter can't be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum LettersError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("no job with the id {0} was given up; `emberline jobs list` shows those that were")]
    Unknown(JobId),
    #[error("the job can't be read: {0}; `emberline jobs show` shows it as it is")]
    Unreadable(String),
    #[error("the job has version {0}, this program knows {PROTOCOL_VERSION}; upgrade emberline")]
    Version(u64),
    #[error("the job was not removed: {0}")]
    NotRemoved(#[from] JetStreamError),
}

impl DeadLetters {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Every one of them, the oldest first.
    pub(super) async fn list(&self) -> Result<Vec<Letter>, LettersError> {
        let mut letters = Vec::new();
        let take = |stored| letters.push(Letter::from(stored));
        each_stored(&self.client, DEAD_STREAM, DEAD_SUBJECTS, Start::FIRST, take).await?;
        Ok(letters)
    }

    /// The one of this job.
    pub(super) async fn find(&self, id: &JobId) -> Result<Letter, LettersError> {
        let mut found = None;
        let take = |stored| {
            let letter = Letter::from(stored);
            if letter.id.as_ref() == Some(id) {
                found = Some(letter);
            }
        };
        each_stored(&self.client, DEAD_STREAM, DEAD_SUBJECTS, Start::FIRST, take).await?;
        found.ok_or_else(|| LettersError::Unknown(id.clone()))
    }

    /// Removes one for good; one that is gone already is as good.
    pub(super) async fn remove(&self, letter: &Letter) -> Result<(), LettersError> {
        match jetstream_api::delete_message(&self.client, DEAD_STREAM, letter.sequence).await {
            Err(error) if !error.is_absence() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Letter {
    /// What a worker was to do.
    pub(super) fn job(&self) -> Result<Job, LettersError> {
        let unreadable = |error: serde_json::Error| LettersError::Unreadable(error.to_string());
        let job: Value = serde_json::from_slice(&self.payload).map_err(unreadable)?;
        // The version first: a newer job may look different.
        match job["v"].as_u64() {
            Some(version) if version > u64::from(PROTOCOL_VERSION) => Err(LettersError::Version(version)),
            _ => serde_json::from_value(job).map_err(unreadable),
        }
    }

    /// A line's worth of it.
    pub(super) fn summary(&self) -> Value {
        json!({
            "id": self.id,
            "model": self.model,
            "given_up": self.when.map(time_format::rfc3339),
            "attempts": self.attempts.as_ref().and_then(|attempts| attempts.parse::<u32>().ok()),
            "reason": self.reason,
        })
    }

    /// All of it; what is no JSON is text.
    pub(super) fn described(&self) -> Value {
        let text = || Value::from(String::from_utf8_lossy(&self.payload));
        let mut all = self.summary();
        all["queued_on"] = json!(self.queued_on);
        all["job"] = serde_json::from_slice(&self.payload).unwrap_or_else(|_| text());
        all
    }
}

impl From<Stored> for Letter {
    fn from(stored: Stored) -> Self {
        let header = |name: &str| stored.header(name).map(str::to_owned);
        let id = header("Nats-Msg-Id").and_then(|id| JobId::try_from(id).ok());
        let model = model_of_dead(&stored.subject).unwrap_or_else(|| stored.subject.clone());
        Self {
            sequence: stored.sequence,
            id,
            model,
            when: stored.header("Nats-Time-Stamp").and_then(time_format::parse_rfc3339),
            attempts: header(ATTEMPTS_HEADER),
            reason: header(REASON_HEADER).unwrap_or_default(),
            queued_on: header(QUEUED_ON_HEADER),
            payload: stored.payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::HeaderMap;

    fn letter(payload: &[u8]) -> Letter {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", JobId::from_random(7).as_str());
        headers.insert("Nats-Time-Stamp", "2026-11-23T08:41:40.042123456Z");
        headers.insert(ATTEMPTS_HEADER, "3");
        headers.insert(REASON_HEADER, "its workers died");
        let subject = emberline_protocol::subject::dead("a=2Eb");
        Letter::from(Stored { subject, sequence: 5, headers, payload: payload.to_vec() })
    }

    #[test]
    fn what_a_worker_said_is_told() {
        let told = letter(br#"{"v":3}"#).described();
        let wanted = json!({
            "id": "00000000000000000000000000000007",
            "model": "a.b",
            "given_up": "2026-11-23T08:41:40.042Z",
            "attempts": 3,
            "reason": "its workers died",
            "queued_on": null,
            "job": {"v": 3},
        });
        assert_eq!(told, wanted);
    }

    #[test]
    fn what_is_no_job_is_shown_as_text_and_not_run() {
        let broken = letter(b"no job");
        assert_eq!(broken.described()["job"], "no job");
        assert!(matches!(broken.job(), Err(LettersError::Unreadable(_))));
        let newer = letter(br#"{"v":99,"new":true}"#);
        assert!(matches!(newer.job(), Err(LettersError::Version(99))));
        assert!(matches!(letter(br#"{"v":3}"#).job(), Err(LettersError::Unreadable(_))));
    }
}
