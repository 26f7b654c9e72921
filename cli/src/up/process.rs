//! One process of the stack: spawns it so that it dies with us, records its output, and stops it.
//!
//! Each process leads a process group of its own. That keeps the terminal's Ctrl-C away from it, so that the
//! stack can be stopped in order, and lets a signal reach the processes that it has started.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::parent_death;
use super::transcript::{StackPart, Transcript};

/// How long to read on after a process has died, in case another process holds its pipe open.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// A program with its arguments, environment and working folder.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) part: StackPart,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) folder: PathBuf,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    part: StackPart,
    group: Pid,
    ended: watch::Receiver<bool>,
}

/// The exit of a process whose output has been recorded to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    pub(crate) part: StackPart,
    pub(crate) status: ExitStatus,
}

/// Why a part can't be started.
#[derive(Debug, thiserror::Error)]
#[error("{part} can't be started: {}: {source}", path.display())]
pub(crate) struct SpawnError {
    part: StackPart,
    path: PathBuf,
    source: io::Error,
}

impl Process {
    /// Starts a program and sends its exit to `exits`.
    ///
    /// Must be called on the runtime's only thread: the child dies with the thread that spawns it.
    pub(crate) fn spawn(
        program: &Program,
        transcript: &Transcript,
        exits: &mpsc::UnboundedSender<Exit>,
    ) -> Result<Self, SpawnError> {
        let part = program.part;
        let failed = |source| SpawnError { part, path: program.path.clone(), source };
        let mut child = command(program).map_err(failed)?.spawn().map_err(failed)?;
        let group = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let group = group.ok_or_else(|| failed(io::Error::other("it has no process id")))?;
        let mut output = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            output.spawn(record(part, stdout, transcript.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            output.spawn(record(part, stderr, transcript.clone()));
        }
        let (has_ended, ended) = watch::channel(false);
        let exits = exits.clone();
        tokio::spawn(async move {
            let status = child.wait().await;
            // Kills what it has started and left behind, such as the trigger of `spin up`.
            let _ = kill_process_group(group, Signal::KILL);
            // From now on its process id may belong to another process.
            let _ = has_ended.send(true);
            let _ = tokio::time::timeout(OUTPUT_GRACE, async { while output.join_next().await.is_some() {} })
                .await;
            if let Ok(status) = status {
                let _ = exits.send(Exit { part, status });
            }
        });
        Ok(Self { part, group, ended })
    }

    pub(crate) fn part(&self) -> StackPart {
        self.part
    }

    /// The process group of the process and of those that it has started.
    pub(crate) fn group(&self) -> Pid {
        self.group
    }

    /// Whether the process is still running.
    pub(crate) fn is_alive(&self) -> bool {
        !*self.ended.borrow()
    }

    /// Sends SIGTERM, and SIGKILL if the process is still alive after `grace`. `false` if that was necessary.
    pub(crate) async fn stop(&self, grace: Duration) -> bool {
        self.signal(Signal::TERM);
        if tokio::time::timeout(grace, self.ended()).await.is_ok() {
            return true;
        }
        self.signal(Signal::KILL);
        self.ended().await;
        false
    }

    /// Waits until the process has ended.
    pub(crate) async fn ended(&self) {
        // An error means that the runtime is about to end.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Sends SIGKILL without waiting for the end.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // Fails if it ended a moment ago and is not reaped yet, which does no harm.
            let _ = kill_process_group(self.group, signal);
        }
    }
}

fn command(program: &Program) -> io::Result<tokio::process::Command> {
    let mut command = parent_death::command(&program.path)?;
    command
        .args(&program.args)
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .env("NO_COLOR", "1")
        .current_dir(&program.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    Ok(command.into())
}

async fn record(part: StackPart, output: impl AsyncRead + Unpin, transcript: Transcript) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        transcript.record(part, String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}
