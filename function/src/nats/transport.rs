//! The ways to a server: a TCP connection, or a request and its response through an edge.

use std::net::SocketAddr;

use super::address::ServerUrl;
use crate::platform::{ByteStream, Host};

/// Opens a byte stream to `server`, without a limit of time. TLS inside of it is the caller's.
pub async fn open(host: &Host, server: &ServerUrl) -> Result<Box<dyn ByteStream>, String> {
    if server.scheme.is_http() {
        return host.exchange(server.clone()).await;
    }
    let addresses = match server.ip() {
        Some(ip) => vec![ip],
        None => host.look_up(server.host.clone()).await?,
    };
    let mut failure = format!("'{}' has no address", server.host);
    for ip in addresses {
        match host.connect(SocketAddr::new(ip, server.port)).await {
            Ok(stream) => return Ok(stream),
            Err(reason) => failure = reason,
        }
    }
    Err(failure)
}
