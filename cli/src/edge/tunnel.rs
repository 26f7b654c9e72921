//! One client's connection to nats-server: two byte streams, joined.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::throttle::Throttle;

/// Most bytes that are read at once.
const READ_SIZE: usize = 64 << 10;

/// What bounds a tunnel.
#[derive(Debug, Clone)]
pub(super) struct TunnelLimits {
    /// How long a tunnel lasts on which nothing goes either way.
    pub(super) idle: Duration,
    pub(super) throttle: Option<Arc<Throttle>>,
}

/// Why a tunnel was cut.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("the connection to nats-server broke: {0}")]
    Server(io::Error),
    #[error("the request broke off: {0}")]
    Request(String),
    #[error("the client left")]
    Response,
    #[error("nothing was sent for {} s", .0.as_secs())]
    Idle(Duration),
}

/// Passes the request's body on to nats-server, and returns what nats-server sends. `held` is dropped when the
/// tunnel ends.
///
/// The stream ends when nats-server closes its connection. It fails when the tunnel is cut, so that the client does
/// not take a part of what was sent for the whole.
pub(super) fn join<B>(
    server: TcpStream,
    request: B,
    limits: TunnelLimits,
    held: impl Send + 'static,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static
where
    B: Body<Data = Bytes, Error: Display + Send> + Send + Unpin + 'static,
{
    // One chunk is enough: while it waits, the next bytes wait in the socket.
    let (sender, receiver) = mpsc::channel(1);
    let tunnel = tokio::spawn(async move {
        let _held = held;
        let ended = relay(server, request, &limits, &sender).await;
        match &ended {
            Ok(()) => tracing::debug!("nats-server closed a connection"),
            Err(cut) => tracing::debug!(%cut, "a connection was cut"),
        }
        ended
    });
    stream::unfold(Some((receiver, tunnel)), |state| async {
        let (mut receiver, tunnel) = state?;
        if let Some(chunk) = receiver.recv().await {
            return Some((Ok(Frame::data(chunk)), Some((receiver, tunnel))));
        }
        match tunnel.await {
            Ok(Ok(())) => None,
            Ok(Err(cut)) => Some((Err(io::Error::other(cut)), None)),
            Err(aborted) => Some((Err(io::Error::other(aborted)), None)),
        }
    })
}

/// Passes bytes both ways until nats-server closes its connection.
async fn relay<B>(
    mut server: TcpStream,
    request: B,
    limits: &TunnelLimits,
    response: &mpsc::Sender<Bytes>,
) -> Result<(), Cut>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    let (from_server, to_server) = server.split();
    let activity = Activity::default();
    tokio::select! {
        ended = download(from_server, response, limits, &activity) => ended,
        cut = upload(request, to_server, limits, &activity) => Err(cut),
        () = activity.is_idle_for(limits.idle) => Err(Cut::Idle(limits.idle)),
    }
}

/// Passes on what nats-server sends, as fast as the client takes it.
async fn download(
    mut server: ReadHalf<'_>,
    response: &mpsc::Sender<Bytes>,
    limits: &TunnelLimits,
    activity: &Activity,
) -> Result<(), Cut> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_SIZE);
        let read = tokio::select! {
            read = server.read_buf(&mut buffer) => read,
            () = response.closed() => return Err(Cut::Response),
        };
        let read = match read {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            // So it ends when nats-server closes it with something of the client's unread, as after an error.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(Cut::Server(error)),
        };
        limits.pass(read).await;
        response.send(buffer.split().freeze()).await.map_err(|_| Cut::Response)?;
        activity.record();
    }
}

/// Passes on what the client sends, as fast as nats-server takes it; returns only if the client breaks off.
async fn upload<B>(
    mut request: B,
    mut server: WriteHalf<'_>,
    limits: &TunnelLimits,
    activity: &Activity,
) -> Cut
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    while let Some(frame) = request.frame().await {
        let chunk = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => return Cut::Request(error.to_string()),
        };
        limits.pass(chunk.len()).await;
        if server.write_all(&chunk).await.is_err() {
            break;
        }
        activity.record();
    }
    // nats-server closes its side in turn; what it has sent before, such as an error, is still to be read.
    let _ = server.shutdown().await;
    std::future::pending().await
}

impl TunnelLimits {
    async fn pass(&self, bytes: usize) {
        if let Some(throttle) = &self.throttle {
            throttle.pass(bytes).await;
        }
    }
}

/// When something was last passed on.
#[derive(Debug)]
struct Activity {
    began: Instant,
    /// In milliseconds since then.
    last: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { began: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Activity {
    fn record(&self) {
        let passed = self.began.elapsed().as_millis();
        self.last.store(u64::try_from(passed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Waits until nothing was passed on for this long.
    async fn is_idle_for(&self, limit: Duration) {
        loop {
            let last = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed));
            if last.elapsed() >= limit {
                return;
            }
            sleep_until(last + limit).await;
        }
    }
}
