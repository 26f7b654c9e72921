//! What a system under test has to offer to be measured.

use std::collections::BTreeMap;

use super::load::Target;
use super::processes::Part;

/// How a system is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Tokens a second of each stream; `None` for as many as the workers can.
    pub(crate) tokens_per_s: Option<u32>,
}

/// What nats-server has stored and passed on since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NatsCounts {
    /// Stored messages by stream.
    pub(crate) stored: BTreeMap<String, u64>,
    pub(crate) messages_in: u64,
    pub(crate) messages_out: u64,
    /// Connections that clients have made.
    pub(crate) connections: u64,
}

impl NatsCounts {
    /// What came after `start`.
    pub(crate) fn since(&self, start: &Self) -> Self {
        let before = |stream| start.stored.get(stream).copied().unwrap_or(0);
        let stored =
            self.stored.iter().map(|(stream, count)| (stream.clone(), count.saturating_sub(before(stream))));
        Self {
            stored: stored.collect(),
            messages_in: self.messages_in.saturating_sub(start.messages_in),
            messages_out: self.messages_out.saturating_sub(start.messages_out),
            connections: self.connections.saturating_sub(start.connections),
        }
    }
}

/// A system that serves chat completions by one worker or two.
pub(crate) trait System {
    /// Starts everything, with worker 1 alone, and waits until it answers.
    async fn start(&mut self) -> anyhow::Result<()>;
    /// Stops everything that runs.
    async fn stop(&mut self);
    /// Where it serves.
    fn target(&self) -> &Target;
    /// Its processes.
    fn parts(&self) -> Vec<Part>;
    /// The counts of its nats-server, if it has one.
    async fn nats_counts(&self) -> anyhow::Result<Option<NatsCounts>> {
        Ok(None)
    }
    /// Starts a worker and waits until it is given requests.
    async fn start_worker(&mut self, number: usize) -> anyhow::Result<()>;
    /// Kills a worker (`kill -9`).
    async fn kill_worker(&mut self, number: usize);
}
