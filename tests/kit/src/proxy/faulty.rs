//! A proxy between one worker and NATS that a test can interrupt.

use std::io;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    /// Passes everything on.
    Open,
    /// Passes nothing on, as when a cable is pulled: what was on its way arrives when the link is open again.
    Silent,
    /// Ends every connection as soon as it is made.
    Closed,
}

/// Passes on what a client and a server send each other until a test interrupts it; ends when dropped.
#[derive(Debug)]
pub struct FaultyProxy {
    address: String,
    link: watch::Sender<LinkState>,
    _tasks: JoinSet<()>,
}

impl FaultyProxy {
    /// One in front of whichever of `servers` answers first.
    pub async fn start(servers: Vec<String>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (link, state) = watch::channel(LinkState::Open);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(connection(client, servers.clone(), state.clone()));
            }
        });
        Ok(Self { address, link, _tasks: tasks })
    }

    /// Where it listens: host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Passes nothing on from now on; connections stay open.
    pub fn silence(&self) {
        self.link.send_replace(LinkState::Silent);
    }

    /// Closes every connection, also those that are made from now on.
    pub fn close(&self) {
        self.link.send_replace(LinkState::Closed);
    }

    /// Passes everything on again.
    pub fn restore(&self) {
        self.link.send_replace(LinkState::Open);
    }
}

async fn connection(client: TcpStream, servers: Vec<String>, mut link: watch::Receiver<LinkState>) {
    let state = link.clone();
    let passed = async {
        until_open(&mut state.clone()).await?;
        let server = first_of(&servers).await?;
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::select! {
            ended = pass(from_client, to_server, state.clone()) => ended,
            ended = pass(from_server, to_client, state.clone()) => ended,
        }
    };
    // Whichever way it ends, both connections do.
    tokio::select! {
        _ = passed => {}
        _ = link.wait_for(|link| *link == LinkState::Closed) => {}
    }
}

async fn first_of(servers: &[String]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for server in servers {
        match TcpStream::connect(server).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut link: watch::Receiver<LinkState>,
) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let length = from.read(&mut bytes).await?;
        until_open(&mut link).await?;
        let Some(piece @ [_, ..]) = bytes.get(..length) else { return Ok(()) };
        to.write_all(piece).await?;
    }
}

async fn until_open(link: &mut watch::Receiver<LinkState>) -> io::Result<()> {
    let is_open = link.wait_for(|link| *link == LinkState::Open).await;
    is_open.map(drop).map_err(|_| io::ErrorKind::ConnectionAborted.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// An echo server behind a proxy, and a connection to it.
    async fn echo() -> (FaultyProxy, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (mut from, mut to) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            }
        });
        let proxy = FaultyProxy::start(vec![server]).await.unwrap();
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, client)
    }

    async fn comes_back(client: &mut TcpStream, text: &[u8]) -> bool {
        let mut back = vec![0; text.len()];
        let read = tokio::time::timeout(Duration::from_millis(200), client.read_exact(&mut back)).await;
        matches!(read, Ok(Ok(_))) && back == text
    }

    #[tokio::test]
    async fn what_was_on_its_way_in_a_cut_comes_when_it_heals() {
        let (proxy, mut client) = echo().await;
        client.write_all(b"one").await.unwrap();
        assert!(comes_back(&mut client, b"one").await);
        proxy.silence();
        client.write_all(b"two").await.unwrap();
        assert!(!comes_back(&mut client, b"two").await);
        proxy.restore();
        assert!(comes_back(&mut client, b"two").await);
    }

    #[tokio::test]
    async fn closing_ends_what_is_open_and_what_comes() {
        let (proxy, mut client) = echo().await;
        client.write_all(b"one").await.unwrap();
        assert!(comes_back(&mut client, b"one").await);
        proxy.close();
        assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
        let mut late = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(matches!(late.read(&mut [0]).await, Ok(0) | Err(_)));
        proxy.restore();
        let mut again = TcpStream::connect(proxy.address()).await.unwrap();
        again.write_all(b"two").await.unwrap();
        assert!(comes_back(&mut again, b"two").await);
    }
}
