//! One loaded model's life: its queue, its engine, its jobs, and the end of all three.

use std::sync::Arc;
use std::time::Duration;

use emberline_inference::engine::Engine;
use emberline_inference::engine::thread::{self, EngineHandle, EngineInfo, EngineThread};
use emberline_inference::memory;
use emberline_protocol::bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::load::{LoadFailure, Loader};
use super::options::ModelOptions;
use super::status::Loaded;
use crate::intake::slots::Slots;
use crate::intake::{Intake, Phase, Running, reached};
use crate::nats::{Bus, BusError};
use crate::tokens;

/// How long handing jobs back may take.
const HAND_BACK: Duration = Duration::from_secs(5);

/// What all models of a worker share.
pub struct Shared {
    /// NATS.
    pub bus: Bus,
    /// This worker's id.
    pub worker: String,
    /// Makes engines.
    pub loader: Loader,
    /// How long running jobs get once their model is to go.
    pub drain: Duration,
    /// How long a job goes on without a word from its relay.
    pub alive_timeout: Duration,
    /// Running jobs of all models.
    pub load: Arc<watch::Sender<u32>>,
    /// The same, by id.
    pub running: Running,
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Failure {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Load(#[from] LoadFailure),
    #[error("loading it failed: {0}. See the log above")]
    LoadPanic(String),
    #[error("can't start the engine's thread: {0}")]
    Thread(std::io::Error),
    #[error("the engine failed: {0}. Its jobs were handed back")]
    Engine(String),
}

/// What a model tells of itself.
#[derive(Debug)]
pub(super) enum Report {
    /// It takes jobs.
    Serving(Loaded),
    /// It has no more jobs; it is being unloaded.
    Drained,
    /// It is gone, and its memory is free.
    Ended(Result<(), Failure>),
}

/// A model from its loading to its end.
pub(super) struct Instance {
    pub(super) id: u64,
    pub(super) options: Arc<ModelOptions>,
    pub(super) shared: Arc<Shared>,
    pub(super) phase: Arc<watch::Sender<Phase>>,
    pub(super) reports: mpsc::UnboundedSender<(u64, Report)>,
}

impl Instance {
    /// Loads the model and serves it until it is told to drain.
    pub(super) fn spawn(self) {
        let (id, reports) = (self.id, self.reports.clone());
        let life = tokio::spawn(self.live());
        tokio::spawn(async move {
            // What panics has said why in the log.
            let ended = life.await.unwrap_or_else(|error| Err(Failure::LoadPanic(error.to_string())));
            let _ = reports.send((id, Report::Ended(ended)));
        });
    }

    async fn live(self) -> Result<(), Failure> {
        self.make_queue().await?;
        let engine = self.load().await?;
        if *self.phase.borrow() >= Phase::Draining {
            return unload(move || drop(engine)).await;
        }
        let requests = tokens::listen(&self.shared.bus, &self.options.name).await?;
        let (info, handle, engine_thread) = thread::spawn(engine).map_err(Failure::Thread)?;
        let slots = Slots::new(info.capacity, Arc::clone(&self.shared.load));
        let intake = Arc::new(Intake {
            bus: self.shared.bus.clone(),
            worker: self.shared.worker.clone(),
            engine: handle.clone(),
            slots: slots.clone(),
            running: self.shared.running.clone(),
            phase: self.phase.subscribe(),
            alive_timeout: self.shared.alive_timeout,
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
            self.shared.bus.clone(),
            requests,
            Arc::clone(handle.frontend()),
            self.phase.subscribe(),
        ));
        let intake = tokio::spawn(intake.run(name.clone()));
        let EngineInfo { models: served, device, memory, .. } = info;
        self.report(Report::Serving(Loaded { served, device, slots, memory }));
        let ended = self.see_off(intake, &handle).await;
        self.report(Report::Drained);
        drop(handle);
        unload(move || EngineThread::stop(engine_thread)).await?;
        tracing::info!(model = %self.options.name, "unloaded");
        ended
    }

    /// Makes the queue's consumers, so that one that can't be had is known before anything is loaded.
    async fn make_queue(&self) -> Result<(), Failure> {
        let bus = &self.shared.bus;
        match bus.consumers(&self.options.name).await {
            // Without a connection nothing is known; the intake tries again.
            Err(BusError::Create { .. }) if !*bus.link().borrow() => Ok(()),
            made => Ok(made.map(|_| ())?),
        }
    }

    async fn load(&self) -> Result<Box<dyn Engine>, Failure> {
        let (loader, options) = (Arc::clone(&self.shared.loader), Arc::clone(&self.options));
        let loaded = tokio::task::spawn_blocking(move || loader(&options)).await;
        Ok(loaded.map_err(|error| Failure::LoadPanic(error.to_string()))??)
    }

    /// Waits for the word to drain or the engine's failure, and sees the jobs to their end.
    async fn see_off(&self, mut intake: JoinHandle<()>, engine: &EngineHandle) -> Result<(), Failure> {
        let mut phase = self.phase.subscribe();
        let draining = async {
            reached(&mut phase, Phase::Draining).await;
            tokio::time::sleep(self.shared.drain).await;
        };
        let failure = tokio::select! {
            ended = &mut intake => return ended.map_err(|error| Failure::Engine(error.to_string())),
            () = draining => {
                tracing::info!(model = %self.options.name, "the time is over, handing the rest back");
                None
            }
            message = engine.failure() => Some(message),
        };
        self.phase.send_replace(Phase::HandBack);
        if tokio::time::timeout(HAND_BACK, &mut intake).await.is_err() {
            tracing::warn!(model = %self.options.name, "some jobs could not be handed back");
            intake.abort();
        }
        failure.map_or(Ok(()), |message| Err(Failure::Engine(message)))
    }

    fn report(&self, report: Report) {
        // Nobody listens once the worker ends.
        let _ = self.reports.send((self.id, report));
    }
}

/// Frees what an engine holds, which may take as long as one of its steps.
async fn unload(free: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let freeing = tokio::task::spawn_blocking(move || {
        free();
        memory::give_back();
    });
    freeing.await.map_err(|error| Failure::Engine(error.to_string()))
}
