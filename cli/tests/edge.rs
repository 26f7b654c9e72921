//! `emberline edge` between HTTP clients and a real nats-server.

#![allow(clippy::unwrap_used, reason = "a step of a test that fails ends the test")]

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use emberline_test_kit::nats::NatsServer;
use emberline_test_kit::wait::{until, within};
use futures::SinkExt;
use futures::channel::mpsc;
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The password of the only user of [`nats_server`].
const PASSWORD: &str = "right";

/// A nats-server with one user, as whom a test can speak without signing anything.
async fn nats_server() -> Result<NatsServer> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("nats.conf");
    let users = format!("authorization {{ users: [{{user: worker, password: {PASSWORD}}}] }}");
    std::fs::write(&config, format!("max_payload: 8MB\n{users}\n"))?;
    NatsServer::start_with(&config).await
}

/// A running edge; it ends when this is dropped.
struct Edge {
    process: Child,
    address: String,
}

impl Edge {
    async fn start(nats: &str, args: &[&str]) -> Result<Self> {
        let mut process = command(nats, args).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        let serving = async { lines.next_line().await?.context("the edge ended before it served") };
        let line = within("the edge serves", serving).await?;
        let (_, address) = line.split_once("://").context("no address")?;
        Ok(Self { process, address: address.to_owned() })
    }

    fn signal(&self, signal: Signal) {
        let id = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        kill_process(id.unwrap(), signal).unwrap();
    }

    async fn exit(&mut self) -> Result<ExitStatus> {
        within("the edge ends", async { Ok(self.process.wait().await?) }).await
    }

    async fn connect(&self, version: Version) -> Result<Client> {
        Client::new(TcpStream::connect(&self.address).await?, version).await
    }

    /// A request without a body on a connection of its own: its status and text.
    async fn ask(&self, method: Method, path: &str) -> Result<(StatusCode, String)> {
        let mut client = self.connect(Version::HTTP_11).await?;
        text(client.send(method, path, Empty::new().map_err(|never| match never {}).boxed()).await?).await
    }

    async fn health(&self) -> Result<StatusCode> {
        Ok(self.ask(Method::GET, "/health").await?.0)
    }
}

fn command(nats: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_emberline"));
    command
        .args(["edge", "--listen", "127.0.0.1:0", "--nats", nats])
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn text(response: Response<Incoming>) -> Result<(StatusCode, String)> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec())?))
}

type RequestBody = BoxBody<Bytes, anyhow::Error>;

/// An HTTP connection.
enum Client {
    Http1(hyper::client::conn::http1::SendRequest<RequestBody>),
    Http2(hyper::client::conn::http2::SendRequest<RequestBody>),
}

impl Client {
    async fn new(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        version: Version,
    ) -> Result<Self> {
        let io = TokioIo::new(stream);
        if version == Version::HTTP_2 {
            let (sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            return Ok(Self::Http2(sender));
        }
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Self::Http1(sender))
    }

    async fn send(&mut self, method: Method, path: &str, body: RequestBody) -> Result<Response<Incoming>> {
        let request = Request::builder().method(method).header("host", "edge");
        let answer = async {
            Ok(match self {
                Self::Http1(sender) => sender.send_request(request.uri(path).body(body)?).await?,
                Self::Http2(sender) => {
                    sender.send_request(request.uri(format!("http://edge{path}")).body(body)?).await?
                }
            })
        };
        within("the edge answers", answer).await
    }

    async fn post(&mut self) -> Result<(mpsc::Sender<Result<Frame<Bytes>>>, Response<Incoming>)> {
        let (request, chunks) = mpsc::channel(1);
        let response = self.send(Method::POST, "/nats", StreamBody::new(chunks).boxed()).await?;
        Ok((request, response))
    }

    /// Opens a connection to nats-server, which must not be refused.
    async fn open(&mut self) -> Result<Session> {
        let (request, response) = self.post().await?;
        if response.status() != StatusCode::OK {
            bail!("refused: {:?}", text(response).await?);
        }
        assert_eq!(response.headers()["content-type"], "application/octet-stream");
        Ok(Session { request, response: response.into_body(), received: String::new() })
    }
}

/// A connection to nats-server through the edge, on which the test itself speaks NATS.
struct Session {
    request: mpsc::Sender<Result<Frame<Bytes>>>,
    response: Incoming,
    received: String,
}

impl Session {
    async fn send(&mut self, text: impl Into<Bytes>) -> Result<()> {
        Ok(self.request.send(Ok(Frame::data(text.into()))).await?)
    }

    /// The next part of the response; `None` at its end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let frame = within("the edge passes something on", async { Ok(self.response.frame().await) }).await?;
        Ok(frame.transpose()?.map(|frame| frame.into_data().unwrap_or_default()))
    }

    /// Reads until `text` has come, and returns what came up to its end.
    async fn receive(&mut self, text: &str) -> Result<String> {
        loop {
            // A search for a long text takes long.
            let found = (self.received.len() >= text.len()).then(|| self.received.find(text)).flatten();
            if let Some(at) = found {
                let rest = self.received.split_off(at + text.len());
                return Ok(std::mem::replace(&mut self.received, rest));
            }
            let chunk = self.next().await?.with_context(|| format!("no {text}, only {}", self.received))?;
            self.received.push_str(str::from_utf8(&chunk)?);
        }
    }

    /// Says who it is, with this password, and waits for an answer.
    async fn log_in(&mut self, password: &str) -> Result<()> {
        // It comes before the client has sent anything.
        self.receive("\r\n").await?;
        let user = format!(r#"{{"user":"worker","pass":"{password}","verbose":false,"protocol":1}}"#);
        self.send(format!("CONNECT {user}\r\n")).await?;
        self.is_alive().await
    }

    /// Ends the request; then the response has to come to its end, too.
    async fn close(&mut self) -> Result<()> {
        self.request.close_channel();
        while self.next().await?.is_some() {}
        Ok(())
    }

    async fn is_alive(&mut self) -> Result<()> {
        self.send("PING\r\n").await?;
        self.receive("PONG\r\n").await.map(|_| ())
    }
}

#[tokio::test]
async fn a_nats_session_goes_through_http_1_and_2() -> Result<()> {
    let nats = nats_server().await?;
    let edge = Edge::start(&nats.address(), &[]).await?;
    assert_eq!(edge.ask(Method::GET, "/health").await?, (StatusCode::OK, "ok\n".into()));
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut session = edge.connect(version).await?.open().await?;
        session.log_in(PASSWORD).await?;
        session.send("SUB emberline.control.* 1\r\n").await?;
        for number in 0..3 {
            session.send(format!("PUB emberline.control.x 1\r\n{number}\r\n")).await?;
            session.receive(&format!("MSG emberline.control.x 1 1\r\n{number}\r\n")).await?;
        }
        // Larger than any buffer on the way, and in pieces.
        let large = "x".repeat(7 << 20);
        session.send(format!("PUB emberline.control.x {}\r\n", large.len())).await?;
        for chunk in large.as_bytes().chunks(100_000) {
            session.send(chunk.to_vec()).await?;
        }
        session.send("\r\n").await?;
        session.receive(&format!("MSG emberline.control.x 1 {}\r\n{large}\r\n", large.len())).await?;
        // nats-server closes its side when the client has closed its own.
        session.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn many_sessions_share_a_connection_of_http_2() -> Result<()> {
    let nats = nats_server().await?;
    let edge = Edge::start(&nats.address(), &[]).await?;
    let mut client = edge.connect(Version::HTTP_2).await?;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        let mut session = client.open().await?;
        session.log_in(PASSWORD).await?;
        sessions.push(session);
    }
    for session in &mut sessions {
        session.is_alive().await?;
    }
    let connections = || async { Ok(nats.monitoring("varz").await?["connections"].as_u64() == Some(0)) };
    drop(sessions);
    until("nats-server has no more connections", connections).await
}

#[tokio::test]
async fn what_nats_server_refuses_the_client_reads() -> Result<()> {
    let nats = nats_server().await?;
    let edge = Edge::start(&nats.address(), &[]).await?;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut session = edge.connect(version).await?.open().await?;
        session.log_in("wrong").await.unwrap_err();
        assert!(session.received.contains("-ERR 'Authorization Violation'"), "{}", session.received);
    }
    Ok(())
}

#[tokio::test]
async fn there_are_two_paths() -> Result<()> {
    let nats = nats_server().await?;
    let edge = Edge::start(&nats.address(), &[]).await?;
    for (method, path, status) in [
        (Method::HEAD, "/health", StatusCode::OK),
        (Method::POST, "/health", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/nats", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(edge.ask(method, path).await?.0, status, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn an_edge_in_front_of_nothing_says_so() -> Result<()> {
    let closed = TcpListener::bind("127.0.0.1:0").await?;
    let address = closed.local_addr()?.to_string();
    drop(closed);
    let edge = Edge::start(&address, &[]).await?;
    let (_request, response) = edge.connect(Version::HTTP_11).await?.post().await?;
    let expected = "the edge can't reach nats-server; its log says why\n".to_owned();
    assert_eq!(text(response).await?, (StatusCode::BAD_GATEWAY, expected.clone()));
    assert_eq!(edge.ask(Method::GET, "/health").await?, (StatusCode::SERVICE_UNAVAILABLE, expected));
    Ok(())
}

#[tokio::test]
async fn one_connection_too_many_is_refused_until_another_is_closed() -> Result<()> {
    let nats = nats_server().await?;
    let edge = Edge::start(&nats.address(), &["--max-connections", "1"]).await?;
    let first = edge.connect(Version::HTTP_11).await?.open().await?;
    let (_request, response) = edge.connect(Version::HTTP_2).await?.post().await?;
    let (status, line) = text(response).await?;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(line.contains("--max-connections") && line.lines().count() == 1, "{line}");
    assert_eq!(edge.health().await?, StatusCode::OK, "a full edge is not broken");
    drop(first);
    until("there is room again", async || Ok(edge.connect(Version::HTTP_2).await?.open().await.is_ok())).await
}

#[tokio::test]
async fn an_idle_connection_is_cut_and_does_not_look_complete() -> Result<()> {
    let nats = nats_server().await?;
    let edge = Edge::start(&nats.address(), &["--idle-s", "1"]).await?;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut session = edge.connect(version).await?.open().await?;
        session.log_in(PASSWORD).await?;
        session.next().await.unwrap_err();
    }
    Ok(())
}

#[tokio::test]
async fn bytes_pass_at_the_rate_that_is_allowed() -> Result<()> {
    let nats = TcpListener::bind("127.0.0.1:0").await?;
    let edge = Edge::start(&nats.local_addr()?.to_string(), &["--max-bytes-per-s", "1MiB"]).await?;
    let began = tokio::time::Instant::now();
    let mut session = edge.connect(Version::HTTP_11).await?.open().await?;
    let (mut server, _) = nats.accept().await?;
    tokio::spawn(async move { server.write_all(&vec![0; 2 << 20]).await });
    let mut read = 0;
    while let Some(chunk) = session.next().await? {
        read += chunk.len();
    }
    // The last 64 KiB at most are sent before their time is over.
    assert!(read == 2 << 20 && began.elapsed() > Duration::from_millis(1900), "{read} {:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_client_that_sends_no_whole_request_is_disconnected() -> Result<()> {
    let edge = Edge::start("127.0.0.1:1", &[]).await?;
    let begins = ["", "PRI", "POST /nats HTTP/1.1\r\nhost: edge\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
    let clients = begins.map(async |begin| {
        let mut stream = TcpStream::connect(&edge.address).await?;
        stream.write_all(begin.as_bytes()).await?;
        // An end or an error.
        within("the edge disconnects it", async { Ok(stream.read_to_end(&mut Vec::new()).await) }).await
    });
    futures::future::try_join_all(clients).await?;
    Ok(())
}

/// Writes until the other side takes no more, or until `most` bytes are written; how many.
async fn fill(stream: &mut TcpStream, most: usize) -> Result<usize> {
    let (chunk, mut written) = (vec![0; 1 << 16], 0);
    while written < most {
        match tokio::time::timeout(Duration::from_secs(1), stream.write(&chunk)).await {
            Ok(count) => written += count?,
            Err(_) => break,
        }
    }
    Ok(written)
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nats_server_back() -> Result<()> {
    const MOST: usize = 256 << 20;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let nats = TcpListener::bind("127.0.0.1:0").await?;
        let edge = Edge::start(&nats.local_addr()?.to_string(), &[]).await?;
        let mut session = edge.connect(version).await?.open().await?;
        let (mut server, _) = nats.accept().await?;
        let written = fill(&mut server, MOST).await?;
        assert!(written < MOST, "{version:?}: all was taken");
        drop(server);
        let mut read = 0;
        while let Some(chunk) = session.next().await? {
            read += chunk.len();
        }
        assert_eq!(read, written, "{version:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_nats_server_that_does_not_read_holds_the_client_back() -> Result<()> {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let nats = TcpListener::bind("127.0.0.1:0").await?;
        let edge = Edge::start(&nats.local_addr()?.to_string(), &[]).await?;
        let mut session = edge.connect(version).await?.open().await?;
        let (mut server, _) = nats.accept().await?;
        let (chunk, mut sent, most) = (Bytes::from(vec![0; 1 << 16]), 0, 4096);
        while sent < most
            && tokio::time::timeout(Duration::from_secs(1), session.send(chunk.clone())).await.is_ok()
        {
            sent += 1;
        }
        assert!(sent < most, "{version:?}: all was taken");
        // Now it reads, and has all that was sent when the client ends.
        session.request.close_channel();
        let mut read = Vec::new();
        within("nats-server reads", async { Ok(server.read_to_end(&mut read).await?) }).await?;
        assert!(read.len() >= sent * chunk.len(), "{version:?}: {} of {sent} chunks", read.len());
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_is_gone_for_nats_server() -> Result<()> {
    let nats = TcpListener::bind("127.0.0.1:0").await?;
    let edge = Edge::start(&nats.local_addr()?.to_string(), &[]).await?;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let session = edge.connect(version).await?.open().await?;
        let (mut server, _) = nats.accept().await?;
        drop(session);
        // An end or an error.
        let _ = within("the end", async { Ok(server.read_to_end(&mut Vec::new()).await) }).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_edge_that_is_told_to_stop_lets_connections_end() -> Result<()> {
    let nats = nats_server().await?;
    let mut edge = Edge::start(&nats.address(), &[]).await?;
    let mut sessions = Vec::new();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut session = edge.connect(version).await?.open().await?;
        session.log_in(PASSWORD).await?;
        sessions.push(session);
    }
    edge.signal(Signal::TERM);
    until("it is not healthy", async || Ok(edge.health().await? == StatusCode::SERVICE_UNAVAILABLE)).await?;
    let (_request, response) = edge.connect(Version::HTTP_2).await?.post().await?;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    for session in &mut sessions {
        session.is_alive().await?;
        session.close().await?;
    }
    assert!(edge.exit().await?.success());
    Ok(())
}

#[tokio::test]
async fn the_time_for_that_has_an_end_and_a_second_signal_ends_it_at_once() -> Result<()> {
    let nats = nats_server().await?;
    for (drain_s, signals) in [("1", 1), ("1000", 2)] {
        let mut edge = Edge::start(&nats.address(), &["--drain-s", drain_s]).await?;
        let mut session = edge.connect(Version::HTTP_11).await?.open().await?;
        session.log_in(PASSWORD).await?;
        for _ in 0..signals {
            edge.signal(Signal::INT);
            let drains = async || Ok(edge.health().await.ok() != Some(StatusCode::OK));
            until("it drains", drains).await?;
        }
        assert!(edge.exit().await?.success());
        session.next().await.unwrap_err();
    }
    Ok(())
}

/// A certificate for the name `localhost` that signs itself, and its files.
struct Certificate {
    der: CertificateDer<'static>,
    pem: String,
    key: String,
}

impl Certificate {
    fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        Ok(Self { der: made.cert.der().clone(), pem: made.cert.pem(), key: made.signing_key.serialize_pem() })
    }

    fn write(&self, folder: &Path) -> Result<()> {
        std::fs::write(folder.join("edge.pem"), &self.pem)?;
        Ok(std::fs::write(folder.join("edge.key"), &self.key)?)
    }

    /// Connects to an edge that must have this certificate, and speaks the version of HTTP that `offered` leads to.
    async fn connect(&self, edge: &Edge, offered: &[&str]) -> Result<(Version, Client)> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone())?;
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(&edge.address).await?;
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let version = if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        Ok((version, Client::new(stream, version).await?))
    }
}

#[tokio::test]
async fn a_session_goes_through_https_and_a_renewed_certificate_is_read_again() -> Result<()> {
    let nats = nats_server().await?;
    let folder = tempfile::tempdir()?;
    let (certificate, renewed) = (Certificate::new()?, Certificate::new()?);
    certificate.write(folder.path())?;
    let [file, key] = ["edge.pem", "edge.key"].map(|name| folder.path().join(name).display().to_string());
    let edge = Edge::start(&nats.address(), &["--tls-certificate", &file, "--tls-key", &key]).await?;
    for (offered, expected) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let (version, mut client) = certificate.connect(&edge, offered).await?;
        assert_eq!(version, expected);
        let mut session = client.open().await?;
        session.log_in(PASSWORD).await?;
    }
    renewed.connect(&edge, &[]).await.err().context("another certificate")?;
    // Half of a renewal changes nothing.
    std::fs::write(&file, &renewed.pem)?;
    edge.signal(Signal::HUP);
    certificate.connect(&edge, &[]).await?;
    renewed.write(folder.path())?;
    edge.signal(Signal::HUP);
    until("the new certificate is used", async || Ok(renewed.connect(&edge, &[]).await.is_ok())).await
}

#[tokio::test]
async fn a_certificate_that_can_not_be_used_is_refused_with_what_to_give() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (one, other) = (Certificate::new()?, Certificate::new()?);
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("edge.pem"), &one.pem)?;
    std::fs::write(path("edge.key"), &one.key)?;
    std::fs::write(path("other.key"), &other.key)?;
    std::fs::write(path("nothing"), "")?;
    for (file, key, expected) in [
        ("edge.pem", "other.key", "is not the key of"),
        ("edge.pem", "edge.pem", "there is no private key in it"),
        ("edge.pem", "missing", "No such file"),
        ("nothing", "edge.key", "there is no certificate in it"),
        ("edge.key", "edge.key", "there is no certificate in it"),
    ] {
        let args = ["--tls-certificate", &path(file), "--tls-key", &path(key)];
        let output = command("127.0.0.1:1", &args).output().await?;
        let line = String::from_utf8(output.stderr)?;
        assert!(!output.status.success() && line.contains(expected), "{file} {key}: {line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    let output = command("127.0.0.1:1", &["--tls-certificate", "x"]).output().await?;
    assert!(String::from_utf8(output.stderr)?.contains("--tls-key"));
    Ok(())
}
