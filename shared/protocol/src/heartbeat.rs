//! A worker's status, published every [`HEARTBEAT_INTERVAL_S`] seconds and whenever its load changes.

use serde::{Deserialize, Serialize};

use crate::versioned::{self, Unreadable};

/// Interval between heartbeats, in seconds.
pub const HEARTBEAT_INTERVAL_S: u64 = 2;
/// Lifetime of a heartbeat, in seconds; a worker that is silent for longer counts as dead.
pub const HEARTBEAT_TTL_S: u64 = 8;

/// A worker's entry in the `workers` bucket, once for each model that it takes jobs for ([`crate::subject::heartbeats`]).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The worker's id; new at each start.
    pub worker: String,
    /// The models that it serves now.
    pub models: Vec<ServedModel>,
    /// `burn`, or `simulated` for the engine without a model; comma-separated if it has both.
    pub engine: String,
    /// The device in words, such as `NVIDIA H100 (vulkan)`; empty before anything is loaded.
    pub device: String,
    /// The worker's version.
    pub version: String,
    /// Number of jobs, of all its models together, that it can run at the same time.
    pub capacity: u32,
    /// Number of jobs that it runs now.
    pub active: u32,
    /// Whether it takes no new jobs.
    pub draining: bool,
    /// Every model that it is configured to serve or that still has running jobs; empty from older workers.
    /// While a model is replaced by another of the same name, both are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<ModelStatus>,
    /// Error in the new configuration, because of which the previous one stays in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Heartbeat {
    /// The models for which it takes new jobs.
    pub fn takes_jobs_for(&self) -> &[ServedModel] {
        if self.draining { &[] } else { &self.models }
    }

    /// Reads a heartbeat of this version.
    pub fn read(payload: &[u8]) -> Result<Self, Unreadable> {
        versioned::read(payload, |heartbeat: &Self| heartbeat.v)
    }
}

/// Status of one model of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// The model's name in jobs.
    pub name: String,
    /// What the worker does with it.
    pub state: ModelState,
    /// Why the worker does not serve it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Number of its jobs that can run at the same time.
    pub capacity: u32,
    /// Number of its jobs that run now.
    pub active: u32,
    /// Recently completed jobs per second of time in which any ran; 0 if unknown.
    #[serde(default)]
    pub pace: f64,
    /// Largest memory use in bytes, weights and cache included, on the GPU if it runs there, else of the
    /// machine. `None` if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// How much of it is loaded, in percent, while it is; `None` if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_percent: Option<u32>,
}

/// What a worker does with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// It is being loaded, or waits for that.
    Loading,
    /// It takes jobs.
    Serving,
    /// It takes no new jobs and is unloaded when its running jobs have ended.
    Draining,
    /// It can't be served.
    Failed,
    /// A state that a newer worker reports.
    #[serde(other)]
    Unknown,
}

/// A model that a worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel {
    /// The model's name in jobs.
    pub name: String,
    /// Largest number of tokens of prompt and completion together.
    pub context_length: u32,
    /// When the worker loaded it, in Unix seconds.
    pub created: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_and_newer_workers_say_is_understood() {
        let old = r#"{"v":1,"worker":"w","models":[],"engine":"burn","device":"d","version":"0","capacity":1,
            "active":0,"draining":false}"#;
        let read: Heartbeat = serde_json::from_str(old).unwrap();
        assert!(read.states.is_empty() && read.problem.is_none());
        let states = r#""states":[{"name":"m","state":"hibernating","capacity":0,"active":0,"since":7}]"#;
        let newer = old.replace("\"draining\":false", &format!("\"draining\":false,{states}"));
        let read: Heartbeat = serde_json::from_str(&newer).unwrap();
        let state = &read.states[0];
        assert_eq!((state.state, state.pace, state.memory), (ModelState::Unknown, 0.0, None));
        assert_eq!(state.loaded_percent, None);
    }
}
