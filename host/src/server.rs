//! Serves the components over HTTP/1.1 and HTTP/2 (with prior knowledge), and shuts down in order.
//!
//! Requests get the headers that Spin adds; responses are streamed. When a client closes its connection, the
//! response body is dropped, so that the component's next write fails. A request that names no host, or two
//! different ones, gets no response: its connection is closed. Spin does the same (its
//! `crates/trigger-http/src/server.rs`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use crate::cut_body::CutBody;
use crate::function::Function;
use crate::routes::{RouteMatch, Router};

/// Prefix of the paths that Spin answers itself.
const WELL_KNOWN: &str = "/.well-known/spin/";
/// Pause after a connection can't be accepted, for example because no file handles are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The phases of a server's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Accepts connections.
    Serving,
    /// Accepts no new connections; running responses are finished.
    Draining,
    /// Running responses are cut off.
    Stopped,
}

/// The response at `/.well-known/spin/info`.
#[derive(Serialize)]
pub struct AppInfo {
    /// The application's name.
    pub name: String,
    /// The application's version; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// The components of an application and the routes to them.
pub struct Server {
    info: AppInfo,
    router: Router,
    functions: BTreeMap<String, Function>,
    time_limit: Option<Duration>,
}

impl Server {
    /// Makes a server; the keys of `functions` are the names of components in the routes. Each request is cut when
    /// `time_limit` is over, if that is given.
    pub fn new(
        info: AppInfo,
        router: Router,
        functions: BTreeMap<String, Function>,
        time_limit: Option<Duration>,
    ) -> Arc<Self> {
        Arc::new(Self { info, router, functions, time_limit })
    }

    /// Serves until `phase` leaves [`Phase::Serving`] and all connections are closed.
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
                tracing::warn!("cutting off {} connections", connections.len());
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
        // Otherwise a token may wait for the next one. Spin does not set it.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("{client}: TCP_NODELAY can't be set: {error}");
        }
        let service = service_fn(|request| {
            let server = self.clone();
            async move { server.respond(request, client).await }
        });
        let builder = auto::Builder::new(TokioExecutor::new());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
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

    async fn respond(
        &self,
        mut request: Request<Incoming>,
        client: SocketAddr,
    ) -> Result<Response<WasiBody>, NoHost> {
        let arrived = Instant::now();
        strip(request.headers_mut());
        let path = request.uri().path();
        tracing::debug!("{client}: {} {path}", request.method());
        if let Some(name) = path.strip_prefix(WELL_KNOWN) {
            return Ok(match name {
                "health" => full(StatusCode::OK, "OK"),
                "info" => self.info(),
                _ => empty(StatusCode::NOT_FOUND),
            });
        }
        let Some(route) = self.router.find(path) else { return Ok(empty(StatusCode::NOT_FOUND)) };
        let Some(function) = self.functions.get(route.component) else {
            tracing::error!("no component '{}' is loaded", route.component);
            return Ok(empty(StatusCode::INTERNAL_SERVER_ERROR));
        };
        let Some(request) = prepare(request, &route, client)? else {
            tracing::error!("{client}: a header of the request is not UTF-8");
            // The client is to blame, but this is Spin's answer.
            return Ok(empty(StatusCode::INTERNAL_SERVER_ERROR));
        };
        let request = request.map(|body| body.map_err(HttpError::Hyper).boxed_unsync());
        let response = async {
            function.handle((), request).await.unwrap_or_else(|error| {
                tracing::error!("{}: no response: {error:#}", route.component);
                empty(StatusCode::INTERNAL_SERVER_ERROR)
            })
        };
        let Some(limit) = self.time_limit else { return Ok(response.await) };
        let cut = arrived + limit;
        Ok(match tokio::time::timeout_at(cut, response).await {
            Ok(response) => response.map(|body| CutBody::new(body, cut).boxed_unsync()),
            Err(_) => empty(StatusCode::GATEWAY_TIMEOUT),
        })
    }

    fn info(&self) -> Response<WasiBody> {
        let mut response = full(StatusCode::OK, serde_json::to_vec_pretty(&self.info).unwrap_or_default());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Waits until `phase` is at least `wanted`.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let enough = |phase: &Phase| *phase == wanted || *phase == Phase::Stopped;
    // An error means that the sender is gone: the server stops.
    _ = phase.wait_for(enough).await;
}

/// Why a request's host is unknown; such a request gets no response.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum NoHost {
    #[error("the request has no Host header")]
    Missing,
    #[error("the Host header is not a host")]
    Invalid,
    #[error("the Host header and the request's target name different hosts")]
    Different,
    #[error("the request's target has no path")]
    NoPath,
}

/// Removes the headers that are not meant for components.
fn strip(headers: &mut HeaderMap) {
    // Spin's names for calls between components.
    let is_internal = |value: &HeaderValue| {
        let host = value.to_str().unwrap_or_default();
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        host.split_once('.').is_some_and(|(_, domain)| domain == "spin.internal")
    };
    if headers.get(HOST).is_some_and(is_internal) {
        headers.remove(HOST);
    }
    // It is about this connection; a component that forwarded it would break another one.
    headers.remove(CONNECTION);
}

/// Adds what Spin adds to a request: an absolute URI and headers about the route. `None` if a header is not
/// UTF-8, so that a component can't get it.
fn prepare<B>(
    request: Request<B>,
    route: &RouteMatch<'_>,
    client: SocketAddr,
) -> Result<Option<Request<B>>, NoHost> {
    let (mut parts, body) = request.into_parts();
    let authority = authority(&parts.uri, &parts.headers)?;
    let path = parts.uri.path_and_query().cloned().ok_or(NoHost::NoPath)?;
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path.clone());
    parts.uri = uri.build().map_err(|_| NoHost::NoPath)?;
    if parts.headers.values().any(|value| std::str::from_utf8(value.as_bytes()).is_err()) {
        return Ok(None);
    }
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let full_url = format!("http://{host}{path}");
    let (based, client) = (route.based(), client.to_string());
    for (name, value) in [
        ("spin-path-info", route.path_info.as_str()),
        ("spin-full-url", &full_url),
        ("spin-matched-route", &based),
        ("spin-base-path", "/"),
        ("spin-raw-component-route", route.raw),
        ("spin-component-route", route.raw_prefix()),
        ("spin-client-addr", &client),
    ] {
        // Route and URL may have characters that a header can't carry; Spin omits such a header.
        if let Ok(value) = HeaderValue::from_str(value) {
            parts.headers.append(HeaderName::from_static(name), value);
        }
    }
    Ok(Some(Request::from_parts(parts, body)))
}

fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Authority, NoHost> {
    let from_header = match headers.get(HOST) {
        None => None,
        Some(value) => {
            let parsed = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
            Some(parsed.ok_or(NoHost::Invalid)?)
        }
    };
    match (from_header, uri.authority()) {
        (Some(header), Some(target)) if header != *target => Err(NoHost::Different),
        (Some(authority), _) => Ok(authority),
        (None, Some(authority)) => Ok(authority.clone()),
        (None, None) => Err(NoHost::Missing),
    }
}

fn empty(status: StatusCode) -> Response<WasiBody> {
    with_status(status, Empty::new().map_err(|never| match never {}).boxed_unsync())
}

fn full(status: StatusCode, body: impl Into<Bytes>) -> Response<WasiBody> {
    with_status(status, Full::new(body.into()).map_err(|never| match never {}).boxed_unsync())
}

fn with_status(status: StatusCode, body: WasiBody) -> Response<WasiBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(mut request: Request<()>) -> Result<Option<Request<()>>, NoHost> {
        let mut router = Router::default();
        router.add("/v1/...", "function").unwrap();
        strip(request.headers_mut());
        prepare(request, &router.find("/v1/models").unwrap(), "192.0.2.7:5555".parse().unwrap())
    }

    fn get(target: &str, headers: &[(HeaderName, &[u8])]) -> Result<Option<Request<()>>, NoHost> {
        let request =
            headers.iter().fold(Request::get(target), |request, (name, value)| request.header(name, *value));
        prepared(request.body(()).unwrap())
    }

    #[test]
    fn a_request_gets_spins_headers_and_an_absolute_uri() {
        let headers = [(HOST, &b"localhost:3000"[..]), (CONNECTION, b"close")];
        let request = get("/v1/models?x=1", &headers).unwrap().unwrap();
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
        assert_eq!(get("/v1/x", &[]).unwrap_err(), NoHost::Missing);
        assert_eq!(get("http://a/v1/x", &[(HOST, b"b")]).unwrap_err(), NoHost::Different);
        assert_eq!(get("/v1/x", &[(HOST, b"a b")]).unwrap_err(), NoHost::Invalid);
        for internal in ["other.spin.internal", "other.spin.internal:80"] {
            assert_eq!(get("/v1/x", &[(HOST, internal.as_bytes())]).unwrap_err(), NoHost::Missing);
        }
        let connect = Request::builder().method("CONNECT").uri("a:80").header(HOST, "a:80").body(()).unwrap();
        assert_eq!(prepared(connect).unwrap_err(), NoHost::NoPath);
        // The target alone is enough, although no header names the host.
        let target_only = get("http://a/v1/x", &[]).unwrap().unwrap();
        assert_eq!(target_only.uri(), "http://a/v1/x");
        assert_eq!(target_only.headers()["spin-full-url"], "http://localhost/v1/x");
    }

    #[test]
    fn a_header_that_is_not_utf_8_is_not_passed_on() {
        let bytes = HeaderName::from_static("x");
        assert!(get("/v1/x", &[(HOST, b"a"), (bytes, b"\xff")]).unwrap().is_none());
    }
}
