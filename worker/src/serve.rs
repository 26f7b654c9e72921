//! A worker from its connection to its end: brings bus, engine, intake and heartbeat together and
//! drains them in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bus::{Bus, BusError};
use crate::config::Config;
use crate::engine::Engine;
use crate::engine::thread::{self, EngineHandle};
use crate::heartbeat::Beat;
use crate::intake::slots::Slots;
use crate::intake::{Intake, Phase};

/// How long handing jobs back may take.
const HAND_BACK: Duration = Duration::from_secs(5);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a worker ended other than as it was told.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// NATS can't be used.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The engine has no thread.
    #[error("can't start the engine's thread: {0}")]
    Thread(std::io::Error),
    /// The engine is gone; its jobs were handed back.
    #[error("the engine failed: {0}. Its jobs were handed back; start the worker again")]
    Engine(String),
    /// Told twice to stop.
    #[error("stopped by a second signal; unfinished jobs are delivered again after {0} s")]
    Interrupted(u64),
}

/// Serves `engine`'s models until `stop` counts its first signal, then drains.
pub async fn serve(
    config: &Config,
    engine: Box<dyn Engine>,
    stop: watch::Receiver<u32>,
) -> Result<(), ServeError> {
    let models: Vec<String> = engine.models().into_iter().map(|model| model.name).collect();
    let mut stop = stop;
    let bus = tokio::select! {
        bus = Bus::open(&config.bus, &models) => bus?,
        () = signals(&mut stop, 1) => return Ok(()),
    };
    let (info, engine, engine_thread) = thread::spawn(engine).map_err(ServeError::Thread)?;
    let worker = format!("{:016x}", rand::random::<u64>());
    tracing::info!(
        %worker, ?models, engine = info.name, device = %info.device, slots = info.capacity, "serving"
    );

    let (phase_sender, phase) = watch::channel(Phase::Serving);
    let slots = Slots::new(info.capacity);
    let mut beat = Beat::new(bus.clone(), worker, &info, slots.active(), phase.clone());
    let intake = Arc::new(Intake {
        bus: bus.clone(),
        engine: engine.clone(),
        slots,
        phase,
        alive_timeout: config.alive_timeout,
    });
    let mut intakes = JoinSet::new();
    for model in &models {
        intakes.spawn(Arc::clone(&intake).run(model.clone()));
    }

    let ended = tokio::select! {
        ended = drain(config.drain, &phase_sender, &engine, &mut intakes, &mut stop) => ended,
        () = beat.run() => Ok(()),
        () = bus.keep(&models) => Ok(()),
    };
    if let Err(error @ ServeError::Interrupted(_)) = ended {
        return Err(error);
    }
    goodbye(&bus, &beat).await;
    // A step may take as long as it likes, a stopping worker may not.
    let stopped = tokio::task::spawn_blocking(move || engine_thread.stop());
    let _ = tokio::time::timeout(GOODBYE, stopped).await;
    ended
}

/// Waits for the signal to stop or the engine's failure, and sees the jobs to their end.
async fn drain(
    grace: Duration,
    phase: &watch::Sender<Phase>,
    engine: &EngineHandle,
    intakes: &mut JoinSet<()>,
    stop: &mut watch::Receiver<u32>,
) -> Result<(), ServeError> {
    let finished = async |intakes: &mut JoinSet<()>| while intakes.join_next().await.is_some() {};
    let mut failure = None;
    tokio::select! {
        () = signals(stop, 1) => {
            tracing::info!(grace_s = grace.as_secs(), "draining: no more jobs, finishing those that run");
            phase.send_replace(Phase::Draining);
            tokio::select! {
                () = finished(intakes) => {}
                () = tokio::time::sleep(grace) => tracing::info!("the time is over, handing the rest back"),
                () = signals(stop, 2) => return Err(interrupted()),
                message = engine.failure() => failure = Some(message),
            }
        }
        message = engine.failure() => failure = Some(message),
    }
    phase.send_replace(Phase::HandBack);
    tokio::select! {
        () = finished(intakes) => {}
        () = tokio::time::sleep(HAND_BACK) => tracing::warn!("some jobs could not be handed back"),
        () = signals(stop, 2) => return Err(interrupted()),
    }
    match failure {
        Some(message) => Err(ServeError::Engine(message)),
        None => Ok(()),
    }
}

fn interrupted() -> ServeError {
    ServeError::Interrupted(crate::bus::ACK_WAIT.as_secs())
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
async fn signals(stop: &mut watch::Receiver<u32>, count: u32) {
    if stop.wait_for(|seen| *seen >= count).await.is_err() {
        std::future::pending::<()>().await;
    }
}
