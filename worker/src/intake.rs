//! Takes a model's jobs from its queue, as many as there are free slots, and sees each to its end.
//!
//! [`Intake::run`] keeps one pull subscription on the model's consumer and asks for as many
//! messages as it has slots for and has not asked for yet. Each message becomes a task (`job`)
//! that holds a slot (`slots`), writes the job's events (`event_log`), charges it to its key
//! (`account`) and acknowledges at the end.

mod account;
pub mod event_log;
pub mod job;
pub mod slots;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::jetstream::{AckKind, Context, Message};
use async_nats::{StatusCode, Subject, Subscriber};
use emberline_shared::subject::JobId;
use futures::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::engine::thread::EngineHandle;
use slots::Slots;

/// How long the server keeps a request for jobs.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// How often it says that it still does.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// Silence after which the requests are taken for lost.
const PULL_SILENCE: Duration = Duration::from_secs(12);
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

/// One subscription to which the consumer delivers, and how much was asked for.
struct Pull {
    context: Context,
    consumer: PullConsumer,
    inbox: Subject,
    subscriber: Subscriber,
    /// Messages asked for and not delivered yet.
    requested: u32,
    heard: Instant,
}

/// What came in on a pull's subscription.
enum Delivery {
    Job(Box<Message>),
    /// The server still holds the requests.
    Idle,
    /// One request has ended with this many messages undelivered.
    Expired(u32),
    /// The requests are void.
    Void(String),
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
            let opened = async {
                let consumer = self.bus.consumer(model).await.map_err(|e| e.to_string())?;
                let inbox = Subject::from(self.bus.client().new_inbox());
                let subscriber =
                    self.bus.client().subscribe(inbox.clone()).await.map_err(|e| e.to_string())?;
                let context = self.bus.jetstream().clone();
                Ok::<_, String>(Pull {
                    context,
                    consumer,
                    inbox,
                    subscriber,
                    requested: 0,
                    heard: Instant::now(),
                })
            };
            match opened.await {
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
            if let Err(error) = pull.request(self.slots.free()).await {
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
                    Delivery::Idle => {}
                    Delivery::Expired(undelivered) => pull.requested = pull.requested.saturating_sub(undelivered),
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
        if pull.subscriber.drain().await.is_err() {
            return;
        }
        // Bounded, for a connection that is down delivers nothing and ends nothing.
        let rest = async {
            while let Some(message) = pull.subscriber.next().await {
                let Delivery::Job(message) = pull.read(message) else { continue };
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
        let attempt = message.info().map_or(1, |info| u32::try_from(info.delivered).unwrap_or(u32::MAX));
        let job = match job::parse(&message.payload, &message.subject) {
            Ok(job) => job,
            Err(refusal) => {
                let intake = Arc::clone(self);
                jobs.spawn(async move { job::refuse(&intake, &message, attempt, &refusal).await });
                return;
            }
        };
        let Some(entry) = self.running.enter(&job.id) else {
            // Delivered again while it runs here, because nats-server did not hear of its
            // progress. The run's own acknowledgement will do for this delivery, too.
            tracing::info!(job = %job.id, attempt, "runs already");
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
            job::Run { intake: &intake, message: &message, job, attempt }.run(slot).await;
            drop(entry);
        });
    }
}

impl Pull {
    /// Asks for what there is room for and was not asked for yet.
    async fn request(&mut self, free: u32) -> Result<(), String> {
        let batch = free.saturating_sub(self.requested);
        if batch == 0 {
            return Ok(());
        }
        let config = BatchConfig {
            batch: batch as usize,
            expires: Some(PULL_EXPIRES),
            idle_heartbeat: PULL_HEARTBEAT,
            ..Default::default()
        };
        self.consumer.request_batch(config, self.inbox.clone()).await.map_err(|e| e.to_string())?;
        self.requested += batch;
        self.heard = Instant::now();
        Ok(())
    }

    async fn next(&mut self) -> Delivery {
        let silent = async {
            if self.requested == 0 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep_until(self.heard + PULL_SILENCE).await;
        };
        tokio::select! {
            biased;
            message = self.subscriber.next() => match message {
                Some(message) => self.read(message),
                None => Delivery::Void("the subscription was closed".to_owned()),
            },
            () = silent => Delivery::Void("nats-server is silent".to_owned()),
        }
    }

    fn read(&mut self, message: async_nats::Message) -> Delivery {
        self.heard = Instant::now();
        match message.status {
            None | Some(StatusCode::OK) => {
                self.requested = self.requested.saturating_sub(1);
                Delivery::Job(Box::new(Message { message, context: self.context.clone() }))
            }
            Some(StatusCode::IDLE_HEARTBEAT) => Delivery::Idle,
            Some(StatusCode::TIMEOUT) => Delivery::Expired(undelivered(&message)),
            Some(status) => Delivery::Void(format!("{status} {}", message.description.unwrap_or_default())),
        }
    }
}

/// How many messages a request that has ended was short of; all of them if it does not say.
fn undelivered(status: &async_nats::Message) -> u32 {
    let pending = status.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
    pending.and_then(|pending| pending.as_str().parse().ok()).unwrap_or(u32::MAX)
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
