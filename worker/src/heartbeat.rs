//! Publishes the worker's heartbeat to the `workers` bucket: every few seconds, and at each change of
//! its models or its load. It is there once for each model, so that those of a model can be read apart from others.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::heartbeat::{HEARTBEAT_INTERVAL_S, Heartbeat};
use emberline_protocol::subject;
use futures::future::{join_all, try_join_all};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::nats::{self, Nats};
use crate::registry::status::RegistryStatus;

/// Shortest time between two heartbeats that differ only in load.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const INTERVAL: Duration = Duration::from_secs(HEARTBEAT_INTERVAL_S);

/// A worker's entries in the bucket.
pub struct HeartbeatPublisher {
    nats: Nats,
    worker: String,
    status: watch::Receiver<RegistryStatus>,
    load: watch::Receiver<u32>,
    draining: watch::Receiver<bool>,
    /// The subjects that may hold its heartbeat.
    subjects: BTreeSet<String>,
    written: watch::Sender<Heartbeat>,
}

impl HeartbeatPublisher {
    /// The entries of `worker`, not written yet; `load` is the number of its running jobs.
    pub fn new(
        nats: Nats,
        worker: String,
        status: watch::Receiver<RegistryStatus>,
        load: watch::Receiver<u32>,
        draining: watch::Receiver<bool>,
    ) -> Self {
        let written = watch::Sender::default();
        Self { nats, worker, status, load, draining, subjects: BTreeSet::new(), written }
    }

    /// The heartbeat as it was last written; one without models before the first.
    pub fn written(&self) -> watch::Receiver<Heartbeat> {
        self.written.subscribe()
    }

    /// Writes the entries again and again; never returns.
    pub async fn run(&mut self) {
        let mut ready = self.nats.ready();
        loop {
            ready.mark_unchanged();
            let heartbeat = self.heartbeat();
            let written = Instant::now();
            tokio::select! {
                result = self.write(&heartbeat) => match result {
                    Ok(()) => drop(self.written.send_replace(heartbeat)),
                    Err(error) => {
                        tracing::warn!(%error, "the heartbeat was not written");
                        self.nats.recheck();
                    }
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

    /// Deletes the entries, so that nobody has to wait until they expire.
    pub async fn remove(&mut self) -> Result<(), PublishError> {
        let entries = std::mem::take(&mut self.subjects);
        join_all(entries.iter().map(|entry| self.delete(entry))).await.into_iter().collect()
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

    async fn write(&mut self, heartbeat: &Heartbeat) -> Result<(), PublishError> {
        // Can't fail: string keys, and serde_json writes NaN and infinities as null.
        let payload = serde_json::to_vec(heartbeat).unwrap_or_default();
        let models = heartbeat.takes_jobs_for().iter().map(|model| model.name.as_str());
        let subjects = subject::heartbeats(&self.worker, models);
        let left: Vec<String> = self.subjects.difference(&subjects).cloned().collect();
        self.subjects.extend(subjects.iter().cloned());
        let jetstream = self.nats.jetstream();
        let store = |subject: &String| {
            let (subject, payload) = (self.nats.subject_in_domain(subject), payload.clone().into());
            async move { jetstream.publish(subject, payload).await?.await }
        };
        try_join_all(subjects.iter().map(store)).await?;
        // Only now, so that the worker is always to be seen.
        try_join_all(left.iter().map(|entry| self.delete(entry))).await?;
        self.subjects = subjects;
        Ok(())
    }

    async fn delete(&self, entry: &str) -> Result<(), PublishError> {
        self.nats
            .jetstream()
            .send_publish(self.nats.subject_in_domain(entry), nats::deletion())
            .await?
            .await?;
        Ok(())
    }
}
