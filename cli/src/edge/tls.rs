//! The edge's certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// Files of a certificate and its private key.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) file: PathBuf,
    pub(super) key: PathBuf,
}

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    #[error("--tls-certificate {}: {reason}. Give a PEM file that begins with the edge's certificate", path.display())]
    Certificate { path: PathBuf, reason: String },
    #[error("--tls-key {}: {reason}. Give a PEM file with the certificate's private key, without a password", path.display())]
    Key { path: PathBuf, reason: String },
    #[error("--tls-key {} is not the key of --tls-certificate {}: {reason}", key.display(), file.display())]
    Pair { file: PathBuf, key: PathBuf, reason: rustls::Error },
}

impl Certificate {
    /// Reads both files.
    pub(super) fn load(&self) -> Result<TlsAcceptor, CertificateError> {
        let unreadable = |reason: pem::Error| CertificateError::Certificate {
            path: self.file.clone(),
            reason: describe(&reason, "certificate"),
        };
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_file_iter(&self.file).and_then(Iterator::collect).map_err(unreadable)?;
        if chain.is_empty() {
            return Err(unreadable(pem::Error::NoItemsFound));
        }
        let key = read_key(&self.key)?;
        let pair = |reason| CertificateError::Pair { file: self.file.clone(), key: self.key.clone(), reason };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(pair)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|e| CertificateError::Key { path: path.to_owned(), reason: describe(&e, "private key") })
}

fn describe(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("there is no {what} in it"),
        pem::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}
