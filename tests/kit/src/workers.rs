//! The workers of a stack, by number: started, killed, told to stop, started again.

use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::nats::WORKER_SEED;
use crate::options::{Engine, MODEL, Options};
use crate::paths::{binary, model_path};
use crate::process::quiet;
use crate::wait;

/// All of them; they end when this is dropped.
#[derive(Debug, Default)]
pub struct Workers {
    list: Vec<Worker>,
    ca: Option<PathBuf>,
}

#[derive(Debug)]
struct Worker {
    options: Options,
    nats: String,
    ca: Option<PathBuf>,
    process: Option<Child>,
}

impl Workers {
    /// None yet; they will trust the authority whose certificate is in this file, too.
    pub fn trusting(ca: Option<PathBuf>) -> Self {
        Self { list: Vec::new(), ca }
    }

    /// Starts one that connects to `nats` (addresses, separated by commas) and returns its number.
    pub fn add(&mut self, options: &Options, nats: &str) -> Result<usize> {
        let worker = self.start_new(options, nats)?;
        self.list.push(worker);
        Ok(self.list.len() - 1)
    }

    /// Starts one in the place of another, or of none.
    pub fn replace(&mut self, number: usize, options: &Options, nats: &str) -> Result<()> {
        let worker = self.start_new(options, nats)?;
        match self.list.get_mut(number) {
            Some(place) => *place = worker,
            None => self.list.push(worker),
        }
        Ok(())
    }

    fn start_new(&self, options: &Options, nats: &str) -> Result<Worker> {
        let (options, nats, ca) = (options.clone(), nats.to_owned(), self.ca.clone());
        let mut worker = Worker { options, nats, ca, process: None };
        worker.start()?;
        Ok(worker)
    }

    /// Starts one again that has ended.
    pub fn start(&mut self, number: usize) -> Result<()> {
        self.get(number)?.start()
    }

    /// Kills one (`kill -9`), as a power cut would.
    pub async fn kill(&mut self, number: usize) -> Result<()> {
        let mut process = self.get(number)?.process.take().context("the worker does not run")?;
        process.kill().await?;
        Ok(())
    }

    /// Tells one to stop (`SIGTERM`).
    pub fn terminate(&mut self, number: usize) -> Result<()> {
        let id = self.id(number).and_then(|id| Pid::from_raw(id.cast_signed()));
        kill_process(id.context("the worker does not run")?, Signal::TERM).context("SIGTERM")
    }

    /// Waits until one has ended by itself.
    pub async fn exit(&mut self, number: usize) -> Result<ExitStatus> {
        let mut process = self.get(number)?.process.take().context("the worker does not run")?;
        wait::within("the worker ends", async { Ok(process.wait().await?) }).await
    }

    /// The process id of one that runs.
    pub fn id(&self, number: usize) -> Option<u32> {
        self.list.get(number)?.process.as_ref()?.id()
    }

    /// The numbers of those that run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.list.len()).filter(|number| self.id(*number).is_some()).collect()
    }

    fn get(&mut self, number: usize) -> Result<&mut Worker> {
        self.list.get_mut(number).with_context(|| format!("there is no worker {number}"))
    }
}

impl Worker {
    fn start(&mut self) -> Result<()> {
        if self.options.engine == Engine::None {
            return Ok(());
        }
        let (program, host) = (binary("emberline-worker")?, &self.options.worker_host);
        let command = if self.options.engine == Engine::Simulated {
            let mut command = host.command(program);
            command.args(["--engine", "simulated"]);
            command
        } else {
            // A model computes on every core; what runs beside it goes first.
            let mut command = host.command("nice");
            command.arg(program);
            if !self.options.worker_args.iter().any(|arg| arg == "--backend") {
                command.args(["--backend", "cpu"]);
            }
            command
        };
        let mut command = Command::from(command);
        if self.options.engine == Engine::Real {
            command.args(["--model-name", MODEL, "--model"]).arg(model_path()?);
        }
        command
            .args(["--nats", &self.nats, "--nats-user", "worker"])
            .args(&self.options.worker_args)
            .env("EMBERLINE_NATS_NKEY_SEED", WORKER_SEED);
        if let Some(ca) = &self.ca {
            command.env("EMBERLINE_NATS_CA", ca);
        }
        self.process = Some(quiet(&mut command).spawn().context("emberline-worker")?);
        Ok(())
    }
}
