//! Requests whose answer can be asked for again, by the id of a background response or by a repeat with the same
//! `Idempotency-Key`: how they are stored in NATS, and what a repeat must have in common with its original.
//! [`store`] writes and reads them.

pub mod store;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use emberline_api::paths::Paths;
use emberline_api::responses::ResponseSpec;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::Job;
use emberline_protocol::key::KeyId;
use emberline_protocol::malformed::Malformed;
use emberline_protocol::stored_request::CancelState;
use emberline_protocol::subject::{self, JobId};
use http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use watermelon_proto::headers::{
    HeaderMap as NatsHeaders, HeaderName as NatsHeaderName, HeaderValue as NatsHeaderValue,
};
use watermelon_proto::{MessageBase, Subject};

use crate::http::reply::internal_error;
use crate::relay::OutputLimits;

/// Names a request, so that a repeat is known as one.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest idempotency key.
const MAX_KEY: usize = 255;
/// Room for a message's headers within `max_payload`, which counts them, too.
const HEADERS: usize = 256;
/// How long the deletion of a request that was never queued is remembered, in seconds.
const FORGOTTEN_S: u64 = 1;

/// A request, under its first job's id in the `requests` bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredRequest {
    /// [`emberline_protocol::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The only key that may ask for the answer.
    pub key: KeyId,
    /// SHA-256 of the request's body, in hexadecimal.
    pub body_sha256: String,
    /// The model as the client wrote it.
    pub model: String,
    /// The job that was queued.
    pub job: Job,
    /// The jobs of further prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Job>,
    /// Largest number of tokens of a choice.
    pub max_tokens: u32,
    /// What a response says besides its output; `None` for other answers.
    #[serde(rename = "outline", default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ResponseSpec>,
    /// Whether the job is still wanted.
    #[serde(flatten)]
    pub cancel: CancelState,
}

/// The idempotency key of a request, if it has one.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let printable = |text: &&str| text.bytes().all(|b| (b' '..=b'~').contains(&b));
    match value.to_str().ok().filter(printable) {
        Some(key) if (1..=MAX_KEY).contains(&key.len()) && values.next().is_none() => Ok(Some(key)),
        _ => {
            let message = format!(
                "The header 'Idempotency-Key' must be 1 to {MAX_KEY} printable ASCII characters. A UUID will do."
            );
            Err(ApiError::field(ErrorCode::InvalidValue, IDEMPOTENCY_KEY.as_str(), message))
        }
    }
}

/// The SHA-256 of a request's body, in hexadecimal.
pub fn body_sha256(body: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(body))
}

/// The bits of the job's id of a request with an `Idempotency-Key`: the same for every repeat.
pub fn idempotent_id(key: &KeyId, path: &str, idempotency_key: &str) -> u128 {
    // None of the first two has a line end.
    let digest = Sha256::digest(format!("{key}\n{path}\n{idempotency_key}"));
    digest.iter().take(16).fold(0, |bits, byte| (bits << 8) | u128::from(*byte))
}

/// Refuses a repeat whose body is not that of the request.
pub fn check_repeat(request: &StoredRequest, body: &[u8]) -> Result<(), ApiError> {
    if request.body_sha256 == body_sha256(body) {
        return Ok(());
    }
    let message =
        "This 'Idempotency-Key' came with another body before. Use another key for another request.";
    Err(reused(message))
}

/// The error for a repeat of a request whose answer was deleted.
pub fn deleted() -> ApiError {
    reused("The answer to the request with this 'Idempotency-Key' was deleted. Use another key.")
}

fn reused(message: &str) -> ApiError {
    ApiError::field(ErrorCode::IdempotencyKeyReused, IDEMPOTENCY_KEY.as_str(), message)
}

/// What each of its jobs may produce at most.
pub fn output_limits(request: &StoredRequest) -> OutputLimits {
    OutputLimits::of(&request.job.request, request.max_tokens)
}

/// What the body of a response's request calls its job's fields.
pub fn paths(request: &StoredRequest) -> Paths {
    request.spec.as_ref().map(|spec| spec.paths.clone()).unwrap_or_default()
}

/// What `jobs` jobs may produce together.
pub fn joined_limits(each: OutputLimits, jobs: usize) -> OutputLimits {
    let jobs = u32::try_from(jobs).unwrap_or(u32::MAX);
    OutputLimits { choices: each.choices.saturating_mul(jobs), ..each }
}

/// The message that stores `request`: as a new one, or in place of the one that is there.
pub fn message(
    request: &StoredRequest,
    is_new: bool,
    now_ms: u64,
    max_payload: usize,
) -> Result<MessageBase, ApiError> {
    let payload = serde_json::to_vec(request).map_err(|_| internal_error())?;
    if payload.len().saturating_add(HEADERS) > max_payload {
        let message = "The request is larger than the message bus takes. Send a shorter one.";
        return Err(ApiError::new(ErrorCode::RequestTooLarge, message));
    }
    let ttl_s = request.job.kept_for_s(now_ms).ok_or_else(internal_error)?;
    let mut message = bucket_message(&request.job.id, ttl_s, payload)?;
    if is_new {
        insert(&mut message.headers, "Nats-Expected-Last-Subject-Sequence", "0")?;
    }
    Ok(message)
}

/// The message that deletes a stored request, for as long as it would be stored.
pub fn deletion(job: &Job, now_ms: u64) -> Result<MessageBase, ApiError> {
    bucket_message(&job.id, job.kept_for_s(now_ms).ok_or_else(internal_error)?, Vec::new())
}

/// The same for a request that was not queued after all: the client may soon repeat it.
pub fn withdrawal(job: &Job) -> Result<MessageBase, ApiError> {
    bucket_message(&job.id, FORGOTTEN_S, Vec::new())
}

fn bucket_message(job: &JobId, ttl_s: u64, payload: Vec<u8>) -> Result<MessageBase, ApiError> {
    let subject = Subject::try_from(subject::request(job)).map_err(|_| internal_error())?;
    let mut headers = NatsHeaders::new();
    insert(&mut headers, "Nats-TTL", &ttl_s.to_string())?;
    if payload.is_empty() {
        insert(&mut headers, "KV-Operation", "DEL")?;
    }
    Ok(MessageBase { subject, reply_subject: None, headers, payload: Bytes::from(payload) })
}

fn insert(headers: &mut NatsHeaders, name: &'static str, value: &str) -> Result<(), ApiError> {
    let value = NatsHeaderValue::from_bytes(value.as_bytes()).map_err(|_| internal_error())?;
    headers.insert(NatsHeaderName::from_static(name), value);
    Ok(())
}

/// A stored request that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum Unreadable {
    #[error("a stored request can't be read: {0}")]
    Malformed(#[from] Malformed),
    #[error("a stored request has version {0}; update the function, which reads up to {PROTOCOL_VERSION}")]
    Version(u32),
}

/// Reads a stored request.
pub fn read(payload: &[u8]) -> Result<StoredRequest, Unreadable> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    // The version first: a newer record may look different.
    let Version { v } = serde_json::from_slice(payload).map_err(Malformed::from)?;
    if v > PROTOCOL_VERSION {
        return Err(Unreadable::Version(v));
    }
    Ok(serde_json::from_slice(payload).map_err(Malformed::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::codec::encode;
    use emberline_protocol::job::GenerationRequest;
    use proptest::prelude::*;
    use watermelon_proto::proto::ClientOp;

    fn record() -> StoredRequest {
        let job = Job {
            v: PROTOCOL_VERSION,
            id: JobId::from_random(7),
            model: "m".into(),
            created: 10_000,
            deadline: 70_000,
            request: GenerationRequest { n: 2, ..GenerationRequest::default() },
            seed: 1,
            background: Some(600),
            account: None,
        };
        StoredRequest {
            v: PROTOCOL_VERSION,
            key: KeyId::of_key(b"k"),
            body_sha256: body_sha256(b"{}"),
            model: "alias".into(),
            job,
            others: Vec::new(),
            max_tokens: 9,
            spec: Some(ResponseSpec::default()),
            cancel: CancelState::default(),
        }
    }

    fn text(message: MessageBase) -> String {
        String::from_utf8(encode(&ClientOp::Publish { message }).to_vec()).unwrap()
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let message = message(&record(), true, 10_000, 1 << 20).unwrap();
        assert_eq!(message.subject.as_str(), format!("$KV.requests.{}", record().job.id));
        assert_eq!(read(&message.payload), Ok(record()));
        assert_eq!(
            output_limits(&record()),
            OutputLimits { choices: 2, tokens: 9, ..OutputLimits::default() }
        );
    }

    #[test]
    fn it_is_kept_past_its_deadline_and_no_longer_when_it_changes() {
        let first = text(message(&record(), true, 10_000, 1 << 20).unwrap());
        assert!(first.contains("Nats-TTL: 660\r\n"), "{first}");
        assert!(first.contains("Nats-Expected-Last-Subject-Sequence: 0\r\n"));
        let changed = text(message(&record(), false, 60_500, 1 << 20).unwrap());
        assert!(changed.contains("Nats-TTL: 610\r\n") && !changed.contains("Expected"), "{changed}");
        let deleted = text(deletion(&record().job, 60_500).unwrap());
        assert!(deleted.contains("Nats-TTL: 610\r\n") && deleted.contains("KV-Operation: DEL\r\n"));
        assert!(text(withdrawal(&record().job).unwrap()).contains("Nats-TTL: 1\r\n"));
        let ordinary = Job { background: None, ..record().job };
        assert_eq!(
            message(&StoredRequest { job: ordinary, ..record() }, true, 0, 1 << 20).unwrap_err(),
            internal_error()
        );
    }

    #[test]
    fn the_servers_limit_holds() {
        let size = serde_json::to_vec(&record()).unwrap().len() + HEADERS;
        let whole = message(&record(), true, 0, size).unwrap();
        assert!(encode(&ClientOp::Publish { message: whole.clone() }).len() - whole.payload.len() < HEADERS);
        assert_eq!(message(&record(), true, 0, size - 1).unwrap_err().code, ErrorCode::RequestTooLarge);
    }

    #[test]
    fn only_the_same_body_is_a_repeat() {
        assert_eq!(check_repeat(&record(), b"{}"), Ok(()));
        let error = check_repeat(&record(), b"{ }").unwrap_err();
        assert_eq!((error.code.status(), error.param.as_deref()), (409, Some("idempotency-key")));
    }

    #[test]
    fn an_idempotency_key_is_printable() {
        let of = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IDEMPOTENCY_KEY, http::HeaderValue::from_bytes(value).unwrap());
            }
            idempotency_key(&headers).map(|key| key.map(str::to_owned))
        };
        assert_eq!(of(&[]), Ok(None));
        let longest = "x".repeat(255);
        for good in ["a", "0 ~", &longest] {
            assert_eq!(of(&[good.as_bytes()]), Ok(Some(good.to_owned())));
        }
        let too_long = "x".repeat(256);
        for bad in [&[&b""[..]][..], &[b"a\tb"], &["é".as_bytes()], &[too_long.as_bytes()], &[b"a", b"a"]] {
            assert_eq!(of(bad).unwrap_err().code, ErrorCode::InvalidValue, "{bad:?}");
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_quoted() {
        let mut stored = serde_json::to_value(record()).unwrap();
        stored["job"]["request"]["tool_choice"] = "secret".into();
        let error = read(stored.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("can't be read: a field is") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_newer_record_is_refused_as_such() {
        assert_eq!(read(br#"{"v":99,"job":"?"}"#), Err(Unreadable::Version(99)));
    }

    #[test]
    fn an_id_depends_on_key_endpoint_and_idempotency_key() {
        let (one, two) = (KeyId::of_key(b"1"), KeyId::of_key(b"2"));
        let id = idempotent_id(&one, "/v1/responses", "a");
        assert_eq!(id, idempotent_id(&one, "/v1/responses", "a"));
        for other in [
            idempotent_id(&two, "/v1/responses", "a"),
            idempotent_id(&one, "/v1/completions", "a"),
            idempotent_id(&one, "/v1/responses", "b"),
        ] {
            assert_ne!(id, other);
        }
    }

    proptest! {
        #[test]
        fn no_record_makes_the_reader_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&payload).is_err());
        }
    }
}
