//! A wire between one worker and NATS that a test can cut.

use std::io;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the wire does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    /// Passes everything on.
    Whole,
    /// Passes nothing on and says nothing, as a cable that is pulled: what was on its way comes
    /// when it is whole again.
    Silent,
    /// Ends every connection as soon as it is made.
    Closed,
}

/// Passes on what a client and a server send each other until it is told otherwise; ends when dropped.
#[derive(Debug)]
pub struct Cut {
    address: String,
    wire: watch::Sender<Wire>,
    _tasks: JoinSet<()>,
}

impl Cut {
    /// One in front of whichever of `servers` answers first.
    pub async fn start(servers: Vec<String>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (wire, state) = watch::channel(Wire::Whole);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(connection(client, servers.clone(), state.clone()));
            }
        });
        Ok(Self { address, wire, _tasks: tasks })
    }

    /// Where it listens: host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Passes nothing on from now on, and keeps what is open open.
    pub fn cut(&self) {
        self.wire.send_replace(Wire::Silent);
    }

    /// Closes everything, and everything that comes.
    pub fn close(&self) {
        self.wire.send_replace(Wire::Closed);
    }

    /// Passes everything on again.
    pub fn heal(&self) {
        self.wire.send_replace(Wire::Whole);
    }
}

async fn connection(client: TcpStream, servers: Vec<String>, mut wire: watch::Receiver<Wire>) {
    let state = wire.clone();
    let passed = async {
        whole(&mut state.clone()).await?;
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
        _ = wire.wait_for(|wire| *wire == Wire::Closed) => {}
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
    mut wire: watch::Receiver<Wire>,
) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let length = from.read(&mut bytes).await?;
        whole(&mut wire).await?;
        let Some(piece @ [_, ..]) = bytes.get(..length) else { return Ok(()) };
        to.write_all(piece).await?;
    }
}

async fn whole(wire: &mut watch::Receiver<Wire>) -> io::Result<()> {
    let is_whole = wire.wait_for(|wire| *wire == Wire::Whole).await;
    is_whole.map(drop).map_err(|_| io::ErrorKind::ConnectionAborted.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// An echo behind a wire, and a connection to it.
    async fn echo() -> (Cut, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (mut from, mut to) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            }
        });
        let cut = Cut::start(vec![server]).await.unwrap();
        let client = TcpStream::connect(cut.address()).await.unwrap();
        (cut, client)
    }

    async fn comes_back(client: &mut TcpStream, text: &[u8]) -> bool {
        let mut back = vec![0; text.len()];
        let read = tokio::time::timeout(Duration::from_millis(200), client.read_exact(&mut back)).await;
        matches!(read, Ok(Ok(_))) && back == text
    }

    #[tokio::test]
    async fn what_was_on_its_way_in_a_cut_comes_when_it_heals() {
        let (cut, mut client) = echo().await;
        client.write_all(b"one").await.unwrap();
        assert!(comes_back(&mut client, b"one").await);
        cut.cut();
        client.write_all(b"two").await.unwrap();
        assert!(!comes_back(&mut client, b"two").await);
        cut.heal();
        assert!(comes_back(&mut client, b"two").await);
    }

    #[tokio::test]
    async fn closing_ends_what_is_open_and_what_comes() {
        let (cut, mut client) = echo().await;
        client.write_all(b"one").await.unwrap();
        assert!(comes_back(&mut client, b"one").await);
        cut.close();
        assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
        let mut late = TcpStream::connect(cut.address()).await.unwrap();
        assert!(matches!(late.read(&mut [0]).await, Ok(0) | Err(_)));
        cut.heal();
        let mut again = TcpStream::connect(cut.address()).await.unwrap();
        again.write_all(b"two").await.unwrap();
        assert!(comes_back(&mut again, b"two").await);
    }
}
