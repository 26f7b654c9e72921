//! Reading the body of a request: it must be JSON by its type, not compressed, and not too large.

use std::rc::Rc;

use bytes::Bytes;
use emberline_protocol::error::{ApiError, ErrorCode};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;

use crate::memory::{Held, Memory};
use crate::platform::report;

/// How often a body is in memory until its job is queued: as it came, as the request, as the job and as its message.
const COPIES: usize = 4;

/// Reads a JSON body of at most `max` bytes, if the instance has memory for it.
pub async fn read_json<B>(
    incoming: &mut B,
    headers: &HeaderMap,
    max: u64,
    memory: &Rc<Memory>,
) -> Result<LimitedBody, ApiError>
where
    B: http_body::Body<Data = Bytes, Error = String> + Unpin,
{
    check_type(headers)?;
    check_encoding(headers)?;
    check_length(headers, max)?;
    let length = content_length(headers).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let reservation = memory.reserve(length.saturating_mul(COPIES))?;
    let mut body = LimitedBody::new(max, reservation.part());
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| {
            report("request body", error);
            ApiError::new(ErrorCode::InvalidJson, "The body broke off before its end. Send it again.")
        })?;
        if let Some(chunk) = frame.data_ref() {
            body.push(chunk)?;
        }
    }
    check_plain(body.bytes())?;
    Ok(body)
}

/// Refuses a body whose `Content-Type` is not JSON; without one it counts as JSON.
pub fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let media_type = value.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
    if media_type.trim_ascii().eq_ignore_ascii_case(b"application/json") {
        return Ok(());
    }
    let message = "The body must be JSON. Send it with 'Content-Type: application/json'.";
    Err(ApiError::new(ErrorCode::UnsupportedMediaType, message))
}

/// Refuses a body whose `Content-Encoding` says that it is compressed.
pub fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_plain = |value: &&HeaderValue| {
        let encoding = value.as_bytes().trim_ascii();
        encoding.is_empty() || encoding.eq_ignore_ascii_case(b"identity")
    };
    match headers.get_all(CONTENT_ENCODING).iter().find(|value| !is_plain(value)) {
        None => Ok(()),
        Some(encoding) => {
            let encoding: String = String::from_utf8_lossy(encoding.as_bytes()).chars().take(64).collect();
            Err(compressed(&format!("'Content-Encoding: {encoding}'")))
        }
    }
}

/// Refuses a body that begins as gzip does, which JSON never does.
pub fn check_plain(body: &[u8]) -> Result<(), ApiError> {
    if body.starts_with(&[0x1f, 0x8b]) { Err(compressed("gzip")) } else { Ok(()) }
}

fn compressed(encoding: &str) -> ApiError {
    let message = format!("The body is compressed ({encoding}). Send it uncompressed, without that header.");
    ApiError::new(ErrorCode::UnsupportedMediaType, message)
}

/// Refuses a body whose `Content-Length` is above `max`.
pub fn check_length(headers: &HeaderMap, max: u64) -> Result<(), ApiError> {
    if content_length(headers).is_some_and(|length| length > max) { Err(too_large(max)) } else { Ok(()) }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body as it arrives, never more than its limit.
pub struct LimitedBody {
    bytes: Vec<u8>,
    max: u64,
    held: Held,
}

impl LimitedBody {
    /// An empty body that may grow to `max` bytes, and is counted as `held`.
    pub fn new(max: u64, held: Held) -> Self {
        Self { bytes: Vec::new(), max, held }
    }

    /// Adds what has arrived.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        let length = self.bytes.len().saturating_add(chunk.len());
        if u64::try_from(length).is_ok_and(|length| length <= self.max) {
            self.held.set(length.saturating_mul(COPIES))?;
            self.bytes.extend_from_slice(chunk);
            return Ok(());
        }
        Err(too_large(self.max))
    }

    /// All that arrived.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn too_large(max: u64) -> ApiError {
    let message = format!("The body is larger than {max} bytes. Send a shorter conversation.");
    ApiError::new(ErrorCode::RequestTooLarge, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn json_is_taken_with_parameters_and_without_a_word() {
        for value in
            ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json ;x"]
        {
            assert!(check_type(&headers(CONTENT_TYPE, value)).is_ok(), "{value}");
        }
        assert!(check_type(&HeaderMap::new()).is_ok());
        for value in ["text/plain", "application/jsonp", "", "application/x-www-form-urlencoded"] {
            let error = check_type(&headers(CONTENT_TYPE, value)).unwrap_err();
            assert_eq!(error.code.status(), 415, "{value}");
        }
    }

    #[test]
    fn a_compressed_body_is_refused_by_its_header_or_its_first_bytes() {
        for value in ["gzip", "br", "GZIP, identity", "zstd"] {
            let error = check_encoding(&headers(CONTENT_ENCODING, value)).unwrap_err();
            assert_eq!(error.code, ErrorCode::UnsupportedMediaType);
            assert!(error.message.contains(value) && error.message.contains("uncompressed"), "{error}");
        }
        for value in ["identity", "Identity", ""] {
            assert!(check_encoding(&headers(CONTENT_ENCODING, value)).is_ok(), "{value}");
        }
        assert!(check_encoding(&HeaderMap::new()).is_ok());
        assert_eq!(check_plain(b"\x1f\x8b\x08\x00").unwrap_err().code.status(), 415);
        assert!(check_plain(b"{}").is_ok() && check_plain(b"").is_ok());
    }

    #[test]
    fn the_limit_holds_by_header_and_by_arrival() {
        assert!(check_length(&headers(CONTENT_LENGTH, "4"), 4).is_ok());
        assert_eq!(check_length(&headers(CONTENT_LENGTH, "5"), 4).unwrap_err().code.status(), 413);
        let mut body = LimitedBody::new(4, Memory::new(64).reserve(0).unwrap().part());
        body.push(b"ab").unwrap();
        body.push(b"cd").unwrap();
        assert_eq!(body.push(b"e").unwrap_err().code, ErrorCode::RequestTooLarge);
        assert_eq!(body.bytes(), b"abcd");
    }

    #[test]
    fn the_memory_of_the_instance_is_the_other_limit() {
        let memory = Memory::new(40);
        let mut body = LimitedBody::new(100, memory.reserve(0).unwrap().part());
        body.push(b"1234").unwrap();
        assert_eq!(memory.used(), 16);
        assert_eq!(body.push(b"5678").unwrap_err().code, ErrorCode::Overloaded);
        drop(body);
        assert_eq!(memory.used(), 0);
    }
}
