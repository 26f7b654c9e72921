//! The messages that store a request in the `requests` bucket, change it and delete it.
//!
//! Each of them says which message it takes the place of, so that of two writers only one succeeds: a cancel never
//! brings a deleted request back. Only a deletion takes the place of anything.

use bytes::Bytes;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::read_index::EXPECTED_SEQUENCE_HEADER;
use emberline_protocol::subject::{self, JobId};
use watermelon_proto::headers::{HeaderMap, HeaderName, HeaderValue};
use watermelon_proto::{MessageBase, Subject};

use super::record::{StoredJob, StoredRequest, read};
use crate::http::reply::internal_error;
use crate::nats::current::Record;
use crate::platform::report;

/// Largest stored request, in bytes. What a background response returns of its request may be as long as its body.
pub const MAX_BYTES: usize = 256 * 1024;
/// Room for a message's headers.
pub const HEADERS: usize = 256;
/// Marks the deletion of a request that was not queued after all.
const WITHDRAWN: &str = "Emberline-Withdrawn";
/// How long a withdrawal is stored if no job of the request can be queued, in seconds: not at all, if NATS could.
const FORGOTTEN_S: u64 = 1;

/// What the bucket has of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// Nothing, or a request that was withdrawn: a new one may be stored after this sequence.
    Vacant(u64),
    /// It was deleted, by its client.
    Deleted,
    /// The request.
    Found(Found),
}

/// A request that is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The request.
    pub request: Box<StoredRequest>,
    /// The sequence of its message, which a changed one replaces.
    pub sequence: u64,
}

impl Stored {
    /// Reads what a bucket has of `job`'s request.
    pub fn of(record: Option<Record>, job: &JobId) -> Result<Self, ApiError> {
        let Some(Record { sequence, headers, payload }) = record else { return Ok(Self::Vacant(0)) };
        if payload.is_empty() {
            let is_withdrawn = headers.get(&HeaderName::from_static(WITHDRAWN)).is_some();
            return Ok(if is_withdrawn { Self::Vacant(sequence) } else { Self::Deleted });
        }
        let request = read(&payload).map_err(|error| {
            report(&format!("job {job}"), error);
            internal_error()
        })?;
        Ok(Self::Found(Found { request: Box::new(request), sequence }))
    }
}

/// How a request's jobs failed to be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotQueued {
    /// None of them is queued.
    Refused,
    /// NATS did not say of each.
    Unknown,
}

/// A request, in JSON.
pub fn encode(request: &StoredRequest) -> Result<Bytes, ApiError> {
    let payload = serde_json::to_vec(request).map_err(|_| internal_error())?;
    if payload.len() > MAX_BYTES {
        let message = format!(
            "A background response is stored with what it returns of its request (instructions, tools, text format, \
             metadata), which may have {} KiB; here it has {}. Shorten it, or leave 'background' out.",
            MAX_BYTES.div_euclid(1024),
            payload.len().div_ceil(1024),
        );
        return Err(ApiError::new(ErrorCode::RequestTooLarge, message));
    }
    Ok(payload.into())
}

/// How many bytes a request takes in the bucket.
pub fn stored_bytes(request: &StoredRequest) -> Result<usize, ApiError> {
    Ok(encode(request)?.len().saturating_add(HEADERS))
}

/// The message that stores a request in place of that with sequence `after`, 0 for none.
pub fn request(
    job: &StoredJob,
    encoded: Bytes,
    after: u64,
    now_ms: u64,
    max_payload: usize,
) -> Result<MessageBase, ApiError> {
    if encoded.len().saturating_add(HEADERS) > max_payload {
        let message = "The request is larger than the message bus takes. Send a shorter one.";
        return Err(ApiError::new(ErrorCode::RequestTooLarge, message));
    }
    let mut message = message(job, kept_for_s(job, now_ms)?, encoded)?;
    expect(&mut message, after)?;
    Ok(message)
}

/// The message that deletes a stored request, for as long as it would be stored.
pub fn deletion(job: &StoredJob, now_ms: u64) -> Result<MessageBase, ApiError> {
    let mut message = message(job, kept_for_s(job, now_ms)?, Bytes::new())?;
    insert(&mut message.headers, DELETION.0, DELETION.1)?;
    Ok(message)
}

/// The message that takes back the request with sequence `after`, which was not queued: the client may repeat it.
pub fn withdrawal(
    job: &StoredJob,
    after: u64,
    failure: NotQueued,
    now_ms: u64,
) -> Result<MessageBase, ApiError> {
    // A worker that takes a job reads this.
    let ttl_s = match failure {
        NotQueued::Refused => FORGOTTEN_S,
        NotQueued::Unknown => kept_for_s(job, now_ms)?,
    };
    let mut message = message(job, ttl_s, Bytes::new())?;
    insert(&mut message.headers, DELETION.0, DELETION.1)?;
    insert(&mut message.headers, WITHDRAWN, "true")?;
    expect(&mut message, after)?;
    Ok(message)
}

/// As NATS' clients mark a deleted key (ADR-8).
const DELETION: (&str, &str) = ("KV-Operation", "DEL");

fn kept_for_s(job: &StoredJob, now_ms: u64) -> Result<u64, ApiError> {
    job.kept_for_s(now_ms).ok_or_else(internal_error)
}

fn message(job: &StoredJob, ttl_s: u64, payload: Bytes) -> Result<MessageBase, ApiError> {
    let subject = Subject::try_from(subject::request(&job.id)).map_err(|_| internal_error())?;
    let mut headers = HeaderMap::new();
    insert(&mut headers, "Nats-TTL", &ttl_s.to_string())?;
    Ok(MessageBase { subject, reply_subject: None, headers, payload })
}

fn expect(message: &mut MessageBase, after: u64) -> Result<(), ApiError> {
    insert(&mut message.headers, EXPECTED_SEQUENCE_HEADER, &after.to_string())
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), ApiError> {
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| internal_error())?;
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{job, record};
    use super::*;
    use crate::nats::codec::encode as encode_op;
    use emberline_api::responses::ResponsesRequest;
    use watermelon_proto::proto::ClientOp;

    fn text(message: MessageBase) -> String {
        String::from_utf8(encode_op(&ClientOp::Publish { message }).to_vec()).unwrap()
    }

    fn stored(record: &StoredRequest, after: u64, now_ms: u64) -> MessageBase {
        request(&record.job, encode(record).unwrap(), after, now_ms, 1 << 20).unwrap()
    }

    #[test]
    fn it_is_kept_past_its_deadline_and_no_longer_when_it_changes() {
        let first = stored(&record(), 0, 10_000);
        assert_eq!(first.subject.as_str(), format!("$KV.requests.{}", record().job.id));
        assert_eq!(read(&first.payload), Ok(record()));
        let first = text(first);
        assert!(first.contains("Nats-TTL: 660\r\n"), "{first}");
        assert!(first.contains("Nats-Expected-Last-Subject-Sequence: 0\r\n"));
        let changed = text(stored(&record(), 5, 60_500));
        assert!(changed.contains("Nats-TTL: 610\r\n") && changed.contains("Sequence: 5\r\n"), "{changed}");
        let deleted = text(deletion(&record().job, 60_500).unwrap());
        assert!(deleted.contains("Nats-TTL: 610\r\n") && deleted.contains("KV-Operation: DEL\r\n"));
        assert!(!deleted.contains("Expected"), "a deletion takes the place of anything");
        let ordinary = StoredJob { background: None, ..record().job };
        assert_eq!(request(&ordinary, Bytes::new(), 0, 0, 1 << 20).unwrap_err(), internal_error());
    }

    #[test]
    fn a_withdrawal_is_no_deletion() {
        let withdrawn = |failure| withdrawal(&record().job, 7, failure, 10_000).unwrap();
        let read_back = |message: MessageBase| {
            let record = Record { sequence: 8, headers: message.headers, payload: message.payload };
            Stored::of(Some(record), &job("a").id).unwrap()
        };
        for (failure, ttl) in [(NotQueued::Refused, "1"), (NotQueued::Unknown, "660")] {
            let message = withdrawn(failure);
            assert!(text(message.clone()).contains(&format!("Nats-TTL: {ttl}\r\n")));
            assert!(text(message.clone()).contains("Sequence: 7\r\n"));
            assert_eq!(read_back(message), Stored::Vacant(8));
        }
        assert_eq!(read_back(deletion(&record().job, 0).unwrap()), Stored::Deleted);
        assert_eq!(
            read_back(stored(&record(), 0, 0)),
            Stored::Found(Found { request: Box::new(record()), sequence: 8 })
        );
        assert_eq!(Stored::of(None, &job("a").id), Ok(Stored::Vacant(0)));
    }

    #[test]
    fn the_servers_limit_holds() {
        let encoded = encode(&record()).unwrap();
        let size = encoded.len() + HEADERS;
        let whole = |max| request(&record().job, encoded.clone(), u64::MAX, 0, max);
        let message = whole(size).unwrap();
        assert!(
            encode_op(&ClientOp::Publish { message: message.clone() }).len() - message.payload.len()
                < HEADERS
        );
        assert_eq!(whole(size - 1).unwrap_err().code, ErrorCode::RequestTooLarge);
    }

    #[test]
    fn a_record_is_small_whatever_was_asked() {
        let long = "x".repeat(4 << 20);
        let body = serde_json::json!({"model": "m", "input": long, "background": true});
        let spec = ResponsesRequest::parse(body.to_string().as_bytes()).unwrap().spec;
        let stored = StoredRequest { job: StoredJob::of(&job(&long)), spec: Some(spec), ..record() };
        let size = encode(&stored).unwrap().len();
        assert!(size < 2048, "{size} bytes");
    }

    #[test]
    fn what_a_response_returns_of_its_request_is_bounded() {
        let sized = |bytes| {
            let body = serde_json::json!({"model": "m", "input": "x", "instructions": "x".repeat(bytes)});
            let spec = ResponsesRequest::parse(body.to_string().as_bytes()).unwrap().spec;
            encode(&StoredRequest { spec: Some(spec), ..record() })
        };
        assert!(sized(MAX_BYTES - 4096).is_ok());
        let error = sized(MAX_BYTES).unwrap_err();
        assert_eq!(error.code, ErrorCode::RequestTooLarge);
        for word in ["instructions", "256 KiB", "here it has", "'background'"] {
            assert!(error.message.contains(word), "{word}: {}", error.message);
        }
    }
}
