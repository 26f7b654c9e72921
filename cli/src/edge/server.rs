//! Answers HTTP/1.1 and HTTP/2, and stops in order.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::servers::{NatsServers, NoServer};
use super::throttle::Throttle;
use super::tunnel::{self, TunnelLimits};

/// The path of connections to nats-server.
pub(super) const NATS_PATH: &str = "/nats";
/// The path of the health check.
pub(super) const HEALTH_PATH: &str = "/health";

/// How long a client may take to shake hands and to send a request's head, and how long it may keep an HTTP
/// connection without a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to end that had no request for so long.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Sockets beyond those of the connections to nats-server, for health checks and refusals.
const SPARE_SOCKETS: usize = 64;
/// Pause after a connection can't be accepted, for example because no file handles are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long what was found out about the health is true.
const HEALTH_AGE: Duration = Duration::from_secs(1);
/// What HTTP/2 buffers of each request: enough for messages to flow over long distances.
const STREAM_WINDOW: u32 = 256 << 10;
/// What HTTP/2 buffers of all requests of a connection, so that some that stall don't hold the others up.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Tells nginx, and what follows its example, to pass a response on as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The phases of the edge's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Opens connections to nats-server.
    Serving,
    /// Opens no more; those that are open go on.
    Draining,
    /// Closes all.
    Stopped,
}

/// What bounds the edge.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections to nats-server at once.
    pub(super) connections: u32,
    /// How long one lasts on which nothing is sent.
    pub(super) idle: Duration,
    /// Of all of them together.
    pub(super) bytes_per_s: Option<u64>,
}

/// Why a connection to nats-server is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the edge has all the connections that it may have ({0}); try again, or raise --max-connections")]
    Full(u32),
    #[error("the edge is about to stop; try another one")]
    Draining,
    /// The client is not told which servers there are; the log is.
    #[error("the edge can't reach nats-server; its log says why")]
    NoServer(#[from] NoServer),
}

type EdgeBody = Either<Full<Bytes>, StreamBody<BoxStream<'static, io::Result<Frame<Bytes>>>>>;

/// The HTTP server.
#[derive(Debug)]
pub(super) struct Edge {
    servers: NatsServers,
    limits: Limits,
    tunnel_limits: TunnelLimits,
    /// One permit for each connection to nats-server that may be opened.
    free: Arc<Semaphore>,
    phase: watch::Receiver<Phase>,
    /// Whether a nats-server answered, and when.
    health: Mutex<Option<(Instant, bool)>>,
}

impl Edge {
    pub(super) fn new(servers: NatsServers, limits: Limits, phase: watch::Receiver<Phase>) -> Arc<Self> {
        let throttle = limits.bytes_per_s.map(|rate| Arc::new(Throttle::new(rate)));
        Arc::new(Self {
            servers,
            limits,
            tunnel_limits: TunnelLimits { idle: limits.idle, throttle },
            free: Arc::new(Semaphore::new(limits.connections as usize)),
            phase,
            health: Mutex::new(None),
        })
    }

    /// Serves until the phase is [`Phase::Stopped`]; then what is still to be sent gets `flush` to go out.
    pub(super) async fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: watch::Receiver<Option<TlsAcceptor>>,
        flush: Duration,
    ) {
        let mut connections = JoinSet::new();
        let most = self.limits.connections as usize + SPARE_SOCKETS;
        let mut phase = self.phase.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((_, client)) if connections.len() >= most => {
                        tracing::warn!(%client, "too many HTTP connections; one is closed");
                    }
                    Ok((stream, client)) => {
                        let acceptor = tls.borrow().clone();
                        connections.spawn(Arc::clone(self).accept(stream, client, acceptor));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection can't be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = reached(&mut phase, Phase::Stopped) => break,
            }
        }
        drop(listener);
        let _ = timeout(flush, async { while connections.join_next().await.is_some() {} }).await;
        connections.shutdown().await;
    }

    /// Waits until no connection to nats-server is open; no more can be opened from then on.
    pub(super) async fn all_closed(&self) {
        // The semaphore is never closed, so this can't fail.
        if let Ok(all) = self.free.acquire_many(self.limits.connections).await {
            all.forget();
        }
    }

    async fn accept(self: Arc<Self>, stream: TcpStream, client: SocketAddr, tls: Option<TlsAcceptor>) {
        // Otherwise a message may wait for the next one.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%client, %error, "TCP_NODELAY can't be set");
        }
        let Some(acceptor) = tls else { return self.connection(stream, client).await };
        match timeout(REQUEST_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.connection(stream, client).await,
            Ok(Err(error)) => tracing::debug!(%client, %error, "the TLS handshake failed"),
            Err(_) => tracing::debug!(%client, "the TLS handshake took too long"),
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        client: SocketAddr,
    ) {
        let requests = OpenRequests::default();
        let service = service_fn(|request| {
            let (edge, open) = (Arc::clone(&self), requests.begin());
            async move { Ok::<_, Infallible>(edge.respond(request, client, open).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .max_concurrent_streams(self.limits.connections)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        // One that comes while the edge drains is a health check, or is refused by an answer.
        let mut phase = self.phase.clone();
        let end = if *phase.borrow() == Phase::Serving { Phase::Draining } else { Phase::Stopped };
        let rest = tokio::select! {
            ended = connection.as_mut() => return log_end(client, ended),
            () = requests.are_none_for(REQUEST_TIMEOUT) => GOODBYE_TIMEOUT,
            () = reached(&mut phase, end) => REQUEST_TIMEOUT,
        };
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => log_end(client, ended),
            // A client that does not read holds no socket for long.
            () = requests.are_none_for(rest) => {}
        }
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
        open: OpenRequest,
    ) -> Response<EdgeBody> {
        match (request.uri().path(), request.method()) {
            (NATS_PATH, &Method::POST) => match self.open(request.into_body(), open).await {
                Ok(response) => response,
                Err(refusal) => refuse(&refusal, client),
            },
            (HEALTH_PATH, &Method::GET | &Method::HEAD) => self.health().await,
            (NATS_PATH, _) => not_allowed("POST"),
            (HEALTH_PATH, _) => not_allowed("GET, HEAD"),
            _ => text(StatusCode::NOT_FOUND, "the edge has /nats and /health"),
        }
    }

    /// Opens a connection to nats-server. The response's head goes out at once, its body as nats-server sends.
    async fn open(&self, request: Incoming, open: OpenRequest) -> Result<Response<EdgeBody>, Refusal> {
        if *self.phase.borrow() != Phase::Serving {
            return Err(Refusal::Draining);
        }
        let free = Arc::clone(&self.free).try_acquire_owned();
        let permit: OwnedSemaphorePermit = free.map_err(|_| Refusal::Full(self.limits.connections))?;
        let server = self.servers.connect().await?;
        let stream = tunnel::join(server, request, self.tunnel_limits.clone(), (permit, open));
        let mut response =
            Response::new(Either::Right(StreamBody::new(Box::pin(stream) as BoxStream<'_, _>)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
        Ok(response)
    }

    async fn health(&self) -> Response<EdgeBody> {
        if *self.phase.borrow() != Phase::Serving {
            return text(StatusCode::SERVICE_UNAVAILABLE, &Refusal::Draining.to_string());
        }
        // Who asks meanwhile waits for the same answer.
        let mut health = self.health.lock().await;
        let known = health.filter(|(at, _)| at.elapsed() < HEALTH_AGE);
        let is_reached = match known {
            Some((_, is_reached)) => is_reached,
            None => {
                let connected = self.servers.connect().await;
                if let Err(error) = &connected {
                    tracing::warn!(%error, "not healthy");
                }
                health.insert((Instant::now(), connected.is_ok())).1
            }
        };
        if is_reached {
            text(StatusCode::OK, "ok")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "the edge can't reach nats-server; its log says why")
        }
    }
}

/// Waits until the phase is at least `wanted`.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    // An error means that the sender is gone: the edge stops.
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

fn log_end(client: SocketAddr, ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "an HTTP connection broke");
    }
}

fn refuse(refusal: &Refusal, client: SocketAddr) -> Response<EdgeBody> {
    let status = match refusal {
        Refusal::Full(_) | Refusal::Draining => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::NoServer(_) => StatusCode::BAD_GATEWAY,
    };
    match refusal {
        Refusal::NoServer(reason) => tracing::warn!(%client, %reason, "refused"),
        Refusal::Full(_) | Refusal::Draining => tracing::warn!(%client, reason = %refusal, "refused"),
    }
    text(status, &refusal.to_string())
}

fn not_allowed(allowed: &'static str) -> Response<EdgeBody> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allowed}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn text(status: StatusCode, line: &str) -> Response<EdgeBody> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(format!("{line}\n")))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Counts the requests that an HTTP connection has.
#[derive(Debug, Clone, Default)]
struct OpenRequests(Arc<watch::Sender<usize>>);

/// A request that is being answered; a connection to nats-server counts until it is closed.
struct OpenRequest(OpenRequests);

impl OpenRequests {
    fn begin(&self) -> OpenRequest {
        self.0.send_modify(|count| *count += 1);
        OpenRequest(self.clone())
    }

    /// Waits until there was no request for this long.
    async fn are_none_for(&self, limit: Duration) {
        let mut count = self.0.subscribe();
        loop {
            // The sender lives as long as this value, so waiting can't fail.
            let _ = count.wait_for(|count| *count == 0).await;
            if timeout(limit, count.wait_for(|count| *count > 0)).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
