//! Names in NATS: streams, buckets, consumers, and the subjects of each job.

use std::collections::BTreeSet;
use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::PROTOCOL_VERSION;
use crate::key::KeyId;
use crate::lane::Lane;

/// The subjects of tokenization requests, one for each model.
pub const TOKENS_SUBJECTS: &str = "emberline.tokens.*";
/// The queue group in which workers receive what any of them may answer.
pub const WORKERS_QUEUE: &str = "workers";
/// Stream of the jobs that wait or run (work queue).
pub const JOBS_STREAM: &str = "JOBS";
/// Every job subject.
pub const JOBS_SUBJECTS: &str = "emberline.jobs.*.*";
/// Stream of the jobs' event logs.
pub const EVENTS_STREAM: &str = "EVENTS";
/// Every event subject.
pub const EVENTS_SUBJECTS: &str = "emberline.events.*";
/// Every live subject.
pub const LIVE_SUBJECTS: &str = "emberline.live.*";
/// The subjects on which workers ask relays what they have sent, one for each job.
pub const SENT_SUBJECTS: &str = "emberline.sent.*";
/// The subjects of orphaned jobs, one for each model.
pub const ORPHANS_SUBJECTS: &str = "emberline.orphans.*";
/// The subjects of control messages, one for each job.
pub const CONTROL_SUBJECTS: &str = "emberline.control.*";
/// Stream of the jobs for which nobody waits any more. Functions write here and not into [`EVENTS_STREAM`],
/// where one message may take the place of others.
pub const WITHDRAWN_STREAM: &str = "WITHDRAWN";
/// Every withdrawn job's subject.
pub const WITHDRAWN_SUBJECTS: &str = "emberline.withdrawn.*";
/// Stream of dead letters: jobs that workers gave up.
pub const DEAD_STREAM: &str = "DEAD";
/// Every dead letter subject.
pub const DEAD_SUBJECTS: &str = "emberline.dead.*";
/// Stream of the event logs that outlast their clients, for jobs whose answer can be fetched again.
pub const KEPT_STREAM: &str = "KEPT";
/// Every event subject in [`KEPT_STREAM`].
pub const KEPT_SUBJECTS: &str = "emberline.kept.*";
/// Where a worker is asked to erase the event log of a deleted request ([`crate::stored_request::EraseRequest`]).
pub const ERASE_SUBJECT: &str = "emberline.erase";
/// The queue group in which workers receive these requests.
pub const ERASE_QUEUE: &str = "workers";
/// Key-value bucket of the requests whose answer can be fetched again.
pub const REQUESTS_BUCKET: &str = "requests";
/// The stream behind [`REQUESTS_BUCKET`].
pub const REQUESTS_STREAM: &str = "KV_requests";
/// Every request's subject in [`REQUESTS_STREAM`].
pub const REQUESTS_SUBJECTS: &str = "$KV.requests.>";
/// Key-value bucket of the workers' heartbeats and of their summaries by model.
pub const WORKERS_BUCKET: &str = "workers";
/// The stream behind [`WORKERS_BUCKET`].
pub const WORKERS_STREAM: &str = "KV_workers";
/// Every subject in [`WORKERS_STREAM`].
pub const WORKERS_SUBJECTS: &str = "$KV.workers.>";
/// Every heartbeat's subject there.
pub const HEARTBEATS_SUBJECTS: &str = "$KV.workers.*.*";
/// Every summary's subject there, of any protocol version. Workers of version 4 have their heartbeats here, too.
pub const SUMMARIES_SUBJECTS: &str = "$KV.workers.*";
/// What stands for the model in the key of a worker that takes no jobs: no model's [`model_token`].
pub const NO_MODEL: &str = "=";
/// The stream behind the key-value bucket of API keys.
pub const KEYS_STREAM: &str = "KV_keys";
/// Every key's subject in [`KEYS_STREAM`].
pub const KEYS_SUBJECTS: &str = "$KV.keys.*";
/// Stream of the jobs' usage.
pub const USAGE_STREAM: &str = "USAGE";
/// Every key's subject in [`USAGE_STREAM`].
pub const USAGE_SUBJECTS: &str = "emberline.usage.*";

/// The oldest nats-server version that this protocol supports, as (major, minor).
pub const MIN_NATS_VERSION: (u32, u32) = (2, 12);

/// Whether `version`, from a server's `INFO`, is at least [`MIN_NATS_VERSION`].
pub fn is_supported_nats(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= MIN_NATS_VERSION,
        _ => false,
    }
}

/// Encodes a model name as one subject token that is also a valid consumer and key name.
///
/// ASCII letters, digits, `-` and `_` stand for themselves; every other byte becomes `=XX`.
pub fn model_token(model: &str) -> String {
    let mut token = String::with_capacity(model.len());
    for byte in model.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("={byte:02X}"));
        }
    }
    token
}

/// The model whose [`model_token`] this is.
pub fn model_of_token(token: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'=' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            plain => plain,
        });
    }
    let model = String::from_utf8(bytes).ok()?;
    (model_token(&model) == token).then_some(model)
}

/// The model to whose queue `subject` belongs, in any lane; `None` if it is not a job subject.
pub fn model_of_jobs(subject: &str) -> Option<String> {
    let (model, lane) = subject.strip_prefix("emberline.jobs.")?.split_once('.')?;
    lane.parse::<Lane>().ok()?;
    model_of_token(model)
}

/// The model of the dead letters on `subject`; `None` if it is not a dead letter subject.
pub fn model_of_dead(subject: &str) -> Option<String> {
    model_of_token(subject.strip_prefix("emberline.dead.")?)
}

/// The subject that jobs for `model` are published to in one lane of its queue.
pub fn jobs(model: &str, lane: Lane) -> String {
    format!("emberline.jobs.{}.{lane}", model_token(model))
}

/// The durable consumer from which workers pull jobs for `model` in one lane of its queue.
pub fn jobs_consumer(model: &str, lane: Lane) -> String {
    format!("worker-{}-{lane}", model_token(model))
}

/// The subject of the dead letters of the model with this [`model_token`].
pub fn dead(token: &str) -> String {
    format!("emberline.dead.{token}")
}

/// The subjects of a worker's heartbeat: one for each model that it takes jobs for, or one without a model.
pub fn heartbeats<'a>(worker: &str, models: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let subject = |model: &str| format!("$KV.{WORKERS_BUCKET}.{model}.{worker}");
    let subjects: BTreeSet<String> = models.into_iter().map(|model| subject(&model_token(model))).collect();
    if subjects.is_empty() { BTreeSet::from([subject(NO_MODEL)]) } else { subjects }
}

/// The heartbeats of all workers that take jobs for `model`.
pub fn model_heartbeats(model: &str) -> String {
    format!("$KV.{WORKERS_BUCKET}.{}.*", model_token(model))
}

/// The subject of a model's summary, which workers of this protocol version keep.
pub fn model_summary(model: &str) -> String {
    format!("$KV.{WORKERS_BUCKET}.v{PROTOCOL_VERSION}={}", model_token(model))
}

/// The subject of a job's event log.
pub fn events(job: &JobId) -> String {
    format!("emberline.events.{job}")
}

/// The subject on which a job's events are published as they happen, and stored by nobody.
pub fn live(job: &JobId) -> String {
    format!("emberline.live.{job}")
}

/// The subject on which a function says that nobody waits for a job any more, for a worker that takes it later.
pub fn withdrawn(job: &JobId) -> String {
    format!("emberline.withdrawn.{job}")
}

/// The subject of a job's event log in [`KEPT_STREAM`].
pub fn kept_events(job: &JobId) -> String {
    format!("emberline.kept.{job}")
}

/// The subject in [`REQUESTS_STREAM`] of the stored request with this job.
pub fn request(job: &JobId) -> String {
    format!("$KV.requests.{job}")
}

/// What the subjects of a NATS user's inboxes begin with. Each user may subscribe to its own only, so that
/// none sees what another is sent.
pub fn inbox_prefix(user: &str) -> String {
    format!("_INBOX_{user}")
}

/// The subject of [`crate::control::Control`] messages to the worker that runs `job`.
pub fn control(job: &JobId) -> String {
    format!("emberline.control.{job}")
}

/// The subject on which a relay answers a [`crate::control::SentQuestion`] about its job.
pub fn sent(job: &JobId) -> String {
    format!("emberline.sent.{job}")
}

/// The subject on which workers of `model` are told of [`crate::control::Orphan`]s; one of them takes each.
pub fn orphans(model: &str) -> String {
    format!("emberline.orphans.{}", model_token(model))
}

/// What acknowledges a delivery of a job of `model` begins with one of these, one for each lane.
pub fn job_acks(model: &str) -> [String; 4] {
    Lane::ALL.map(|lane| format!("$JS.ACK.{JOBS_STREAM}.{}.", jobs_consumer(model, lane)))
}

/// The subject of the record of the key with this SHA-256.
pub fn key(hash: &[u8; 32]) -> String {
    format!("$KV.keys.{}", HEXLOWER.encode(hash))
}

/// The subject of a key's usage events.
pub fn usage(key: &KeyId) -> String {
    format!("emberline.usage.{key}")
}

/// The subject of tokenization requests to the workers that serve `model`.
pub fn tokens(model: &str) -> String {
    format!("emberline.tokens.{}", model_token(model))
}

/// A job's id: 32 lower-case hexadecimal digits, safe in subjects, headers and URLs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

/// A string that is not a job id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a job id is 32 lower-case hexadecimal digits")]
pub struct InvalidJobId;

impl JobId {
    /// Makes an id from 128 random bits.
    pub fn from_random(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for JobId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobId {
    type Error = InvalidJobId;

    fn try_from(id: String) -> Result<Self, InvalidJobId> {
        let decoded = HEXLOWER.decode(id.as_bytes());
        if decoded.is_ok_and(|bytes| bytes.len() == 16) { Ok(Self(id)) } else { Err(InvalidJobId) }
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for good in ["2.12", "2.12.0", "2.15.1", "2.100.0-beta.1", "3.0.0"] {
            assert!(is_supported_nats(good), "{good}");
        }
        for bad in ["2.11.9", "2.9.25", "1.99.0", "", "2", "x.y", "2.-1"] {
            assert!(!is_supported_nats(bad), "{bad}");
        }
    }

    #[test]
    fn plain_model_names_stay_readable() {
        let lane = Lane::default();
        assert_eq!(jobs("smollm2-135m-instruct", lane), "emberline.jobs.smollm2-135m-instruct.0");
        assert_eq!(jobs("Qwen/Qwen2.5 *>", lane), "emberline.jobs.Qwen=2FQwen2=2E5=20=2A=3E.0");
    }

    #[test]
    fn a_worker_is_found_by_each_of_its_models_or_without_one() {
        let subjects = |models: &[&str]| Vec::from_iter(heartbeats("w", models.iter().copied()));
        assert_eq!(subjects(&["b.c", "a"]), ["$KV.workers.a.w", "$KV.workers.b=2Ec.w"]);
        assert_eq!(subjects(&[]), ["$KV.workers.=.w"]);
        assert_eq!(model_of_token(NO_MODEL), None);
        assert_eq!(model_heartbeats("b.c"), "$KV.workers.b=2Ec.*");
        assert_eq!(model_summary("b.c"), format!("$KV.workers.v{PROTOCOL_VERSION}=b=2Ec"));
    }

    #[test]
    fn a_model_is_found_by_the_subject_of_any_of_its_lanes() {
        for lane in Lane::ALL {
            assert_eq!(model_of_jobs(&jobs("a.b", lane)).as_deref(), Some("a.b"));
        }
        for subject in ["emberline.jobs.a", "emberline.jobs.a.4", "emberline.jobs.a.0.0", "jobs.a.0", ""] {
            assert_eq!(model_of_jobs(subject), None, "{subject}");
        }
    }

    proptest! {
        #[test]
        fn a_model_is_one_token_and_no_two_share_it(a in ".{1,20}", b in ".{1,20}") {
            let token = model_token(&a);
            prop_assert!(token.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_=".contains(&c)));
            prop_assert_eq!(a == b, token == model_token(&b));
            prop_assert_eq!(model_of_token(&token), Some(a));
        }

        #[test]
        fn no_other_token_is_a_model(token in "[a-fA-F0-9=._ -]{0,8}") {
            if let Some(model) = model_of_token(&token) {
                prop_assert_eq!(model_token(&model), token);
            }
        }

        #[test]
        fn only_ids_become_job_ids(s in "[0-9a-fA-F.>*]{30,33}") {
            let valid = s.len() == 32 && s.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
            prop_assert_eq!(JobId::try_from(s).is_ok(), valid);
        }
    }
}
