//! A worker from its first connection to its end: starts registry and heartbeat, and shuts down in order
//! once a signal (SIGTERM or SIGINT) arrives.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Config;
use crate::health::{Health, ListenError, ProbeListener, WorkerState};
use crate::heartbeat::HeartbeatPublisher;
use crate::intake::RunningJobs;
use crate::nats::{Nats, NatsError};
use crate::registry::file::{FileError, FileWatcher, WantedModels};
use crate::registry::instance::WorkerContext;
use crate::registry::load::Loader;
use crate::registry::model_registry::{ModelRegistry, NothingServable};
use crate::stored_request;
use crate::summary::SummaryKeeper;

/// How long disconnecting may take, and how long unloading the models.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a worker ended before it was told to, or without finishing its jobs.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// NATS can't be used.
    #[error(transparent)]
    Bus(#[from] NatsError),
    /// The file of models can't be used.
    #[error(transparent)]
    Models(#[from] FileError),
    /// Probes can't be answered.
    #[error(transparent)]
    Probes(#[from] ListenError),
    /// There is nothing left to serve.
    #[error(transparent)]
    NothingServable(#[from] NothingServable),
    /// A second signal to stop.
    #[error("stopped by a second signal; unfinished jobs are delivered again after {0:?}")]
    Interrupted(Duration),
}

/// Counts of the signals received.
#[derive(Debug, Clone)]
pub struct Signals {
    /// SIGTERM and SIGINT: stop.
    pub stop: watch::Receiver<u32>,
    /// SIGHUP: read the file of models again.
    pub hang_up: watch::Receiver<u32>,
}

/// Serves the models of `config`, loaded by `loader`, until the first signal to stop; then drains. Probes are answered
/// from before the first connection to the end.
pub async fn serve(config: &Config, loader: Loader, signals: Signals) -> Result<(), ServeError> {
    let health = Health::default();
    let listener = match &config.http_listen {
        Some(address) => Some(ProbeListener::bind(address).await?),
        None => None,
    };
    let probes = async {
        match &listener {
            Some(listener) => listener.serve(&health).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = serve_jobs(config, loader, signals, &health) => ended,
        () = probes => Ok(()),
    }
}

async fn serve_jobs(
    config: &Config,
    loader: Loader,
    signals: Signals,
    health: &Health,
) -> Result<(), ServeError> {
    let Signals { mut stop, hang_up } = signals;
    let (wanted, watch) = config.models.open()?;
    let (wanted, mut wanted_now) = watch::channel(wanted);
    let nats = tokio::select! {
        nats = Nats::open(&config.nats) => nats?,
        () = wait_for_signal(&mut stop, 1) => return Ok(()),
    };
    let worker = format!("{:016x}", rand::random::<u64>());
    tracing::info!(%worker, "connected");
    let erasures = stored_request::listen(&nats).await?;

    let load = Arc::new(watch::Sender::new(0));
    let mut registry = ModelRegistry::new(Arc::new(WorkerContext {
        nats: nats.clone(),
        worker: worker.clone(),
        loader,
        drain: config.drain,
        alive_timeout: config.alive_timeout,
        dead_letter_prompts: config.dead_letter_prompts,
        load: Arc::clone(&load),
        running: RunningJobs::default(),
    }));
    let (draining, is_draining) = watch::channel(false);
    let (status, load) = (registry.status(), load.subscribe());
    health.watch(WorkerState {
        connected: nats.connected(),
        models: status.clone(),
        draining: is_draining.clone(),
    });
    let mut heartbeats = HeartbeatPublisher::new(nats.clone(), worker.clone(), status, load, is_draining);
    let mut summaries = SummaryKeeper::new(nats.clone(), worker, heartbeats.written());

    let ended = tokio::select! {
        ended = run_until_stopped(&mut registry, &mut wanted_now, &draining, &mut stop) => ended,
        () = heartbeats.run() => Ok(()),
        () = summaries.run() => Ok(()),
        () = nats.maintain() => Ok(()),
        () = stored_request::serve(nats.clone(), erasures) => Ok(()),
        () = watch_file(watch, hang_up, &wanted) => Ok(()),
    };
    if let Err(error @ ServeError::Interrupted(_)) = ended {
        return Err(error);
    }
    disconnect(&nats, &mut heartbeats, &mut summaries).await;
    // An engine's step may take long; ending the worker may not.
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, registry.unload()).await;
    ended
}

/// Serves until a signal to stop, or until nothing is left to serve; then waits for the running jobs.
async fn run_until_stopped(
    registry: &mut ModelRegistry,
    wanted: &mut watch::Receiver<WantedModels>,
    draining: &watch::Sender<bool>,
    stop: &mut watch::Receiver<u32>,
) -> Result<(), ServeError> {
    let ended = tokio::select! {
        nothing_servable = registry.run(wanted) => Err(nothing_servable.into()),
        () = wait_for_signal(stop, 1) => Ok(()),
    };
    if ended.is_ok() {
        tracing::info!("draining: taking no more jobs, finishing those that run");
    }
    draining.send_replace(true);
    tokio::select! {
        () = registry.drain() => ended,
        () = wait_for_signal(stop, 2) => Err(ServeError::Interrupted(crate::nats::ACK_WAIT)),
    }
}

/// Watches the file of models, if there is one; never returns.
async fn watch_file(
    watch: Option<FileWatcher>,
    hang_up: watch::Receiver<u32>,
    wanted: &watch::Sender<WantedModels>,
) {
    match watch {
        Some(watch) => watch.run(hang_up, wanted).await,
        None => std::future::pending().await,
    }
}

/// Removes the heartbeat, leaves the summaries to others, and waits until everything sent has gone out.
async fn disconnect(nats: &Nats, heartbeats: &mut HeartbeatPublisher, summaries: &mut SummaryKeeper) {
    let leave = async {
        if let Err(error) = heartbeats.remove().await {
            tracing::warn!(%error, "the heartbeat was not deleted; it expires by itself");
        }
        summaries.leave().await;
        if let Err(error) = nats.client().flush().await {
            tracing::warn!(%error, "the connection was not flushed; the last messages may be lost");
        }
    };
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, leave).await.is_err() {
        tracing::warn!("NATS does not answer; the heartbeat expires by itself");
    }
}

/// Waits until `count` signals have come; forever if none can.
async fn wait_for_signal(stop: &mut watch::Receiver<u32>, count: u32) {
    if stop.wait_for(|seen| *seen >= count).await.is_err() {
        std::future::pending::<()>().await;
    }
}
