//! A worker from its connection to its end: brings bus, models and heartbeat together and drains
//! them in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Config;
use crate::heartbeat::Beat;
use crate::intake::Running;
use crate::nats::{Bus, BusError};
use crate::registry::file::{FileError, Wanted, Watch};
use crate::registry::instance::Shared;
use crate::registry::load::Loader;
use crate::registry::model_registry::{Fleet, Hopeless};

/// How long saying goodbye may take, and how long freeing what the models hold.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a worker ended other than as it was told.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// NATS can't be used.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The file of models can't be used.
    #[error(transparent)]
    Models(#[from] FileError),
    /// There is nothing left to serve.
    #[error(transparent)]
    Hopeless(#[from] Hopeless),
    /// Told twice to stop.
    #[error("stopped by a second signal; unfinished jobs are delivered again after {0:?}")]
    Interrupted(Duration),
}

/// Counts of the signals that have come.
#[derive(Debug, Clone)]
pub struct Signals {
    /// To stop.
    pub stop: watch::Receiver<u32>,
    /// To read the file of models again.
    pub hang_up: watch::Receiver<u32>,
}

/// Serves the models of `config`, made by `loader`, until the first signal to stop; then drains.
pub async fn serve(config: &Config, loader: Loader, signals: Signals) -> Result<(), ServeError> {
    let Signals { mut stop, hang_up } = signals;
    let (wanted, watch) = config.models.open()?;
    let (wanted, mut wanted_now) = watch::channel(wanted);
    let bus = tokio::select! {
        bus = Bus::open(&config.bus) => bus?,
        () = stopped(&mut stop, 1) => return Ok(()),
    };
    let worker = format!("{:016x}", rand::random::<u64>());
    tracing::info!(%worker, "connected");

    let load = Arc::new(watch::Sender::new(0));
    let mut fleet = Fleet::new(Arc::new(Shared {
        bus: bus.clone(),
        worker: worker.clone(),
        loader,
        drain: config.drain,
        alive_timeout: config.alive_timeout,
        load: Arc::clone(&load),
        running: Running::default(),
    }));
    let (draining, is_draining) = watch::channel(false);
    let mut beat = Beat::new(bus.clone(), worker, fleet.board(), load.subscribe(), is_draining);

    let ended = tokio::select! {
        ended = work(&mut fleet, &mut wanted_now, &draining, &mut stop) => ended,
        () = beat.run() => Ok(()),
        () = bus.keep() => Ok(()),
        () = follow(watch, hang_up, &wanted) => Ok(()),
    };
    if let Err(error @ ServeError::Interrupted(_)) = ended {
        return Err(error);
    }
    goodbye(&bus, &beat).await;
    // A step may take as long as it likes, a stopping worker may not.
    let _ = tokio::time::timeout(GOODBYE, fleet.unload()).await;
    ended
}

/// Serves until the signal to stop or until nothing is left, and sees the jobs to their end.
async fn work(
    fleet: &mut Fleet,
    wanted: &mut watch::Receiver<Wanted>,
    draining: &watch::Sender<bool>,
    stop: &mut watch::Receiver<u32>,
) -> Result<(), ServeError> {
    let ended = tokio::select! {
        hopeless = fleet.run(wanted) => Err(hopeless.into()),
        () = stopped(stop, 1) => Ok(()),
    };
    if ended.is_ok() {
        tracing::info!("draining: no more jobs, finishing those that run");
    }
    draining.send_replace(true);
    tokio::select! {
        () = fleet.drain() => ended,
        () = stopped(stop, 2) => Err(ServeError::Interrupted(crate::nats::ACK_WAIT)),
    }
}

/// Follows the file of models; for ever.
async fn follow(watch: Option<Watch>, hang_up: watch::Receiver<u32>, wanted: &watch::Sender<Wanted>) {
    match watch {
        Some(watch) => watch.run(hang_up, wanted).await,
        None => std::future::pending().await,
    }
}

/// Leaves the bucket, and waits until everything sent has gone out.
async fn goodbye(bus: &Bus, beat: &Beat) {
    let leave = async {
        if let Err(error) = beat.remove().await {
            tracing::warn!(%error, "the heartbeat was not removed; it runs out by itself");
        }
        if let Err(error) = bus.client().flush().await {
            tracing::warn!(%error, "the last messages may be lost");
        }
    };
    if tokio::time::timeout(GOODBYE, leave).await.is_err() {
        tracing::warn!("NATS does not answer; the heartbeat runs out by itself");
    }
}

/// Waits until `count` signals have come; for ever if none can.
async fn stopped(stop: &mut watch::Receiver<u32>, count: u32) {
    if stop.wait_for(|seen| *seen >= count).await.is_err() {
        std::future::pending::<()>().await;
    }
}
