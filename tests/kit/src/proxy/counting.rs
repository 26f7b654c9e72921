//! A proxy that counts round trips between the function and nats-server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How long each piece is held back, so that what is sent together arrives together.
const DELAY: Duration = Duration::from_millis(50);

/// Who sent something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    Requests,
    Replies,
}

/// Passes on what function and nats-server send each other; ends when dropped.
pub struct CountingProxy {
    /// Its port on 127.0.0.1.
    pub port: u16,
    flights: Arc<Mutex<Vec<Flight>>>,
    _tasks: JoinSet<()>,
}

impl CountingProxy {
    /// Starts one in front of `server`.
    pub async fn start(server: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let flights = Arc::<Mutex<Vec<Flight>>>::default();
        let mut tasks = JoinSet::new();
        let seen = Arc::clone(&flights);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else { return };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                connections.spawn(pass(from_client, to_server, Flight::Requests, Arc::clone(&seen)));
                connections.spawn(pass(from_server, to_client, Flight::Replies, Arc::clone(&seen)));
            }
        });
        Ok(Self { port, flights, _tasks: tasks })
    }

    /// Sets the count to zero.
    pub fn reset(&self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Round trips since then: requests that were followed by replies.
    pub fn round_trips(&self) -> usize {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.windows(2).filter(|pair| *pair == [Flight::Requests, Flight::Replies]).count()
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    kind: Flight,
    seen: Arc<Mutex<Vec<Flight>>>,
) {
    let mut bytes = vec![0; 1 << 20];
    loop {
        let Ok(mut length @ 1..) = from.read(&mut bytes).await else { return };
        tokio::time::sleep(DELAY).await;
        // What has come meanwhile goes with it.
        while let Ok(Ok(more @ 1..)) =
            tokio::time::timeout(Duration::from_millis(1), from.read(&mut bytes[length..])).await
        {
            length += more;
        }
        let piece = &bytes[..length];
        // Pings and subscriptions are no requests, and their answers no replies.
        let counts = match kind {
            Flight::Requests => piece.windows(4).any(|word| word == b"PUB "),
            Flight::Replies => piece.windows(4).any(|word| word == b"MSG "),
        };
        if counts {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(kind);
        }
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}
