//! One process of the stack: started tied to us, in a process group of its own, heard and stopped.
//!
//! A group of its own keeps the terminal's Ctrl-C from it, so that the stack can be stopped in
//! order, and lets a signal reach what the process itself has started.

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
use super::transcript::{Part, Transcript};

/// How long the output of a dead process is waited for, should something else hold its pipe open.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) part: Part,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) folder: PathBuf,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    part: Part,
    group: Pid,
    ended: watch::Receiver<bool>,
}

/// The end of a process, all of its output recorded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    pub(crate) part: Part,
    pub(crate) status: ExitStatus,
}

/// A part can't be started.
#[derive(Debug, thiserror::Error)]
#[error("{part} can't be started: {}: {source}", path.display())]
pub(crate) struct SpawnError {
    part: Part,
    path: PathBuf,
    source: io::Error,
}

impl Process {
    /// Starts a program; its end is told to `exits`.
    ///
    /// Must be called on the runtime's only thread: the tether holds to the thread that spawns.
    pub(crate) fn spawn(
        program: &Program,
        transcript: &Transcript,
        exits: &mpsc::UnboundedSender<Exit>,
    ) -> Result<Self, SpawnError> {
        let part = program.part;
        let failed = |source| SpawnError { part, path: program.path.clone(), source };
        let mut child = tether_command(program).map_err(failed)?.spawn().map_err(failed)?;
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
            // What it has started and left behind, such as the trigger of `spin up`; usually nothing.
            let _ = kill_process_group(group, Signal::KILL);
            // From here on its process id may belong to somebody else.
            let _ = has_ended.send(true);
            let _ =
                tokio::time::timeout(LAST_WORDS, async { while output.join_next().await.is_some() {} }).await;
            if let Ok(status) = status {
                let _ = exits.send(Exit { part, status });
            }
        });
        Ok(Self { part, group, ended })
    }

    pub(crate) fn part(&self) -> Part {
        self.part
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        !*self.ended.borrow()
    }

    /// SIGTERM now; SIGKILL if it is still there after `grace`. `false` if that was needed.
    pub(crate) async fn stop(&self, grace: Duration) -> bool {
        let mut ended = self.ended.clone();
        self.signal(Signal::TERM);
        if tokio::time::timeout(grace, ended.wait_for(|ended| *ended)).await.is_ok() {
            return true;
        }
        self.signal(Signal::KILL);
        let _ = ended.wait_for(|ended| *ended).await;
        false
    }

    /// SIGKILL, without waiting.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may have ended a moment ago and not be reaped yet: nothing to do then.
            let _ = kill_process_group(self.group, signal);
        }
    }
}

fn tether_command(program: &Program) -> io::Result<tokio::process::Command> {
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

async fn record(part: Part, output: impl AsyncRead + Unpin, transcript: Transcript) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        transcript.record(part, String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}
