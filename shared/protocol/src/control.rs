//! Messages from a relay to the worker that runs its job.

use serde::{Deserialize, Serialize};

/// Interval at which a relay sends [`Control::Alive`], in seconds.
pub const ALIVE_INTERVAL_S: u64 = 5;
/// Time without [`Control::Alive`] after which a worker cancels the job, in seconds.
pub const ALIVE_TIMEOUT_S: u64 = 15;

/// A message on a job's control subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Control {
    /// The client is still reading.
    Alive,
    /// The client disconnected: stop the job and free its slot.
    Cancel,
}
