//! The files that TLS needs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::ConnectOptions;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// What TLS needs besides the servers' names. If anything of it is given, there is no connection without TLS.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// The CA certificates; `None` for those of this machine.
    pub ca: Option<PathBuf>,
    /// What to show to nats-server.
    pub client: Option<ClientCertificate>,
    /// Whether TLS comes before anything else.
    pub first: bool,
}

/// A certificate and its private key.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    certificate: PathBuf,
    key: PathBuf,
}

/// Why a file for TLS can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TlsFileError {
    #[error("{option} {}: {reason}. Give a PEM file", path.display())]
    File { option: &'static str, path: PathBuf, reason: String },
    #[error("{given} needs {missing}, too")]
    Half { given: &'static str, missing: &'static str },
    #[error("--nats-client-key {} is not the key of --nats-client-certificate {}: {reason}", key.display(), certificate.display())]
    Pair { certificate: PathBuf, key: PathBuf, reason: String },
}

const CA: &str = "--nats-ca";
const CERTIFICATE: &str = "--nats-client-certificate";
const KEY: &str = "--nats-client-key";

impl ClientCertificate {
    pub(crate) fn of(
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Result<Option<Self>, TlsFileError> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Self { certificate, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(TlsFileError::Half { given: CERTIFICATE, missing: KEY }),
            (None, Some(_)) => Err(TlsFileError::Half { given: KEY, missing: CERTIFICATE }),
        }
    }
}

impl TlsFiles {
    /// Whether anything is.
    pub fn are_given(&self) -> bool {
        self.first || self.ca.is_some() || self.client.is_some()
    }

    /// Reads all files; they are read again for each connection.
    pub(crate) fn check(&self) -> Result<(), TlsFileError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.ca {
            for certificate in certificates(CA, path)? {
                roots.add(certificate).map_err(|e| failed(CA, path, e.to_string()))?;
            }
        }
        let Some(ClientCertificate { certificate, key }) = &self.client else { return Ok(()) };
        let chain = certificates(CERTIFICATE, certificate)?;
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|e| failed(KEY, key, reason(&e, "private key")))?;
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, private))
            .map(|_| ())
            .map_err(|e| TlsFileError::Pair {
                certificate: certificate.clone(),
                key: key.clone(),
                reason: e.to_string(),
            })
    }

    pub(crate) fn apply(&self, mut options: ConnectOptions) -> ConnectOptions {
        if let Some(ca) = &self.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some(ClientCertificate { certificate, key }) = &self.client {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        if self.first {
            options = options.tls_first();
        }
        options.require_tls(self.are_given())
    }
}

fn certificates(option: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|e| failed(option, path, reason(&e, "certificate")))?;
    if read.is_empty() {
        return Err(failed(option, path, reason(&pem::Error::NoItemsFound, "certificate")));
    }
    Ok(read)
}

fn failed(option: &'static str, path: &Path, reason: String) -> TlsFileError {
    TlsFileError::File { option, path: path.to_owned(), reason }
}

fn reason(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("there is no {what} in it"),
        pem::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}
