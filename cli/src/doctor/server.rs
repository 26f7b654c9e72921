//! One nats-server before anybody logs in: whether its name leads to it, whether it answers, with or without TLS, and
//! what its greeting says of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_nats::ServerAddr;
use emberline_nats_access::TlsFiles;
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::streams::readable;
use emberline_protocol::subject::{MIN_NATS_VERSION, is_supported_nats};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::report::Check;
use super::tls;

/// How long looking up a name, and connecting to each of its addresses, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a server may take to greet. Longer than nats-server with `handshake_first: auto` waits for TLS, 50 ms.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// Greetings with the addresses of large clusters are some kilobytes long.
const MAX_GREETING: usize = 256 * 1024;

/// What every message of Emberline's own fits into, whatever clients ask for; NATS's own default, too.
const NEEDED_PAYLOAD: u64 = 1 << 20;
/// What deploy/nats.conf allows: the function's default body limit, and what a job adds to the request.
const FULL_PAYLOAD: u64 = 8 << 20;

/// What a server says of itself in its greeting (INFO).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct ServerInfo {
    version: String,
    headers: bool,
    jetstream: bool,
    domain: Option<String>,
    max_payload: u64,
    auth_required: bool,
    tls_required: bool,
    tls_available: bool,
    /// Whether it asks clients for certificates.
    pub(super) tls_verify: bool,
}

/// How a connection begins that is none to a nats-server, or not yet.
#[derive(Debug, PartialEq, Eq)]
enum NoGreeting {
    /// Nothing came in time.
    Silence,
    /// The connection was closed before anything came.
    Closed,
    /// Not NATS.
    Other(String),
}

/// What was found out about a server.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) checks: Vec<Check>,
    /// Unless it is no nats-server.
    pub(super) info: Option<ServerInfo>,
}

impl Probe {
    fn failed(check: Check) -> Self {
        Self { checks: vec![check], info: None }
    }

    pub(super) fn has_fault(&self) -> bool {
        self.checks.iter().any(Check::is_fault)
    }
}

/// A server as findings name it.
pub(super) fn name(server: &ServerAddr) -> String {
    let scheme = if server.tls_required() { "tls://" } else { "" };
    let (host, port) = (server.host(), server.port());
    if host.contains(':') { format!("{scheme}[{host}]:{port}") } else { format!("{scheme}{host}:{port}") }
}

/// Connects to a server, looks at its greeting and, where it is used, at its certificate.
pub(super) async fn probe(server: &ServerAddr, files: &TlsFiles) -> Probe {
    let (mut stream, peer) = match connect(server).await {
        Ok(connected) => connected,
        Err(check) => return Probe::failed(check),
    };
    let reached = Check::ok("connection", format!("connected to {peer}"));
    if files.first {
        return probe_tls(server, files, stream, reached).await;
    }
    match greeting(&mut stream).await {
        Ok(info) => {
            let mut checks = vec![reached];
            checks.extend(encryption(server, files, peer.ip(), &info, stream).await);
            Probe { checks, info: Some(info) }
        }
        // A server that waits for TLS says nothing, and soon closes a connection on which nothing comes.
        Err(NoGreeting::Silence | NoGreeting::Closed) if begins_with_tls(server).await => {
            Probe::failed(Check::fault(
                "tls",
                format!("{peer} says nothing before TLS (`handshake_first`)"),
                "have TLS begin at once: --nats-tls-first, and the function's variable nats_tls_handshake_first=true",
            ))
        }
        Err(other) => Probe::failed(no_nats_server(peer, other)),
    }
}

/// The same where TLS comes before the greeting.
async fn probe_tls(server: &ServerAddr, files: &TlsFiles, stream: TcpStream, reached: Check) -> Probe {
    let (mut stream, certificate) = match tls::handshake(stream, server.host()).await {
        Ok(made) => made,
        Err(reason) => {
            return Probe::failed(Check::fault(
                "tls",
                format!("the handshake fails: {reason}"),
                "leave --nats-tls-first out unless the server's `tls` block has `handshake_first`",
            ));
        }
    };
    let mut checks = vec![reached, Check::ok("tls", certificate.protocol.clone())];
    checks.extend(tls::judge_now(&certificate, server.host(), files.ca.as_deref()));
    match greeting(&mut stream).await {
        Ok(info) => Probe { checks, info: Some(info) },
        Err(other) => {
            let peer = stream.get_ref().0.peer_addr();
            checks.push(match peer {
                Ok(peer) => no_nats_server(peer, other),
                Err(error) => no_answer(server, &error.to_string()),
            });
            Probe { checks, info: None }
        }
    }
}

/// What a connection that begins in another way than nats-server's is.
fn no_nats_server(peer: SocketAddr, instead: NoGreeting) -> Check {
    let (finding, remedy) = match instead {
        NoGreeting::Silence => (
            format!("{peer} is no nats-server: it says nothing within {} s", GREETING_TIMEOUT.as_secs()),
            "give the address of nats-server's client port, which is 4222 by default; HTTP servers wait to be asked",
        ),
        NoGreeting::Closed => (
            format!("{peer} takes connections and closes them at once"),
            "look whether a load balancer there has a nats-server behind it, and whether that one is full or shutting down",
        ),
        NoGreeting::Other(said) => (
            format!("{peer} is no nats-server: it says '{said}'"),
            "give the address of nats-server's client port, which is 4222 by default",
        ),
    };
    Check::fault("connection", finding, remedy)
}

async fn connect(server: &ServerAddr) -> Result<(TcpStream, SocketAddr), Check> {
    let (host, port) = (server.host(), server.port());
    let unknown = |reason: String| {
        let remedy = "write the name as it is in DNS, or an IP address; inside a container or cluster other names are known";
        Check::fault("address", format!("there is no address for the name {host}: {reason}"), remedy)
    };
    let found = timeout(CONNECT_TIMEOUT, lookup_host((host, port))).await;
    let found: Vec<SocketAddr> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(unknown(error.to_string())),
        Err(_) => return Err(unknown("the look-up takes too long".to_owned())),
    };
    let mut failure = "it has none".to_owned();
    for peer in &found {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(peer)).await {
            Ok(Ok(stream)) => return Ok((stream, *peer)),
            Ok(Err(error)) => failure = format!("{peer}: {error}"),
            Err(_) => failure = format!("{peer}: no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }
    Err(no_answer(server, &failure))
}

fn no_answer(server: &ServerAddr, failure: &str) -> Check {
    Check::fault(
        "connection",
        format!("nothing answers at {}:{}: {failure}", server.host(), server.port()),
        "start nats-server there, or look at its address and port, at firewalls and at network policies",
    )
}

/// Reads the greeting and not a byte more, for TLS may follow.
async fn greeting(stream: &mut (impl AsyncRead + Unpin)) -> Result<ServerInfo, NoGreeting> {
    let mut line = Vec::new();
    let read = async {
        while line.len() < MAX_GREETING && !line.ends_with(b"\n") {
            line.push(stream.read_u8().await?);
        }
        io::Result::Ok(())
    };
    let came = timeout(GREETING_TIMEOUT, read).await;
    let text = String::from_utf8_lossy(&line);
    if let Some(info) = text.strip_prefix("INFO ").and_then(|info| serde_json::from_str(info).ok()) {
        return Ok(info);
    }
    match came {
        _ if !line.is_empty() => Err(NoGreeting::Other(text.trim().chars().take(80).collect())),
        Ok(_) => Err(NoGreeting::Closed),
        Err(_) => Err(NoGreeting::Silence),
    }
}

/// Whether the server greets once there is TLS.
async fn begins_with_tls(server: &ServerAddr) -> bool {
    let Ok((stream, _)) = connect(server).await else { return false };
    let Ok((mut stream, _)) = tls::handshake(stream, server.host()).await else { return false };
    greeting(&mut stream).await.is_ok()
}

/// Whether the address and the server agree about TLS, and what is wrong with the certificate.
async fn encryption(
    server: &ServerAddr,
    files: &TlsFiles,
    peer: IpAddr,
    info: &ServerInfo,
    stream: TcpStream,
) -> Vec<Check> {
    let (wanted, required) = (server.tls_required() || files.are_given(), info.tls_required);
    if wanted && !required && !info.tls_available {
        return vec![Check::fault(
            "tls",
            "the address or the options want TLS, and the server speaks no TLS",
            "give nats-server a certificate (`tls { cert_file: …, key_file: … }`); on a private network, write nats://",
        )];
    }
    if !wanted && !required {
        return vec![unencrypted(peer)];
    }
    let mut checks = Vec::new();
    if !wanted {
        checks.push(Check::warning(
            "tls",
            "the server insists on TLS, and the address does not begin with tls://",
            "write tls://: workers and commands use TLS all the same, the function does not",
        ));
    }
    match tls::handshake(stream, server.host()).await {
        Ok((_, certificate)) => {
            if wanted {
                checks.push(Check::ok("tls", certificate.protocol.clone()));
            }
            checks.extend(tls::judge_now(&certificate, server.host(), files.ca.as_deref()));
        }
        Err(reason) => checks.push(Check::fault(
            "tls",
            format!("the handshake fails: {reason}"),
            "nats-server's log has the other side of it; Emberline speaks TLS 1.2 and 1.3",
        )),
    }
    checks
}

fn unencrypted(peer: IpAddr) -> Check {
    if is_private(peer) {
        return Check::ok("tls", "none is used, on a private network");
    }
    Check::warning(
        "tls",
        format!(
            "none is used, and {peer} is not on a private network: anybody on the way reads prompts and passwords"
        ),
        "give nats-server a certificate and write tls://",
    )
}

fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let carrier_grade = matches!(address.octets(), [100, 64..=127, ..]);
            address.is_loopback() || address.is_private() || address.is_link_local() || carrier_grade
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

impl ServerInfo {
    /// Judges the server by its greeting; the streams are in `domain`.
    pub(super) fn judge(&self, domain: &JetStreamDomain) -> Vec<Check> {
        let mut checks = vec![self.version(), self.jetstream(domain)];
        if !self.headers {
            checks.push(Check::fault(
                "headers",
                "the server has message headers off",
                "remove `no_header_support` from nats-server's configuration",
            ));
        }
        checks.push(self.payload());
        if !self.auth_required {
            checks.push(Check::warning(
                "login",
                "the server lets anybody in: it has no users",
                "start it with deploy/nats.conf, which has a user for each role",
            ));
        }
        checks
    }

    fn version(&self) -> Check {
        let (major, minor) = MIN_NATS_VERSION;
        if is_supported_nats(&self.version) {
            return Check::ok("version", format!("nats-server {}", self.version));
        }
        Check::fault(
            "version",
            format!("nats-server {} is too old", self.version),
            format!("upgrade it to {major}.{minor} or newer"),
        )
    }

    fn jetstream(&self, domain: &JetStreamDomain) -> Check {
        let own = self.domain.as_ref().map(|own| format!(", domain {own}")).unwrap_or_default();
        match (domain.is_named(), self.jetstream) {
            (false, true) => Check::ok("jetstream", format!("on{own}")),
            (true, _) => Check::ok("jetstream", format!("in the domain {domain}")),
            (false, false) => Check::fault(
                "jetstream",
                "the server has JetStream off",
                "start it with deploy/nats.conf; at a leaf node, name the streams' domain with --nats-jetstream-domain",
            ),
        }
    }

    fn payload(&self) -> Check {
        let bytes = |bytes: u64| readable("max_bytes", &bytes.into());
        let allowed = bytes(self.max_payload);
        let remedy = "set `max_payload: 8MB` in nats-server's configuration, or give the function a lower max_body_bytes";
        if self.max_payload < NEEDED_PAYLOAD {
            let finding = format!("a message may have {allowed}; Emberline needs {}", bytes(NEEDED_PAYLOAD));
            return Check::fault("payload", finding, remedy);
        }
        if self.max_payload < FULL_PAYLOAD {
            return Check::warning(
                "payload",
                format!("a message may have {allowed}: larger requests are refused"),
                remedy,
            );
        }
        Check::ok("payload", format!("a message may have {allowed}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn greeted(said: &[u8]) -> Result<ServerInfo, NoGreeting> {
        greeting(&mut &*said).await
    }

    #[tokio::test]
    async fn a_greeting_is_told_from_anything_else() {
        let info = greeted(b"INFO {\"version\":\"2.15.1\",\"headers\":true}\r\n").await.unwrap();
        assert_eq!((info.version.as_str(), info.headers, info.jetstream), ("2.15.1", true, false));
        assert_eq!(greeted(b"SSH-2.0-x\r\n").await, Err(NoGreeting::Other("SSH-2.0-x".to_owned())));
        assert_eq!(greeted(b"INFO {\r\n").await, Err(NoGreeting::Other("INFO {".to_owned())));
        assert_eq!(greeted(b"").await, Err(NoGreeting::Closed));
    }

    #[test]
    fn only_networks_of_ones_own_are_private() {
        for private in
            ["127.0.0.1", "10.1.2.3", "192.168.0.1", "100.64.0.1", "::1", "fd00::1", "::ffff:10.0.0.1"]
        {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in ["8.8.8.8", "172.32.0.1", "2001:4860::1"] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_server_is_judged_by_its_greeting() {
        let good = ServerInfo {
            version: "2.15.1".into(),
            headers: true,
            jetstream: true,
            max_payload: 8 << 20,
            auth_required: true,
            ..ServerInfo::default()
        };
        let judged = |info: ServerInfo, domain: &str| {
            let checks = info.judge(&domain.parse().unwrap());
            let notable = checks.into_iter().filter(|check| check.remedy.is_some());
            notable.map(|check| (check.name, check.is_fault())).collect::<Vec<_>>()
        };
        assert_eq!(judged(good.clone(), ""), []);
        assert_eq!(judged(ServerInfo { jetstream: false, ..good.clone() }, "hub"), []);
        for (info, name, is_fault) in [
            (ServerInfo { version: "2.11.9".into(), ..good.clone() }, "version", true),
            (ServerInfo { jetstream: false, ..good.clone() }, "jetstream", true),
            (ServerInfo { headers: false, ..good.clone() }, "headers", true),
            (ServerInfo { max_payload: 65_536, ..good.clone() }, "payload", true),
            (ServerInfo { max_payload: 1 << 20, ..good.clone() }, "payload", false),
            (ServerInfo { auth_required: false, ..good.clone() }, "login", false),
        ] {
            assert_eq!(judged(info, ""), [(name, is_fault)]);
        }
    }
}
