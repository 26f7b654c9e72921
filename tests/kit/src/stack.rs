//! The whole of Emberline for one test: nats-server, workers and function host, each a process of
//! its own on ports that the system chose, all gone when the [`Stack`] is dropped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use emberline_protocol::heartbeat::Heartbeat;
use emberline_protocol::subject;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard};

use crate::nats::{FUNCTION_PASSWORD, Nats, NatsServer, worker_client};
use crate::workers::Workers;

/// The key that a stack's function accepts.
pub const API_KEY: &str = "sk-emb-test";
/// Another one.
pub const OTHER_KEY: &str = "sk-emb-other";
/// The real model's name, as in the catalogue.
pub const MODEL: &str = "smollm2-135m-instruct";
/// How long any single event may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One stack at a time in each test binary: the machine's cores go to the model.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What computes in a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// No worker at all.
    None,
    /// The real model on the CPU backend.
    Real,
    /// The worker's simulated engine, which says so in its heartbeat and model name.
    Simulated,
    /// What [`Options::worker_args`] say, on the CPU backend.
    Given,
}

/// How to start a stack.
#[derive(Debug, Clone)]
pub struct Options {
    /// What computes.
    pub engine: Engine,
    /// Spin variables on top of the defaults.
    pub variables: Vec<(&'static str, String)>,
    /// Extra arguments of the worker.
    pub worker_args: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { engine: Engine::Real, variables: Vec::new(), worker_args: Vec::new() }
    }
}

/// A running Emberline.
pub struct Stack<N = NatsServer> {
    /// The function's base URL, without a slash at the end.
    pub url: String,
    /// An HTTP client without a total timeout.
    pub http: reqwest::Client,
    /// What is in the middle.
    pub nats: N,
    /// What computes.
    pub workers: Workers,
    host: Option<Group>,
    /// More of them.
    others: Vec<Group>,
    _turn: MutexGuard<'static, ()>,
}

impl Stack {
    /// Starts everything with the real model and waits until it is ready.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts everything and waits until it is ready (or answers, if there is no worker).
    pub async fn start_with(options: Options) -> Result<Self> {
        Self::start_on(NatsServer::start, options).await
    }
}

impl<N: Nats> Stack<N> {
    /// The same on what `nats` starts.
    pub async fn start_on(nats: impl AsyncFnOnce() -> Result<N>, options: Options) -> Result<Self> {
        let turn = ONE_AT_A_TIME.lock().await;
        let nats = nats().await?;
        let mut workers = Workers::default();
        if options.engine != Engine::None {
            workers.add(&options, &nats.addresses().join(","))?;
        }
        let (host, url) = start_host(&nats, &options).await?;
        let http = reqwest::Client::new();
        let (host, others) = (Some(host), Vec::new());
        let stack = Self { url, http, nats, workers, host, others, _turn: turn };
        stack.wait_ready(options.engine != Engine::None).await?;
        Ok(stack)
    }

    /// Starts one more worker; its number.
    pub fn add_worker(&mut self, options: &Options) -> Result<usize> {
        self.workers.add(options, &self.nats.addresses().join(","))
    }

    /// Starts one more host of the function; its base URL.
    pub async fn add_function(&mut self, options: &Options) -> Result<String> {
        let (host, url) = start_host(&self.nats, options).await?;
        self.others.push(host);
        Ok(url)
    }

    async fn wait_ready(&self, with_worker: bool) -> Result<()> {
        let path = if with_worker { "/ready" } else { "/health" };
        let ready = async {
            loop {
                let answer = self.http.get(format!("{}{path}", self.url)).send().await;
                if answer.is_ok_and(|a| a.status() == 200) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.with_context(|| format!("{path} did not answer 200"))
    }

    /// Posts a chat request with the right key.
    pub async fn chat(&self, body: &Value) -> Result<reqwest::Response> {
        let request = self.http.post(format!("{}/v1/chat/completions", self.url));
        Ok(request.bearer_auth(API_KEY).json(body).send().await?)
    }

    /// Posts a chat request and returns the JSON of its 200 answer.
    pub async fn completion(&self, body: &Value) -> Result<Value> {
        let response = self.chat(body).await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status == 200, "{status}: {text}");
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// Posts a chat request with `stream: true` and reads its stream to the end.
    pub async fn stream(&self, body: &Value) -> Result<crate::sse::Transcript> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.chat(&body).await?;
        ensure!(response.status() == 200, "{}: {}", response.status(), response.text().await?);
        crate::sse::Transcript::read(response).await
    }

    /// Gets a path with the right key.
    pub async fn get(&self, path: &str) -> Result<reqwest::Response> {
        Ok(self.http.get(format!("{}{path}", self.url)).bearer_auth(API_KEY).send().await?)
    }

    /// The first worker's process id.
    pub fn worker_id(&self) -> Option<u32> {
        self.workers.id(0)
    }

    /// The process id of the function's host.
    pub fn host_id(&self) -> Option<u32> {
        self.host.as_ref()?.0.id()
    }

    /// Waits until the function lists exactly these models and their aliases.
    pub async fn wait_for_models(&self, wanted: &[&str]) -> Result<()> {
        let listed = async {
            loop {
                let list: Value = self.get("/v1/models").await?.json().await?;
                let entries = list["data"].as_array().map_or(&[][..], Vec::as_slice);
                let mut roots: Vec<&str> =
                    entries.iter().filter_map(|model| model["root"].as_str()).collect();
                roots.sort_unstable();
                roots.dedup();
                if roots == wanted {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, listed).await.context("the list of models did not change")?
    }

    /// Waits for a heartbeat that `wanted` accepts, whoever sends it.
    pub async fn heartbeat(&self, wanted: impl Fn(&Heartbeat) -> bool) -> Result<Heartbeat> {
        let jetstream = async_nats::jetstream::new(worker_client(&self.nats).await?);
        let bucket = jetstream.get_stream(subject::WORKERS_STREAM).await?;
        let found = async {
            loop {
                let mut next = None;
                while let Ok(entry) =
                    bucket.direct_get_next_for_subject(subject::WORKERS_SUBJECTS, next).await
                {
                    next = Some(entry.sequence + 1);
                    match serde_json::from_slice::<Heartbeat>(&entry.payload) {
                        Ok(heartbeat) if wanted(&heartbeat) => return heartbeat,
                        _ => {} // another worker's, or the mark that one left
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.context("no such heartbeat came")
    }

    /// Posts a body with a key and more headers.
    pub async fn post(
        &self,
        path: &str,
        key: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<reqwest::Response> {
        let mut request = self.http.post(format!("{}{path}", self.url)).bearer_auth(key).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(request.send().await?)
    }

    /// How many jobs have been queued since the beginning.
    pub async fn jobs_queued(&self) -> Result<u64> {
        let jetstream = async_nats::jetstream::new(worker_client(&self.nats).await?);
        let jobs = jetstream.get_stream(subject::JOBS_STREAM).await?;
        Ok(jobs.cached_info().state.last_sequence)
    }

    /// Waits until no job is queued or running.
    pub async fn wait_for_empty_queue(&self) -> Result<()> {
        let jetstream = async_nats::jetstream::new(worker_client(&self.nats).await?);
        let emptied = async {
            while jetstream.get_stream(subject::JOBS_STREAM).await?.cached_info().state.messages > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, emptied).await.context("jobs stay in the queue")?
    }

    /// Ends the function's host without a word.
    pub fn kill_host(&mut self) {
        self.host = None;
    }

    /// Starts the function's host again, somewhere else.
    pub async fn start_host(&mut self, options: &Options) -> Result<()> {
        let (host, url) = start_host(&self.nats, options).await?;
        (self.host, self.url) = (Some(host), url);
        self.wait_ready(options.engine != Engine::None).await
    }

    /// Ends the first worker without a word, as a power cut would.
    pub async fn kill_worker(&mut self) -> Result<()> {
        self.workers.kill(0).await
    }

    /// Starts the first worker (again), perhaps otherwise.
    pub fn start_worker(&mut self, options: &Options) -> Result<()> {
        self.workers.replace(0, options, &self.nats.addresses().join(","))
    }
}

/// The host that runs the function: this project's own, or `spin` if EMBERLINE_TEST_HOST says so.
async fn start_host(nats: &impl Nats, options: &Options) -> Result<(Group, String)> {
    let manifest = repository().join("spin.toml");
    let mut command = match std::env::var("EMBERLINE_TEST_HOST").as_deref() {
        Ok("spin") => {
            let mut command = Command::new("spin");
            command.args(["up", "--listen", &format!("127.0.0.1:{}", free_port().await?)]);
            command.arg("--state-dir").arg(nats.directory().join("spin"));
            command
        }
        Ok("local") | Err(_) => {
            let mut command = Command::new(binary("emberline-host")?);
            command.args(["--listen", "127.0.0.1:0"]);
            command
        }
        Ok(other) => bail!("EMBERLINE_TEST_HOST must be local or spin, not '{other}'"),
    };
    let models = if options.engine == Engine::Simulated { "simulated-echo" } else { MODEL };
    let defaults = [
        ("nats_user", "function".to_owned()),
        ("nats_password", FUNCTION_PASSWORD.to_owned()),
        ("api_key_hashes", format!("{},{}", sha256_hex(API_KEY), sha256_hex(OTHER_KEY))),
        ("models", models.to_owned()),
        ("model_aliases", format!("vllm-primary={models}")),
    ];
    for (address, letter) in nats.addresses().iter().zip(["", "_B", "_C"]) {
        command.env(format!("SPIN_VARIABLE_NATS_SERVER{letter}"), address);
    }
    for (name, value) in defaults.iter().chain(&options.variables) {
        command.env(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
    }
    command.arg("--from").arg(manifest);
    let mut group = Group::spawn(quiet(&mut command).stdout(Stdio::piped()))?;
    let mut lines = BufReader::new(group.0.stdout.take().context("no stdout")?).lines();
    let serving = async {
        while let Some(line) = lines.next_line().await? {
            if let Some((_, url)) = line.split_once("Serving ") {
                return Ok(url.trim().trim_end_matches('/').to_owned());
            }
        }
        bail!("the host ended before it served: run with EMBERLINE_TEST_LOGS=1 to see why")
    };
    let url = tokio::time::timeout(PATIENCE, serving).await.context("the host does not serve")??;
    // Keeps the pipe open and empty, so that the host never blocks on its own output.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((group, url))
}

/// A process and those that it starts itself, as `spin up` does; all end with this.
struct Group(Child);

impl Group {
    fn spawn(command: &mut Command) -> Result<Self> {
        Ok(Self(command.process_group(0).spawn().context("the function's host")?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            // Fails only if all of them have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Spin can't be told to choose a port itself.
async fn free_port() -> Result<u16> {
    Ok(tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

/// No input, logs only when EMBERLINE_TEST_LOGS is set, and an end with its handle.
pub(crate) fn quiet(command: &mut Command) -> &mut Command {
    let log =
        || if std::env::var_os("EMBERLINE_TEST_LOGS").is_some() { Stdio::inherit() } else { Stdio::null() };
    command.stdin(Stdio::null()).stdout(log()).stderr(log()).kill_on_drop(true)
}

/// A binary of this workspace, built by `cargo build --workspace` beside this test.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("a test lies in target/<profile>/deps")?;
    let path = folder.join(name);
    ensure!(path.exists(), "{name} is not built: run `cargo build --workspace`, or `make test`");
    Ok(path)
}

/// The top of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The cache folder that `make` fills.
pub fn cache() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    of("EMBERLINE_CACHE")
        .or_else(|| of("XDG_CACHE_HOME").map(|x| x.join("emberline")))
        .or_else(|| of("HOME").map(|h| h.join(".cache/emberline")))
        .unwrap_or_else(|| PathBuf::from("emberline-cache"))
}

/// The real model's file.
pub fn model_path() -> Result<PathBuf> {
    let path = std::env::var_os("EMBERLINE_TEST_MODEL")
        .map_or_else(|| cache().join("models").join(format!("{MODEL}.gguf")), PathBuf::from);
    ensure!(
        path.exists(),
        "the model is not at {}: run `make test`, which fetches it, or set EMBERLINE_TEST_MODEL",
        path.display()
    );
    Ok(path)
}

fn sha256_hex(text: &str) -> String {
    use sha2::Digest as _;
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(text))
}
