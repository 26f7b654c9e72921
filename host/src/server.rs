//! HTTP/1.1 in front of the components, and an orderly end.
//!
//! Requests get the headers that Spin adds, responses are streamed. A connection that the
//! client closes drops the response body, which makes the component's next write fail.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use crate::function::Function;
use crate::routes::{RouteMatch, Router};

/// Paths that Spin keeps for itself.
const WELL_KNOWN: &str = "/.well-known/spin/";
/// How long no connection is accepted after the system refused one, out of file handles say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How far the server's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not at all.
    Serving,
    /// No new connections; responses that run are finished.
    Draining,
    /// Responses that run are cut off.
    Stopped,
}

/// Components and the routes to them.
pub struct Server {
    router: Router,
    functions: BTreeMap<String, Function>,
}

impl Server {
    /// `functions` are by the names that the routes use.
    pub fn new(router: Router, functions: BTreeMap<String, Function>) -> Arc<Self> {
        Arc::new(Self { router, functions })
    }

    /// Serves until `phase` says otherwise and the connections are closed.
    pub async fn run(self: Arc<Self>, listener: TcpListener, mut phase: watch::Receiver<Phase>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, client)) => {
                        connections.spawn(self.clone().connection(stream, client, phase.clone()));
                    }
                    Err(error) => {
                        tracing::warn!("a connection can't be accepted: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = reached(&mut phase, Phase::Draining) => break,
            }
        }
        drop(listener);
        tokio::select! {
            () = async { while connections.join_next().await.is_some() {} } => {}
            () = reached(&mut phase, Phase::Stopped) => {
                tracing::warn!("{} connections are cut off", connections.len());
                connections.shutdown().await;
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        mut phase: watch::Receiver<Phase>,
    ) {
        // A token must not wait for the one after it.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("{client}: no TCP_NODELAY: {error}");
        }
        let service = service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.respond(request, client).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = reached(&mut phase, Phase::Draining) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!("{client}: the connection ended: {error}");
        }
    }

    async fn respond(&self, request: Request<Incoming>, client: SocketAddr) -> Response<WasiBody> {
        let path = request.uri().path();
        tracing::debug!("{client}: {} {path}", request.method());
        if let Some(name) = path.strip_prefix(WELL_KNOWN) {
            return match name {
                "health" => text(StatusCode::OK, "OK"),
                _ => empty(StatusCode::NOT_FOUND),
            };
        }
        let Some(route) = self.router.find(path) else { return empty(StatusCode::NOT_FOUND) };
        let Some(function) = self.functions.get(route.component) else {
            tracing::error!("no component '{}' is loaded", route.component);
            return empty(StatusCode::INTERNAL_SERVER_ERROR);
        };
        let request = match prepare(request, &route, client) {
            Ok(request) => request.map(|body| body.map_err(HttpError::Hyper).boxed_unsync()),
            Err(refusal) => {
                tracing::debug!("{client}: {refusal}");
                return text(refusal.status, refusal.reason);
            }
        };
        match function.handle((), request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::error!("{}: no response: {error:#}", route.component);
                empty(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }
}

/// Waits until `phase` is at least `wanted`.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let enough = |phase: &Phase| *phase == wanted || *phase == Phase::Stopped;
    // Nobody is left to say more, so the end has come.
    _ = phase.wait_for(enough).await;
}

/// A request that can't be handed on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
struct Refusal {
    status: StatusCode,
    reason: &'static str,
}

impl Refusal {
    fn bad_request(reason: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason }
    }
}

/// Gives a request what Spin gives it: an absolute URI and headers about the route.
fn prepare<B>(
    request: Request<B>,
    route: &RouteMatch<'_>,
    client: SocketAddr,
) -> Result<Request<B>, Refusal> {
    let (mut parts, body) = request.into_parts();
    let authority = authority(&parts.uri, &parts.headers)?;
    if parts.headers.values().any(|value| std::str::from_utf8(value.as_bytes()).is_err()) {
        // Spin's status too, though it is the client's fault.
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Err(Refusal { status, reason: "A header is not UTF-8." });
    }
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));

    // The header is about this connection, and a component that hands it on breaks another.
    parts.headers.remove(CONNECTION);
    let full_url = format!("http://{authority}{path}");
    let client = client.to_string();
    for (name, value) in [
        ("spin-path-info", route.path_info.as_str()),
        ("spin-full-url", &full_url),
        ("spin-matched-route", route.raw),
        ("spin-base-path", "/"),
        ("spin-raw-component-route", route.raw),
        ("spin-component-route", route.raw_prefix()),
        ("spin-client-addr", &client),
    ] {
        // Route and URL may hold what a header can't; Spin leaves such a header out.
        if let Ok(value) = HeaderValue::from_str(value) {
            parts.headers.append(HeaderName::from_static(name), value);
        }
    }
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path);
    parts.uri = uri.build().map_err(|_| Refusal::bad_request("The request's target is not a path."))?;
    Ok(Request::from_parts(parts, body))
}

fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Authority, Refusal> {
    let from_header = match headers.get(HOST) {
        None => None,
        Some(value) => {
            let parsed = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
            Some(parsed.ok_or(Refusal::bad_request("The Host header is not a host."))?)
        }
    };
    match (from_header, uri.authority()) {
        (Some(header), Some(target)) if header != *target => {
            Err(Refusal::bad_request("The Host header and the request's target name different hosts."))
        }
        (Some(authority), _) => Ok(authority),
        (None, Some(authority)) => Ok(authority.clone()),
        (None, None) => Err(Refusal::bad_request("The request has no Host header.")),
    }
}

fn empty(status: StatusCode) -> Response<WasiBody> {
    with_status(status, Empty::new().map_err(|never| match never {}).boxed_unsync())
}

fn text(status: StatusCode, text: &'static str) -> Response<WasiBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    with_status(status, body.map_err(|never| match never {}).boxed_unsync())
}

fn with_status(status: StatusCode, body: WasiBody) -> Response<WasiBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(request: Request<()>) -> Result<Request<()>, Refusal> {
        let mut router = Router::default();
        router.add("/v1/...", "function").unwrap();
        let path = request.uri().path().to_owned();
        prepare(request, &router.find(&path).unwrap(), "192.0.2.7:5555".parse().unwrap())
    }

    #[test]
    fn a_request_gets_spins_headers_and_an_absolute_uri() {
        let request =
            Request::get("/v1/models?x=1").header(HOST, "localhost:3000").header(CONNECTION, "close");
        let request = prepared(request.body(()).unwrap()).unwrap();
        assert_eq!(request.uri(), "http://localhost:3000/v1/models?x=1");
        let header = |name: &str| request.headers()[name].to_str().unwrap();
        assert_eq!(header("spin-full-url"), "http://localhost:3000/v1/models?x=1");
        assert_eq!(header("spin-path-info"), "/models");
        assert_eq!(header("spin-matched-route"), "/v1/...");
        assert_eq!(header("spin-raw-component-route"), "/v1/...");
        assert_eq!(header("spin-component-route"), "/v1");
        assert_eq!(header("spin-base-path"), "/");
        assert_eq!(header("spin-client-addr"), "192.0.2.7:5555");
        assert!(!request.headers().contains_key(CONNECTION));
    }

    #[test]
    fn a_request_must_say_one_host() {
        let nowhere = Request::get("/v1/x").body(()).unwrap();
        assert!(prepared(nowhere).unwrap_err().reason.contains("no Host"));
        let two = Request::get("http://a/v1/x").header(HOST, "b").body(()).unwrap();
        assert!(prepared(two).unwrap_err().reason.contains("different"));
        let bad = Request::get("/v1/x").header(HOST, "a b").body(()).unwrap();
        assert!(prepared(bad).unwrap_err().reason.contains("not a host"));
        let bytes = Request::get("/v1/x").header(HOST, "a").header("x", &b"\xff"[..]).body(()).unwrap();
        assert_eq!(prepared(bytes).unwrap_err().status, StatusCode::INTERNAL_SERVER_ERROR);
        let target_only = Request::get("http://a/v1/x").body(()).unwrap();
        assert_eq!(prepared(target_only).unwrap().uri(), "http://a/v1/x");
    }
}
