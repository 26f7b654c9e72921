//! Drives an [`Engine`] on a thread of its own, so that the device never waits for the network. The engine is also
//! loaded and freed there: a GPU's work is ordered by the thread that it comes from.
//!
//! A job is prepared on a thread that may block, beside the engine; then it goes through a channel to
//! the engine. Each job's events come out of a channel of its own, which is closed after the last event,
//! or without one if the engine has failed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::event::{EventKind, Usage};
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::job::Job;
use emberline_protocol::subject::JobId;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};

use super::{Engine, EngineError, EngineStats, EventSink, PreparedRequest, Preprocessor, ResumedTokens};

/// What does not change about an engine, read before its thread owns it.
#[derive(Debug, Clone)]
pub struct EngineInfo {
    /// The models that it serves.
    pub models: Vec<ServedModel>,
    /// `burn` or `simulated`.
    pub name: &'static str,
    /// The device in words.
    pub device: String,
    /// Most concurrent jobs.
    pub capacity: u32,
    /// Most bytes of memory that it takes.
    pub memory: Option<u64>,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError<E> {
    /// It has no thread.
    #[error("can't start the engine's thread: {0}")]
    Thread(std::io::Error),
    /// It could not be loaded.
    #[error(transparent)]
    Load(E),
    /// Loading it panicked.
    #[error("loading it failed: {0}")]
    Panic(String),
}

/// Why an engine has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFailure {
    /// In words.
    pub reason: String,
    /// Whether its device is lost: no engine of this process can compute on it again.
    pub is_device_lost: bool,
}

enum Command {
    /// A job is being prepared.
    Announce(JobId, EventSink),
    /// A job is prepared, or was refused.
    Submit(JobId, Box<Result<PreparedRequest, ApiError>>, EventSink),
    Cancel(JobId, oneshot::Sender<Option<Usage>>),
    Stop,
}

/// What an engine's thread does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ThreadState {
    Running,
    Stopped,
    Failed(EngineFailure),
}

/// Sends commands to an engine's thread.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    preprocessor: Arc<dyn Preprocessor>,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<ThreadState>,
    progress: EngineProgress,
}

/// What an engine's thread has done and does now.
#[derive(Debug, Clone, Default)]
pub struct EngineProgress(Arc<Mutex<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    /// After the last step or command.
    stats: EngineStats,
    /// When the step began that it does now.
    step_began: Option<Instant>,
}

/// The engine's thread itself.
#[derive(Debug)]
pub struct EngineThread {
    handle: EngineHandle,
    thread: JoinHandle<()>,
}

impl EngineInfo {
    fn of(engine: &dyn Engine) -> Self {
        Self {
            models: engine.models(),
            name: engine.name(),
            device: engine.device(),
            capacity: u32::try_from(engine.capacity()).unwrap_or(u32::MAX),
            memory: engine.memory(),
        }
    }
}

/// Loads an engine on a thread of its own, which then drives it. Returns once it is loaded.
pub fn spawn<E: Send + 'static>(
    load: impl FnOnce() -> Result<Box<dyn Engine>, E> + Send + 'static,
) -> Result<(EngineInfo, EngineHandle, EngineThread), SpawnError<E>> {
    let (loaded, when_loaded) = mpsc::channel();
    let (commands, receiver) = mpsc::channel();
    let (state, watcher) = watch::channel(ThreadState::Running);
    let progress = EngineProgress::default();
    let thread_progress = progress.clone();
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || match load() {
        Ok(engine) => {
            // It is waited for.
            let _ = loaded.send(Ok((EngineInfo::of(engine.as_ref()), engine.preprocessor())));
            run(engine, &receiver, &state, &thread_progress);
        }
        Err(error) => drop(loaded.send(Err(error))),
    });
    let thread = thread.map_err(SpawnError::Thread)?;
    let (info, preprocessor) = match when_loaded.recv() {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => return Err(SpawnError::Load(error)),
        // The thread has ended without a word.
        Err(_) => {
            let panic = thread.join().err();
            let message = panic.map_or_else(String::new, |panic| panic_message(panic.as_ref()));
            return Err(SpawnError::Panic(message));
        }
    };
    let handle = EngineHandle { preprocessor, commands, state: watcher, progress };
    Ok((info, handle.clone(), EngineThread { handle, thread }))
}

impl EngineHandle {
    /// What prepares the engine's jobs.
    pub fn preprocessor(&self) -> &Arc<dyn Preprocessor> {
        &self.preprocessor
    }

    /// How busy the engine is, and what it has done so far.
    pub fn stats(&self) -> EngineStats {
        self.progress.lock().stats
    }

    /// What its thread does.
    pub fn progress(&self) -> &EngineProgress {
        &self.progress
    }

    /// Submits a job; must be called within a tokio runtime. Its events end after `Done` or `Error`; if
    /// they end before, the engine has failed. Dropping the receiver cancels the job.
    pub fn submit(&self, job: Job) -> UnboundedReceiver<EventKind> {
        self.resume(job, Vec::new(), 0)
    }

    /// Submits a job that other workers have begun: with the tokens of its choices and the number of prompt
    /// tokens that its log has. The events that come are those that would have followed.
    pub fn resume(
        &self,
        job: Job,
        resumed: Vec<ResumedTokens>,
        resumed_prompt: u32,
    ) -> UnboundedReceiver<EventKind> {
        let (events, receiver) = unbounded_channel();
        let taken = Instant::now();
        let id = job.id.clone();
        // If this fails, the sink is dropped, and the caller sees the events end.
        let _ = self.commands.send(Command::Announce(id.clone(), events.clone()));
        let (preprocessor, commands) = (Arc::clone(&self.preprocessor), self.commands.clone());
        tokio::task::spawn_blocking(move || {
            // The panic hook has logged why.
            let prepared = catch_unwind(AssertUnwindSafe(|| preprocessor.prepare(job, taken)));
            let internal = |_| ApiError::new(ErrorCode::InternalError, "The prompt could not be built.");
            let prepared = prepared.map_err(internal).flatten();
            let prepared = prepared.map(|prepared| PreparedRequest { resumed, resumed_prompt, ..prepared });
            let _ = commands.send(Command::Submit(id, Box::new(prepared), events));
        });
        receiver
    }

    /// Drops a job; returns once its blocks are free, with what was computed for it.
    pub async fn cancel(&self, job: &JobId) -> Option<Usage> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Cancel(job.clone(), sender)).ok()?;
        receiver.await.ok().flatten()
    }

    /// Waits until the engine fails and returns why. Never returns if the engine is stopped.
    pub async fn failure(&self) -> EngineFailure {
        let mut state = self.state.clone();
        let failed = state.wait_for(|state| matches!(state, ThreadState::Failed(_))).await;
        // The watch must not stay borrowed while this waits forever.
        match failed.map(|state| state.clone()) {
            Ok(ThreadState::Failed(failure)) => failure,
            _ => std::future::pending().await,
        }
    }
}

impl EngineProgress {
    /// How long the thread has been in the step that it does now; `None` if it does none.
    pub fn step_time(&self) -> Option<Duration> {
        self.lock().step_began.map(|began| began.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EngineThread {
    /// Has the thread end after its current step, and waits for it.
    pub fn stop(self) {
        let _ = self.handle.commands.send(Command::Stop);
        let _ = self.thread.join();
    }
}

fn run(
    mut engine: Box<dyn Engine>,
    commands: &mpsc::Receiver<Command>,
    state: &watch::Sender<ThreadState>,
    progress: &EngineProgress,
) {
    let driven = catch_unwind(AssertUnwindSafe(|| drive(engine.as_mut(), commands, progress)));
    progress.lock().step_began = None;
    let reason = match driven {
        Ok(Ok(())) => {
            engine.unload();
            state.send_replace(ThreadState::Stopped);
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_message(panic.as_ref()),
    };
    // After a failure only the jobs' sinks are closed. The engine is leaked: dropping its tensors could
    // panic, too.
    let _ = catch_unwind(AssertUnwindSafe(|| engine.close_all()));
    // A device that does not even answer this is lost.
    let lost =
        catch_unwind(AssertUnwindSafe(|| engine.lost_device())).unwrap_or_else(|_| Some(reason.clone()));
    std::mem::forget(engine);
    let is_device_lost = lost.is_some();
    let failure = EngineFailure { reason: lost.unwrap_or(reason), is_device_lost };
    state.send_replace(ThreadState::Failed(failure));
}

fn drive(
    engine: &mut dyn Engine,
    commands: &mpsc::Receiver<Command>,
    progress: &EngineProgress,
) -> Result<(), EngineError> {
    let mut preparing = HashMap::new();
    loop {
        *progress.lock() = Progress { stats: engine.stats(), step_began: None };
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
            progress.lock().step_began = Some(Instant::now());
            engine.step()?;
        }
    }
}

/// `preparing` holds the jobs that were announced and are not submitted yet.
fn apply(engine: &mut dyn Engine, preparing: &mut HashMap<JobId, EventSink>, command: Command) {
    match command {
        Command::Announce(job, events) => {
            preparing.insert(job, events);
        }
        Command::Submit(job, prepared, events) => {
            // Otherwise the job was cancelled meanwhile, and perhaps announced again.
            if preparing.get(&job).is_some_and(|announced| announced.same_channel(&events)) {
                preparing.remove(&job);
                match *prepared {
                    Ok(prepared) => engine.submit(prepared, events),
                    // The receiver may be gone.
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

/// A panic's message, unless it was put together: then it may quote what a client has sent.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic.downcast_ref::<&'static str>().copied();
    message.unwrap_or("a panic; the worker's log says where").to_owned()
}

#[cfg(test)]
#[path = "thread_tests.rs"]
mod tests;
