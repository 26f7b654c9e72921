//! Which other origins' pages may use the API from a browser.
//!
//! Off unless the operator names origins. Keys travel in a header of their own and never as
//! cookies, so no answer allows credentials.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

/// Headers of our answers that a page may read.
const EXPOSED: &str = "x-request-id, retry-after, retry-after-ms, x-should-retry, x-ratelimit-limit, \
    x-ratelimit-remaining, x-ratelimit-reset, x-ratelimit-window, x-ratelimit-limit-requests, \
    x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, \
    x-ratelimit-reset-requests, x-ratelimit-reset-tokens, x-emberline-relaxed";
/// Headers of requests that a page may send, where the browser does not say which.
const ACCEPTED: &str = "authorization, content-type, x-api-key, api-key, x-request-id, idempotency-key, \
    x-request-timeout";
/// Methods that some endpoint takes.
const METHODS: &str = "GET, POST, DELETE";
/// How long a browser may rely on a preflight, in seconds.
const MAX_AGE: &str = "3600";

/// Whose pages may use the API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// Nobody's but our own.
    #[default]
    None,
    /// Everybody's.
    Any,
    /// Those of these origins, as browsers write them.
    Listed(Vec<String>),
}

/// Text that is not an origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an origin such as https://app.example.com, nor '*'")]
pub struct InvalidOrigin(String);

impl Origins {
    /// Reads nothing, `*`, or a comma-separated list of origins.
    pub fn parse(list: &str) -> Result<Self, InvalidOrigin> {
        let entries: Vec<&str> = list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
        match &entries[..] {
            [] => Ok(Self::None),
            ["*"] => Ok(Self::Any),
            entries => {
                entries.iter().map(|entry| parse_origin(entry)).collect::<Result<_, _>>().map(Self::Listed)
            }
        }
    }

    /// Headers for every answer to a request with `headers`.
    pub fn grant(&self, headers: &HeaderMap) -> HeaderMap {
        let mut granted = HeaderMap::new();
        if matches!(self, Self::Listed(_)) {
            granted.insert(VARY, HeaderValue::from_static("origin"));
        }
        if let Some(origin) = self.allowed(headers) {
            granted.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            granted.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        }
        granted
    }

    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        match self {
            Self::None => None,
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::Listed(known) => {
                known.iter().any(|known| known.as_bytes() == origin.as_bytes()).then(|| origin.clone())
            }
        }
    }

    /// The answer to a browser that asks beforehand, if it may.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response<Bytes>> {
        if method != Method::OPTIONS || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        self.allowed(headers)?;
        let wanted = headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let mut answer = Response::new(Bytes::new());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        let granted = answer.headers_mut();
        granted.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        let accepted = wanted.unwrap_or(HeaderValue::from_static(ACCEPTED));
        granted.insert(ACCESS_CONTROL_ALLOW_HEADERS, accepted);
        granted.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        Some(answer)
    }
}

/// Checks that it has the one form in which browsers send it.
fn parse_origin(text: &str) -> Result<String, InvalidOrigin> {
    let invalid = || InvalidOrigin(text.to_owned());
    let uri: http::Uri = text.parse().map_err(|_| invalid())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(invalid());
    };
    let origin = format!("{scheme}://{authority}").to_lowercase();
    if text.to_lowercase() == origin && !authority.as_str().contains('@') {
        Ok(origin)
    } else {
        Err(invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "https://app.example.com";

    fn request(headers: &[(http::HeaderName, &'static str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        assert_eq!(Origins::parse(" , "), Ok(Origins::None));
        assert_eq!(Origins::parse(" * "), Ok(Origins::Any));
        let listed = Origins::parse("https://App.example.com, http://localhost:3000").unwrap();
        assert_eq!(listed, Origins::Listed(vec![PAGE.into(), "http://localhost:3000".into()]));
        for bad in ["app.example.com", "https://a/", "https://a/b", "*, https://a", "https://u@a", "null"] {
            assert!(Origins::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_allowed_pages_are_granted_anything() {
        let listed = Origins::parse(PAGE).unwrap();
        let from = |origin| request(&[(ORIGIN, origin)]);
        let granted = listed.grant(&from(PAGE));
        assert_eq!(
            (&granted[ACCESS_CONTROL_ALLOW_ORIGIN], &granted[VARY]),
            (&PAGE.parse().unwrap(), &"origin".parse().unwrap())
        );
        assert!(granted[ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap().contains("x-request-id"));
        let refused = listed.grant(&from("https://evil.example.com"));
        assert_eq!((refused.len(), &refused[VARY]), (1, &"origin".parse().unwrap()));
        assert_eq!(Origins::Any.grant(&from(PAGE))[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(Origins::Any.grant(&HeaderMap::new()).is_empty());
        assert!(Origins::None.grant(&from(PAGE)).is_empty());
    }

    #[test]
    fn a_preflight_is_answered_to_those_pages_only() {
        let listed = Origins::parse(PAGE).unwrap();
        let asking = |origin| {
            request(&[
                (ORIGIN, origin),
                (ACCESS_CONTROL_REQUEST_METHOD, "POST"),
                (ACCESS_CONTROL_REQUEST_HEADERS, "authorization,x-stainless-os"),
            ])
        };
        let answer = listed.preflight(&Method::OPTIONS, &asking(PAGE)).unwrap();
        assert_eq!(answer.status(), 204);
        assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_HEADERS], "authorization,x-stainless-os");
        assert_eq!(answer.headers()[ACCESS_CONTROL_MAX_AGE], "3600");
        assert!(listed.preflight(&Method::OPTIONS, &asking("https://evil.example.com")).is_none());
        assert!(listed.preflight(&Method::POST, &asking(PAGE)).is_none());
        assert!(listed.preflight(&Method::OPTIONS, &request(&[(ORIGIN, PAGE)])).is_none());
        assert!(Origins::None.preflight(&Method::OPTIONS, &asking(PAGE)).is_none());
    }
}
