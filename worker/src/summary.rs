//! Keeps the summaries of this worker's models in the `workers` bucket ([`ModelSummary`]).
//!
//! One of a model's workers is the keeper of its summary: each second it reads the model's heartbeats and writes what
//! they come to. The others look at the summary only, and one of them becomes the keeper when there is no summary,
//! when it was left by its keeper, or when nobody has written it for some seconds. Who writes says which summary it
//! has seen, and NATS takes the first such message only, so there is one keeper at a time, and one that has been
//! replaced learns so when it writes. A model's first worker finds no summary, so its model is known at once.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use emberline_protocol::heartbeat::Heartbeat;
use emberline_protocol::model_summary::{KEEPER_TIMEOUT_S, ModelSummary, SUMMARY_INTERVAL_S};
use emberline_protocol::subject::{self, WORKERS_STREAM};
use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::direct_get::{self, DirectGetError};
use crate::nats::{self, Nats};

const INTERVAL: Duration = Duration::from_secs(SUMMARY_INTERVAL_S);
const KEEPER_TIMEOUT: Duration = Duration::from_secs(KEEPER_TIMEOUT_S);
/// How often a worker that leaves tries to leave a summary behind that is true.
const LEAVE_ATTEMPTS: u32 = 4;

/// Why a summary was not kept.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum SummaryError {
    #[error("the heartbeats can't be read: {0}")]
    Read(#[from] DirectGetError),
    #[error("it was not written: {0}")]
    Write(#[from] PublishError),
}

/// Keeps the summaries of the models for which a worker takes jobs, unless other workers do.
pub struct SummaryKeeper {
    nats: Nats,
    worker: String,
    /// As it was last written.
    heartbeat: watch::Receiver<Heartbeat>,
    /// The models for which it takes jobs, and what was last seen of their summaries.
    models: BTreeMap<String, Seen>,
}

/// A summary, as a worker last saw it.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Its sequence in the stream.
    sequence: u64,
    /// When this sequence was seen first.
    since: Option<Instant>,
}

impl Seen {
    /// Whether the summary with this `sequence` has not been written for so long that its keeper must be gone.
    fn is_abandoned(&mut self, sequence: u64, now: Instant) -> bool {
        if self.sequence != sequence {
            *self = Self { sequence, since: None };
        }
        now.duration_since(*self.since.get_or_insert(now)) >= KEEPER_TIMEOUT
    }
}

/// A model's entry.
#[derive(Debug, Default)]
struct Stored {
    /// 0 if there is none.
    sequence: u64,
    /// `None` if it was deleted or can't be read, too.
    summary: Option<ModelSummary>,
}

impl Stored {
    fn keeper(&self) -> Option<&str> {
        self.summary.as_ref()?.keeper.as_deref()
    }
}

impl SummaryKeeper {
    /// For the worker that writes `heartbeat`.
    pub fn new(nats: Nats, worker: String, heartbeat: watch::Receiver<Heartbeat>) -> Self {
        Self { nats, worker, heartbeat, models: BTreeMap::new() }
    }

    /// Keeps the summaries of the models for which the worker takes jobs at the time; never returns.
    pub async fn run(&mut self) {
        let mut ready = self.nats.ready();
        loop {
            ready.mark_unchanged();
            let next = Instant::now() + INTERVAL;
            let heartbeat = self.heartbeat.borrow_and_update().clone();
            tokio::select! {
                () = self.update(&heartbeat) => {}
                // No answer comes over a connection that was lost.
                _ = ready.changed() => continue,
            }
            let has_changed = |now: &Heartbeat| !names(now).eq(names(&heartbeat));
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                _ = ready.changed() => {}
                Ok(_) = self.heartbeat.wait_for(has_changed) => {}
            }
        }
    }

    /// Leaves all summaries to other workers. The worker's heartbeats are removed already.
    pub async fn leave(&mut self) {
        let models = std::mem::take(&mut self.models);
        join_all(models.keys().map(|model| self.leave_model(model))).await;
    }

    async fn update(&mut self, heartbeat: &Heartbeat) {
        let before = self.models.clone();
        let mut kept: BTreeMap<String, Seen> = names(heartbeat)
            .map(|model| (model.to_owned(), before.get(model).copied().unwrap_or_default()))
            .collect();
        // If this is broken off, all of them may be this worker's to keep or to leave.
        self.models.extend(kept.clone());
        let left: Vec<&String> = before.keys().filter(|model| !kept.contains_key(*model)).collect();
        let (this, now) = (&*self, Instant::now());
        let leave = left.into_iter().map(|model| this.leave_model(model));
        let keep = kept.iter_mut().map(|(model, seen)| async move {
            if let Err(error) = this.keep(model, seen, heartbeat, now).await {
                tracing::warn!(%model, %error, "the summary of the model's workers was not kept");
                this.nats.recheck();
            }
        });
        let leave = join_all(leave.collect::<Vec<_>>());
        tokio::join!(join_all(keep), leave);
        self.models = kept;
    }

    /// Writes the summary of `model` if this worker is its keeper, or becomes it.
    async fn keep(
        &self,
        model: &str,
        seen: &mut Seen,
        heartbeat: &Heartbeat,
        now: Instant,
    ) -> Result<(), SummaryError> {
        let stored = self.look(model).await?;
        let is_abandoned = seen.is_abandoned(stored.sequence, now);
        let sequence = match stored.keeper() {
            Some(keeper) if keeper == self.worker => Some(stored.sequence),
            Some(_) if !is_abandoned => None,
            _ => self.take_over(model, stored, heartbeat).await?,
        };
        if let Some(sequence) = sequence {
            let summary = self.sum_up(model, Some(heartbeat)).await?;
            self.write(model, summary.as_ref(), sequence).await?;
        }
        Ok(())
    }

    /// Becomes the keeper of a summary without one, before the heartbeats are read: one worker is enough to read them.
    /// Until that is done, the summary says what it said, or, if there was none, what this worker alone can do.
    async fn take_over(
        &self,
        model: &str,
        stored: Stored,
        heartbeat: &Heartbeat,
    ) -> Result<Option<u64>, SummaryError> {
        let keeper = Some(self.worker.clone());
        let summary = match stored.summary {
            Some(summary) => Some(ModelSummary { keeper, ..summary }),
            None => ModelSummary::of(model, keeper.as_deref(), [Ok(heartbeat.clone())]),
        };
        let sequence = self.write(model, summary.as_ref(), stored.sequence).await?;
        if sequence.is_some() {
            tracing::info!(%model, "this worker sums up the heartbeats of the model's workers from now on");
        }
        Ok(sequence)
    }

    /// Leaves the summary of a model for which this worker takes no more jobs, and does not count any more, to another
    /// worker; removes it if there is none.
    ///
    /// A worker removes its heartbeat before it looks whether it is the keeper, and a keeper reads the heartbeats once
    /// more after it has left. So of workers that leave at the same time, one finds that nobody is left.
    async fn leave_model(&self, model: &str) {
        let attempts = async {
            let mut has_left = false;
            for _ in 0..LEAVE_ATTEMPTS {
                let stored = self.look(model).await?;
                if stored.summary.is_none() || stored.keeper().is_some_and(|keeper| keeper != self.worker) {
                    return Ok(());
                }
                let summary = self.sum_up(model, None).await?;
                let is_written = self.write(model, summary.as_ref(), stored.sequence).await?.is_some();
                if is_written && (has_left || summary.is_none()) {
                    return Ok(());
                }
                has_left |= is_written;
            }
            Ok::<(), SummaryError>(())
        };
        if let Err(error) = attempts.await {
            tracing::warn!(%model, %error, "the summary of the model's workers was not left to another; it expires");
        }
    }

    /// The summary of a model as it is stored.
    async fn look(&self, model: &str) -> Result<Stored, DirectGetError> {
        let last = direct_get::last(&self.nats, WORKERS_STREAM, &subject::model_summary(model)).await?;
        Ok(last.map_or_else(Stored::default, |message| Stored {
            sequence: direct_get::sequence(&message),
            summary: ModelSummary::read(&message.payload).ok(),
        }))
    }

    /// What the heartbeats of a model's workers come to; `own` is what this worker says of itself, if it counts.
    async fn sum_up(
        &self,
        model: &str,
        own: Option<&Heartbeat>,
    ) -> Result<Option<ModelSummary>, DirectGetError> {
        let started = Instant::now();
        let (mut heartbeats, mut bytes) = (BTreeMap::new(), 0);
        direct_get::each(&self.nats, WORKERS_STREAM, &subject::model_heartbeats(model), |message| {
            bytes += message.length;
            let subject = message.headers.as_ref().and_then(|headers| headers.get("Nats-Subject"));
            let worker = subject.and_then(|subject| subject.as_str().rsplit('.').next()).unwrap_or_default();
            // One that was removed has left an empty message.
            if message.payload.is_empty() {
                heartbeats.remove(worker);
            } else if worker != self.worker {
                heartbeats.insert(worker.to_owned(), Heartbeat::read(&message.payload));
            }
            Ok::<(), DirectGetError>(())
        })
        .await?;
        let (keeper, own) = (own.map(|_| self.worker.as_str()), own.cloned().map(Ok));
        let summary = ModelSummary::of(model, keeper, heartbeats.into_values().chain(own));
        let workers = summary.as_ref().map_or(0, |summary| summary.workers);
        tracing::debug!(%model, workers, bytes, took = ?started.elapsed(), "summed up the heartbeats");
        Ok(summary)
    }

    /// Writes or removes the summary of a model, if its sequence still is `expected`; its new sequence. `None` if
    /// another worker was first.
    async fn write(
        &self,
        model: &str,
        summary: Option<&ModelSummary>,
        expected: u64,
    ) -> Result<Option<u64>, PublishError> {
        let message = match summary {
            // Can't fail: string keys, and all numbers are finite.
            Some(summary) => {
                PublishMessage::build().payload(serde_json::to_vec(summary).unwrap_or_default().into())
            }
            None => nats::deletion(),
        };
        let message = message.expected_last_subject_sequence(expected);
        let subject = self.nats.subject_in_domain(&subject::model_summary(model));
        match self.nats.jetstream().send_publish(subject, message).await?.await {
            Ok(stored) => Ok(Some(stored.sequence)),
            Err(error) if nats::is_changed(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn names(heartbeat: &Heartbeat) -> impl Iterator<Item = &str> {
    heartbeat.takes_jobs_for().iter().map(|model| model.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_that_nobody_writes_is_abandoned_after_some_time() {
        let mut seen = Seen::default();
        let start = Instant::now();
        let mut at = |sequence, after: Duration| seen.is_abandoned(sequence, start + after);
        assert!(!at(7, Duration::ZERO));
        assert!(!at(7, KEEPER_TIMEOUT - Duration::from_millis(1)));
        assert!(at(7, KEEPER_TIMEOUT));
        // Another was written, which has as much time.
        assert!(!at(8, KEEPER_TIMEOUT));
        assert!(!at(8, KEEPER_TIMEOUT + INTERVAL));
        assert!(at(8, 2 * KEEPER_TIMEOUT));
    }
}
