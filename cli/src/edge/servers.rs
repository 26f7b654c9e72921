//! The nats-servers behind the edge.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use emberline_nats_access::{InvalidServer, parse_server};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;

/// How long a server may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a server is waited for before the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(200);

/// Where a nats-server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerAddress {
    host: String,
    port: u16,
}

/// Why a text is no address of a nats-server.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidServerAddress {
    #[error(transparent)]
    Syntax(#[from] InvalidServer),
    #[error(
        "the edge passes bytes on as they are and adds no TLS; write HOST:PORT, and TLS is between nats-server and the function"
    )]
    Scheme,
}

impl FromStr for ServerAddress {
    type Err = InvalidServerAddress;

    /// Reads `HOST`, `HOST:PORT` or `nats://HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, InvalidServerAddress> {
        let address = parse_server(text)?;
        if address.tls_required() {
            return Err(InvalidServerAddress::Scheme);
        }
        Ok(Self { host: address.host().to_owned(), port: address.port() })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// No nats-server answers; why, for each of them.
#[derive(Debug, thiserror::Error)]
#[error("no nats-server answers ({})", .0.join("; "))]
pub(super) struct NoServer(Vec<String>);

/// All nats-servers; any of them will do.
#[derive(Debug)]
pub(super) struct NatsServers {
    addresses: Vec<ServerAddress>,
    /// The one to try first next time, so that connections spread over all.
    next: AtomicUsize,
}

impl NatsServers {
    pub(super) fn new(addresses: Vec<ServerAddress>) -> Self {
        Self { addresses, next: AtomicUsize::new(0) }
    }

    /// Connects to the first server that answers.
    pub(super) async fn connect(&self) -> Result<TcpStream, NoServer> {
        let count = self.addresses.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut untried = self.addresses.iter().cycle().skip(first % count.max(1)).take(count);
        let mut attempts = FuturesUnordered::new();
        let mut failures = Vec::new();
        let mut are_left = true;
        loop {
            match untried.next() {
                Some(address) => attempts.push(connect(address)),
                None => are_left = false,
            }
            tokio::select! {
                attempt = attempts.next() => match attempt {
                    Some(Ok(stream)) => return Ok(stream),
                    Some(Err(failure)) => failures.push(failure),
                    None if are_left => {}
                    None => return Err(NoServer(failures)),
                },
                () = tokio::time::sleep(HEAD_START), if are_left => {}
            }
        }
    }
}

async fn connect(address: &ServerAddress) -> Result<TcpStream, String> {
    let ServerAddress { host, port } = address;
    let connecting = TcpStream::connect((host.as_str(), *port));
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected.map_err(|e| format!("{address}: {e}"))?,
        Err(_) => return Err(format!("{address}: no answer within {} s", CONNECT_TIMEOUT.as_secs())),
    };
    // Otherwise a message may wait for the next one.
    stream.set_nodelay(true).map_err(|e| format!("{address}: {e}"))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn addresses_name_a_host_and_no_tls() {
        let address = |text: &str| text.parse::<ServerAddress>().map(|address| address.to_string());
        for (text, expected) in [
            ("nats", "nats:4222"),
            ("10.0.0.1:4333", "10.0.0.1:4333"),
            ("nats://a.b:1", "a.b:1"),
            (" [fd00::1]:4222", "[fd00::1]:4222"),
        ] {
            assert_eq!(address(text).unwrap(), expected);
        }
        for (text, hint) in [("tls://a:4222", "adds no TLS"), (":x", "HOST:PORT"), ("ws://a", "HOST:PORT")] {
            let error = address(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn connections_spread_and_pass_over_servers_that_do_not_answer() {
        let (one, other) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ports = [port(&closed), port(&one), port(&other)];
        drop(closed);
        let servers =
            NatsServers::new(ports.map(|port| ServerAddress { host: "127.0.0.1".into(), port }).to_vec());
        let mut reached = Vec::new();
        for _ in 0..3 {
            reached.push(servers.connect().await.unwrap().peer_addr().unwrap().port());
        }
        assert_eq!(reached, [ports[1], ports[1], ports[2]]);
        let all_closed = NatsServers::new(servers.addresses[..1].to_vec());
        let error = all_closed.connect().await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("no nats-server answers (127.0.0.1:{}: ", ports[0])), "{error}");
    }
}
