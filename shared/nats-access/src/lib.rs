//! How Emberline's native programs reach NATS: the same options for each of them.
//!
//! [`NatsArgs`] and [`Secrets`] are what a program is given, [`NatsAccess`] is what that comes to: servers, a
//! [`Proof`] of who connects, and what TLS needs. Secrets and files are read again for each connection, so one
//! that is renewed is used without a restart. [`ConnectFailure`] says what to do when there is no connection.

mod args;
mod failure;
mod proof;
mod tls;

use std::fmt;

use async_nats::{AuthError, Client, ConnectOptions, ServerAddr};
use emberline_protocol::subject;

pub use args::{InvalidServer, NATS_HEADING, NatsArgs, Secret, Secrets, parse_server};
pub use failure::{ConnectFailure, TlsProblem};
pub use proof::{Proof, ProofError};
pub use tls::{ClientCertificate, TlsFileError, TlsFiles};

/// Where NATS is, who connects, and how.
#[derive(Clone)]
pub struct NatsAccess {
    servers: Vec<ServerAddr>,
    user: String,
    proof: Proof,
    tls: TlsFiles,
}

/// Options that can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The proof of who connects.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The files for TLS.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
}

impl NatsAccess {
    /// Access to any of `servers` as `user`, which also names its inboxes.
    pub fn new(servers: Vec<ServerAddr>, user: String, proof: Proof) -> Self {
        Self { servers, user, proof, tls: TlsFiles::default() }
    }

    /// The servers; any of them will do.
    pub fn servers(&self) -> &[ServerAddr] {
        &self.servers
    }

    /// What TLS needs besides their names.
    pub fn tls(&self) -> &TlsFiles {
        &self.tls
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The servers' hosts and ports, separated by commas.
    pub fn address(&self) -> String {
        let address = |server: &ServerAddr| {
            let (host, port) = (server.host(), server.port());
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        };
        self.servers.iter().map(address).collect::<Vec<_>>().join(",")
    }

    /// Options for [`NatsAccess::connect`]. deploy/nats.conf lets each user subscribe to its own inboxes only.
    pub fn options(&self) -> ConnectOptions {
        let proof = self.proof.clone();
        let user = self.user.clone();
        let options = match self.proof {
            Proof::None => ConnectOptions::new(),
            _ => ConnectOptions::with_auth_callback(move |nonce| {
                let auth = proof.answer(&user, &nonce).map_err(AuthError::new);
                std::future::ready(auth)
            }),
        };
        let options = self.tls.apply(options.custom_inbox_prefix(subject::inbox_prefix(&self.user)));
        // A certificate has the servers' names; what they tell of each other are addresses.
        if self.speaks_tls() { options.ignore_discovered_servers() } else { options }
    }

    /// Connects with these options, which [`NatsAccess::options`] has made.
    pub async fn connect(&self, options: ConnectOptions) -> Result<Client, ConnectFailure> {
        options.connect(self.servers.as_slice()).await.map_err(|error| ConnectFailure::new(self, &error))
    }

    fn speaks_tls(&self) -> bool {
        self.tls.are_given() || self.servers.iter().any(ServerAddr::tls_required)
    }
}

impl fmt::Debug for NatsAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers, user, proof, tls } = self;
        f.debug_struct("NatsAccess")
            .field("servers", servers)
            .field("user", user)
            .field("proof", proof)
            .field("tls", tls)
            .finish()
    }
}
