//! What a worker says of itself, every [`HEARTBEAT_INTERVAL_S`] and at each change of its load.

use serde::{Deserialize, Serialize};

/// How often a worker renews its heartbeat, in seconds.
pub const HEARTBEAT_INTERVAL_S: u64 = 2;
/// How long a heartbeat counts, in seconds; a worker silent for longer is taken for dead.
pub const HEARTBEAT_TTL_S: u64 = 8;

/// A worker's entry in the `workers` bucket, under its own id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The worker's id; new at each start.
    pub worker: String,
    /// What it serves now.
    pub models: Vec<ServedModel>,
    /// `burn`, or `simulated` for the engine that has no model; both, with a comma, if it has both.
    pub engine: String,
    /// The device in words, such as `NVIDIA H100 (vulkan)`; empty before anything is loaded.
    pub device: String,
    /// The worker's version.
    pub version: String,
    /// Jobs of all its models that it can run at once.
    pub capacity: u32,
    /// Jobs it runs now.
    pub active: u32,
    /// It takes no more jobs.
    pub draining: bool,
    /// Every model that it is told to serve or still has jobs of; empty from a worker that does
    /// not tell. A model that is replaced by another of its name is there twice for a while.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<ModelStatus>,
    /// What is wrong with its configuration, which therefore stays as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How one of a worker's models is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// The name jobs are addressed to.
    pub name: String,
    /// What the worker does with it.
    pub state: ModelState,
    /// Why it is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its jobs that can run at once.
    pub capacity: u32,
    /// Its jobs that run now.
    pub active: u32,
    /// Its jobs that ended lately, in a second in which any ran; 0 if that is not known.
    #[serde(default)]
    pub pace: f64,
    /// Bytes that it takes at most, weights and cache included: of the machine's memory, or of its
    /// GPU's. `None` if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

/// What a worker does with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// It is being loaded, or waits for that.
    Loading,
    /// It takes jobs.
    Serving,
    /// It takes no more jobs and is unloaded after those that run.
    Draining,
    /// It can't be served.
    Failed,
    /// Something that a newer worker says.
    #[serde(other)]
    Unknown,
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
    }
}
