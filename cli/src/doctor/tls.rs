//! The certificate of a server: whose it is, who issued it, and how long it is valid.
//!
//! The handshake accepts any certificate, so that all that is wrong with one is found at once. Nothing is sent over
//! such a connection.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_native_certs::load_native_certs;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use url::Url;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::report::Check;
use crate::time_format::date;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long before its end a certificate should have been renewed: with ninety days, two thirds of it are over then.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
const DAY: u64 = 24 * 60 * 60;

/// What a server presented in a handshake.
#[derive(Debug, Clone)]
pub(super) struct Presented {
    /// The protocol and cipher suite that were agreed on.
    pub(super) protocol: String,
    certificate: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
}

/// Makes a TLS connection to `host` over `stream`, whatever the certificate; the reason if that fails.
pub(super) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    host: &str,
) -> Result<(TlsStream<S>, Presented), String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("'{host}': {error}"))?;
    let recorder = Arc::new(Recorder { provider: ring::default_provider(), seen: Mutex::new(None) });
    let provider = Arc::new(recorder.provider.clone());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Recorder>::clone(&recorder))
        .with_no_client_auth();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| format!("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs()))?
        .map_err(|error| error.to_string())?;
    let connection = stream.get_ref().1;
    let version = connection.protocol_version().and_then(|version| version.as_str());
    let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    let protocol = format!(
        "{}, {}",
        version.unwrap_or("TLS").replace("TLSv1_", "TLS 1."),
        suite.unwrap_or("unknown cipher")
    );
    let seen = recorder.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (certificate, intermediates) = seen.ok_or("the server presented no certificate")?;
    Ok((stream, Presented { protocol, certificate, intermediates }))
}

/// Accepts each certificate and remembers it; the handshake's signatures are verified.
#[derive(Debug)]
struct Recorder {
    provider: CryptoProvider,
    seen: Mutex<Option<(CertificateDer<'static>, Vec<CertificateDer<'static>>)>>,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let intermediates = intermediates.iter().map(|der| der.clone().into_owned()).collect();
        let seen = (end_entity.clone().into_owned(), intermediates);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Judges the certificate of the server of a URL, if that is of https.
pub(super) async fn of_url(url: &Url) -> Vec<Check> {
    let place = url.host_str().zip(url.port_or_known_default());
    let Some((host, port)) = place.filter(|_| url.scheme() == "https") else { return Vec::new() };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // That nothing answers, other checks find.
    let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, TcpStream::connect((host, port))).await else {
        return Vec::new();
    };
    let found = match handshake(stream, host).await {
        Ok((_, certificate)) => judge_now(&certificate, host, None),
        Err(reason) => vec![Check::fault(
            "tls",
            format!("the handshake fails: {reason}"),
            "look whether that port speaks TLS 1.2 or 1.3; if it does not, write http://",
        )],
    };
    found.into_iter().map(|check| check.of_server(&format!("https://{host}:{port}"))).collect()
}

/// Judges a certificate by this machine's clock and the authorities of `ca`, or those that it trusts.
pub(super) fn judge_now(presented: &Presented, host: &str, ca: Option<&Path>) -> Vec<Check> {
    let mut roots = RootCertStore::empty();
    let trusted = match ca {
        // It has been read before, so that what is wrong with the file is known.
        Some(ca) => {
            CertificateDer::pem_file_iter(ca).map(|read| read.flatten().collect()).unwrap_or_default()
        }
        None => load_native_certs().certs,
    };
    roots.add_parsable_certificates(trusted);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    judge(presented, host, &roots, now)
}

/// Judges the name, the issuer and the time of a certificate, each by itself; `now` is the time since 1970.
fn judge(presented: &Presented, host: &str, roots: &RootCertStore, now: Duration) -> Vec<Check> {
    let parsed = parse_x509_certificate(&presented.certificate);
    let verifiable = ParsedCertificate::try_from(&presented.certificate);
    let (Ok((_, certificate)), Ok(verifiable)) = (parsed, verifiable) else {
        return vec![Check::fault(
            "certificate",
            "the server's certificate can't be read; it may be of X.509 version 1",
            "make one of version 3 with `subjectAltName`",
        )];
    };

    let mut names = Vec::new();
    if let Ok(Some(alternatives)) = certificate.subject_alternative_name() {
        names.extend(alternatives.value.general_names.iter().filter_map(readable_name));
    }
    let is_named =
        ServerName::try_from(host).is_ok_and(|name| verify_server_name(&verifiable, &name).is_ok());
    let name = if is_named {
        Check::ok("certificate name", format!("it is for {host}"))
    } else {
        let names = if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") };
        Check::fault(
            "certificate name",
            format!("the certificate is for {names}, not for {host}"),
            "connect by a name that it has, or issue one whose `subjectAltName` has this name",
        )
    };

    let seconds = |time: i64| Duration::from_secs(u64::try_from(time).unwrap_or(0));
    let validity = certificate.validity();
    let (begin, end) = (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()));
    // The time has a check of its own.
    let within = UnixTime::since_unix_epoch(now.clamp(begin, end.max(begin)));
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let chain = &presented.intermediates;
    let verified =
        verify_server_cert_signed_by_trust_anchor(&verifiable, roots, chain, within, algorithms.all);
    let issuer = certificate.issuer();
    let trust = match verified {
        Ok(()) => Check::ok("certificate issuer", issuer.to_string()),
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Check::fault(
            "certificate issuer",
            format!("this machine does not trust who issued the certificate: {issuer}"),
            "give nats-server's authority with --nats-ca FILE (the function's variable nats_tls_ca); a server must send intermediate certificates itself",
        ),
        Err(error) => Check::fault(
            "certificate issuer",
            format!("the certificate of {issuer} is not accepted: {error}"),
            "issue another one, with `extendedKeyUsage` serverAuth and not for an authority",
        ),
    };
    vec![name, trust, expiry(begin, end, now)]
}

fn expiry(begin: Duration, end: Duration, now: Duration) -> Check {
    const NAME: &str = "certificate expiry";
    let on = |time: Duration| date(time.as_secs().saturating_mul(1000));
    let days = |time: Duration| time.as_secs() / DAY;
    if now < begin {
        return Check::fault(
            NAME,
            format!("the certificate is valid from {} on", on(begin)),
            "look at this machine's clock; if that is right, wait or issue another one",
        );
    }
    let renew = "renew it, and have it read with `nats-server --signal reload`";
    if now > end {
        return Check::fault(
            NAME,
            format!("the certificate has expired on {}, {} days ago", on(end), days(now - end)),
            renew,
        );
    }
    let left = end - now;
    let finding = format!("valid until {}, {} days from now", on(end), days(left));
    if left < SOON { Check::warning(NAME, finding, renew) } else { Check::ok(NAME, finding) }
}

fn readable_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from);
            v4.or_else(|_| v6()).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

    /// The middle of 2030, between the ends of [`certificate`].
    const NOW: Duration = Duration::from_secs(1_909_000_000);

    /// A certificate for `gpu.example` and 10.0.0.7 that is valid in 2030, and the store that trusts its issuer.
    fn certificate() -> (Presented, RootCertStore) {
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(rcgen::DnType::CommonName, "ours");
        let key = KeyPair::generate().unwrap();
        let authority_certificate = authority.self_signed(&key).unwrap();
        let issuer = Issuer::new(authority, key);
        let mut params = CertificateParams::new(["gpu.example".to_owned(), "10.0.0.7".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2030, 1, 1);
        params.not_after = date_time_ymd(2031, 1, 1);
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority_certificate.der().clone()).unwrap();
        let presented = Presented {
            protocol: "TLS 1.3".to_owned(),
            certificate: certificate.der().clone(),
            intermediates: Vec::new(),
        };
        (presented, roots)
    }

    fn outcomes(checks: &[Check]) -> Vec<(&'static str, bool)> {
        checks.iter().map(|check| (check.name, check.remedy.is_some())).collect()
    }

    #[test]
    fn name_issuer_and_time_are_judged_apart() {
        let (presented, roots) = certificate();
        let [name, issuer, expiry] = ["certificate name", "certificate issuer", "certificate expiry"];
        for host in ["gpu.example", "10.0.0.7"] {
            let checks = judge(&presented, host, &roots, NOW);
            assert_eq!(outcomes(&checks), [(name, false), (issuer, false), (expiry, false)], "{checks:?}");
        }
        let checks = judge(&presented, "other.example", &RootCertStore::empty(), Duration::ZERO);
        assert_eq!(outcomes(&checks), [(name, true), (issuer, true), (expiry, true)]);
        assert_eq!(checks[0].finding, "the certificate is for gpu.example, 10.0.0.7, not for other.example");
        assert!(checks[1].finding.ends_with("CN=ours"), "{}", checks[1].finding);
        assert_eq!(checks[2].finding, "the certificate is valid from 2030-01-01 on");
    }

    #[test]
    fn the_end_of_a_certificate_is_told_two_weeks_before() {
        let (begin, day) = (Duration::from_secs(1000), Duration::from_secs(DAY));
        let end = begin + day * 90;
        let outcome = |now| expiry(begin, end, now).outcome;
        use super::super::report::Outcome::{Fault, Ok, Warning};
        assert_eq!(outcome(end - day * 15), Ok);
        assert_eq!(outcome(end - day * 13), Warning);
        assert_eq!(outcome(end), Warning);
        assert_eq!(outcome(end + Duration::from_secs(1)), Fault);
        assert_eq!(outcome(Duration::ZERO), Fault);
    }

    #[test]
    fn what_is_no_certificate_is_a_fault() {
        let presented = Presented {
            protocol: String::new(),
            certificate: b"nothing".to_vec().into(),
            intermediates: Vec::new(),
        };
        assert_eq!(outcomes(&judge(&presented, "a", &RootCertStore::empty(), NOW)), [("certificate", true)]);
    }
}
