//! The NATS client: [`bus`] is what the rest of the function uses. It hands out connections and sends requests.
//!
//! [`connection`] is one connection, with the protocol in [`codec`] and its beginning in [`handshake`];
//! [`jetstream`] reads what JetStream answers to a publish and to a direct get, [`current`] reads records as their
//! stream's leader knows them, [`round_trip`] has several requests answered at once, [`pool`] keeps idle connections, and [`servers`] says which server to try. The
//! sockets come from [`crate::platform`].

pub mod bus;
pub mod codec;
pub mod connection;
pub mod current;
pub mod handshake;
pub mod jetstream;
pub mod pool;
pub mod round_trip;
pub mod servers;

use std::net::SocketAddr;

use emberline_protocol::jetstream_domain::JetStreamDomain;

/// Where NATS is and who we are there. Two equal endpoints can share connections.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NatsEndpoint {
    /// At least one; those of a cluster are as good as each other. Raw sockets take no names, hence
    /// no host names here.
    pub servers: Vec<SocketAddr>,
    /// User of the function's role; empty for a server without authentication.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The JetStream domain in which the streams are.
    pub domain: JetStreamDomain,
}
