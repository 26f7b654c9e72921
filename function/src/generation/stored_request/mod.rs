//! Requests whose answer can be asked for again, by the id of a background response or by a repeat with the same
//! `Idempotency-Key`, and what a repeat must have in common with its original.
//!
//! [`record`] is what is stored of a request, [`message`] the messages that store it in NATS, and [`store`] sends and
//! reads them.

pub mod message;
pub mod record;
pub mod store;

use data_encoding::HEXLOWER;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::key::KeyId;
use emberline_protocol::subject::JobId;
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

pub use self::message::{Found, NotQueued, Stored};
pub use self::record::{StoredJob, StoredRequest, read};
use crate::relay::OutputLimits;

/// Names a request, so that a repeat is known as one.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest idempotency key.
const MAX_KEY: usize = 255;

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

const ID_PREFIX: &str = "resp_";

/// The id of a job's response.
pub fn response_id(job: &JobId) -> String {
    format!("{ID_PREFIX}{job}")
}

/// The job of a response.
pub fn job_of(response_id: &str) -> Option<JobId> {
    JobId::try_from(response_id.strip_prefix(ID_PREFIX)?.to_owned()).ok()
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

/// What `jobs` jobs may produce together.
pub fn joined_limits(each: OutputLimits, jobs: usize) -> OutputLimits {
    let jobs = u32::try_from(jobs).unwrap_or(u32::MAX);
    OutputLimits { choices: each.choices.saturating_mul(jobs), ..each }
}

#[cfg(test)]
mod tests {
    use super::record::tests::record;
    use super::*;

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
}
