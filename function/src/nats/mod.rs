//! The NATS client: [`bus`] is what the rest of the function uses. It hands out connections and sends requests.
//!
//! [`connection`] is one connection, with the protocol in [`codec`] and its beginning in [`handshake`]. It runs over
//! a byte stream that [`transport`] opens in one of the ways that an [`address`] can name, with [`tls`] inside it
//! where the address wants that, and it is ours by [`credentials`]. [`jetstream`] reads what JetStream answers to a
//! publish and to a direct get, [`current`] reads records as their stream's leader knows them, [`round_trip`] has
//! several requests answered at once, [`pool`] keeps idle connections, and [`servers`] says which server to try.

pub mod address;
pub mod bus;
pub mod codec;
pub mod connection;
pub mod credentials;
pub mod current;
pub mod handshake;
pub mod handshakes;
pub mod jetstream;
pub mod pool;
pub mod round_trip;
pub mod servers;
pub mod tls;
pub mod transport;

use std::net::SocketAddr;

use emberline_protocol::jetstream_domain::JetStreamDomain;

use address::ServerUrl;
use credentials::Credentials;
use tls::TlsSettings;

/// Where NATS is and who we are there. Two equal endpoints can share connections.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NatsEndpoint {
    /// At least one; those of a cluster are as good as each other.
    pub servers: Vec<ServerUrl>,
    /// Who we are.
    pub credentials: Credentials,
    /// TLS, for those servers whose address wants it.
    pub tls: TlsSettings,
    /// The JetStream domain in which the streams are.
    pub domain: JetStreamDomain,
}

impl NatsEndpoint {
    /// A server in clear text and without authentication.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            servers: vec![ServerUrl::plain(address)],
            credentials: Credentials::default(),
            tls: TlsSettings::default(),
            domain: JetStreamDomain::default(),
        }
    }
}
