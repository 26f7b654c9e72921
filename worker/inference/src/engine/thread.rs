//! Drives an [`Engine`] on a thread of its own, so that the device never waits for the network.
//!
//! A job is prepared on a thread that may block, beside the engine; then it goes through a channel
//! to the engine. Each job's events come out through a channel of its own, which is closed after the
//! last event, or without one if the engine has failed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::{EventKind, Usage};
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::job::Job;
use emberline_protocol::subject::JobId;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};

use super::{Engine, EngineError, EventSink, Frontend, Prepared, Written};

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
    /// Bytes that it takes at most.
    pub memory: Option<u64>,
}

enum Command {
    /// A job is being prepared.
    Announce(JobId, EventSink),
    /// It is prepared, or can't be.
    Submit(JobId, Box<Result<Prepared, ApiError>>, EventSink),
    Cancel(JobId, oneshot::Sender<Option<Usage>>),
    Stop,
}

/// How an engine's thread ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running,
    Stopped,
    Failed(String),
}

/// Talks to the engine's thread.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    frontend: Arc<dyn Frontend>,
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
        memory: engine.memory(),
    };
    let frontend = engine.frontend();
    let (commands, receiver) = mpsc::channel();
    let (state, watcher) = watch::channel(State::Running);
    let thread = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || run(engine, &receiver, &state))?;
    let handle = EngineHandle { frontend, commands, state: watcher };
    Ok((info, handle.clone(), EngineThread { handle, thread }))
}

impl EngineHandle {
    /// What prepares the engine's jobs.
    pub fn frontend(&self) -> &Arc<dyn Frontend> {
        &self.frontend
    }

    /// Submits a job; call it within a tokio runtime. Its events end after `Done` or `Error`; if they
    /// end before, the engine is gone. Dropping the receiver cancels the job.
    pub fn submit(&self, job: Job) -> UnboundedReceiver<EventKind> {
        self.resume(job, Vec::new(), 0)
    }

    /// The same for a job of whose choices so much is `written`, and so many tokens of its prompt: what
    /// comes next is what would have followed.
    pub fn resume(
        &self,
        job: Job,
        written: Vec<Written>,
        prompt_written: u32,
    ) -> UnboundedReceiver<EventKind> {
        let (events, receiver) = unbounded_channel();
        let taken = Instant::now();
        let id = job.id.clone();
        // A failed send drops the sink, which is how the caller learns of it.
        let _ = self.commands.send(Command::Announce(id.clone(), events.clone()));
        let (frontend, commands) = (Arc::clone(&self.frontend), self.commands.clone());
        tokio::task::spawn_blocking(move || {
            // The panic has said why in the log.
            let prepared = catch_unwind(AssertUnwindSafe(|| frontend.prepare(job, taken)));
            let internal = |_| ApiError::new(ErrorCode::InternalError, "The prompt could not be built.");
            let prepared = prepared.map_err(internal).flatten();
            let prepared = prepared.map(|prepared| Prepared { written, prompt_written, ..prepared });
            let _ = commands.send(Command::Submit(id, Box::new(prepared), events));
        });
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
        let failed = state.wait_for(|state| matches!(state, State::Failed(_))).await;
        // Nothing of the watch is held while this waits on.
        match failed.map(|state| state.clone()) {
            Ok(State::Failed(message)) => message,
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
    let driven = catch_unwind(AssertUnwindSafe(|| drive(engine.as_mut(), commands)));
    let failure = match driven {
        Ok(Ok(())) => {
            state.send_replace(State::Stopped);
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_message(panic.as_ref()),
    };
    // What a failure leaves behind is not used again. The jobs' sinks are closed and the engine is
    // forgotten: dropping what it has on the device could panic, too.
    let _ = catch_unwind(AssertUnwindSafe(|| engine.hang_up()));
    std::mem::forget(engine);
    state.send_replace(State::Failed(failure));
}

fn drive(engine: &mut dyn Engine, commands: &mpsc::Receiver<Command>) -> Result<(), EngineError> {
    let mut preparing = HashMap::new();
    loop {
        if !engine.has_work() {
            match commands.recv() {
                Ok(Command::Stop) | Err(_) => return Ok(()),
                Ok(command) => apply(engine, &mut preparing, command),
            }
        }
        loop {
            match commands.try_recv() {
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                Ok(command) => apply(engine, &mut preparing, command),
                Err(mpsc::TryRecvError::Empty) => break,
            }
        }
        if engine.has_work() {
            engine.step()?;
        }
    }
}

/// `preparing` has the jobs that were announced and not submitted yet.
fn apply(engine: &mut dyn Engine, preparing: &mut HashMap<JobId, EventSink>, command: Command) {
    match command {
        Command::Announce(job, events) => {
            preparing.insert(job, events);
        }
        Command::Submit(job, prepared, events) => {
            // Otherwise it was cancelled meanwhile, and perhaps announced again.
            if preparing.get(&job).is_some_and(|announced| announced.same_channel(&events)) {
                preparing.remove(&job);
                match *prepared {
                    Ok(prepared) => engine.submit(prepared, events),
                    // Nobody may be listening.
                    Err(error) => drop(events.send(EventKind::Error(error.into()))),
                }
            }
        }
        Command::Cancel(job, reply) => {
            let usage = match preparing.remove(&job) {
                Some(_) => Some(Usage::default()),
                None => engine.cancel(&job),
            };
            let _ = reply.send(usage);
        }
        Command::Stop => {}
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
