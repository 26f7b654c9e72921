//! Why there is no connection, and what to do.

use std::error::Error;
use std::io;

use async_nats::{ConnectError, ConnectErrorKind};
use time::Date;
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, InvalidMessage};

use crate::NatsAccess;
use crate::proof::{Credentials, Proof, ProofError, date};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ConnectFailure {
    #[error(
        "can't reach nats-server at {address}: {reason}. Start it there, or give its address with --nats or EMBERLINE_NATS"
    )]
    Unreachable { address: String, reason: String },
    #[error(
        "nats-server at {address} sends nothing. Give the address of its clients' port; if its `tls` block has `handshake_first`, set --nats-tls-first"
    )]
    Silent { address: String },
    #[error("nats-server at {address} refuses {who}")]
    Refused { address: String, who: String },
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error("no TLS with nats-server at {address}: {problem}")]
    Tls { address: String, problem: TlsProblem },
}

/// What is wrong with TLS.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TlsProblem {
    #[error(
        "its certificate comes from a CA that is not known here. Give the CA's certificate with --nats-ca"
    )]
    UnknownIssuer,
    #[error(
        "its certificate is for {presented}, not for {expected}. Use a name that is in it, or have another made"
    )]
    OtherName { expected: String, presented: String },
    #[error("its certificate expired on {0} (UTC). Renew it there")]
    Expired(Date),
    #[error("its certificate is valid from {0} (UTC) on. Set this machine's clock, or renew the certificate")]
    NotYetValid(Date),
    #[error(
        "it offers none. Write nats:// in place of tls:// and leave the options for TLS out, or give it a `tls` block"
    )]
    NotOffered,
    #[error("it begins without. Leave --nats-tls-first out, or set `handshake_first` in its `tls` block")]
    NotFirst,
    #[error("it asks for a certificate. Give one with --nats-client-certificate and --nats-client-key")]
    NoClientCertificate,
    #[error(
        "it refuses the certificate of --nats-client-certificate ({0}). Give one of a CA that its `tls` block names in `ca_file`"
    )]
    ClientCertificate(String),
    #[error(
        "this machine's CA certificates can't be read ({0}). Install them (ca-certificates), or give --nats-ca"
    )]
    NoRoots(String),
    #[error("{0}")]
    Other(String),
}

impl ConnectFailure {
    /// Whether it may pass by itself: then it is worth trying again.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Silent { .. })
    }

    pub(crate) fn new(access: &NatsAccess, error: &ConnectError) -> Self {
        let address = access.address();
        if let Some(error) = find::<rustls::Error>(error) {
            return Self::Tls { address, problem: TlsProblem::of(access, error) };
        }
        let reason = || error.source().map_or_else(|| error.to_string(), ToString::to_string);
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation => Self::Refused { address, who: who(access) },
            // The callback's own error, which says what is wrong with the proof.
            ConnectErrorKind::Authentication => match access.proof.check() {
                Err(error) => error.into(),
                Ok(()) => Self::Refused { address, who: who(access) },
            },
            ConnectErrorKind::Tls if access.tls.ca.is_none() => {
                Self::Tls { address, problem: TlsProblem::NoRoots(reason()) }
            }
            ConnectErrorKind::Tls => Self::Tls { address, problem: TlsProblem::Other(reason()) },
            ConnectErrorKind::TimedOut => Self::Silent { address },
            // nats-server closes a connection that does not begin with TLS where it has to.
            ConnectErrorKind::Io if reason() == "expected INFO, got nothing" => Self::Silent { address },
            _ => Self::Unreachable { address, reason: reason() },
        }
    }
}

impl TlsProblem {
    fn of(access: &NatsAccess, error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => Self::of_certificate(error),
            // Text in the place of a TLS record.
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) if access.tls.first => {
                Self::NotFirst
            }
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NotOffered,
            rustls::Error::AlertReceived(alert) => match (alert, &access.tls.client) {
                (AlertDescription::CertificateRequired, _)
                | (AlertDescription::BadCertificate | AlertDescription::HandshakeFailure, None) => {
                    Self::NoClientCertificate
                }
                (
                    AlertDescription::BadCertificate
                    | AlertDescription::UnknownCA
                    | AlertDescription::CertificateExpired
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::UnsupportedCertificate,
                    Some(_),
                ) => Self::ClientCertificate(format!("{alert:?}")),
                _ => Self::Other(error.to_string()),
            },
            _ => Self::Other(error.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        let day = |time: &rustls::pki_types::UnixTime| date(time.as_secs().try_into().unwrap_or(i64::MAX));
        match error {
            // The second is what another CA of the same name comes to.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::NotValidForNameContext { expected, presented } => {
                Self::OtherName { expected: expected.to_str().into_owned(), presented: names(presented) }
            }
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired(day(not_after)),
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotYetValid(day(not_before)),
            other => Self::Other(other.to_string()),
        }
    }
}

/// The names in a certificate, which come as `DnsName("a.b")` or `IpAddress(10.0.0.1)`.
fn names(presented: &[String]) -> String {
    let name = |text: &String| {
        let inner = text.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        inner.unwrap_or(text).trim_matches('"').to_owned()
    };
    match presented {
        [] => "no name".to_owned(),
        some => some.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

/// Who is refused, and what to do about it.
fn who(access: &NatsAccess) -> String {
    match &access.proof {
        Proof::None => "whoever does not say who it is. Set EMBERLINE_NATS_NKEY_SEED, EMBERLINE_NATS_PASSWORD, EMBERLINE_NATS_TOKEN or --nats-credentials"
            .to_owned(),
        Proof::Password { variable, .. } => {
            format!("user '{}'. Check --nats-user and {variable} against its configuration", access.user)
        }
        Proof::Token { variable, .. } => format!("the token. Check {variable} against its configuration"),
        Proof::Nkey(source) => {
            let key = source.key_pair().map_or_else(|e| e.to_string(), |key| key.public_key());
            format!("the NKEY {key}. Put it into the `users` of its configuration, as `emberline nats user add` prints them")
        }
        Proof::Credentials(path) => {
            let user = Credentials::read(path).map_or_else(|e| e.to_string(), |found| found.user().to_owned());
            format!("the credentials in {} (user {user}). Check that it knows their account, and that they were not revoked", path.display())
        }
    }
}

/// The error of this type in what `error` comes from.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An io::Error has another inside, which is not its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner: Option<&(dyn Error + 'static)> = inner.map(|inner| inner as _);
        if let Some(found) = error.downcast_ref().or_else(|| inner.and_then(|inner| inner.downcast_ref())) {
            return Some(found);
        }
        next = inner.and_then(Error::source).or_else(|| error.source());
    }
    None
}
