//! Tells the `workers` bucket what this worker is and how busy: every few seconds and at each
//! change of its load.

use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use emberline_shared::PROTOCOL_VERSION;
use emberline_shared::heartbeat::{HEARTBEAT_INTERVAL_S, Heartbeat};
use emberline_shared::subject::WORKERS_BUCKET;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::engine::thread::EngineInfo;
use crate::intake::{Phase, reached};

/// Changes of load that follow each other faster are told together.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const INTERVAL: Duration = Duration::from_secs(HEARTBEAT_INTERVAL_S);

/// A worker's entry in the bucket.
pub struct Beat {
    bus: Bus,
    heartbeat: Heartbeat,
    active: watch::Receiver<u32>,
    phase: watch::Receiver<Phase>,
}

impl Beat {
    /// The entry of `worker`, not written yet.
    pub fn new(
        bus: Bus,
        worker: String,
        engine: &EngineInfo,
        active: watch::Receiver<u32>,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        let heartbeat = Heartbeat {
            v: PROTOCOL_VERSION,
            worker,
            models: engine.models.clone(),
            engine: engine.name.to_owned(),
            device: engine.device.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: engine.capacity,
            active: 0,
            draining: false,
        };
        Self { bus, heartbeat, active, phase }
    }

    /// Writes the entry again and again; never ends.
    pub async fn run(&mut self) {
        let mut ready = self.bus.ready();
        loop {
            ready.mark_unchanged();
            self.heartbeat.active = *self.active.borrow_and_update();
            self.heartbeat.draining = *self.phase.borrow() >= Phase::Draining;
            let written = Instant::now();
            tokio::select! {
                result = self.write() => if let Err(error) = result {
                    tracing::warn!(%error, "the heartbeat was not written");
                    self.bus.doubt();
                },
                // The answer won't come over a connection that is gone.
                _ = ready.changed() => continue,
            }
            tokio::select! {
                () = tokio::time::sleep_until(written + INTERVAL) => {}
                _ = ready.changed() => {}
                Ok(()) = self.active.changed() => tokio::time::sleep_until(written + SHORTEST_PAUSE).await,
                () = reached(&mut self.phase, Phase::Draining), if !self.heartbeat.draining => {}
            }
        }
    }

    /// Takes the entry out of the bucket, so that nobody waits for its time to run out.
    pub async fn remove(&self) -> Result<(), PublishError> {
        // NATS ADR-8: an empty message with this header is a deleted key.
        let marker = PublishMessage::build().header("KV-Operation", "DEL");
        self.bus.jetstream().send_publish(self.key(), marker).await?.await?;
        Ok(())
    }

    async fn write(&self) -> Result<(), PublishError> {
        // Can't fail: string keys, no floats.
        let payload = serde_json::to_vec(&self.heartbeat).unwrap_or_default();
        self.bus.jetstream().publish(self.key(), payload.into()).await?.await?;
        Ok(())
    }

    fn key(&self) -> String {
        format!("$KV.{WORKERS_BUCKET}.{}", self.heartbeat.worker)
    }
}
