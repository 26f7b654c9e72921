//! The JetStream domain in which Emberline's streams are, seen from a server that is not part of it, such as a leaf
//! node.
//!
//! nats-server separates two things by domain: requests to JetStream's API and writes to key-value buckets. Both are
//! sent to `$JS.<domain>.API.…` then. Whatever else the streams store, acknowledgements and replies have the same
//! subjects everywhere.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Prefix of JetStream's API in a server's own domain.
const API: &str = "$JS.API";
/// Prefix of the subjects of all key-value buckets.
const KEY_VALUE: &str = "$KV.";

/// A JetStream domain; by default that of the server to which a client is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct JetStreamDomain(Option<String>);

/// Text that is no domain's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not the name of a JetStream domain. Write letters, digits, `-` and `_` as in nats-server's configuration"
)]
pub struct InvalidDomain(String);

impl FromStr for JetStreamDomain {
    type Err = InvalidDomain;

    /// Reads a domain's name; empty for the server's own domain.
    fn from_str(text: &str) -> Result<Self, InvalidDomain> {
        let is_fitting = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if !is_fitting {
            return Err(InvalidDomain(text.to_owned()));
        }
        Ok(Self(Some(text.to_owned()).filter(|text| !text.is_empty())))
    }
}

impl fmt::Display for JetStreamDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or_default())
    }
}

impl JetStreamDomain {
    /// Whether it is named. The streams may then be on other servers than the one a client is connected to, which
    /// may have no JetStream.
    pub fn is_named(&self) -> bool {
        self.0.is_some()
    }

    /// Prefix of JetStream's API: `$JS.API`, or `$JS.<domain>.API`.
    pub fn api_prefix(&self) -> Cow<'static, str> {
        match &self.0 {
            None => API.into(),
            Some(domain) => format!("$JS.{domain}.API").into(),
        }
    }

    /// Where a client publishes what is meant for `subject` of this domain.
    pub fn subject<'a>(&self, subject: &'a str) -> Cow<'a, str> {
        if !self.is_named() {
            return subject.into();
        }
        let request = subject.strip_prefix(API).filter(|request| request.starts_with('.'));
        match request {
            Some(request) => format!("{}{request}", self.api_prefix()).into(),
            None if subject.starts_with(KEY_VALUE) => format!("{}.{subject}", self.api_prefix()).into(),
            None => subject.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_buckets_have_the_domains_prefix_and_nothing_else_has() {
        let hub: JetStreamDomain = "hub".parse().unwrap();
        for (subject, sent) in [
            ("$JS.API.STREAM.INFO.JOBS", "$JS.hub.API.STREAM.INFO.JOBS"),
            ("$JS.API.DIRECT.GET.KV_keys.$KV.keys.a", "$JS.hub.API.DIRECT.GET.KV_keys.$KV.keys.a"),
            ("$KV.workers.w", "$JS.hub.API.$KV.workers.w"),
            ("$JS.ACK.JOBS.worker-m-0.>", "$JS.ACK.JOBS.worker-m-0.>"),
            ("emberline.jobs.m.0", "emberline.jobs.m.0"),
            ("_INBOX_function.x", "_INBOX_function.x"),
        ] {
            assert_eq!(hub.subject(subject), sent);
            assert_eq!(JetStreamDomain::default().subject(subject), subject);
        }
        assert_eq!((hub.api_prefix().as_ref(), hub.to_string().as_str()), ("$JS.hub.API", "hub"));
        assert_eq!(JetStreamDomain::default().api_prefix(), "$JS.API");
    }

    #[test]
    fn a_name_is_one_token() {
        assert_eq!("".parse(), Ok(JetStreamDomain::default()));
        assert!("eu-west_1".parse::<JetStreamDomain>().is_ok_and(|domain| domain.is_named()));
        for wrong in ["a.b", "*", ">", "a b", "$JS.hub.API", "é"] {
            assert_eq!(wrong.parse::<JetStreamDomain>(), Err(InvalidDomain(wrong.to_owned())));
        }
    }
}
