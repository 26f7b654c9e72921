//! Takes a model's jobs from its queue, as many as it has free slots, and runs each to its end.
//!
//! [`Intake::run`] subscribes once for all lanes of the queue (`pull`) and requests as many messages as
//! it has free slots, lane by lane (`lanes`). Each message becomes a task (`job`) that holds a slot
//! (`slots`), reads and writes the job's events (`log_reader`, `log_writer`), charges the job to its key
//! (`charge`) and acknowledges it at the end.

mod charge;
mod dead_letter;
mod job;
mod lanes;
mod lease;
mod log_reader;
mod log_size;
pub mod log_writer;
mod message;
pub(crate) mod orphans;
mod pace;
mod pull;
pub mod slots;
pub mod takeover;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use emberline_inference::engine::thread::EngineHandle;
use emberline_protocol::dead_letter::Prompts;
use emberline_protocol::subject::JobId;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::nats::Nats;
use pull::{Delivery, PullSubscription};
use slots::Slots;

/// Pause before a failed pull is tried again.
const PULL_PAUSE: Duration = Duration::from_millis(500);

/// What happens to a model's jobs; a phase is never left for an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes jobs.
    Serving,
    /// Takes no new jobs and finishes those that run.
    Draining,
    /// Requeues the jobs that still run.
    Requeue,
}

/// Waits until `phase` or a later one is reached; forever if the sender is gone.
pub(crate) async fn reached(watch: &mut watch::Receiver<Phase>, phase: Phase) {
    if watch.wait_for(|now| *now >= phase).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What all jobs of a model share.
pub struct Intake {
    /// NATS.
    pub nats: Nats,
    /// This worker's id.
    pub worker: String,
    /// The model's engine.
    pub engine: EngineHandle,
    /// The model's slots.
    pub slots: Slots,
    /// All jobs that run in this process, whatever their model.
    pub running: RunningJobs,
    /// At [`Phase::Requeue`] running jobs are requeued.
    pub phase: watch::Receiver<Phase>,
    /// How long a job goes on without an `alive` message from its relay.
    pub alive_timeout: Duration,
    /// What happens to the prompts of jobs that are given up.
    pub dead_letter_prompts: Prompts,
}

impl Intake {
    /// Takes `model`'s jobs until it drains; returns when the last one has ended.
    pub async fn run(self: Arc<Self>, model: String) {
        let mut jobs = JoinSet::new();
        let mut phase = self.phase.clone();
        while *phase.borrow() == Phase::Serving {
            let mut pull = tokio::select! {
                biased;
                () = reached(&mut phase, Phase::Draining) => break,
                pull = self.open(&model) => pull,
            };
            self.pull(&mut pull, &mut jobs, &mut phase).await;
            self.close(pull, &mut jobs, &phase).await;
        }
        while jobs.join_next().await.is_some() {}
    }

    /// Subscribes; tries until it succeeds.
    async fn open(&self, model: &str) -> PullSubscription {
        loop {
            let mut ready = self.nats.ready();
            match PullSubscription::open(&self.nats, model).await {
                Ok(pull) => return pull,
                Err(error) => tracing::warn!(%model, %error, "can't subscribe to the queue; trying again"),
            }
            self.nats.recheck();
            tokio::select! {
                () = tokio::time::sleep(PULL_PAUSE) => {}
                _ = ready.changed() => {}
            }
        }
    }

    /// Takes jobs until the model drains, or until the pull requests are void.
    async fn pull(
        self: &Arc<Self>,
        pull: &mut PullSubscription,
        jobs: &mut JoinSet<()>,
        phase: &mut watch::Receiver<Phase>,
    ) {
        let mut active = self.slots.active();
        let mut ready = self.nats.ready();
        loop {
            active.mark_unchanged();
            if let Err(error) = pull.ask(self.slots.free()).await {
                tracing::warn!(%error, "can't request jobs; trying again");
                return tokio::time::sleep(PULL_PAUSE).await;
            }
            tokio::select! {
                // A job that is requeued must not be delivered to this worker again.
                biased;
                () = reached(phase, Phase::Draining) => return,
                // After a reconnection nats-server may have forgotten the requests.
                _ = ready.changed() => return,
                delivery = pull.next() => match delivery {
                    Delivery::Job(message) => self.accept(message, jobs).await,
                    Delivery::Ended => {}
                    Delivery::Void(reason) => {
                        tracing::info!(%reason, "subscribing to the queue again");
                        self.nats.recheck();
                        return tokio::time::sleep(PULL_PAUSE).await;
                    }
                },
                Ok(()) = active.changed() => {}
                Some(ended) = jobs.join_next() => log_task_failure(ended),
            }
        }
    }

    /// Ends the subscription. Jobs that are already on their way are run, or requeued if the model takes
    /// no more.
    async fn close(
        self: &Arc<Self>,
        mut pull: PullSubscription,
        jobs: &mut JoinSet<()>,
        phase: &watch::Receiver<Phase>,
    ) {
        if *phase.borrow() > Phase::Serving {
            // A job that arrives where nobody listens is redelivered only after its acknowledgement is overdue.
            // So listen until nothing more can arrive; the pull requests expire soon.
            while pull.is_asking() {
                match pull.next().await {
                    Delivery::Job(message) => requeue(&message).await,
                    Delivery::Ended => {}
                    Delivery::Void(_) => break,
                }
            }
        }
        if !pull.leave().await {
            return;
        }
        // Bounded: over a broken connection nothing arrives and nothing ends.
        let rest = async {
            while let Some(delivery) = pull.rest().await {
                let Delivery::Job(message) = delivery else { continue };
                if *phase.borrow() == Phase::Serving {
                    self.accept(message, jobs).await;
                } else {
                    requeue(&message).await;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
    }

    /// Runs a message's job on a task of its own, if a slot is free.
    async fn accept(self: &Arc<Self>, message: Box<Message>, jobs: &mut JoinSet<()>) {
        let deliveries = message.info().map_or(0, |info| u32::try_from(info.delivered).unwrap_or(u32::MAX));
        let job = match message::parse(&message.payload, &message.subject) {
            Ok(job) => job,
            Err(refusal) => {
                let intake = Arc::clone(self);
                jobs.spawn(async move { dead_letter::refuse(&intake, &message, &refusal).await });
                return;
            }
        };
        let Some(entry) = self.running.enter(&job.id) else {
            // A redelivery while the job runs here: nats-server missed its in-progress acknowledgements.
            // The acknowledgement of the running delivery counts for this one, too.
            tracing::info!(job = %job.id, "the job was redelivered while it runs here");
            if let Err(error) = message.ack_with(AckKind::Progress).await {
                tracing::warn!(job = %job.id, %error, "the in-progress acknowledgement was not sent");
            }
            return;
        };
        let Some(slot) = self.slots.take() else {
            return requeue(&message).await;
        };
        let intake = Arc::clone(self);
        jobs.spawn(async move {
            job::JobRun { intake: &intake, message: &message, job, deliveries }.run(slot).await;
            drop(entry);
        });
    }
}

async fn requeue(message: &Message) {
    if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
        tracing::warn!(%error, "a job was not requeued; it is delivered again by itself");
    }
}

fn log_task_failure(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a job's task failed; the job is delivered again by itself");
    }
}

/// The jobs that run in this process.
#[derive(Debug, Clone, Default)]
pub struct RunningJobs(Arc<Mutex<HashSet<JobId>>>);

/// A job's entry among the running ones; removed when dropped.
struct RunningJob {
    running: RunningJobs,
    job: JobId,
}

impl RunningJobs {
    /// `None` if the job runs already.
    fn enter(&self, job: &JobId) -> Option<RunningJob> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(job.clone()).then(|| RunningJob { running: self.clone(), job: job.clone() })
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        self.running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.job);
    }
}
