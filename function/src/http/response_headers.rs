//! Headers that the response to a request carries, whatever it turns out to be.

use emberline_protocol::relaxed::Relaxed;
use http::HeaderMap;

use super::reply;

/// They are gathered while the request is served.
#[derive(Debug, Clone, Default)]
pub struct ResponseHeaders {
    headers: HeaderMap,
    /// What the answer does without.
    relaxed: Relaxed,
    /// The rate limits are among them.
    pub has_rate_limits: bool,
}

impl ResponseHeaders {
    /// Begins with headers that do not depend on the endpoint.
    pub fn new(headers: HeaderMap) -> Self {
        Self { headers, ..Self::default() }
    }

    /// Sets headers, in place of those of the same names.
    pub fn set(&mut self, headers: HeaderMap) {
        self.headers.extend(headers);
    }

    /// Has the response name what it does without.
    pub fn relax(&mut self, relaxed: &Relaxed) {
        self.relaxed.extend(relaxed);
    }

    /// All of them.
    pub fn to_map(&self) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.extend(reply::relaxed(&self.relaxed));
        headers
    }
}
