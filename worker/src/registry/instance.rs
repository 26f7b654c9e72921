//! One model from loading to unloading: its queue, its engine and its jobs.

use std::sync::Arc;
use std::time::Duration;

use emberline_inference::engine::inference::LoadError;
use emberline_inference::engine::thread::{self, EngineHandle, EngineInfo, EngineThread, SpawnError};
use emberline_inference::memory;
use emberline_protocol::bytes::Bytes;
use emberline_protocol::dead_letter::Prompts;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::load::{LoadFailure, Loader, Loading, PendingLoad};
use super::options::ModelOptions;
use super::status::Loaded;
use crate::intake::slots::Slots;
use crate::intake::{Intake, Phase, RunningJobs, orphans, reached};
use crate::nats::{Nats, NatsError};
use crate::tokens;

/// How long requeueing jobs may take.
const REQUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// What all models of a worker share.
pub struct WorkerContext {
    /// NATS.
    pub nats: Nats,
    /// This worker's id.
    pub worker: String,
    /// Loads engines.
    pub loader: Loader,
    /// How long running jobs may go on once their model drains.
    pub drain: Duration,
    /// How long a job goes on without an `alive` message from its relay.
    pub alive_timeout: Duration,
    /// What happens to the prompts of jobs that are given up.
    pub dead_letter_prompts: Prompts,
    /// Number of running jobs of all models.
    pub load: Arc<watch::Sender<u32>>,
    /// The running jobs of all models, by id.
    pub running: RunningJobs,
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ModelFailure {
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(transparent)]
    Load(#[from] LoadFailure),
    #[error("loading it failed: {0}. See the log above")]
    LoadPanic(String),
    #[error("can't start the engine's thread: {0}")]
    Thread(std::io::Error),
    #[error("the engine failed: {0}. Its jobs were requeued")]
    Engine(String),
    #[error(
        "the device is lost: {0}. Its jobs were requeued, and the worker ends: only another process can use the device \
         again"
    )]
    DeviceLost(String),
}

impl ModelFailure {
    /// Whether no model can be served on the device by this process any more.
    pub(super) fn is_device_lost(&self) -> bool {
        matches!(self, Self::DeviceLost(_) | Self::Load(LoadFailure::Model(LoadError::DeviceLost(_))))
    }
}

/// What an instance reports to the registry.
#[derive(Debug)]
pub(super) enum Report {
    /// The model takes jobs.
    Serving(Loaded),
    /// The model has no more jobs and is being unloaded.
    Drained,
    /// The model is unloaded, and its memory is free.
    Ended(Result<(), ModelFailure>),
}

/// A model from its loading to its end.
pub(super) struct Instance {
    pub(super) id: u64,
    pub(super) options: Arc<ModelOptions>,
    pub(super) context: Arc<WorkerContext>,
    pub(super) phase: Arc<watch::Sender<Phase>>,
    pub(super) reports: mpsc::UnboundedSender<(u64, Report)>,
    pub(super) loading: Loading,
    /// Held until the model is loaded.
    pub(super) pending: Option<PendingLoad>,
}

impl Instance {
    /// Loads the model and serves it until it drains, on a task of its own.
    pub(super) fn spawn(self) {
        let (id, reports) = (self.id, self.reports.clone());
        let life = tokio::spawn(self.run());
        tokio::spawn(async move {
            // The panic hook has logged why.
            let ended = life.await.unwrap_or_else(|error| Err(ModelFailure::LoadPanic(error.to_string())));
            let _ = reports.send((id, Report::Ended(ended)));
        });
    }

    async fn run(mut self) -> Result<(), ModelFailure> {
        self.create_consumers().await?;
        let (info, handle, engine_thread) = self.load().await?;
        self.pending = None;
        if *self.phase.borrow() >= Phase::Draining {
            return unload(move || EngineThread::stop(engine_thread)).await;
        }
        let requests = tokens::listen(&self.context.nats, &self.options.name).await?;
        let orphaned = orphans::listen(&self.context.nats, &self.options.name).await?;
        let slots = Slots::new(info.capacity, Arc::clone(&self.context.load));
        let intake = Arc::new(Intake {
            nats: self.context.nats.clone(),
            worker: self.context.worker.clone(),
            engine: handle.clone(),
            slots: slots.clone(),
            running: self.context.running.clone(),
            phase: self.phase.subscribe(),
            alive_timeout: self.context.alive_timeout,
            dead_letter_prompts: self.context.dead_letter_prompts,
        });
        let name = &self.options.name;
        let memory = info.memory.map(Bytes);
        tracing::info!(
            model = %name,
            engine = info.name,
            device = %info.device,
            slots = info.capacity,
            memory_at_most = memory.map(display),
            "serving"
        );
        tokio::spawn(tokens::serve(
            self.context.nats.clone(),
            requests,
            Arc::clone(handle.preprocessor()),
            self.phase.subscribe(),
        ));
        let give_back =
            orphans::give_back(self.context.nats.clone(), name.clone(), orphaned, self.phase.subscribe());
        tokio::spawn(give_back);
        let intake = tokio::spawn(intake.run(name.clone()));
        let EngineInfo { models: served, device, memory, .. } = info;
        let progress = handle.progress().clone();
        self.report(Report::Serving(Loaded { served, device, slots, progress, memory }));
        let ended = self.drain(intake, &handle).await;
        self.report(Report::Drained);
        let stats = handle.stats();
        drop(handle);
        unload(move || EngineThread::stop(engine_thread)).await?;
        tracing::info!(
            model = %self.options.name,
            computed_tokens = stats.computed_tokens,
            generated_tokens = stats.generated_tokens,
            drafted_tokens = stats.drafted_tokens,
            accepted_tokens = stats.accepted_tokens,
            prefix_queries = stats.scheduler.prefix_queries,
            prefix_hits = stats.scheduler.prefix_hits,
            preemptions = stats.scheduler.preemptions,
            "unloaded"
        );
        ended
    }

    /// Creates the queue's consumers first, so that a missing permission is found before anything is loaded.
    async fn create_consumers(&self) -> Result<(), ModelFailure> {
        let nats = &self.context.nats;
        match nats.consumers(&self.options.name).await {
            // Without a connection nothing is known; the intake tries again.
            Err(NatsError::Create { .. }) if !*nats.connected().borrow() => Ok(()),
            made => Ok(made.map(|_| ())?),
        }
    }

    /// Loads the engine on a thread of its own.
    async fn load(&self) -> Result<(EngineInfo, EngineHandle, EngineThread), ModelFailure> {
        let (loader, options) = (Arc::clone(&self.context.loader), Arc::clone(&self.options));
        let loading = self.loading.clone();
        let spawn = move || thread::spawn(move || loader(&options, &loading));
        let loaded = tokio::task::spawn_blocking(spawn).await;
        let loaded = loaded.map_err(|error| ModelFailure::LoadPanic(error.to_string()))?;
        loaded.map_err(|error| match error {
            SpawnError::Load(failure) => ModelFailure::Load(failure),
            SpawnError::Thread(error) => ModelFailure::Thread(error),
            SpawnError::Panic(message) => ModelFailure::LoadPanic(message),
        })
    }

    /// Waits until the model drains or its engine fails, lets jobs finish, and requeues the rest.
    async fn drain(&self, mut intake: JoinHandle<()>, engine: &EngineHandle) -> Result<(), ModelFailure> {
        let mut phase = self.phase.subscribe();
        let draining = async {
            reached(&mut phase, Phase::Draining).await;
            tokio::time::sleep(self.context.drain).await;
        };
        let failure = tokio::select! {
            ended = &mut intake => return ended.map_err(|error| ModelFailure::Engine(error.to_string())),
            () = draining => {
                tracing::info!(model = %self.options.name, "the drain time is over; requeueing the jobs that are left");
                None
            }
            failure = engine.failure() => Some(failure),
        };
        self.phase.send_replace(Phase::Requeue);
        if tokio::time::timeout(REQUEUE_TIMEOUT, &mut intake).await.is_err() {
            tracing::warn!(model = %self.options.name, "some jobs were not requeued in time; they are delivered again by themselves");
            intake.abort();
        }
        match failure {
            None => Ok(()),
            Some(failure) if failure.is_device_lost => Err(ModelFailure::DeviceLost(failure.reason)),
            Some(failure) => Err(ModelFailure::Engine(failure.reason)),
        }
    }

    fn report(&self, report: Report) {
        // Nobody receives reports once the worker ends.
        let _ = self.reports.send((self.id, report));
    }
}

/// Frees what an engine holds, which may take as long as one of its steps.
async fn unload(free: impl FnOnce() + Send + 'static) -> Result<(), ModelFailure> {
    let freeing = tokio::task::spawn_blocking(move || {
        free();
        memory::give_back();
    });
    freeing.await.map_err(|error| ModelFailure::Engine(error.to_string()))
}
