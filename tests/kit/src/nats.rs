//! A nats-server for one test: deploy/nats.conf, a port that the system chooses, a folder of its own.
//!
//! The binary is EMBERLINE_TEST_NATS, or `nats-server` on the PATH, or the copy that `make` keeps
//! in the cache folder.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::jetstream;
use async_nats::{Client, ConnectOptions, ServerAddr};
use emberline_protocol::streams::{Layout, streams};
use emberline_protocol::subject;
use serde_json::Value;
use tempfile::TempDir;

use crate::bus_way::{BusWay, SERVER_NAME};
use crate::certificates::Authority;
use crate::network::TestHost;

/// deploy/nats.conf of this checkout.
pub const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/nats.conf");

/// The seed of the user `function`.
pub const FUNCTION_SEED: &str = "SUAK5V2MYB36D5IUCZLIFEVKRRJAHWGD4A2UIOGN3DD6CZINYYSLVMZ5FY";
/// The seed of the user `worker`.
pub const WORKER_SEED: &str = "SUAMDSQDNNZJKWZDHWYZWJPGK45TRAFYKVCKRH5ICF5DFJMHGNWMBOQICE";
/// The seed of the user `admin`.
pub const ADMIN_SEED: &str = "SUABMSDT57WXRJF5GXITUYVOYI2EAL5VL4JDW7QCOC7FX3GI2Y5MYTHZEM";
/// Starting takes milliseconds; a machine that is busy compiling may need more.
const START: Duration = Duration::from_secs(30);

/// What function and workers connect to: one nats-server or a cluster.
pub trait Nats {
    /// Where the servers listen: host and port of each.
    fn addresses(&self) -> Vec<String>;
    /// A folder that is removed with them.
    fn directory(&self) -> &Path;
    /// The file with the certificate of the authority behind their own, if they want TLS.
    fn ca(&self) -> Option<PathBuf> {
        Some(self.directory().join(CA_FILE)).filter(|file| file.is_file())
    }
    /// Their addresses with the scheme that they want, and with TLS by the name in their certificates.
    fn urls(&self) -> Vec<String> {
        let url = |address: &String| match self.ca() {
            Some(_) => format!("tls://{}", address.replace("127.0.0.1", "localhost")),
            None => format!("nats://{address}"),
        };
        self.addresses().iter().map(url).collect()
    }
}

/// The certificate of a server's authority, in its folder.
const CA_FILE: &str = "ca.pem";

/// A connection to whichever server answers, with the rights of the function.
pub async fn function_client(nats: &impl Nats) -> Result<Client> {
    client(nats, "function", FUNCTION_SEED).await
}

/// A connection with the rights of a worker, which may read what the function may not.
pub async fn worker_client(nats: &impl Nats) -> Result<Client> {
    client(nats, "worker", WORKER_SEED).await
}

/// A connection with the rights of an administrator.
pub async fn admin_client(nats: &impl Nats) -> Result<Client> {
    client(nats, "admin", ADMIN_SEED).await
}

async fn client(nats: &impl Nats, user: &str, seed: &str) -> Result<Client> {
    let options = ConnectOptions::with_nkey(seed.to_owned());
    let mut options = options.custom_inbox_prefix(subject::inbox_prefix(user));
    if let Some(ca) = nats.ca() {
        options = options.add_root_certificates(ca);
    }
    let servers: Result<Vec<ServerAddr>, _> = nats.urls().iter().map(|url| url.parse()).collect();
    options.connect(servers?).await.with_context(|| format!("can't connect as {user}"))
}

/// Makes all streams and buckets, as `emberline nats setup` does; what exists must be like it.
pub async fn set_up(nats: &impl Nats, layout: &Layout) -> Result<()> {
    let jetstream = jetstream::new(admin_client(nats).await?);
    for stream in streams(layout) {
        let config: jetstream::stream::Config = serde_json::from_value(stream.to_json())?;
        jetstream.create_stream(config).await.with_context(|| format!("creating {}", stream.name))?;
    }
    Ok(())
}

/// A running nats-server; it ends when this is dropped.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    host: TestHost,
    directory: TempDir,
    arguments: Vec<OsString>,
    ports: Ports,
}

/// Ports that the system chose.
#[derive(Debug, Clone, Copy, Default)]
struct Ports {
    clients: u16,
    monitoring: u16,
}

impl Nats for NatsServer {
    fn addresses(&self) -> Vec<String> {
        vec![self.address()]
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl NatsServer {
    /// Starts one with deploy/nats.conf, and makes the streams.
    pub async fn start() -> Result<Self> {
        let server = Self::start_empty().await?;
        set_up(&server, &Layout::default()).await?;
        Ok(server)
    }

    /// The same on another host, without TLS.
    pub async fn start_on(host: &TestHost) -> Result<Self> {
        let server = Self::start_in(new_directory()?, with_config(Path::new(CONFIG)), host).await?;
        set_up(&server, &Layout::default()).await?;
        Ok(server)
    }

    /// Starts one with deploy/nats.conf and without streams.
    pub async fn start_empty() -> Result<Self> {
        match BusWay::of_this_run()? {
            BusWay::Nats | BusWay::Edge | BusWay::SecureEdge => Self::start_with(Path::new(CONFIG)).await,
            BusWay::Tls => Self::start_with_tls().await,
        }
    }

    /// Starts one with deploy/nats.conf that refuses who comes without TLS.
    pub async fn start_with_tls() -> Result<Self> {
        let directory = new_directory()?;
        let authority = Authority::new()?;
        let ca = authority.write(directory.path(), CA_FILE)?;
        let files = authority.certificate(directory.path(), "server", &[SERVER_NAME, "localhost"])?;
        let quoted = |path: &Path| format!("{:?}", path.to_string_lossy());
        let block = format!(
            "tls {{\n  cert_file: {}\n  key_file: {}\n  ca_file: {}\n}}\n",
            quoted(&files.certificate),
            quoted(&files.key),
            quoted(&ca)
        );
        let config = directory.path().join("nats.conf");
        std::fs::write(&config, std::fs::read_to_string(CONFIG)? + &block)?;
        Self::start_in(directory, with_config(&config), &TestHost::default()).await
    }

    /// Starts one with another configuration.
    pub async fn start_with(config: &Path) -> Result<Self> {
        Self::start_as(with_config(config)).await
    }

    /// Starts one with more arguments than every server has.
    pub(crate) async fn start_as(arguments: Vec<OsString>) -> Result<Self> {
        Self::start_in(new_directory()?, arguments, &TestHost::default()).await
    }

    async fn start_in(directory: TempDir, arguments: Vec<OsString>, host: &TestHost) -> Result<Self> {
        // -1 lets the system choose; the ports file tells what it chose.
        let process = spawn(host, &arguments, directory.path(), "-1")?;
        let mut server = Self { process, host: host.clone(), directory, arguments, ports: Ports::default() };
        server.ports = server.wait_until_ready().await?;
        Ok(server)
    }

    /// Where it listens: host and port.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host.address, self.ports.clients)
    }

    /// A folder that is removed with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A connection with the rights of an administrator.
    pub async fn admin_client(&self) -> Result<Client> {
        admin_client(self).await
    }

    /// A connection with the rights of the function.
    pub async fn function_client(&self) -> Result<Client> {
        function_client(self).await
    }

    /// A connection with the rights of a worker, which may read what the function may not.
    pub async fn worker_client(&self) -> Result<Client> {
        worker_client(self).await
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// What its monitoring endpoint `path`, such as `varz`, reports.
    pub async fn monitoring(&self, path: &str) -> Result<Value> {
        let url = format!("http://{}:{}/{path}", self.host.address, self.ports.monitoring);
        Ok(reqwest::get(url).await?.error_for_status()?.json().await?)
    }

    /// Ends the process at once; what was in memory is lost.
    pub fn stop(&mut self) {
        self.process.end();
    }

    /// Starts it again after [`NatsServer::stop`], at the same address and with the same files.
    pub async fn start_again(&mut self) -> Result<()> {
        let port = self.ports.clients.to_string();
        self.process = spawn(&self.host, &self.arguments, self.directory.path(), &port)?;
        self.ports = self.wait_until_ready().await?;
        Ok(())
    }

    /// Waits for the ports file; the ports in it.
    async fn wait_until_ready(&mut self) -> Result<Ports> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(ports) = self.ports_in_file() {
                return Ok(ports);
            }
            let exited = self.process.0.try_wait()?;
            if exited.is_some() || Instant::now() >= deadline {
                bail!("nats-server did not start ({exited:?}):\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn ports_in_file(&self) -> Option<Ports> {
        // It is named after the binary, whatever that is called, and the process.
        let ending = format!("_{}.ports", self.process.0.id());
        let mut files = std::fs::read_dir(self.directory.path()).ok()?.flatten();
        let file = files.find(|file| file.file_name().to_string_lossy().ends_with(&ending))?;
        let text = std::fs::read_to_string(file.path()).ok()?;
        // {"nats":["nats://127.0.0.1:43210"],"monitoring":["http://127.0.0.1:43211"]}
        let ports: Value = serde_json::from_str(&text).ok()?;
        let port = |of: &str| ports.get(of)?.get(0)?.as_str()?.rsplit_once(':')?.1.parse().ok();
        Some(Ports { clients: port("nats")?, monitoring: port("monitoring")? })
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("nats.log")).unwrap_or_default()
    }
}

fn with_config(config: &Path) -> Vec<OsString> {
    vec!["-c".into(), config.into()]
}

fn new_directory() -> Result<TempDir> {
    tempfile::tempdir().context("can't make a directory for nats-server")
}

/// A process that ends with its owner.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn end(&mut self) {
        // Fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(host: &TestHost, arguments: &[OsString], directory: &Path, port: &str) -> Result<Process> {
    let binary = binary()?;
    let child = host
        .command(&binary)
        .args(arguments)
        .args(["-a", &host.address.to_string(), "-p", port, "-m", "-1", "-sd"])
        .arg(directory.join("jetstream"))
        .arg("--ports_file_dir")
        .arg(directory)
        .arg("-l")
        .arg(directory.join("nats.log"))
        .env("EMBERLINE_FUNCTION_NKEY", public_key(FUNCTION_SEED)?)
        .env("EMBERLINE_WORKER_NKEY", public_key(WORKER_SEED)?)
        .env("EMBERLINE_ADMIN_NKEY", public_key(ADMIN_SEED)?)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("can't run {}", binary.display()))?;
    Ok(Process(child))
}

/// The public key of a seed.
pub fn public_key(seed: &str) -> Result<String> {
    Ok(nkeys::KeyPair::from_seed(seed)?.public_key())
}

/// The nats-server to test with.
pub fn binary() -> Result<PathBuf> {
    if let Some(binary) = env::var_os("EMBERLINE_TEST_NATS") {
        return Ok(binary.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([crate::paths::cache().join("bin")])
        .map(|folder| folder.join("nats-server"))
        .find(|binary| binary.is_file())
        .context(
            "no nats-server: run `make test`, which gets one, or put it on the PATH or set EMBERLINE_TEST_NATS to it",
        )
}
