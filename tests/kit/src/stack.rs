//! The whole of Emberline for a test: nats-server, workers and the function's host, each a process of
//! its own on ports that the system chose, all gone when the [`Stack`] is dropped.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use emberline_protocol::heartbeat::Heartbeat;
use emberline_protocol::subject;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::host::Host;
use crate::nats::{Nats, NatsServer, worker_client};
use crate::sse::Transcript;
use crate::wait;
use crate::workers::Workers;

pub use crate::host::{API_KEY, OTHER_KEY};
pub use crate::options::{Engine, MODEL, Options, SIMULATED_MODEL};

/// How many stacks without the real model run at once in one test process. cargo-nextest starts a process
/// for each test and schedules these itself, see `.config/nextest.toml`.
const AT_ONCE: u32 = 3;
static TURNS: Semaphore = Semaphore::const_new(AT_ONCE as usize);

/// A running Emberline.
pub struct Stack<N = NatsServer> {
    /// The function's base URL, without a slash at the end.
    pub url: String,
    /// An HTTP client without a total timeout.
    pub http: reqwest::Client,
    /// The nats-server or the cluster between function and workers.
    pub nats: N,
    /// What computes.
    pub workers: Workers,
    host: Option<Host>,
    more_hosts: Vec<Host>,
    _turn: SemaphorePermit<'static>,
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
    /// The same with the nats-server or cluster that `nats` starts.
    pub async fn start_on(nats: impl AsyncFnOnce() -> Result<N>, options: Options) -> Result<Self> {
        // The real model uses every core.
        let turns = if matches!(options.engine, Engine::Real | Engine::Given) { AT_ONCE } else { 1 };
        let turn = TURNS.acquire_many(turns).await?;
        let nats = nats().await?;
        let mut workers = Workers::trusting(nats.ca());
        if options.engine != Engine::None {
            workers.add(&options, &bus_of_workers(&nats, &options))?;
        }
        let host = Host::start(&nats, &options).await?;
        let (url, http) = (host.url.clone(), reqwest::Client::new());
        let stack = Self { url, http, nats, workers, host: Some(host), more_hosts: Vec::new(), _turn: turn };
        stack.wait_ready(options.engine != Engine::None).await?;
        Ok(stack)
    }

    /// Starts one more worker; its number.
    pub fn add_worker(&mut self, options: &Options) -> Result<usize> {
        self.workers.add(options, &bus_of_workers(&self.nats, options))
    }

    /// Starts one more host of the function; its base URL.
    pub async fn add_function(&mut self, options: &Options) -> Result<String> {
        let host = Host::start(&self.nats, options).await?;
        let url = host.url.clone();
        self.more_hosts.push(host);
        Ok(url)
    }

    async fn wait_ready(&self, with_worker: bool) -> Result<()> {
        let path = if with_worker { "/ready" } else { "/health" };
        wait::until(format!("{path} answers 200"), async || {
            let answer = self.http.get(format!("{}{path}", self.url)).send().await;
            Ok(answer.is_ok_and(|answer| answer.status() == 200))
        })
        .await
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
    pub async fn stream(&self, body: &Value) -> Result<Transcript> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.chat(&body).await?;
        ensure!(response.status() == 200, "{}: {}", response.status(), response.text().await?);
        Transcript::read(response).await
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
        self.host.as_ref()?.id()
    }

    /// Waits until the function lists exactly these models and their aliases.
    pub async fn wait_for_models(&self, wanted: &[&str]) -> Result<()> {
        wait::until(format!("the models are {wanted:?}"), async || {
            let list: Value = self.get("/v1/models").await?.json().await?;
            let entries = list["data"].as_array().map_or(&[][..], Vec::as_slice);
            let mut roots: Vec<&str> = entries.iter().filter_map(|model| model["root"].as_str()).collect();
            roots.sort_unstable();
            roots.dedup();
            Ok(roots == wanted)
        })
        .await
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
                        Ok(heartbeat) if wanted(&heartbeat) => return Ok(heartbeat),
                        _ => {} // another worker's, or the mark that one left
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        wait::within("the awaited heartbeat", found).await
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

    /// Number of jobs that are queued or running.
    pub async fn jobs_pending(&self) -> Result<u64> {
        let jetstream = async_nats::jetstream::new(worker_client(&self.nats).await?);
        Ok(jetstream.get_stream(subject::JOBS_STREAM).await?.cached_info().state.messages)
    }

    /// Waits until no job is queued or running.
    pub async fn wait_for_empty_queue(&self) -> Result<()> {
        let jetstream = async_nats::jetstream::new(worker_client(&self.nats).await?);
        wait::until("the queue is empty", async || {
            Ok(jetstream.get_stream(subject::JOBS_STREAM).await?.cached_info().state.messages == 0)
        })
        .await
    }

    /// Kills the function's host.
    pub fn kill_host(&mut self) {
        self.host = None;
    }

    /// Starts the function's host again, at another address.
    pub async fn start_host(&mut self, options: &Options) -> Result<()> {
        let host = Host::start(&self.nats, options).await?;
        self.url.clone_from(&host.url);
        self.host = Some(host);
        self.wait_ready(options.engine != Engine::None).await
    }

    /// Kills the first worker (`kill -9`), as a power cut would.
    pub async fn kill_worker(&mut self) -> Result<()> {
        self.workers.kill(0).await
    }

    /// Starts the first worker again, perhaps with other options.
    pub fn start_worker(&mut self, options: &Options) -> Result<()> {
        self.workers.replace(0, options, &bus_of_workers(&self.nats, options))
    }
}

/// Where workers look for NATS: addresses, separated by commas.
fn bus_of_workers(nats: &impl Nats, options: &Options) -> String {
    options.worker_through.clone().unwrap_or_else(|| nats.urls().join(","))
}
