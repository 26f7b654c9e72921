//! Publishes the worker's heartbeat to the `workers` bucket: every few seconds, and at each change of
//! its models or its load.

use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::heartbeat::{HEARTBEAT_INTERVAL_S, Heartbeat};
use emberline_protocol::subject::WORKERS_BUCKET;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::nats::Nats;
use crate::registry::status::RegistryStatus;

/// Shortest time between two heartbeats that differ only in load.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const INTERVAL: Duration = Duration::from_secs(HEARTBEAT_INTERVAL_S);

/// A worker's entry in the bucket.
pub struct HeartbeatPublisher {
    nats: Nats,
    worker: String,
    status: watch::Receiver<RegistryStatus>,
    load: watch::Receiver<u32>,
    draining: watch::Receiver<bool>,
}

impl HeartbeatPublisher {
    /// The entry of `worker`, not written yet; `load` is the number of its running jobs.
    pub fn new(
        nats: Nats,
        worker: String,
        status: watch::Receiver<RegistryStatus>,
        load: watch::Receiver<u32>,
        draining: watch::Receiver<bool>,
    ) -> Self {
        Self { nats, worker, status, load, draining }
    }

    /// Writes the entry again and again; never returns.
    pub async fn run(&mut self) {
        let mut ready = self.nats.ready();
        loop {
            ready.mark_unchanged();
            let heartbeat = self.heartbeat();
            let written = Instant::now();
            tokio::select! {
                result = self.write(&heartbeat) => if let Err(error) = result {
                    tracing::warn!(%error, "the heartbeat was not written");
                    self.nats.recheck();
                },
                // No answer comes over a connection that was lost.
                _ = ready.changed() => continue,
            }
            tokio::select! {
                () = tokio::time::sleep_until(written + INTERVAL) => {}
                _ = ready.changed() => {}
                Ok(()) = self.status.changed() => {}
                Ok(()) = self.load.changed() => tokio::time::sleep_until(written + SHORTEST_PAUSE).await,
                Ok(()) = self.draining.changed() => {}
            }
        }
    }

    /// Deletes the entry, so that nobody has to wait until it expires.
    pub async fn remove(&self) -> Result<(), PublishError> {
        // NATS ADR-8: an empty message with this header is a deleted key.
        let marker = PublishMessage::build().header("KV-Operation", "DEL");
        self.nats.jetstream().send_publish(self.key(), marker).await?.await?;
        Ok(())
    }

    fn heartbeat(&mut self) -> Heartbeat {
        let active = *self.load.borrow_and_update();
        let draining = *self.draining.borrow_and_update();
        let status = self.status.borrow_and_update();
        Heartbeat {
            v: PROTOCOL_VERSION,
            worker: self.worker.clone(),
            models: status.served(),
            engine: status.engines(),
            device: status.devices(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: status.capacity(),
            active,
            draining,
            states: status.states(),
            problem: status.problem.clone(),
        }
    }

    async fn write(&self, heartbeat: &Heartbeat) -> Result<(), PublishError> {
        // Can't fail: string keys, and serde_json writes NaN and infinities as null.
        let payload = serde_json::to_vec(heartbeat).unwrap_or_default();
        self.nats.jetstream().publish(self.key(), payload.into()).await?.await?;
        Ok(())
    }

    fn key(&self) -> String {
        self.nats.subject_in_domain(&format!("$KV.{WORKERS_BUCKET}.{}", self.worker))
    }
}
