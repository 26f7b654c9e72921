//! A nats-server with Emberline's streams, and a proxy that disturbs connections to it.

use std::cell::{Cell, RefCell};
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
use emberline_protocol::counter::{Bucket, INCREMENT_HEADER};
use emberline_protocol::streams::{Layout, Stream, streams};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use watermelon_proto::headers::{HeaderMap, HeaderName, HeaderValue};

/// A running nats-server; it ends when this is dropped.
pub(crate) struct NatsServer {
    process: Child,
    _directory: TempDir,
    pub(crate) address: SocketAddr,
}

impl NatsServer {
    /// Starts one on a port that the system chooses, and creates the streams.
    pub(crate) async fn start(host: &Host) -> Self {
        Self::start_with(host, "").await
    }

    /// The same with some `settings`, as its configuration file has them.
    pub(crate) async fn start_with(host: &Host, settings: &str) -> Self {
        let server = Self::start_without_streams(settings).await;
        server.create_streams(host).await;
        server
    }

    /// The same, for settings with which not everybody can create streams.
    pub(crate) async fn start_without_streams(settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("nats.conf");
        std::fs::write(&config, settings).unwrap();
        let binary = env::var_os("EMBERLINE_TEST_NATS").map_or("nats-server".into(), PathBuf::from);
        let process = Command::new(&binary)
            .arg("-c")
            .arg(config)
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
            // {"nats":["nats://127.0.0.1:43210"]}, or "tls://…"
            let ports: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some((_, address)) = ports["nats"][0].as_str().and_then(|url| url.split_once("://")) {
                return address.parse().unwrap();
            }
            assert_eq!(self.process.try_wait().unwrap(), None, "nats-server did not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn create_streams(&self, host: &Host) {
        for stream in streams(&Layout::default()) {
            self.ask(host, &format!("$JS.API.STREAM.CREATE.{}", stream.name), &to_value(&stream)).await;
        }
    }

    /// Creates a stream that was deleted.
    pub(crate) async fn create_stream(&self, host: &Host, name: &str) {
        let stream = streams(&Layout::default()).into_iter().find(|stream| stream.name == name).unwrap();
        self.ask(host, &format!("$JS.API.STREAM.CREATE.{name}"), &to_value(&stream)).await;
    }

    /// Changes the configuration of a stream.
    pub(crate) async fn change_stream(&self, host: &Host, name: &str, change: impl Fn(&mut Value)) {
        let stream = streams(&Layout::default()).into_iter().find(|stream| stream.name == name).unwrap();
        let mut configuration = to_value(&stream);
        change(&mut configuration);
        self.ask(host, &format!("$JS.API.STREAM.UPDATE.{name}"), &configuration).await;
    }

    /// Deletes a stream: nobody answers for it any more, as if its servers were gone.
    pub(crate) async fn delete_stream(&self, host: &Host, name: &str) {
        self.ask(host, &format!("$JS.API.STREAM.DELETE.{name}"), &Value::Null).await;
    }

    /// Asks JetStream, which must not refuse; what it says.
    pub(crate) async fn ask(&self, host: &Host, to: &str, request: &Value) -> Value {
        let payload = if request.is_null() { Bytes::new() } else { request.to_string().into() };
        publish(&self.bus(host), to, HeaderMap::new(), payload).await
    }

    /// Adds to a counter; its sum.
    pub(crate) async fn count(&self, host: &Host, bucket: &Bucket, amount: i64) -> i64 {
        let name = HeaderName::from_static(INCREMENT_HEADER);
        let headers = HeaderMap::from_iter([(name, HeaderValue::try_from(amount.to_string()).unwrap())]);
        let reply = publish(&self.bus(host), &bucket.subject(), headers, Bytes::new()).await;
        reply["val"].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn to_value(stream: &Stream) -> Value {
    serde_json::to_value(stream).unwrap()
}

/// Sends a message that JetStream must not refuse; what it says.
async fn publish(bus: &Bus, to: &str, headers: HeaderMap, payload: Bytes) -> Value {
    let request =
        Request { subject: subject(to.to_owned()).unwrap(), headers, payload, reply: Reply::Message };
    let answer = bus.round_trip(&[request]).await.unwrap().pop();
    let Some(Answer::Message(message)) = answer else { panic!("{answer:?}") };
    let reply: Value = serde_json::from_slice(&message.base.payload).unwrap();
    assert!(reply.get("error").is_none(), "{reply}");
    reply
}

/// NATS at `address`, with connections of its own.
pub(crate) fn bus(host: &Host, address: SocketAddr) -> Bus {
    Bus::new(Rc::clone(host), NatsEndpoint::plain(address), Rc::default())
}

/// Passes connections on, and disturbs them when it is told to.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    cut: broadcast::Sender<()>,
    /// Clients whose next request contains one of these texts lose their connection instead of its reply.
    lost: Rc<RefCell<Vec<&'static str>>>,
    /// While this is true, replies wait.
    held: watch::Sender<bool>,
    /// Bytes of replies that were passed on.
    replied: Rc<Cell<usize>>,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self {
            address,
            cut: broadcast::Sender::new(1),
            lost: Rc::default(),
            held: watch::Sender::new(false),
            replied: Rc::default(),
        };
        let (cut, lost, held) = (proxy.cut.clone(), Rc::clone(&proxy.lost), proxy.held.clone());
        let replied = Rc::clone(&proxy.replied);
        tokio::task::spawn_local(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut cut, lost, held) = (cut.subscribe(), Rc::clone(&lost), held.subscribe());
                let replied = Rc::clone(&replied);
                tokio::task::spawn_local(async move {
                    let Ok(server) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = cut.recv() => {}
                        () = pass(client, server, &lost, held, &replied) => {}
                    }
                });
            }
        });
        proxy
    }

    /// Cuts all connections; how many there were.
    pub(crate) fn cut(&self) -> usize {
        self.cut.send(()).unwrap_or(0)
    }

    /// Has the server receive the next `times` requests that contain `text`, and cuts their connections when it
    /// replies, so that their senders don't know whether they were served.
    pub(crate) fn lose_replies(&self, text: &'static str, times: usize) {
        self.lost.borrow_mut().extend(std::iter::repeat_n(text, times));
    }

    /// Whether all replies that were to be lost are lost.
    pub(crate) fn has_lost_all(&self) -> bool {
        self.lost.borrow().is_empty()
    }

    /// Bytes of replies so far.
    pub(crate) fn replied(&self) -> usize {
        self.replied.get()
    }

    /// Keeps replies to published messages back, or lets them go.
    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }
}

/// Passes on what both sides send, until one of them ends or a reply is to be lost.
async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    lost: &RefCell<Vec<&'static str>>,
    mut held: watch::Receiver<bool>,
    replied: &Cell<usize>,
) {
    let (mut requests, mut to_client) = client.split();
    let (mut replies, mut to_server) = server.split();
    let (loses, asks) = (Cell::new(false), Cell::new(false));
    let up = async {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = requests.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            asks.set(asks.get() || text.contains("PUB "));
            let place = lost.borrow().iter().position(|wanted| text.contains(wanted));
            if let Some(place) = place {
                lost.borrow_mut().remove(place);
                loses.set(true);
            }
            if to_server.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = replies.read(&mut buffer).await {
            if asks.get() {
                let _ = held.wait_for(|held| !held).await;
            }
            replied.set(replied.get() + read);
            if loses.get() || to_client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
