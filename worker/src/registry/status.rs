//! The state of the worker's models, as the heartbeat publishes it.

use emberline_inference::engine::inference::LoadProgress;
use emberline_inference::engine::thread::EngineProgress;
use emberline_protocol::heartbeat::{self, ModelState, ServedModel};

use crate::intake::slots::Slots;

/// All models of a worker at one moment.
#[derive(Debug, Clone, Default)]
pub struct RegistryStatus {
    /// By name; of two with the same name, the older comes last.
    pub models: Vec<ModelStatus>,
    /// Why the last change of the configuration was not applied.
    pub problem: Option<String>,
}

/// One model.
#[derive(Debug, Clone)]
pub struct ModelStatus {
    /// The name jobs are addressed to.
    pub name: String,
    /// Loading, serving, draining or failed.
    pub state: ModelState,
    /// Why it is not served.
    pub reason: Option<String>,
    /// `burn` or `simulated`.
    pub engine: &'static str,
    /// Known once it is loaded.
    pub loaded: Option<Loaded>,
    /// How far it is, while it is loaded.
    pub loading: Option<LoadProgress>,
}

/// What is known of a loaded model.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// As the function sees it.
    pub served: Vec<ServedModel>,
    /// The device in words.
    pub device: String,
    /// Its slots for jobs.
    pub slots: Slots,
    /// What its engine's thread does.
    pub progress: EngineProgress,
    /// Most bytes of memory that it takes.
    pub memory: Option<u64>,
}

impl RegistryStatus {
    /// The models that take jobs now.
    pub fn served(&self) -> Vec<ServedModel> {
        let serving = self.serving().filter_map(|model| model.loaded.as_ref());
        serving.flat_map(|loaded| loaded.served.clone()).collect()
    }

    /// Concurrent jobs of all models that take any.
    pub fn capacity(&self) -> u32 {
        let slots = self.serving().filter_map(|model| model.loaded.as_ref()).map(|loaded| &loaded.slots);
        slots.map(Slots::capacity).fold(0, u32::saturating_add)
    }

    /// The engines' names, each once.
    pub fn engines(&self) -> String {
        distinct(self.models.iter().map(|model| model.engine))
    }

    /// The devices, each once.
    pub fn devices(&self) -> String {
        distinct(self.models.iter().filter_map(|model| Some(model.loaded.as_ref()?.device.as_str())))
    }

    /// Each model's entry in the heartbeat.
    pub fn states(&self) -> Vec<heartbeat::ModelStatus> {
        let status = |model: &ModelStatus| {
            let slots = model.loaded.as_ref().map(|loaded| &loaded.slots);
            heartbeat::ModelStatus {
                name: model.name.clone(),
                state: model.state,
                reason: model.reason.clone(),
                capacity: slots.map_or(0, Slots::capacity),
                active: slots.map_or(0, |slots| *slots.active().borrow()),
                pace: slots.map_or(0.0, Slots::pace),
                memory: model.loaded.as_ref().and_then(|loaded| loaded.memory),
                loaded_percent: model.loading.as_ref().map(LoadProgress::percent),
            }
        };
        self.models.iter().map(status).collect()
    }

    fn serving(&self) -> impl Iterator<Item = &ModelStatus> {
        self.models.iter().filter(|model| model.state == ModelState::Serving)
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
