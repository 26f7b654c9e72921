//! Counts takeovers in the events that workers publish: a test of takeovers in which none happened shows
//! nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use emberline_protocol::event::EventKind;
use emberline_protocol::subject::LIVE_SUBJECTS;
use futures::StreamExt as _;
use tokio::task::JoinSet;

use crate::events::{Event, events_of};
use crate::nats::{Nats, function_client};
use crate::wait;

/// Follows the events of all jobs until it is dropped.
#[derive(Debug)]
pub struct EventWatcher {
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Seen {
    takeovers: usize,
    requeued: usize,
    /// The worker that announced each attempt.
    announced: HashMap<(String, u32), String>,
    /// The subjects of the logs in which attempts were announced, in order.
    taken: Vec<String>,
    /// Number of accepted attempts of each worker.
    accepted: HashMap<String, usize>,
}

impl EventWatcher {
    /// Subscribes to the events.
    pub async fn start(nats: &impl Nats) -> Result<Self> {
        let client = function_client(nats).await?;
        let mut events = client.subscribe(LIVE_SUBJECTS).await?;
        client.flush().await?;
        let seen = Arc::<Mutex<Seen>>::default();
        let (mut task, watched) = (JoinSet::new(), Arc::clone(&seen));
        task.spawn(async move {
            while let Some(message) = events.next().await {
                if let Ok(chunk) = serde_json::from_slice(&message.payload) {
                    for event in events_of(chunk) {
                        lock(&watched).see(message.subject.to_string(), event);
                    }
                }
            }
        });
        Ok(Self { seen, _task: task })
    }

    /// Number of attempts that continued an earlier one.
    pub fn takeovers(&self) -> usize {
        lock(&self.seen).takeovers
    }

    /// Number of jobs that a stopping worker gave back to the queue.
    pub fn requeued(&self) -> usize {
        lock(&self.seen).requeued
    }

    /// Number of times that a worker has taken a job.
    pub fn jobs_taken(&self) -> usize {
        lock(&self.seen).taken.len()
    }

    /// Waits until the job `id` has been taken; how many jobs were taken before it.
    pub async fn jobs_taken_before(&self, id: &str) -> Result<usize> {
        let place = || lock(&self.seen).taken.iter().position(|log| log.ends_with(id));
        wait::until(format!("{id} is taken"), async || Ok(place().is_some())).await?;
        Ok(place().unwrap_or_default())
    }

    /// Waits until a worker has begun `more` more jobs.
    pub async fn wait_for_jobs(&self, worker: &str, more: usize) -> Result<()> {
        let begun = || lock(&self.seen).accepted.get(worker).copied().unwrap_or_default();
        let goal = begun() + more;
        wait::until(format!("{worker} begins {more} jobs"), async || Ok(begun() >= goal)).await
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    fn see(&mut self, log: String, event: Event) {
        match event.kind {
            EventKind::Taken { worker, .. } => {
                self.taken.push(log.clone());
                self.announced.insert((log, event.attempt), worker);
            }
            EventKind::Accepted(_) => {
                if let Some(worker) = self.announced.remove(&(log, event.attempt)) {
                    *self.accepted.entry(worker).or_default() += 1;
                    self.takeovers += usize::from(event.attempt > 1);
                }
            }
            EventKind::HandedBack => self.requeued += 1,
            _ => {}
        }
    }
}
