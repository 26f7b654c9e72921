//! TLS over a byte stream: rustls, with cryptography in Rust alone, which builds for WebAssembly as it is.

use std::io::{BufRead as _, Write as _};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, CipherSuite, ClientConfig, ClientConnection, RootCertStore,
};

use crate::platform::{ByteStream, Closed, report};

/// Sessions that are remembered, so that the next handshake is a short one.
const REMEMBERED_SESSIONS: usize = 8;

/// The settings of TLS, as the variables give them.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// The name that the server's certificate must have, if it is not the host in its address.
    pub server_name: String,
    /// Certificates of the authorities that may have signed it, as PEM; empty for those that browsers know.
    pub ca: String,
    /// Whether TLS begins before the server has sent anything.
    pub handshake_first: bool,
    /// Our own certificate with its chain, as PEM; empty for none.
    pub client_certificate: String,
    /// Its key, as PEM.
    pub client_key: String,
}

/// Settings that can't be used, or a handshake that failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum TlsError {
    #[error("nats_tls_ca holds no certificate in PEM that can be used: {0}")]
    Ca(String),
    #[error("nats_tls_client_certificate and nats_tls_client_key are no certificate and its key in PEM: {0}")]
    ClientCertificate(String),
    #[error("'{0}' is no name that a certificate can have. Set nats_tls_server_name to the server's")]
    ServerName(String),
    #[error("TLS can't be set up: {0}")]
    SetUp(Box<rustls::Error>),
    #[error("TLS handshake: {0}{remedy}", remedy = remedy(.0))]
    Handshake(Box<rustls::Error>),
    #[error("the server closed the connection during the TLS handshake")]
    Closed,
}

impl TlsError {
    fn set_up(error: rustls::Error) -> Self {
        Self::SetUp(Box::new(error))
    }

    fn handshake(error: rustls::Error) -> Self {
        Self::Handshake(Box::new(error))
    }
}

impl TlsSettings {
    /// What all connections with these settings share.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::set_up)?
            .with_root_certificates(self.roots()?);
        let mut config = match self.identity()? {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| TlsError::ClientCertificate(error.to_string()))?,
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::in_memory_sessions(REMEMBERED_SESSIONS);
        Ok(Arc::new(config))
    }

    /// Whether certificates and key can be read.
    pub fn check(&self) -> Result<(), TlsError> {
        if !self.ca.is_empty() {
            self.roots()?;
        }
        self.identity().map(|_| ())
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        if self.ca.is_empty() {
            return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
        }
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca.as_bytes()) {
            let certificate = certificate.map_err(|error| TlsError::Ca(error.to_string()))?;
            roots.add(certificate).map_err(|error| TlsError::Ca(error.to_string()))?;
        }
        if roots.is_empty() { Err(TlsError::Ca("it is not PEM".to_owned())) } else { Ok(roots) }
    }

    /// Our certificate with its chain, and its key.
    fn identity(&self) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, TlsError> {
        if self.client_certificate.is_empty() && self.client_key.is_empty() {
            return Ok(None);
        }
        let unusable = |error: rustls::pki_types::pem::Error| TlsError::ClientCertificate(error.to_string());
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(self.client_certificate.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(self.client_key.as_bytes()).map_err(unusable)?;
        match chain.map_err(unusable)? {
            chain if chain.is_empty() => {
                Err(TlsError::ClientCertificate("there is no certificate".to_owned()))
            }
            chain => Ok(Some((chain, key))),
        }
    }

    /// The name that the certificate of a server at `host` must have.
    pub fn name_of(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        let name = if self.server_name.is_empty() { host } else { &self.server_name };
        ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))
    }
}

/// RustCrypto's algorithms. ChaCha20 comes before AES, which has no instructions of its own in WebAssembly.
fn provider() -> CryptoProvider {
    let mut provider = rustls_rustcrypto::provider();
    let is_chacha20 = |suite: CipherSuite| {
        matches!(
            suite,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        )
    };
    provider.cipher_suites.sort_by_key(|suite| (suite.tls13().is_none(), !is_chacha20(suite.suite())));
    provider
}

/// What to do about a failed handshake.
fn remedy(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "; give the certificate of the authority that signed the server's in nats_tls_ca",
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "; set nats_tls_server_name to a name in the server's certificate",
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "; renew the server's certificate",
        rustls::Error::InvalidMessage(_) => {
            "; the server does not speak TLS here: check the port, nats_tls_handshake_first, or write nats://"
        }
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired,
        ) => {
            "; the server does not accept our certificate: check nats_tls_client_certificate and nats_tls_client_key"
        }
        _ => "",
    }
}

/// A byte stream with TLS inside another one.
pub struct TlsStream {
    stream: Box<dyn ByteStream>,
    session: ClientConnection,
    /// Encrypted bytes to be sent.
    outgoing: Vec<u8>,
}

impl TlsStream {
    /// Does the handshake with the server of this `name`. Its end goes out with what is written next, or before the
    /// next wait: by itself, it would hold up what follows until the server has acknowledged it (Nagle's algorithm, which
    /// WebAssembly can't turn off).
    pub async fn handshake(
        stream: Box<dyn ByteStream>,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, TlsError> {
        let mut session = ClientConnection::new(config, name).map_err(TlsError::set_up)?;
        // What is written is already held by whoever writes it.
        session.set_buffer_limit(None);
        let mut tls = Self { stream, session, outgoing: Vec::new() };
        std::future::poll_fn(|cx| tls.poll_handshake(cx)).await?;
        Ok(tls)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        loop {
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            // If it can't be sent, nothing will be received.
            let _ = self.poll_send(cx);
            // Nothing of the application's comes before the handshake's end.
            let received = ready!(self.poll_receive(cx, &mut |_| {}));
            received.map_err(|error| error.map_or(TlsError::Closed, TlsError::handshake))?;
        }
    }

    /// Sends what the session has to say.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.outgoing).map_err(|_| Closed)?;
        }
        self.stream.poll_flush(cx, &mut self.outgoing)
    }

    /// Passes what the next received bytes hold to `sink`, which may be nothing. An error without a reason is the
    /// connection's end.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<(), Option<rustls::Error>>> {
        let session = &mut self.session;
        let mut decrypted = Ok(());
        let read = self.stream.poll_read(cx, &mut |bytes| {
            if decrypted.is_ok() {
                decrypted = decrypt(session, bytes, sink);
            }
        });
        if let Err(error) = decrypted {
            // The alert that says why.
            let _ = self.poll_send(cx);
            return Poll::Ready(Err(Some(error)));
        }
        read.map_err(|Closed| None)
    }
}

/// Passes what `bytes` hold to `sink`.
fn decrypt(
    session: &mut ClientConnection,
    mut bytes: &[u8],
    sink: &mut dyn FnMut(&[u8]),
) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        if session.read_tls(&mut bytes).unwrap_or(0) == 0 {
            return Err(rustls::Error::General("more was received than can be held".to_owned()));
        }
        session.process_new_packets()?;
        let mut reader = session.reader();
        while let Ok(plain) = reader.fill_buf()
            && !plain.is_empty()
        {
            sink(plain);
            let length = plain.len();
            reader.consume(length);
        }
    }
    Ok(())
}

impl ByteStream for TlsStream {
    fn poll_flush(&mut self, cx: &mut Context<'_>, unsent: &mut Vec<u8>) -> Poll<Result<(), Closed>> {
        if !unsent.is_empty() {
            self.session.writer().write_all(unsent).map_err(|_| Closed)?;
            unsent.clear();
        }
        self.poll_send(cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, sink: &mut dyn FnMut(&[u8])) -> Poll<Result<(), Closed>> {
        loop {
            if self.session.wants_write() || !self.outgoing.is_empty() {
                // The server may wait for it. If it can't be sent, nothing will be received.
                let _ = self.poll_send(cx);
            }
            let mut any = false;
            let received = ready!(self.poll_receive(cx, &mut |bytes| {
                any = true;
                sink(bytes);
            }));
            match received {
                Ok(()) if any => return Poll::Ready(Ok(())),
                // A ticket, or a part of a record.
                Ok(()) => {}
                Err(reason) => {
                    if let Some(error) = reason {
                        report("TLS", TlsError::handshake(error));
                    }
                    return Poll::Ready(Err(Closed));
                }
            }
        }
    }

    fn park(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<(), Closed> {
        let session = &mut self.session;
        let mut decrypted = Ok(());
        self.stream.park(&mut |bytes| {
            if decrypted.is_ok() {
                decrypted = decrypt(session, bytes, sink);
            }
        })?;
        decrypted.map_err(|_| Closed)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::io::Read as _;
    use std::rc::Rc;
    use std::task::Waker;

    use proptest::prelude::*;
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion, version};

    use super::*;

    const NAME: &str = "nats.example.com";

    /// A server that sends back what it receives. Its bytes arrive in pieces of the given lengths, over and over.
    struct Echo {
        session: ServerConnection,
        ready: VecDeque<u8>,
        pieces: Vec<usize>,
        read: usize,
    }

    impl Echo {
        fn answer(&mut self, mut bytes: &[u8]) {
            let mut out = Vec::new();
            while !bytes.is_empty() {
                self.session.read_tls(&mut bytes).unwrap();
                let processed = self.session.process_new_packets();
                let mut plain = Vec::new();
                let _ = self.session.reader().read_to_end(&mut plain);
                self.session.writer().write_all(&plain).unwrap();
                while self.session.wants_write() {
                    self.session.write_tls(&mut out).unwrap();
                }
                if processed.is_err() {
                    break;
                }
            }
            self.ready.extend(out);
        }
    }

    /// The client's end of it.
    struct Pipe(Rc<RefCell<Echo>>);

    impl ByteStream for Pipe {
        fn poll_flush(&mut self, _: &mut Context<'_>, unsent: &mut Vec<u8>) -> Poll<Result<(), Closed>> {
            self.0.borrow_mut().answer(&std::mem::take(unsent));
            Poll::Ready(Ok(()))
        }

        fn poll_read(
            &mut self,
            _: &mut Context<'_>,
            sink: &mut dyn FnMut(&[u8]),
        ) -> Poll<Result<(), Closed>> {
            let mut echo = self.0.borrow_mut();
            if echo.ready.is_empty() {
                return Poll::Pending;
            }
            let length = echo.pieces[echo.read % echo.pieces.len()].min(echo.ready.len());
            echo.read += 1;
            let piece: Vec<u8> = echo.ready.drain(..length).collect();
            sink(&piece);
            Poll::Ready(Ok(()))
        }

        fn park(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<(), Closed> {
            let rest: Vec<u8> = self.0.borrow_mut().ready.drain(..).collect();
            sink(&rest);
            Ok(())
        }
    }

    struct Pair {
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    }

    impl Pair {
        fn new(version: &'static SupportedProtocolVersion) -> Self {
            let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()]).unwrap();
            let settings = TlsSettings { ca: cert.pem(), ..TlsSettings::default() };
            let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
            let server = ServerConfig::builder_with_provider(Arc::new(provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key.into())
                .unwrap();
            Self { client: settings.client_config().unwrap(), server: Arc::new(server) }
        }

        fn connect(&self, pieces: &[usize]) -> TlsStream {
            let session = ServerConnection::new(Arc::clone(&self.server)).unwrap();
            let echo = Echo { session, ready: VecDeque::new(), pieces: pieces.to_vec(), read: 0 };
            let name = TlsSettings::default().name_of(NAME).unwrap();
            let pipe = Box::new(Pipe(Rc::new(RefCell::new(echo))));
            let mut handshake = Box::pin(TlsStream::handshake(pipe, Arc::clone(&self.client), name));
            let mut cx = Context::from_waker(Waker::noop());
            match handshake.as_mut().poll(&mut cx) {
                Poll::Ready(stream) => stream.unwrap(),
                Poll::Pending => panic!("the handshake waits for more"),
            }
        }
    }

    fn send(stream: &mut TlsStream, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(stream.poll_flush(&mut cx, &mut bytes.to_vec()), Poll::Ready(Ok(())));
    }

    fn receive(stream: &mut TlsStream) -> Vec<u8> {
        let (mut cx, mut received) = (Context::from_waker(Waker::noop()), Vec::new());
        while stream.poll_read(&mut cx, &mut |bytes| received.extend_from_slice(bytes)).is_ready() {}
        received
    }

    #[test]
    fn both_versions_carry_bytes_however_they_are_cut() {
        for version in [&version::TLS12, &version::TLS13] {
            let pair = Pair::new(version);
            for pieces in [&[1][..], &[5, 1, 16_000], &[100_000]] {
                let mut stream = pair.connect(pieces);
                for length in [1, 20_000, 100_000] {
                    let sent: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0]).collect();
                    send(&mut stream, &sent);
                    assert_eq!(receive(&mut stream), sent, "{version:?} {pieces:?} {length}");
                }
            }
        }
    }

    #[test]
    fn the_end_of_the_handshake_goes_out_with_what_is_sent_next_or_before_a_wait() {
        let pair = Pair::new(&version::TLS13);
        let [mut speaks, mut listens] = [pair.connect(&[1000]), pair.connect(&[1000])];
        assert!(speaks.session.wants_write() && listens.session.wants_write());
        send(&mut speaks, b"CONNECT\r\n");
        assert_eq!(receive(&mut speaks), b"CONNECT\r\n");
        receive(&mut listens);
        assert!(!listens.session.wants_write() && listens.outgoing.is_empty());
    }

    #[test]
    fn the_second_handshake_of_a_configuration_is_a_short_one() {
        let pair = Pair::new(&version::TLS13);
        let mut first = pair.connect(&[1000]);
        // The ticket comes after the handshake.
        send(&mut first, b"a");
        receive(&mut first);
        let second = pair.connect(&[1000]);
        assert_eq!(second.session.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    }

    #[test]
    fn what_had_arrived_when_a_connection_is_parked_is_not_lost() {
        let mut stream = Pair::new(&version::TLS13).connect(&[7]);
        send(&mut stream, b"PING\r\n");
        let mut parked = Vec::new();
        stream.park(&mut |bytes| parked.extend_from_slice(bytes)).unwrap();
        send(&mut stream, b"PONG\r\n");
        parked.extend(receive(&mut stream));
        assert_eq!(parked, b"PING\r\nPONG\r\n");
    }

    #[test]
    fn a_record_that_was_changed_ends_the_connection() {
        let mut stream = Pair::new(&version::TLS13).connect(&[100]);
        let forged = [0x17, 3, 3, 0, 20].into_iter().chain([0; 20]).collect::<Vec<u8>>();
        assert!(decrypt(&mut stream.session, &forged, &mut |_| panic!("nothing is passed on")).is_err());
    }

    #[test]
    fn chacha20_is_offered_first() {
        let first = provider().cipher_suites[0].suite();
        assert_eq!(first, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_received_makes_it_panic(bytes: Vec<u8>, kind in 0x14_u8..0x18) {
            let mut stream = Pair::new(&version::TLS13).connect(&[1000]);
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            let record = [&[kind, 3, 3], &length[..], &bytes].concat();
            let _ = decrypt(&mut stream.session, &record, &mut |_| {});
            let _ = decrypt(&mut stream.session, &bytes, &mut |_| {});
        }
    }
}
