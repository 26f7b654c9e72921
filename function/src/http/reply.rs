//! HTTP replies that are complete when they are begun: JSON bodies and errors.

use bytes::Bytes;
use emberline_api::error::ErrorBody;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::relaxed::{RELAXED_HEADER, Relaxed};
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

/// Names the request, in every reply.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Longest request id taken over from a client.
const MAX_ID: usize = 128;

/// The client's own request id if it sent a sane one, else one made of `random`.
pub fn request_id(headers: &HeaderMap, random: u128) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        let id = value.as_bytes();
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
        (1..=MAX_ID).contains(&id.len()) && id.iter().all(allowed)
    };
    match headers.get(X_REQUEST_ID).filter(sane) {
        Some(id) => id.clone(),
        None => HeaderValue::from_str(&format!("{random:032x}")).unwrap_or(HeaderValue::from_static("none")),
    }
}

/// A JSON reply.
pub fn json(status: u16, body: impl Into<Bytes>) -> Response<Bytes> {
    let body = body.into();
    let length = HeaderValue::from(body.len());
    let mut reply = Response::new(body);
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply.headers_mut().insert(CONTENT_LENGTH, length);
    reply
}

/// The reply to a request that failed.
pub fn error(error: &ApiError) -> Response<Bytes> {
    let mut reply = json(error.code.status(), ErrorBody::json(error).to_string());
    if let Some(seconds) = error.code.retry_after_s() {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if matches!(error.code, ErrorCode::MissingAuthHeader | ErrorCode::InvalidApiKey) {
        reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    reply
}

/// Headers that say when to retry.
pub fn retry_after(wait_ms: u64) -> HeaderMap {
    let wait_ms = wait_ms.max(1);
    HeaderMap::from_iter([(RETRY_AFTER, wait_ms.div_ceil(1000).into()), (RETRY_AFTER_MS, wait_ms.into())])
}

/// Names what an answer does without, if there is anything.
pub fn relaxed(relaxed: &Relaxed) -> Option<(HeaderName, HeaderValue)> {
    let value = HeaderValue::try_from(relaxed.header_value()?).ok()?;
    Some((HeaderName::from_static(RELAXED_HEADER), value))
}

/// The reply to a method that the path does not take.
pub fn method_not_allowed(allow: &str, message: &ApiError) -> Response<Bytes> {
    let mut reply = error(message);
    if let Ok(allow) = HeaderValue::from_str(allow) {
        reply.headers_mut().insert(ALLOW, allow);
    }
    reply
}

/// The error that reveals nothing of the inside; the reason belongs in the log.
pub fn internal_error() -> ApiError {
    let message = "Something went wrong on our side. The request id helps to find out what.";
    ApiError::new(ErrorCode::InternalError, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(sent: Option<&str>) -> String {
        let mut headers = HeaderMap::new();
        if let Some(id) = sent {
            headers.insert(X_REQUEST_ID, id.parse().unwrap());
        }
        request_id(&headers, 0xab).to_str().unwrap().to_owned()
    }

    #[test]
    fn a_sane_request_id_is_kept() {
        let longest = "x".repeat(128);
        for id in ["a", "Req_1.2-3", &longest] {
            assert_eq!(id_for(Some(id)), id);
        }
        for id in ["", "a b", "a/b", "é", &"x".repeat(129)] {
            assert_eq!(id_for(Some(id)), "000000000000000000000000000000ab", "{id}");
        }
        assert_eq!(id_for(None).len(), 32);
    }

    #[test]
    fn an_error_says_when_to_retry() {
        let reply = error(&ApiError::new(ErrorCode::NoWorker, "x"));
        assert_eq!(reply.status(), 503);
        assert_eq!(reply.headers()[RETRY_AFTER], "5");
        let reply = error(&ApiError::new(ErrorCode::InvalidJson, "x"));
        assert!(!reply.headers().contains_key(RETRY_AFTER));
        assert_eq!(reply.headers()[CONTENT_LENGTH], reply.body().len().to_string());
    }

    #[test]
    fn a_refused_key_is_told_the_scheme() {
        let reply = error(&ApiError::new(ErrorCode::InvalidApiKey, "x"));
        assert_eq!(
            (reply.status().as_u16(), reply.headers()[WWW_AUTHENTICATE].as_bytes()),
            (401, &b"Bearer"[..])
        );
    }
}
