//! The running parts: started in order, looked after, stopped in the opposite order.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::plan::Plan;
use super::process::{Exit, Process, SpawnError};
use super::restart::{RestartLimit, Verdict};
use super::transcript::{Part, Transcript};
use crate::console::Console;
use crate::nats::access::{AccessError, NatsAccess};
use crate::programs::describe_exit;

/// Deaths of workers within [`DEATHS_WINDOW`] that end the whole.
const MOST_DEATHS: usize = 3;
const DEATHS_WINDOW: Duration = Duration::from_secs(60);
/// nats-server opens its port within moments, unless it has much to recover.
const NATS_PATIENCE: Duration = Duration::from_secs(30);
/// Loading a model, and on a GPU compiling its kernels for the first time.
const READY_PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(100);

/// From SIGTERM to SIGKILL.
const FUNCTION_GRACE: Duration = Duration::from_secs(5);
const WORKER_GRACE: Duration = Duration::from_secs(15);
const NATS_GRACE: Duration = Duration::from_secs(10);

/// nats-server, workers and function.
pub(crate) struct Stack<'a> {
    plan: &'a Plan,
    transcript: &'a Transcript,
    console: &'a Console,
    nats: Option<Process>,
    workers: Vec<Process>,
    function: Option<Process>,
    exits: mpsc::UnboundedReceiver<Exit>,
    tell_exits: mpsc::UnboundedSender<Exit>,
    limit: RestartLimit,
    began: Instant,
}

/// The stack could not be started or could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StackError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Nats(#[from] AccessError),
    #[error("can't lay out the streams in NATS: {0}")]
    SetUp(String),
    #[error("{part} ended ({}). Its last lines:\n{tail}\nEverything that was said: {}", describe_exit(*status), log.display())]
    Ended { part: Part, status: ExitStatus, tail: String, log: PathBuf },
    #[error(
        "workers died {MOST_DEATHS} times within {} s; the last was {part} ({}). Its last lines:\n{tail}\nEverything that was said: {}",
        DEATHS_WINDOW.as_secs(), describe_exit(*status), log.display()
    )]
    TooManyDeaths { part: Part, status: ExitStatus, tail: String, log: PathBuf },
    #[error("not ready after {} s: {reason}. What the parts said: {}", READY_PATIENCE.as_secs(), log.display())]
    NotReady { reason: String, log: PathBuf },
}

impl<'a> Stack<'a> {
    pub(crate) fn new(plan: &'a Plan, transcript: &'a Transcript, console: &'a Console) -> Self {
        let (tell_exits, exits) = mpsc::unbounded_channel();
        Self {
            plan,
            transcript,
            console,
            nats: None,
            workers: Vec::new(),
            function: None,
            exits,
            tell_exits,
            limit: RestartLimit::new(MOST_DEATHS, DEATHS_WINDOW),
            began: Instant::now(),
        }
    }

    /// Starts everything and waits until a request would be answered.
    pub(crate) async fn start(&mut self) -> Result<(), StackError> {
        let spinner = self.console.spinner("starting nats-server");
        self.nats = Some(Process::spawn(&self.plan.nats(), self.transcript, &self.tell_exits)?);
        let access = self.nats_access();
        self.unless_one_ends(wait_for_nats(&access)).await??;
        let (address, password) = (self.plan.nats_address().to_string(), self.plan.passwords.admin.clone());
        let admin = NatsAccess::admin(address, password);
        let set_up = self.unless_one_ends(crate::nats_setup::bring_up_to_date(&admin)).await?;
        set_up.map_err(|error| StackError::SetUp(format!("{error:#}")))?;
        for number in 1..=self.plan.workers {
            let worker = Process::spawn(&self.plan.worker(number), self.transcript, &self.tell_exits)?;
            self.workers.push(worker);
        }
        self.function = Some(Process::spawn(&self.plan.function(), self.transcript, &self.tell_exits)?);
        spinner.set_message(format!("loading {}", self.plan.models.names()));
        let url = format!("{}/ready", self.plan.url());
        let ready = self.unless_one_ends(wait_until_ready(url)).await?;
        spinner.finish_and_clear();
        let log = self.transcript.path().to_owned();
        ready.map_err(|reason| StackError::NotReady { reason, log })
    }

    /// Starts workers again that die; returns when the stack can't go on.
    pub(crate) async fn supervise(&mut self) -> StackError {
        loop {
            let Some(Exit { part, status }) = self.exits.recv().await else {
                // This stack holds a sender itself.
                std::future::pending().await
            };
            let Part::Worker(number) = part else { return self.ended(part, status) };
            if self.limit.death(self.began.elapsed()) == Verdict::GiveUp {
                let (tail, log) = (self.transcript.tail(part), self.transcript.path().to_owned());
                return StackError::TooManyDeaths { part, status, tail, log };
            }
            self.console.say(&format!("{part} died ({}); starting it again", describe_exit(status)));
            match Process::spawn(&self.plan.worker(number), self.transcript, &self.tell_exits) {
                Ok(worker) => {
                    self.workers.retain(|old| old.part() != part);
                    self.workers.push(worker);
                }
                Err(error) => return error.into(),
            }
        }
    }

    /// Function, then workers, then nats-server: each while what it needs is still there.
    pub(crate) async fn stop(&self) {
        if let Some(function) = &self.function {
            self.stop_one(function, FUNCTION_GRACE).await;
        }
        futures::future::join_all(self.workers.iter().map(|worker| self.stop_one(worker, WORKER_GRACE)))
            .await;
        if let Some(nats) = &self.nats {
            self.stop_one(nats, NATS_GRACE).await;
        }
    }

    /// Ends everything at once.
    pub(crate) async fn kill(&self) {
        let all = || self.function.iter().chain(&self.workers).chain(&self.nats);
        all().for_each(Process::kill);
        futures::future::join_all(all().map(|process| process.stop(Duration::ZERO))).await;
    }

    pub(crate) fn nats_access(&self) -> NatsAccess {
        NatsAccess::worker(self.plan.nats_address().to_string(), self.plan.passwords.worker.clone())
    }

    async fn stop_one(&self, process: &Process, grace: Duration) {
        if process.is_alive() && !process.stop(grace).await {
            let part = process.part();
            self.console.say(&format!("{part} did not stop within {} s and was killed", grace.as_secs()));
        }
    }

    /// Waits for `work`, unless a part ends meanwhile.
    async fn unless_one_ends<T>(&mut self, work: impl Future<Output = T>) -> Result<T, StackError> {
        tokio::select! {
            Some(exit) = self.exits.recv() => Err(self.ended(exit.part, exit.status)),
            done = work => Ok(done),
        }
    }

    fn ended(&self, part: Part, status: ExitStatus) -> StackError {
        let (tail, log) = (self.transcript.tail(part), self.transcript.path().to_owned());
        StackError::Ended { part, status, tail, log }
    }
}

async fn wait_for_nats(access: &NatsAccess) -> Result<(), AccessError> {
    let began = Instant::now();
    loop {
        match access.connect().await {
            Err(AccessError::Connect { .. }) if began.elapsed() < NATS_PATIENCE => {
                tokio::time::sleep(POLL).await;
            }
            other => return other.map(|_| ()),
        }
    }
}

/// Asks until the answer is 200; the error says what the last answer was.
async fn wait_until_ready(url: String) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let asked = url.clone();
        let answer = tokio::task::spawn_blocking(move || ask(&asked)).await;
        match answer.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(()) => return Ok(()),
            Err(reason) if began.elapsed() > READY_PATIENCE => return Err(reason),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

fn ask(url: &str) -> Result<(), String> {
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
