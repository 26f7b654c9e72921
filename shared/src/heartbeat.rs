//! What a worker says of itself, every [`HEARTBEAT_INTERVAL_S`] and at each change of its load.

use serde::{Deserialize, Serialize};

/// How often a worker renews its heartbeat, in seconds.
pub const HEARTBEAT_INTERVAL_S: u64 = 2;
/// How long a heartbeat counts, in seconds; a worker silent for longer is taken for dead.
pub const HEARTBEAT_TTL_S: u64 = 8;

/// A worker's entry in the `workers` bucket, under its own id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The worker's id; new at each start.
    pub worker: String,
    /// What it serves.
    pub models: Vec<ServedModel>,
    /// `burn`, or `simulated` for the engine that has no model.
    pub engine: String,
    /// The device in words, such as `NVIDIA H100 (vulkan)`.
    pub device: String,
    /// The worker's version.
    pub version: String,
    /// Jobs it can run at once.
    pub capacity: u32,
    /// Jobs it runs now.
    pub active: u32,
    /// It takes no more jobs.
    pub draining: bool,
}

/// A model that a worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel {
    /// The name jobs are addressed to.
    pub name: String,
    /// Prompt and completion together, in tokens.
    pub context_length: u32,
    /// When the worker loaded it, unix seconds.
    pub created: u64,
}
