//! What the worker's models are doing, for the heartbeat to tell.

use emberline_protocol::heartbeat::{ModelState, ModelStatus, ServedModel};

use crate::intake::slots::Slots;

/// All models of a worker at one time.
#[derive(Debug, Clone, Default)]
pub struct Board {
    /// By name; the older of two that have the same one comes last.
    pub models: Vec<Row>,
    /// Why a change of the configuration was not followed.
    pub problem: Option<String>,
}

/// One model.
#[derive(Debug, Clone)]
pub struct Row {
    /// The name jobs are addressed to.
    pub name: String,
    /// What is done with it.
    pub state: ModelState,
    /// Why it is not served.
    pub reason: Option<String>,
    /// `burn` or `simulated`.
    pub engine: &'static str,
    /// There once it is loaded.
    pub loaded: Option<Loaded>,
}

/// What is known of a model that is loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// As the function sees it.
    pub served: Vec<ServedModel>,
    /// The device in words.
    pub device: String,
    /// Its jobs.
    pub slots: Slots,
    /// Bytes that it takes at most.
    pub memory: Option<u64>,
}

impl Board {
    /// What takes jobs now.
    pub fn served(&self) -> Vec<ServedModel> {
        let serving = self.serving().filter_map(|row| row.loaded.as_ref());
        serving.flat_map(|loaded| loaded.served.clone()).collect()
    }

    /// Jobs at once of all models that take any.
    pub fn capacity(&self) -> u32 {
        let slots = self.serving().filter_map(|row| row.loaded.as_ref()).map(|loaded| &loaded.slots);
        slots.map(Slots::capacity).fold(0, u32::saturating_add)
    }

    /// The engines, each once.
    pub fn engines(&self) -> String {
        distinct(self.models.iter().map(|row| row.engine))
    }

    /// The devices, each once.
    pub fn devices(&self) -> String {
        distinct(self.models.iter().filter_map(|row| Some(row.loaded.as_ref()?.device.as_str())))
    }

    /// Each model, as the heartbeat has it.
    pub fn states(&self) -> Vec<ModelStatus> {
        let status = |row: &Row| {
            let slots = row.loaded.as_ref().map(|loaded| &loaded.slots);
            ModelStatus {
                name: row.name.clone(),
                state: row.state,
                reason: row.reason.clone(),
                capacity: slots.map_or(0, Slots::capacity),
                active: slots.map_or(0, |slots| *slots.active().borrow()),
                pace: slots.map_or(0.0, Slots::pace),
                memory: row.loaded.as_ref().and_then(|loaded| loaded.memory),
            }
        };
        self.models.iter().map(status).collect()
    }

    fn serving(&self) -> impl Iterator<Item = &Row> {
        self.models.iter().filter(|row| row.state == ModelState::Serving)
    }
}

fn distinct<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut found: Vec<&str> = Vec::new();
    for text in texts {
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found.join(", ")
}
