//! Tells the `workers` bucket what this worker is and how busy: every few seconds and at each
//! change of its models or its load.

use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::heartbeat::{HEARTBEAT_INTERVAL_S, Heartbeat};
use emberline_protocol::subject::WORKERS_BUCKET;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::nats::Bus;
use crate::registry::status::Board;

/// Changes of load that follow each other faster are told together.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const INTERVAL: Duration = Duration::from_secs(HEARTBEAT_INTERVAL_S);

/// A worker's entry in the bucket.
pub struct Beat {
    bus: Bus,
    worker: String,
    board: watch::Receiver<Board>,
    load: watch::Receiver<u32>,
    draining: watch::Receiver<bool>,
}

impl Beat {
    /// The entry of `worker`, not written yet; `load` counts its running jobs.
    pub fn new(
        bus: Bus,
        worker: String,
        board: watch::Receiver<Board>,
        load: watch::Receiver<u32>,
        draining: watch::Receiver<bool>,
    ) -> Self {
        Self { bus, worker, board, load, draining }
    }

    /// Writes the entry again and again; never ends.
    pub async fn run(&mut self) {
        let mut ready = self.bus.ready();
        loop {
            ready.mark_unchanged();
            let heartbeat = self.heartbeat();
            let written = Instant::now();
            tokio::select! {
                result = self.write(&heartbeat) => if let Err(error) = result {
                    tracing::warn!(%error, "the heartbeat was not written");
                    self.bus.doubt();
                },
                // The answer won't come over a connection that is gone.
                _ = ready.changed() => continue,
            }
            tokio::select! {
                () = tokio::time::sleep_until(written + INTERVAL) => {}
                _ = ready.changed() => {}
                Ok(()) = self.board.changed() => {}
                Ok(()) = self.load.changed() => tokio::time::sleep_until(written + SHORTEST_PAUSE).await,
                Ok(()) = self.draining.changed() => {}
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

    fn heartbeat(&mut self) -> Heartbeat {
        let active = *self.load.borrow_and_update();
        let draining = *self.draining.borrow_and_update();
        let board = self.board.borrow_and_update();
        Heartbeat {
            v: PROTOCOL_VERSION,
            worker: self.worker.clone(),
            models: board.served(),
            engine: board.engines(),
            device: board.devices(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: board.capacity(),
            active,
            draining,
            states: board.states(),
            problem: board.problem.clone(),
        }
    }

    async fn write(&self, heartbeat: &Heartbeat) -> Result<(), PublishError> {
        // Can't fail: string keys, and serde_json writes a float that is no number as null.
        let payload = serde_json::to_vec(heartbeat).unwrap_or_default();
        self.bus.jetstream().publish(self.key(), payload.into()).await?.await?;
        Ok(())
    }

    fn key(&self) -> String {
        format!("$KV.{WORKERS_BUCKET}.{}", self.worker)
    }
}
