//! A nats-server for one test: deploy/nats.conf, a port that the system chooses, a directory that
//! goes with it.
//!
//! The binary is EMBERLINE_TEST_NATS, or `nats-server` on the PATH, or the copy that `make` keeps
//! in the cache folder.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::{Client, ConnectOptions};
use tempfile::TempDir;

/// deploy/nats.conf of this checkout.
pub const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/nats.conf");

const FUNCTION_PASSWORD: &str = "function-test";
const WORKER_PASSWORD: &str = "worker-test";
const ADMIN_PASSWORD: &str = "admin-test";
/// Starting takes milliseconds; a machine that is busy compiling may need more.
const START: Duration = Duration::from_secs(30);

/// A running nats-server; it ends when this is dropped.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    directory: TempDir,
    config: PathBuf,
    port: u16,
}

impl NatsServer {
    /// Starts one with deploy/nats.conf.
    pub async fn start() -> Result<Self> {
        Self::start_with(Path::new(CONFIG)).await
    }

    /// Starts one with another configuration.
    pub async fn start_with(config: &Path) -> Result<Self> {
        let directory = tempfile::tempdir().context("can't make a directory for nats-server")?;
        // -1 lets the system choose; the ports file tells what it chose.
        let process = spawn(config, directory.path(), "-1")?;
        let mut server = Self { process, directory, config: config.to_owned(), port: 0 };
        server.port = server.wait_until_ready().await?;
        Ok(server)
    }

    /// Where it listens: host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A folder that goes with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The password of the user `function`.
    pub fn function_password(&self) -> &str {
        FUNCTION_PASSWORD
    }

    /// The password of the user `worker`.
    pub fn worker_password(&self) -> &str {
        WORKER_PASSWORD
    }

    /// The password of the user `admin`.
    pub fn admin_password(&self) -> &str {
        ADMIN_PASSWORD
    }

    /// A connection with the rights of whoever keeps the keys.
    pub async fn admin_client(&self) -> Result<Client> {
        self.client("admin", ADMIN_PASSWORD).await
    }

    /// A connection with the rights of the function.
    pub async fn function_client(&self) -> Result<Client> {
        self.client("function", FUNCTION_PASSWORD).await
    }

    /// A connection with the rights of a worker, which may read what the function may not.
    pub async fn worker_client(&self) -> Result<Client> {
        self.client("worker", WORKER_PASSWORD).await
    }

    async fn client(&self, user: &str, password: &str) -> Result<Client> {
        let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
        let options = options.custom_inbox_prefix(format!("_INBOX_{user}"));
        options.connect(self.address()).await.with_context(|| format!("can't connect as {user}"))
    }

    /// Ends the process at once; what was in memory is lost.
    pub fn stop(&mut self) {
        self.process.end();
    }

    /// Starts it again after [`NatsServer::stop`], at the same address and with the same files.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.config, self.directory.path(), &self.port.to_string())?;
        self.wait_until_ready().await?;
        Ok(())
    }

    /// Waits for the ports file; the port in it.
    async fn wait_until_ready(&mut self) -> Result<u16> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(port) = self.port_in_file() {
                return Ok(port);
            }
            let exited = self.process.0.try_wait()?;
            if exited.is_some() || Instant::now() >= deadline {
                bail!("nats-server did not start ({exited:?}):\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn port_in_file(&self) -> Option<u16> {
        // It is named after the binary, whatever that is called, and the process.
        let ending = format!("_{}.ports", self.process.0.id());
        let mut files = std::fs::read_dir(self.directory.path()).ok()?.flatten();
        let file = files.find(|file| file.file_name().to_string_lossy().ends_with(&ending))?;
        let text = std::fs::read_to_string(file.path()).ok()?;
        // {"nats":["nats://127.0.0.1:43210"]}
        let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
        ports.get("nats")?.get(0)?.as_str()?.rsplit_once(':')?.1.parse().ok()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("nats.log")).unwrap_or_default()
    }
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

fn spawn(config: &Path, directory: &Path, port: &str) -> Result<Process> {
    let binary = binary()?;
    let child = Command::new(&binary)
        .arg("-c")
        .arg(config)
        .args(["-a", "127.0.0.1", "-p", port, "-sd"])
        .arg(directory.join("jetstream"))
        .arg("--ports_file_dir")
        .arg(directory)
        .arg("-l")
        .arg(directory.join("nats.log"))
        .env("EMBERLINE_FUNCTION_PASSWORD", FUNCTION_PASSWORD)
        .env("EMBERLINE_WORKER_PASSWORD", WORKER_PASSWORD)
        .env("EMBERLINE_ADMIN_PASSWORD", ADMIN_PASSWORD)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("can't run {}", binary.display()))?;
    Ok(Process(child))
}

/// The nats-server to test with.
pub fn binary() -> Result<PathBuf> {
    if let Some(binary) = env::var_os("EMBERLINE_TEST_NATS") {
        return Ok(binary.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([crate::stack::cache().join("bin")])
        .map(|folder| folder.join("nats-server"))
        .find(|binary| binary.is_file())
        .context(
            "no nats-server: run `make test`, which gets one, or put it on the PATH or set EMBERLINE_TEST_NATS to it",
        )
}
