//! The way on which a stack's function reaches nats-server. `emberline up` knows one, `emberline bench gateway` all.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A way from the function to nats-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BusWay {
    /// A socket in clear text.
    Plain,
    /// A socket with TLS inside. nats-server's configuration has to offer it.
    Tls {
        /// Certificates of the authorities that may have signed nats-server's, as PEM.
        ca: String,
    },
    /// HTTP through an edge.
    Edge(EdgePlan),
}

/// An edge that the stack starts beside its nats-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EdgePlan {
    /// The program `emberline`.
    pub(crate) program: PathBuf,
    pub(crate) listen: SocketAddr,
    /// What makes it speak HTTPS.
    pub(crate) certificate: Option<CertificateFiles>,
}

/// A certificate that is its own authority, and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl BusWay {
    /// The environment of the function's host, with nats-server at `nats`.
    pub(crate) fn environment(&self, nats: SocketAddr) -> Vec<(&'static str, String)> {
        let (scheme, server) = match self {
            Self::Plain => ("nats", nats),
            Self::Tls { .. } => ("tls", nats),
            Self::Edge(EdgePlan { certificate: None, listen, .. }) => ("http", *listen),
            Self::Edge(EdgePlan { certificate: Some(_), listen, .. }) => ("https", *listen),
        };
        let mut environment = vec![
            ("SPIN_VARIABLE_NATS_SCHEME", scheme.to_owned()),
            ("SPIN_VARIABLE_NATS_SERVER", server.to_string()),
        ];
        match self {
            Self::Tls { ca } => environment.push(("SPIN_VARIABLE_NATS_TLS_CA", ca.clone())),
            Self::Edge(EdgePlan { certificate: Some(files), .. }) => {
                environment.push(("SSL_CERT_FILE", files.certificate.to_string_lossy().into_owned()));
            }
            Self::Plain | Self::Edge(_) => {}
        }
        environment
    }
}
