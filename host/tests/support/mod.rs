//! Starts the host with the fixture component, and sends it HTTP byte by byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

mod fixture;
mod spin;

use fixture::fixture;
use spin::{Serving, Spin};

/// How long to wait for anything; only a failure takes so long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A manifest for the fixture; `component` is added to `[component.fixture]`.
pub(crate) fn manifest(component: &str) -> String {
    format!(
        "spin_manifest_version = 2\n\
         [application]\nname = \"test\"\n\
         [variables]\n\
         host = {{ default = \"127.0.0.1\" }}\n\
         port = {{ default = \"1\" }}\n\
         [[trigger.http]]\nroute = \"/...\"\ncomponent = \"fixture\"\n\
         [component.fixture]\nsource = {:?}\n{component}\n",
        fixture()
    )
}

/// A running host.
pub(crate) struct Host {
    process: Child,
    pub(crate) address: SocketAddr,
    log: Arc<Log>,
    _directory: tempfile::TempDir,
}

impl Host {
    /// Starts it and waits until it serves.
    pub(crate) fn start(manifest: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut process = command(directory.path(), manifest).args(arguments).spawn().unwrap();
        let log = Log::follow(process.stderr.take().unwrap());
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("Serving http://").and_then(|address| address.trim().parse().ok());
        let Some(address) = address else {
            _ = process.wait();
            panic!("the host printed {line:?}; its log:\n{}", log.text());
        };
        Self { process, address, log, _directory: directory }
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    /// Sends one GET and returns status and body.
    pub(crate) fn get(&self, target: &str) -> (u16, String) {
        let mut connection = self.connect();
        connection.send(target);
        connection.response()
    }

    /// Waits until a line of the log contains `text`, and returns that line.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        self.log.wait_for(text)
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.process, &self.log)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// A server of a manifest: this host, or the real Spin if it is installed.
pub(crate) enum Server {
    Host(Host),
    Spin(Serving),
}

impl Server {
    /// Starts this host and then, if it is installed, Spin.
    pub(crate) fn each(manifest: &str) -> impl Iterator<Item = Self> {
        let spin = Spin::find().map(|spin| Self::Spin(spin.serve(manifest).unwrap()));
        std::iter::once(Self::Host(Host::start(manifest, &[]))).chain(spin)
    }

    pub(crate) fn connect(&self) -> Connection {
        match self {
            Self::Host(host) => host.connect(),
            Self::Spin(spin) => Connection::open(spin.address),
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        match self {
            Self::Host(host) => host.signal(name),
            Self::Spin(spin) => spin.signal(name),
        }
    }
}

/// Runs a host that is expected to refuse to start; returns its exit status and its log.
pub(crate) fn refused(
    manifest: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> (ExitStatus, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = command(directory.path(), manifest);
    let mut process = command.args(arguments).envs(environment.iter().copied()).spawn().unwrap();
    let log = Log::follow(process.stderr.take().unwrap());
    let status = wait(&mut process, &log);
    (status, log.text_at_end())
}

fn command(directory: &Path, manifest: &str) -> Command {
    std::fs::write(directory.join("spin.toml"), manifest).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_emberline-host"));
    command
        .arg("--from")
        .arg(directory)
        // All hosts share one cache, so that the fixture is compiled once.
        .env("EMBERLINE_CACHE", env!("CARGO_TARGET_TMPDIR"))
        .env("EMBERLINE_LOG", "info,emberline_host=debug")
        .env("EMBERLINE_LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn wait(process: &mut Child, log: &Log) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        if begin.elapsed() > TIMEOUT {
            _ = process.kill();
            panic!("the host doesn't end; its log:\n{}", log.text());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The lines that a host writes to stderr, and whether it has closed it.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Log {
    fn follow(stderr: std::process::ChildStderr) -> Arc<Self> {
        let log = Arc::new(Self::default());
        let writer = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                writer.lines.lock().unwrap().0.push(line);
                writer.more.notify_all();
            }
            writer.lines.lock().unwrap().1 = true;
            writer.more.notify_all();
        });
        log
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap().0.join("\n")
    }

    fn text_at_end(&self) -> String {
        let lines = self.lines.lock().unwrap();
        let (lines, _) = self.more.wait_timeout_while(lines, TIMEOUT, |(_, ended)| !*ended).unwrap();
        lines.0.join("\n")
    }

    fn wait_for(&self, text: &str) -> String {
        let found = |lines: &[String]| lines.iter().find(|line| line.contains(text)).cloned();
        let lines = self.lines.lock().unwrap();
        let wait = |(lines, ended): &mut (Vec<String>, bool)| found(lines).is_none() && !*ended;
        let (lines, _) = self.more.wait_timeout_while(lines, TIMEOUT, wait).unwrap();
        found(&lines.0).unwrap_or_else(|| panic!("no '{text}' in the log:\n{}", lines.0.join("\n")))
    }
}

/// A client's connection.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Another handle of the connection, for a thread that writes.
    pub(crate) fn writer(&self) -> TcpStream {
        self.stream.get_ref().try_clone().unwrap()
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Sends a GET.
    pub(crate) fn send(&mut self, target: &str) {
        self.write(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    }

    /// Reads a response's head; returns its status and its header lines.
    pub(crate) fn head(&mut self) -> (u16, String) {
        self.try_head().expect("a response")
    }

    /// Like [`Self::head`], but `None` if the connection ends instead.
    pub(crate) fn try_head(&mut self) -> Option<(u16, String)> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            // A connection that ends before its request was read completely is reset.
            let read = self.stream.read_line(&mut head).unwrap_or(0);
            if read == 0 {
                assert_eq!(head, "", "the connection ended");
                return None;
            }
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Some((status.unwrap_or_else(|| panic!("no status: {head:?}")), head.to_ascii_lowercase()))
    }

    /// Reads `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the connection ends in the middle of a chunked body.
    pub(crate) fn is_cut_off(&mut self) -> bool {
        let mut rest = Vec::new();
        // An error is a reset connection, which is an end too.
        _ = self.stream.read_to_end(&mut rest);
        !rest.ends_with(b"0\r\n\r\n")
    }

    /// Reads one chunk of a chunked body; empty at its end.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("no chunk: {line:?}"));
        let mut chunk = self.bytes(length + 2);
        assert!(chunk.ends_with(b"\r\n"));
        chunk.truncate(length);
        chunk
    }

    /// Reads a whole response.
    pub(crate) fn response(&mut self) -> (u16, String) {
        let (status, head) = self.head();
        let mut body = Vec::new();
        if head.contains("transfer-encoding: chunked") {
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                body.extend(chunk);
            }
        } else if let Some((_, rest)) = head.split_once("content-length: ") {
            body.resize(rest.lines().next().unwrap().parse().unwrap(), 0);
            self.stream.read_exact(&mut body).unwrap();
        }
        (status, String::from_utf8(body).unwrap())
    }

    /// Whether the host has closed the connection, with nothing left to read.
    pub(crate) fn ends(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }
}

/// A gate that the fixture waits at: the fixture connects, and goes on when the connection is closed.
pub(crate) struct Gate {
    listener: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Gate {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// Waits until the fixture has arrived; dropping the result lets it go on.
    pub(crate) fn arrival(&self) -> TcpStream {
        self.listener.accept().unwrap().0
    }
}
