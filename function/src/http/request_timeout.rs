//! How long a client waits for its answer: `x-request-timeout`.

use std::time::Duration;

use emberline_protocol::error::{ApiError, ErrorCode};
use http::{HeaderMap, HeaderName};

/// Says how many seconds the client waits.
pub const X_REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout");
/// A client that waits no longer than this learns from the status how its request ended.
const STATUS_TIME: Duration = Duration::from_secs(15);
/// How long a whole answer may take before its head goes out ahead of it.
const HEAD_TIME: Duration = Duration::from_secs(2);

/// How long a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTimeout {
    /// From the arrival of its request to the end of the answer.
    pub timeout: Duration,
}

impl RequestTimeout {
    /// What the client says, or `most` if it says nothing or more than that.
    pub fn of(headers: &HeaderMap, most: Duration) -> Result<Self, ApiError> {
        let mut values = headers.get_all(X_REQUEST_TIMEOUT).iter();
        let Some(value) = values.next() else { return Ok(Self { timeout: most }) };
        let seconds = value.to_str().ok().and_then(seconds).filter(|_| values.next().is_none());
        let asked = seconds.ok_or_else(|| {
            let message =
                "The header 'x-request-timeout' must be one number of seconds above 0, such as 30 or 2.5.";
            ApiError::field(ErrorCode::InvalidValue, X_REQUEST_TIMEOUT.as_str(), message)
        })?;
        Ok(Self { timeout: asked.min(most) })
    }

    /// How long the head of a whole answer waits for the rest; nothing if it waits to the end.
    pub fn head_time(&self) -> Option<Duration> {
        (self.timeout > STATUS_TIME).then_some(HEAD_TIME)
    }
}

/// Reads a number as JSON has them; what is longer than a duration can be counts as that.
fn seconds(text: &str) -> Option<Duration> {
    let seconds = serde_json::from_str::<f64>(text).ok().filter(|seconds| *seconds > 0.0)?;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: Duration = Duration::from_secs(600);

    fn told(values: &[&str]) -> Result<Duration, ApiError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(X_REQUEST_TIMEOUT, value.parse().unwrap());
        }
        RequestTimeout::of(&headers, MOST).map(|patience| patience.timeout)
    }

    #[test]
    fn a_client_can_only_shorten_the_time() {
        assert_eq!(told(&[]), Ok(MOST));
        for (value, timeout) in [
            ("1", Duration::from_secs(1)),
            ("0.25", Duration::from_millis(250)),
            ("7.50", Duration::from_millis(7500)),
            ("2e-3", Duration::from_millis(2)),
            ("1e-300", Duration::ZERO),
            ("600.5", MOST),
            ("99999999999999999999999999", MOST),
        ] {
            assert_eq!(told(&[value]), Ok(timeout), "{value}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_headers_name() {
        for value in ["", "0", "0.0", "-1", "+1", "1s", ".5", "5.", "1.2.3", "1,5", "inf", "NaN", "true", " "]
        {
            let error = told(&[value]).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidValue, "{value}");
            assert_eq!(error.param.as_deref(), Some("x-request-timeout"));
        }
        assert!(told(&["1", "2"]).is_err());
    }

    #[test]
    fn the_head_waits_for_the_end_where_that_is_near() {
        let head_time = |seconds| RequestTimeout { timeout: Duration::from_secs(seconds) }.head_time();
        assert_eq!((head_time(15), head_time(16)), (None, Some(HEAD_TIME)));
    }

    proptest! {
        #[test]
        fn no_value_panics(value in "[0-9.e+-]{0,40}") {
            let _ = told(&[&value]);
        }
    }
}
