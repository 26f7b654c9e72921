//! Sees from the event logs that jobs did change hands: a test in which none did shows nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use emberline_protocol::event::{Event, EventKind};
use futures::StreamExt as _;
use tokio::task::JoinSet;

use crate::nats::{Nats, worker_client};
use crate::stack::PATIENCE;

/// Reads along until it is dropped.
#[derive(Debug)]
pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Seen {
    takeovers: usize,
    handed_back: usize,
    /// Who wants to have begun an attempt; a worker that came too late is seen, but goes no further.
    wanted: HashMap<(String, u32), String>,
    /// Attempts of each worker.
    taken: HashMap<String, usize>,
}

impl Witness {
    /// Begins.
    pub async fn start(nats: &impl Nats) -> Result<Self> {
        let client = worker_client(nats).await?;
        let mut events = client.subscribe("emberline.events.*").await?;
        client.flush().await?;
        let seen = Arc::<Mutex<Seen>>::default();
        let (mut task, told) = (JoinSet::new(), Arc::clone(&seen));
        task.spawn(async move {
            while let Some(message) = events.next().await {
                if let Ok(event) = serde_json::from_slice::<Event>(&message.payload) {
                    lock(&told).see(message.subject.to_string(), event);
                }
            }
        });
        Ok(Self { seen, _task: task })
    }

    /// Attempts that went on where another had ended.
    pub fn takeovers(&self) -> usize {
        lock(&self.seen).takeovers
    }

    /// Jobs that were given up unharmed.
    pub fn handed_back(&self) -> usize {
        lock(&self.seen).handed_back
    }

    /// Waits until a worker has taken so many more jobs.
    pub async fn takes(&self, worker: &str, more: usize) -> Result<()> {
        let taken = || lock(&self.seen).taken.get(worker).copied().unwrap_or_default();
        let goal = taken() + more;
        let reached = async {
            while taken() < goal {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.with_context(|| format!("{worker} takes no jobs"))
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    fn see(&mut self, log: String, event: Event) {
        match event.kind {
            EventKind::Taken { worker } => {
                self.wanted.insert((log, event.attempt), worker);
            }
            EventKind::Accepted(_) => {
                if let Some(worker) = self.wanted.remove(&(log, event.attempt)) {
                    *self.taken.entry(worker).or_default() += 1;
                    self.takeovers += usize::from(event.attempt > 1);
                }
            }
            EventKind::HandedBack => self.handed_back += 1,
            _ => {}
        }
    }
}
