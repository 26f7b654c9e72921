//! Servers that want TLS and a proof of who we are: what works, and what is said where it does not.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use emberline_function::nats::NatsEndpoint;
use emberline_function::nats::address::{Scheme, ServerUrl};
use emberline_function::nats::bus::Bus;
use emberline_function::nats::credentials::{Credentials, Proof};
use emberline_function::nats::tls::TlsSettings;
use emberline_function::platform::Host;
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair as TlsKey, date_time_ymd};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::server::NatsServer;
use crate::tokio_platform::{TokioPlatform, run};

const NAME: &str = "nats.example.com";

/// An authority with its certificates in files.
struct Authority {
    issuer: CertifiedIssuer<'static, TlsKey>,
    directory: TempDir,
}

/// A certificate and its key, as PEM.
struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, TlsKey::generate().unwrap()).unwrap();
        Self { issuer, directory: tempfile::tempdir().unwrap() }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    fn identity(&self, name: &str, last_year: i32) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_after = date_time_ymd(last_year, 1, 1);
        let key = TlsKey::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The block `tls` of a server with a certificate for `name`.
    fn server_block(&self, name: &str, last_year: i32, more: &str) -> String {
        let Identity { certificate, key } = self.identity(name, last_year);
        let certificate = self.file("server.pem", &certificate);
        let (key, ca) = (self.file("server.key", &key), self.file("ca.pem", &self.pem()));
        let quoted = |path: &Path| format!("{:?}", path.to_string_lossy());
        let (certificate, key, ca) = (quoted(&certificate), quoted(&key), quoted(&ca));
        format!("tls {{ cert_file: {certificate}, key_file: {key}, ca_file: {ca}, {more} }}\n")
    }

    /// Settings of a function that trusts it.
    fn settings(&self) -> TlsSettings {
        TlsSettings { server_name: NAME.to_owned(), ca: self.pem(), ..TlsSettings::default() }
    }
}

fn endpoint(server: &NatsServer, scheme: Scheme) -> NatsEndpoint {
    let url = ServerUrl { scheme, ..ServerUrl::plain(server.address) };
    NatsEndpoint { servers: vec![url], ..NatsEndpoint::plain(server.address) }
}

fn host() -> Host {
    TokioPlatform::host([].into())
}

async fn connect(host: &Host, endpoint: NatsEndpoint) -> Result<usize, String> {
    let bus = Bus::new(Rc::clone(host), endpoint, Rc::default());
    let connected = tokio::time::timeout(Duration::from_secs(20), bus.connect()).await.unwrap();
    connected.map(|connection| connection.max_payload()).map_err(|error| error.to_string())
}

/// Connects with TLS; what went wrong.
async fn failure(server: &NatsServer, tls: TlsSettings) -> String {
    connect(&host(), NatsEndpoint { tls, ..endpoint(server, Scheme::Tls) }).await.unwrap_err()
}

#[test]
fn messages_of_any_size_pass_through_tls() {
    run(async {
        let (authority, host) = (Authority::new(), host());
        let settings = authority.server_block(NAME, 4096, "") + "max_payload: 8MB\n";
        let server = NatsServer::start_without_streams(&settings).await;
        let endpoint = NatsEndpoint { tls: authority.settings(), ..endpoint(&server, Scheme::Tls) };
        let bus = Bus::new(Rc::clone(&host), endpoint, Rc::default());
        let (mut one, mut other) = (bus.connect().await.unwrap(), bus.connect().await.unwrap());
        let inbox = one.new_inbox().unwrap();
        // The subscription has to be known before anything is published.
        one.round_trip(&[]).await.unwrap();
        for size in [0, 1, 16_383, 16_384, 16_385, 1_000_000, 7_000_000] {
            other.request(inbox.clone(), None, vec![size as u8; size]);
            other.flush().await.unwrap();
            let message = std::future::poll_fn(|cx| one.poll_message(cx)).await.unwrap();
            assert_eq!(message.base.payload.len(), size);
            assert!(message.base.payload.iter().all(|byte| *byte == size as u8));
        }
    });
}

/// 100 handshakes at once would take an instance's thread for half a second, and longer beside others.
#[test]
fn requests_of_a_burst_wait_for_connections_instead_of_all_shaking_hands() {
    run(async {
        let (authority, host) = (Authority::new(), host());
        let server = NatsServer::start_without_streams(&authority.server_block(NAME, 4096, "")).await;
        let endpoint = NatsEndpoint { tls: authority.settings(), ..endpoint(&server, Scheme::Tls) };
        let bus = Bus::new(Rc::clone(&host), endpoint, Rc::default());
        let requests = (0..100).map(|_| bus.round_trip(&[]));
        futures::future::try_join_all(requests).await.unwrap();
        let connections = std::iter::from_fn(|| bus.idle()).count();
        assert!((1..50).contains(&connections), "{connections} connections for 100 requests");
    });
}

#[test]
fn tls_may_begin_before_the_server_speaks() {
    run(async {
        let authority = Authority::new();
        let block = authority.server_block(NAME, 4096, "handshake_first: true");
        let server = NatsServer::start_without_streams(&block).await;
        let first = TlsSettings { handshake_first: true, ..authority.settings() };
        let endpoint = NatsEndpoint { tls: first, ..endpoint(&server, Scheme::Tls) };
        assert!(connect(&host(), endpoint).await.is_ok());
        let error = failure(&server, authority.settings()).await;
        assert!(error.contains("nats_tls_handshake_first to true"), "{error}");
    });
}

#[test]
fn a_certificate_that_does_not_fit_is_named_with_the_remedy() {
    run(async {
        let authority = Authority::new();
        let server = NatsServer::start_without_streams(&authority.server_block(NAME, 4096, "")).await;
        let error = failure(&server, TlsSettings { ca: String::new(), ..authority.settings() }).await;
        assert!(error.contains("nats_tls_ca"), "{error}");
        let error =
            failure(&server, TlsSettings { ca: Authority::new().pem(), ..authority.settings() }).await;
        assert!(error.contains("nats_tls_ca"), "{error}");
        let error =
            failure(&server, TlsSettings { server_name: String::new(), ..authority.settings() }).await;
        assert!(error.contains("nats_tls_server_name"), "{error}");
        let server = NatsServer::start_without_streams(&authority.server_block(NAME, 2001, "")).await;
        let error = failure(&server, authority.settings()).await;
        assert!(error.contains("renew the server's certificate"), "{error}");
    });
}

#[test]
fn clear_text_and_tls_are_told_apart() {
    run(async {
        let authority = Authority::new();
        let plain = NatsServer::start_without_streams("").await;
        let error = failure(&plain, authority.settings()).await;
        assert!(error.contains("offers no TLS"), "{error}");
        let first = TlsSettings { handshake_first: true, ..authority.settings() };
        let error = failure(&plain, first).await;
        assert!(error.contains("does not speak TLS"), "{error}");
        let secured = NatsServer::start_without_streams(&authority.server_block(NAME, 4096, "")).await;
        let error = connect(&host(), endpoint(&secured, Scheme::Nats)).await.unwrap_err();
        assert!(error.contains("demands TLS"), "{error}");
    });
}

#[test]
fn a_server_may_want_our_certificate() {
    run(async {
        let authority = Authority::new();
        let server =
            NatsServer::start_without_streams(&authority.server_block(NAME, 4096, "verify: true")).await;
        let Identity { certificate, key } = authority.identity("function.example.com", 4096);
        let tls = TlsSettings { client_certificate: certificate, client_key: key, ..authority.settings() };
        assert!(connect(&host(), NatsEndpoint { tls, ..endpoint(&server, Scheme::Tls) }).await.is_ok());
        assert!(
            connect(&host(), NatsEndpoint { tls: authority.settings(), ..endpoint(&server, Scheme::Tls) })
                .await
                .is_err()
        );
    });
}

#[test]
fn a_proof_is_accepted_or_the_error_names_it() {
    run(async {
        let pair = KeyPair::new_user();
        let (public, seed) = (pair.public_key(), pair.seed().unwrap());
        let users =
            format!("authorization {{ users: [ {{ nkey: {public} }}, {{ user: a, password: b }} ] }}\n");
        let server = NatsServer::start_without_streams(&users).await;
        let with = |user: &str, proof| {
            let credentials = Credentials { user: user.to_owned(), proof };
            NatsEndpoint { credentials, ..endpoint(&server, Scheme::Nats) }
        };
        assert!(connect(&host(), with("function", Proof::Nkey(seed))).await.is_ok());
        assert!(connect(&host(), with("a", Proof::Password("b".into()))).await.is_ok());
        let stranger = KeyPair::new_user();
        for (proof, named) in [
            (Proof::Nkey(stranger.seed().unwrap()), stranger.public_key()),
            (Proof::Password("c".into()), "nats_password".to_owned()),
            (Proof::Token("t".into()), "nats_token".to_owned()),
            (Proof::None, "no password, token, NKEY".to_owned()),
        ] {
            let error = connect(&host(), with("a", proof)).await.unwrap_err();
            assert!(error.contains(&named) && error.contains("refuses the user 'a'"), "{error}");
        }
    });
}

#[test]
fn a_server_that_says_nothing_costs_two_seconds() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = ServerUrl { scheme: Scheme::Tls, ..ServerUrl::plain(address) };
        let tls = TlsSettings { handshake_first: true, ..TlsSettings::default() };
        let endpoint = NatsEndpoint { servers: vec![url], tls, ..NatsEndpoint::plain(address) };
        let error = connect(&host(), endpoint).await.unwrap_err();
        assert!(error.contains("it sends nothing"), "{error}");
    });
}
