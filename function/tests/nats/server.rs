//! A nats-server with Emberline's streams, and a proxy that cuts connections to it.

use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use emberline_function::nats::NatsEndpoint;
use emberline_function::nats::bus::Bus;
use emberline_function::nats::connection::subject;
use emberline_function::nats::round_trip::{Answer, Reply, Request};
use emberline_function::platform::Host;
use emberline_protocol::streams::{Layout, streams};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

/// A running nats-server; it ends when this is dropped.
pub(crate) struct NatsServer {
    process: Child,
    _directory: TempDir,
    pub(crate) address: SocketAddr,
}

impl NatsServer {
    /// Starts one on a port that the system chooses, and creates the streams.
    pub(crate) async fn start(host: &Host) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let binary = env::var_os("EMBERLINE_TEST_NATS").map_or("nats-server".into(), PathBuf::from);
        let process = Command::new(&binary)
            .args(["-js", "-a", "127.0.0.1", "-p", "-1", "-sd"])
            .arg(directory.path().join("jetstream"))
            .arg("--ports_file_dir")
            .arg(directory.path())
            .arg("-l")
            .arg(directory.path().join("nats.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("no nats-server: set EMBERLINE_TEST_NATS to it");
        let mut server =
            Self { process, _directory: directory, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        server.address = server.wait_for_port().await;
        server.create_streams(host).await;
        server
    }

    /// NATS as one instance of the function sees it, with connections of its own.
    pub(crate) fn bus(&self, host: &Host) -> Bus {
        bus(host, self.address)
    }

    /// It writes the port that the system chose to a file.
    async fn wait_for_port(&mut self) -> SocketAddr {
        loop {
            let files = std::fs::read_dir(self._directory.path()).unwrap().flatten();
            let ports = files.map(|file| file.path()).find(|path| path.extension() == Some("ports".as_ref()));
            let text = ports.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
            // {"nats":["nats://127.0.0.1:43210"]}
            let ports: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(url) = ports["nats"][0].as_str() {
                return url.strip_prefix("nats://").unwrap().parse().unwrap();
            }
            assert_eq!(self.process.try_wait().unwrap(), None, "nats-server did not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn create_streams(&self, host: &Host) {
        let requests = streams(&Layout::default()).map(|stream| Request {
            subject: subject(format!("$JS.API.STREAM.CREATE.{}", stream.name)).unwrap(),
            headers: watermelon_proto::headers::HeaderMap::new(),
            payload: Bytes::from(serde_json::to_vec(&stream).unwrap()),
            reply: Reply::Message,
        });
        for answer in self.bus(host).round_trip(&requests).await.unwrap() {
            let Answer::Message(message) = answer else { panic!("{answer:?}") };
            let reply: serde_json::Value = serde_json::from_slice(&message.base.payload).unwrap();
            assert!(reply.get("error").is_none(), "{reply}");
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// NATS at `address`, with connections of its own.
pub(crate) fn bus(host: &Host, address: SocketAddr) -> Bus {
    Bus::new(Rc::clone(host), endpoint(address), Rc::default())
}

fn endpoint(address: SocketAddr) -> NatsEndpoint {
    NatsEndpoint { servers: vec![address], user: String::new(), password: String::new() }
}

/// Passes connections on, until it is told to cut them; it goes on with new ones.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    cut: broadcast::Sender<()>,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = broadcast::Sender::new(1);
        let cuts = cut.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                tokio::task::spawn_local(async move {
                    let Ok(mut server) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = cut.recv() => {}
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    }
                });
            }
        });
        Self { address, cut }
    }

    /// Cuts all connections; how many there were.
    pub(crate) fn cut(&self) -> usize {
        self.cut.send(()).unwrap_or(0)
    }
}
