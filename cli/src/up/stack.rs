//! The running parts of the stack: starts them in order, restarts workers that die, and stops all in the
//! opposite order.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use tokio::sync::mpsc;

use super::plan::StackPlan;
use super::process::{Exit, Process, SpawnError};
use super::restart::{RestartDecision, RestartLimit};
use super::transcript::{StackPart, Transcript};
use crate::console::Console;
use crate::nats::access::{AccessError, NatsAccess};
use crate::programs::describe_exit;

/// The number of deaths of workers within [`DEATHS_WINDOW`] that ends the stack.
const MAX_DEATHS: usize = 3;
const DEATHS_WINDOW: Duration = Duration::from_secs(60);
/// How long nats-server may take to open its port; it is slow only if it has much to recover.
const NATS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a worker may take to load its model and, on a GPU, to compile its kernels for the first time.
const READY_TIMEOUT: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long each part may take from SIGTERM to its end before it is killed.
const FUNCTION_GRACE: Duration = Duration::from_secs(5);
const EDGE_GRACE: Duration = Duration::from_secs(5);
const WORKER_GRACE: Duration = Duration::from_secs(15);
const NATS_GRACE: Duration = Duration::from_secs(10);

/// The processes of nats-server, the edge if there is one, the workers and the function.
pub(crate) struct Stack<'a> {
    plan: &'a StackPlan,
    transcript: &'a Transcript,
    console: &'a Console,
    nats: Option<Process>,
    edge: Option<Process>,
    workers: Vec<Process>,
    function: Option<Process>,
    exits: mpsc::UnboundedReceiver<Exit>,
    exit_sender: mpsc::UnboundedSender<Exit>,
    limit: RestartLimit,
    began: Instant,
}

/// Why the stack did not start or could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StackError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Nats(#[from] AccessError),
    #[error("can't set up the streams in NATS: {0}")]
    SetUp(String),
    #[error("{part} ended ({}). Its last lines:\n{tail}\nThe whole log: {}", describe_exit(*status), log.display())]
    Ended { part: StackPart, status: ExitStatus, tail: String, log: PathBuf },
    #[error(
        "workers died {MAX_DEATHS} times within {} s; the last was {part} ({}). Its last lines:\n{tail}\nThe whole log: {}",
        DEATHS_WINDOW.as_secs(), describe_exit(*status), log.display()
    )]
    TooManyDeaths { part: StackPart, status: ExitStatus, tail: String, log: PathBuf },
    #[error("not ready after {} s: {reason}. The log: {}", READY_TIMEOUT.as_secs(), log.display())]
    NotReady { reason: String, log: PathBuf },
}

impl<'a> Stack<'a> {
    pub(crate) fn new(plan: &'a StackPlan, transcript: &'a Transcript, console: &'a Console) -> Self {
        let (exit_sender, exits) = mpsc::unbounded_channel();
        Self {
            plan,
            transcript,
            console,
            nats: None,
            edge: None,
            workers: Vec::new(),
            function: None,
            exits,
            exit_sender,
            limit: RestartLimit::new(MAX_DEATHS, DEATHS_WINDOW),
            began: Instant::now(),
        }
    }

    /// Starts all parts and waits until the function is ready to answer requests.
    pub(crate) async fn start(&mut self) -> Result<(), StackError> {
        let spinner = self.console.spinner("starting nats-server");
        self.nats = Some(Process::spawn(&self.plan.nats(), self.transcript, &self.exit_sender)?);
        let access = self.nats_access()?;
        self.unless_a_part_ends(wait_for_nats(&access)).await??;
        let (address, seed) = (self.plan.nats_address().to_string(), self.plan.users.admin.seed.clone());
        let admin = NatsAccess::admin(&address, seed)?;
        let set_up = self.unless_a_part_ends(crate::nats_setup::bring_up_to_date(&admin)).await?;
        set_up.map_err(|error| StackError::SetUp(format!("{error:#}")))?;
        if let Some(edge) = self.plan.edge() {
            self.edge = Some(Process::spawn(&edge, self.transcript, &self.exit_sender)?);
        }
        for number in 1..=self.plan.workers {
            self.start_worker(number)?;
        }
        self.function = Some(Process::spawn(&self.plan.function(), self.transcript, &self.exit_sender)?);
        spinner.set_message(format!("loading {}", self.plan.models.names()));
        let url = format!("{}/ready", self.plan.url());
        let ready = self.unless_a_part_ends(wait_until_ready(url)).await?;
        spinner.finish_and_clear();
        let log = self.transcript.path().to_owned();
        ready.map_err(|reason| StackError::NotReady { reason, log })
    }

    /// Restarts workers that die; returns when the stack can't go on.
    pub(crate) async fn supervise(&mut self) -> StackError {
        loop {
            let Some(Exit { part, status }) = self.exits.recv().await else {
                // Can't happen: this stack holds a sender itself.
                std::future::pending().await
            };
            let StackPart::Worker(number) = part else { return self.ended(part, status) };
            if self.limit.record_death(self.began.elapsed()) == RestartDecision::GiveUp {
                let (tail, log) = (self.transcript.tail(part), self.transcript.path().to_owned());
                return StackError::TooManyDeaths { part, status, tail, log };
            }
            self.console.print(&format!("{part} died ({}); starting it again", describe_exit(status)));
            if let Err(error) = self.start_worker(number) {
                return error.into();
            }
        }
    }

    /// Starts a worker in place of the one of that number, which has ended or never was.
    pub(crate) fn start_worker(&mut self, number: usize) -> Result<(), SpawnError> {
        let worker = Process::spawn(&self.plan.worker(number), self.transcript, &self.exit_sender)?;
        self.workers.retain(|old| old.part() != worker.part());
        self.workers.push(worker);
        Ok(())
    }

    /// Kills a worker (`kill -9`) and waits for its end.
    pub(crate) async fn kill_worker(&mut self, number: usize) {
        let part = StackPart::Worker(number);
        for worker in self.workers.extract_if(.., |worker| worker.part() == part) {
            worker.kill();
            worker.ended().await;
        }
    }

    /// The processes that have been started and not been killed.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.function.iter().chain(&self.workers).chain(&self.edge).chain(&self.nats)
    }

    /// Stops the function, then edge and workers, then nats-server, so that each ends before what it needs.
    pub(crate) async fn stop(&self) {
        if let Some(function) = &self.function {
            self.stop_one(function, FUNCTION_GRACE).await;
        }
        let edge = self.edge.iter().map(|edge| self.stop_one(edge, EDGE_GRACE));
        let workers = self.workers.iter().map(|worker| self.stop_one(worker, WORKER_GRACE));
        join(join_all(edge), join_all(workers)).await;
        if let Some(nats) = &self.nats {
            self.stop_one(nats, NATS_GRACE).await;
        }
    }

    /// Kills all parts at once.
    pub(crate) async fn kill(&self) {
        self.processes().for_each(Process::kill);
        join_all(self.processes().map(Process::ended)).await;
    }

    pub(crate) fn nats_access(&self) -> Result<NatsAccess, AccessError> {
        NatsAccess::worker(&self.plan.nats_address().to_string(), self.plan.users.worker.seed.clone())
    }

    async fn stop_one(&self, process: &Process, grace: Duration) {
        if process.is_alive() && !process.stop(grace).await {
            let part = process.part();
            self.console.print(&format!("{part} did not stop within {} s and was killed", grace.as_secs()));
        }
    }

    /// Runs `work`; an error if a part ends before it is done.
    async fn unless_a_part_ends<T>(&mut self, work: impl Future<Output = T>) -> Result<T, StackError> {
        tokio::select! {
            Some(exit) = self.exits.recv() => Err(self.ended(exit.part, exit.status)),
            done = work => Ok(done),
        }
    }

    fn ended(&self, part: StackPart, status: ExitStatus) -> StackError {
        let (tail, log) = (self.transcript.tail(part), self.transcript.path().to_owned());
        StackError::Ended { part, status, tail, log }
    }
}

async fn wait_for_nats(access: &NatsAccess) -> Result<(), AccessError> {
    let began = Instant::now();
    loop {
        match access.connect().await {
            Err(AccessError::Connect(failure)) if failure.may_pass() && began.elapsed() < NATS_TIMEOUT => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            other => return other.map(|_| ()),
        }
    }
}

/// Requests `url` until the status is 200; the error describes the last response.
async fn wait_until_ready(url: String) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let request = url.clone();
        let answer = tokio::task::spawn_blocking(move || check_ready(&request)).await;
        match answer.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(()) => return Ok(()),
            Err(reason) if began.elapsed() > READY_TIMEOUT => return Err(reason),
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// One request to `url`; an error unless the status is 200.
fn check_ready(url: &str) -> Result<(), String> {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(5)));
    let agent: ureq::Agent = config.build().into();
    let mut answer = agent.get(url).call().map_err(|e| format!("{url}: {e}"))?;
    match answer.status().as_u16() {
        200 => Ok(()),
        status => {
            let body = answer.body_mut().read_to_string().unwrap_or_default();
            Err(format!("{url} answers {status}: {body}"))
        }
    }
}
