//! What computes: a set of running sequences, advanced one step at a time.
//!
//! An engine is driven by one thread: [`Engine::submit`] and [`Engine::cancel`] between steps,
//! [`Engine::step`] as long as [`Engine::has_work`]. It never blocks on anything but the device.

pub mod blocks;
pub mod burn;
pub mod runner;
pub mod scheduler;
mod sequence;
pub mod simulated;
pub mod thread;

use std::time::Instant;

use emberline_shared::event::{EventKind, Usage};
use emberline_shared::heartbeat::ServedModel;
use emberline_shared::job::Job;
use emberline_shared::subject::JobId;

/// Something that happened to a job during a step.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineEvent {
    /// Whose event this is.
    pub job: JobId,
    /// What happened. `Done` and `Error` are the last of a job.
    pub kind: EventKind,
}

/// Runs several jobs at once on one device.
pub trait Engine: Send {
    /// What this engine serves.
    fn models(&self) -> Vec<ServedModel>;

    /// `burn` or `simulated`, as the heartbeat shows it.
    fn name(&self) -> &'static str;

    /// The device in words.
    fn device(&self) -> String;

    /// Jobs it can run at once.
    fn capacity(&self) -> usize;

    /// Takes a job in that left the queue at `taken`. The next step answers with `Accepted`, or
    /// with `Error` if the request can't be served (before anything is computed for it).
    fn submit(&mut self, job: Job, taken: Instant);

    /// Drops a job and frees what it held; tells what had been computed for it.
    fn cancel(&mut self, job: &JobId) -> Option<Usage>;

    /// Whether a step would do anything.
    fn has_work(&self) -> bool;

    /// Advances every running job: prefills those that are new, decodes a token for the others.
    fn step(&mut self) -> Vec<EngineEvent>;
}
