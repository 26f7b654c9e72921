//! A proxy that makes the way to a server longer.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Most bytes in one piece, and most pieces under way.
const PIECE: usize = 1 << 16;
const PIECES: usize = 1 << 10;

/// Passes on what a client and a server send each other, later; ends when dropped.
#[derive(Debug)]
pub struct DelayingProxy {
    address: String,
    _tasks: JoinSet<()>,
}

impl DelayingProxy {
    /// One that listens on `host` in front of `server`. What either side sends reaches the other after `delay`, and a
    /// connection takes a round trip to make.
    pub async fn start(host: Ipv4Addr, server: String, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await?;
        let address = listener.local_addr()?.to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = server.clone();
                connections.spawn(async move { connection(client, &server, delay).await });
            }
        });
        Ok(Self { address, _tasks: tasks })
    }

    /// Where it listens: host and port.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// Whichever way it ends, both connections do.
async fn connection(client: TcpStream, server: &str, delay: Duration) -> io::Result<()> {
    sleep(2 * delay).await;
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        ended = pass(from_client, to_server, delay) => ended,
        ended = pass(from_server, to_client, delay) => ended,
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
) -> io::Result<()> {
    let (sender, mut pieces) = mpsc::channel(PIECES);
    let receive = async move {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            if from.read_buf(&mut piece).await? == 0
                || sender.send((Instant::now() + delay, piece)).await.is_err()
            {
                return io::Result::Ok(());
            }
        }
    };
    let send = async {
        while let Some((at, piece)) = pieces.recv().await {
            sleep_until(at).await;
            to.write_all(&piece).await?;
        }
        Ok(())
    };
    tokio::try_join!(receive, send).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn everything_arrives_later_and_in_order() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let proxy = DelayingProxy::start(Ipv4Addr::LOCALHOST, server, DELAY).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let sent = Instant::now();
        for text in [b"one", b"two"] {
            client.write_all(text).await.unwrap();
        }
        let mut received = [0; 6];
        server.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"onetwo");
        assert!(sent.elapsed() >= DELAY);
        drop(client);
        assert_eq!(server.read(&mut received).await.unwrap(), 0);
    }
}
