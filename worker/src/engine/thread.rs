//! Drives an [`Engine`] on a thread of its own, so that the device never waits for the network.
//!
//! Commands go in through a channel; each job's events come out through a channel of its own,
//! which is closed after the last event, or without one if the engine has failed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use emberline_shared::event::{EventKind, Usage};
use emberline_shared::heartbeat::ServedModel;
use emberline_shared::job::Job;
use emberline_shared::subject::JobId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use super::{Engine, EngineEvent};

/// What an engine says of itself once, before its thread owns it.
#[derive(Debug, Clone)]
pub struct EngineInfo {
    /// What it serves.
    pub models: Vec<ServedModel>,
    /// `burn` or `simulated`.
    pub name: &'static str,
    /// The device in words.
    pub device: String,
    /// Jobs at once.
    pub capacity: u32,
}

enum Command {
    Submit(Box<Job>, Instant, UnboundedSender<EventKind>),
    Cancel(JobId, oneshot::Sender<Option<Usage>>),
    Stop,
}

/// How an engine's thread ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running,
    Stopped,
    Panicked(String),
}

/// Talks to the engine's thread.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
}

/// The engine's thread itself.
#[derive(Debug)]
pub struct EngineThread {
    handle: EngineHandle,
    thread: JoinHandle<()>,
}

/// Puts `engine` on a thread of its own.
pub fn spawn(engine: Box<dyn Engine>) -> std::io::Result<(EngineInfo, EngineHandle, EngineThread)> {
    let info = EngineInfo {
        models: engine.models(),
        name: engine.name(),
        device: engine.device(),
        capacity: u32::try_from(engine.capacity()).unwrap_or(u32::MAX),
    };
    let (commands, receiver) = mpsc::channel();
    let (state, watcher) = watch::channel(State::Running);
    let thread = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || run(engine, &receiver, &state))?;
    let handle = EngineHandle { commands, state: watcher };
    Ok((info, handle.clone(), EngineThread { handle, thread }))
}

impl EngineHandle {
    /// Submits a job. Its events end after `Done` or `Error`; if they end before, the engine is
    /// gone. Dropping the receiver cancels the job.
    pub fn submit(&self, job: Job) -> UnboundedReceiver<EventKind> {
        // Unbounded, because the thread must not wait; a job's own limits bound it.
        let (sender, receiver) = unbounded_channel();
        // A failed send drops `sender`, which is how the caller learns of it.
        let _ = self.commands.send(Command::Submit(Box::new(job), Instant::now(), sender));
        receiver
    }

    /// Drops a job; returns when its slot is free, with what had been computed for it.
    pub async fn cancel(&self, job: &JobId) -> Option<Usage> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Cancel(job.clone(), sender)).ok()?;
        receiver.await.ok().flatten()
    }

    /// Waits until the engine fails; returns why. Never returns if it is stopped instead.
    pub async fn failure(&self) -> String {
        let mut state = self.state.clone();
        let failed = state.wait_for(|state| matches!(state, State::Panicked(_))).await;
        // Nothing of the watch is held while this waits on.
        match failed.map(|state| state.clone()) {
            Ok(State::Panicked(message)) => message,
            _ => std::future::pending().await,
        }
    }
}

impl EngineThread {
    /// Tells the thread to end after its current step and waits for that.
    pub fn stop(self) {
        let _ = self.handle.commands.send(Command::Stop);
        let _ = self.thread.join();
    }
}

fn run(mut engine: Box<dyn Engine>, commands: &mpsc::Receiver<Command>, state: &watch::Sender<State>) {
    // What a panic leaves behind is not used again: the jobs' channels are dropped with their
    // map, and the engine is forgotten, since dropping it could panic once more.
    match catch_unwind(AssertUnwindSafe(|| drive(engine.as_mut(), commands))) {
        Ok(()) => {
            state.send_replace(State::Stopped);
        }
        Err(panic) => {
            std::mem::forget(engine);
            state.send_replace(State::Panicked(panic_message(panic.as_ref())));
        }
    }
}

fn drive(engine: &mut dyn Engine, commands: &mpsc::Receiver<Command>) {
    let mut jobs = HashMap::new();
    loop {
        if !engine.has_work() {
            match commands.recv() {
                Ok(Command::Stop) | Err(_) => return,
                Ok(command) => apply(engine, &mut jobs, command),
            }
        }
        loop {
            match commands.try_recv() {
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return,
                Ok(command) => apply(engine, &mut jobs, command),
                Err(mpsc::TryRecvError::Empty) => break,
            }
        }
        if engine.has_work() {
            for event in engine.step() {
                deliver(engine, &mut jobs, event);
            }
        }
    }
}

type Jobs = HashMap<JobId, UnboundedSender<EventKind>>;

fn apply(engine: &mut dyn Engine, jobs: &mut Jobs, command: Command) {
    match command {
        Command::Submit(job, taken, events) => {
            jobs.insert(job.id.clone(), events);
            engine.submit(*job, taken);
        }
        Command::Cancel(job, reply) => {
            jobs.remove(&job);
            let _ = reply.send(engine.cancel(&job));
        }
        Command::Stop => {}
    }
}

fn deliver(engine: &mut dyn Engine, jobs: &mut Jobs, event: EngineEvent) {
    let EngineEvent { job, kind } = event;
    let last = matches!(kind, EventKind::Done { .. } | EventKind::Error(_));
    let Some(events) = jobs.get(&job) else { return };
    if events.send(kind).is_err() {
        engine.cancel(&job);
        jobs.remove(&job);
    } else if last {
        jobs.remove(&job);
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(message) = panic.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message.clone()
    } else {
        "no message".to_owned()
    }
}

#[cfg(test)]
#[path = "thread_tests.rs"]
mod tests;
