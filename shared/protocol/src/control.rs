//! What a relay tells the worker that runs its job.

use serde::{Deserialize, Serialize};

/// How often a relay says that its client is still there, in seconds.
pub const ALIVE_INTERVAL_S: u64 = 5;
/// How long a worker goes on without hearing from the relay, in seconds.
pub const ALIVE_TIMEOUT_S: u64 = 15;

/// A message on a job's control subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Control {
    /// The client is still reading.
    Alive,
    /// The client is gone: stop and free the slot.
    Cancel,
}
