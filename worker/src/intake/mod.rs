//! Takes a model's jobs from its queue, as many as there are free slots, and sees each to its end.
//!
//! [`Intake::run`] keeps one subscription to which the consumers of the queue's lanes deliver (`pull`)
//! and asks them, in turns (`lanes`), for as many messages as it has slots for. Each message becomes
//! a task (`job`) that holds a slot (`slots`), writes the job's events (`event_log`), charges it to
//! its key (`account`) and acknowledges at the end.

mod charge;
pub mod event_log;
pub mod job;
mod lanes;
mod pace;
mod pull;
pub mod slots;
pub mod takeover;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use emberline_inference::engine::thread::EngineHandle;
use emberline_protocol::subject::JobId;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::nats::Bus;
use pull::{Delivery, Pull};
use slots::Slots;

/// Pause before a pull that has failed is tried again.
const PULL_PAUSE: Duration = Duration::from_millis(500);

/// What is done with a model's jobs; it only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes jobs.
    Serving,
    /// Takes no more, finishes those it has.
    Draining,
    /// Gives back at once what is not finished.
    HandBack,
}

/// Waits until `phase` is there or past it; for ever if the sender is gone.
pub(crate) async fn reached(watch: &mut watch::Receiver<Phase>, phase: Phase) {
    if watch.wait_for(|now| *now >= phase).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What every job of a model needs.
pub struct Intake {
    /// NATS.
    pub bus: Bus,
    /// This worker's id.
    pub worker: String,
    /// Where jobs run.
    pub engine: EngineHandle,
    /// How many may run.
    pub slots: Slots,
    /// Those that run in this process, whoever took them.
    pub running: Running,
    /// Moves to [`Phase::HandBack`] when jobs are to be given up.
    pub phase: watch::Receiver<Phase>,
    /// How long a job goes on without a word from its relay.
    pub alive_timeout: Duration,
}

impl Intake {
    /// Takes `model`'s jobs until it drains; returns when the last of them has ended.
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

    /// Subscribes; tries until it can.
    async fn open(&self, model: &str) -> Pull {
        loop {
            let mut ready = self.bus.ready();
            match Pull::open(&self.bus, model).await {
                Ok(pull) => return pull,
                Err(error) => tracing::warn!(%model, %error, "can't take jobs; trying again"),
            }
            self.bus.doubt();
            tokio::select! {
                () = tokio::time::sleep(PULL_PAUSE) => {}
                _ = ready.changed() => {}
            }
        }
    }

    /// Takes jobs until the model drains, or until what was asked for is void.
    async fn pull(
        self: &Arc<Self>,
        pull: &mut Pull,
        jobs: &mut JoinSet<()>,
        phase: &mut watch::Receiver<Phase>,
    ) {
        let mut active = self.slots.active();
        let mut ready = self.bus.ready();
        loop {
            active.mark_unchanged();
            if let Err(error) = pull.ask(self.slots.free()).await {
                tracing::warn!(%error, "can't ask for jobs");
                return tokio::time::sleep(PULL_PAUSE).await;
            }
            tokio::select! {
                // A job that is handed back must not find this worker asking for more.
                biased;
                () = reached(phase, Phase::Draining) => return,
                // A new connection: the server may have forgotten the requests.
                _ = ready.changed() => return,
                delivery = pull.next() => match delivery {
                    Delivery::Job(message) => self.take(message, jobs).await,
                    Delivery::Ended => {}
                    Delivery::Void(reason) => {
                        tracing::info!(%reason, "asking for jobs again");
                        self.bus.doubt();
                        return tokio::time::sleep(PULL_PAUSE).await;
                    }
                },
                Ok(()) = active.changed() => {}
                Some(ended) = jobs.join_next() => report(ended),
            }
        }
    }

    /// Ends the subscription; jobs that were on their way are run, or given back if the model takes
    /// no more.
    async fn close(self: &Arc<Self>, mut pull: Pull, jobs: &mut JoinSet<()>, phase: &watch::Receiver<Phase>) {
        if *phase.borrow() > Phase::Serving {
            // A job that comes while nobody listens any more is given to another worker only when it
            // seems to be dead. So listen until nothing can come; the requests end soon.
            while pull.is_asking() {
                match pull.next().await {
                    Delivery::Job(message) => give_back(&message).await,
                    Delivery::Ended => {}
                    Delivery::Void(_) => break,
                }
            }
        }
        if !pull.leave().await {
            return;
        }
        // Bounded, for a connection that is down delivers nothing and ends nothing.
        let rest = async {
            while let Some(delivery) = pull.rest().await {
                let Delivery::Job(message) = delivery else { continue };
                if *phase.borrow() == Phase::Serving {
                    self.take(message, jobs).await;
                } else {
                    give_back(&message).await;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
    }

    /// Gives a message a slot and a task.
    async fn take(self: &Arc<Self>, message: Box<Message>, jobs: &mut JoinSet<()>) {
        let deliveries = message.info().map_or(0, |info| u32::try_from(info.delivered).unwrap_or(u32::MAX));
        let job = match job::parse(&message.payload, &message.subject) {
            Ok(job) => job,
            Err(refusal) => {
                let intake = Arc::clone(self);
                jobs.spawn(async move { job::refuse(&intake, &message, &refusal).await });
                return;
            }
        };
        let Some(entry) = self.running.enter(&job.id) else {
            // Delivered again while it runs here, because nats-server did not hear of its
            // progress. The run's own acknowledgement will do for this delivery, too.
            tracing::info!(job = %job.id, "runs already");
            if let Err(error) = message.ack_with(AckKind::Progress).await {
                tracing::warn!(job = %job.id, %error, "nats-server was not told that the job runs");
            }
            return;
        };
        let Some(slot) = self.slots.take() else {
            return give_back(&message).await;
        };
        let intake = Arc::clone(self);
        jobs.spawn(async move {
            job::Run { intake: &intake, message: &message, job, deliveries }.run(slot).await;
            drop(entry);
        });
    }
}

async fn give_back(message: &Message) {
    if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
        tracing::warn!(%error, "a job was not given back; it is delivered again by itself");
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a job's task failed; the job is delivered again by itself");
    }
}

/// The jobs that run in this process.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<HashSet<JobId>>>);

/// A job's entry among those that run; leaves with it.
struct Entry {
    running: Running,
    job: JobId,
}

impl Running {
    /// `None` if it runs already.
    fn enter(&self, job: &JobId) -> Option<Entry> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(job.clone()).then(|| Entry { running: self.clone(), job: job.clone() })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.job);
    }
}
