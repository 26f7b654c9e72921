//! Brings the models that are wanted and those that are loaded together.
//!
//! Each model that is loading, serving or draining is registered; an [`Instance`] runs it and reports.
//! When a model's options change, the old instance serves until the new one does. A model for which
//! there is no memory is loaded once another has freed its own. A model that can't be served is kept
//! with the reason, and the others go on; the worker ends only when nothing is left of what it was
//! started with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use emberline_protocol::heartbeat::ModelState;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::file::WantedModels;
use super::instance::{Instance, ModelFailure, Report, WorkerContext};
use super::load::{LoadFailure, Loading, PendingLoads};
use super::options::ModelOptions;
use super::status::{Loaded, ModelStatus, RegistryStatus};
use crate::intake::Phase;
use crate::logging::one_line;

/// Pause before a model whose engine has failed is loaded again; doubled with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After running for this long an engine counts as recovered, and the pause starts again from the first.
const STEADY: Duration = Duration::from_secs(300);

/// No model is served any more, or none ever was; carries the last reason.
#[derive(Debug, thiserror::Error)]
#[error("model '{name}': {failure}")]
pub struct NothingServable {
    /// The model.
    pub name: String,
    /// Why it is not served.
    pub failure: ModelFailure,
}

/// The models of a worker.
pub struct ModelRegistry {
    context: Arc<WorkerContext>,
    wanted: WantedModels,
    registered: Vec<RegisteredModel>,
    failed: BTreeMap<String, Failed>,
    status: watch::Sender<RegistryStatus>,
    next_id: u64,
    /// Models that are to be loaded.
    pending: PendingLoads,
    /// How many models have freed their memory.
    unloads: u64,
    /// Whether any model was ever served. Until then, a model that can't be loaded ends the worker.
    has_served: bool,
    reports: mpsc::UnboundedReceiver<(u64, Report)>,
    reporter: mpsc::UnboundedSender<(u64, Report)>,
}

struct RegisteredModel {
    id: u64,
    options: Arc<ModelOptions>,
    phase: Arc<watch::Sender<Phase>>,
    stage: Stage,
    /// It is to finish its jobs and be unloaded.
    draining: bool,
    /// Since when it has been serving.
    since: Instant,
    loaded: Option<Loaded>,
    loading: Loading,
    /// The registry's `unloads` when it started.
    unloads: u64,
    /// Consecutive failures of its engine before this start.
    crashes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Loading,
    Serving,
    /// Has no more jobs and is being unloaded.
    Drained,
}

/// A model that is wanted but can't be served.
struct Failed {
    reason: String,
    crashes: u32,
    retry: Retry,
}

/// When a model that has failed is tried again. All are when the configuration is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Never,
    /// When another model has freed its memory.
    WithMemory,
    At(Instant),
}

impl ModelRegistry {
    /// Without any model.
    pub fn new(context: Arc<WorkerContext>) -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        Self {
            context,
            wanted: WantedModels::default(),
            registered: Vec::new(),
            failed: BTreeMap::new(),
            status: watch::Sender::default(),
            next_id: 0,
            pending: PendingLoads::default(),
            unloads: 0,
            has_served: false,
            reports,
            reporter,
        }
    }

    /// The state of all models, and its changes.
    pub fn status(&self) -> watch::Receiver<RegistryStatus> {
        self.status.subscribe()
    }

    /// Serves the wanted models; returns once nothing can be served.
    pub async fn run(&mut self, wanted: &mut watch::Receiver<WantedModels>) -> NothingServable {
        loop {
            let now = wanted.borrow_and_update().clone();
            self.apply(now);
            self.start_missing();
            self.publish();
            let retries = self.failed.values().filter_map(|failed| match failed.retry {
                Retry::At(time) => Some(time),
                _ => None,
            });
            let next_retry = retries.min();
            tokio::select! {
                Ok(()) = wanted.changed() => {}
                Some((id, report)) = self.reports.recv() => if let Some(end) = self.on_report(id, report) {
                    return end;
                },
                () = tokio::time::sleep_until(next_retry.unwrap_or_else(Instant::now)), if next_retry.is_some() => {}
            }
        }
    }

    /// Lets all models finish their jobs; returns when none has any left.
    pub async fn drain(&mut self) {
        self.registered.iter_mut().for_each(RegisteredModel::drain);
        // A load can't be stopped, and nobody waits for it.
        self.registered.retain(|model| model.loaded.is_some());
        self.failed.clear();
        while self.registered.iter().any(|model| model.stage != Stage::Drained) {
            self.publish();
            let Some((id, report)) = self.reports.recv().await else { return };
            self.on_report(id, report);
        }
    }

    /// Waits until the models that [`ModelRegistry::drain`] drained are unloaded.
    pub async fn unload(&mut self) {
        while !self.registered.is_empty() {
            let Some((id, report)) = self.reports.recv().await else { return };
            self.on_report(id, report);
        }
    }

    /// Applies what is wanted now, and drains models that are wanted no more.
    fn apply(&mut self, wanted: WantedModels) {
        if wanted.revision != self.wanted.revision {
            // Whatever was wrong may have been fixed.
            self.failed.clear();
        }
        self.wanted = wanted;
        for model in &mut self.registered {
            let wanted = self.wanted.models.get(&model.options.name);
            let ends = match wanted {
                None => true,
                // A serving one stays until its successor serves.
                Some(options) => model.stage == Stage::Loading && *options != *model.options,
            };
            if ends && !model.draining {
                tracing::info!(model = %model.options.name, "the model is no longer wanted; finishing its jobs");
                model.drain();
            }
        }
    }

    /// Starts models that are wanted, not registered, and due.
    fn start_missing(&mut self) {
        let missing: Vec<ModelOptions> = self
            .wanted
            .models
            .values()
            .filter(|&options| {
                // A failed instance stays registered until it reports its end.
                let there = self.registered.iter().any(|m| !m.draining && *m.options == *options);
                let waits = self.failed.get(&options.name).is_some_and(|failed| match failed.retry {
                    Retry::At(time) => time > Instant::now(),
                    Retry::Never | Retry::WithMemory => true,
                });
                !there && !waits
            })
            .cloned()
            .collect();
        for options in missing {
            let crashes = self.failed.remove(&options.name).map_or(0, |failed| failed.crashes);
            self.start(options, crashes);
        }
    }

    fn start(&mut self, options: ModelOptions, crashes: u32) {
        tracing::info!(model = %options.name, "loading");
        let model = RegisteredModel {
            id: self.next_id,
            options: Arc::new(options),
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            stage: Stage::Loading,
            draining: false,
            since: Instant::now(),
            loaded: None,
            loading: Loading::new(&self.pending),
            unloads: self.unloads,
            crashes,
        };
        self.next_id += 1;
        let instance = Instance {
            id: model.id,
            options: Arc::clone(&model.options),
            context: Arc::clone(&self.context),
            phase: Arc::clone(&model.phase),
            reports: self.reporter.clone(),
            loading: model.loading.clone(),
            pending: self.pending.add(&model.options.source),
        };
        instance.spawn();
        self.registered.push(model);
    }

    /// Takes note of an instance's report; returns the error that ends the worker, if it does.
    fn on_report(&mut self, id: u64, report: Report) -> Option<NothingServable> {
        let model = self.registered.iter_mut().find(|model| model.id == id)?;
        match report {
            Report::Serving(loaded) => {
                model.loaded = Some(loaded);
                model.since = Instant::now();
                model.stage = Stage::Serving;
                if !model.draining {
                    self.has_served = true;
                    let name = model.options.name.clone();
                    self.drain_predecessors(&name, id);
                }
                None
            }
            Report::Drained => {
                model.stage = Stage::Drained;
                None
            }
            Report::Ended(ended) => {
                let position = self.registered.iter().position(|model| model.id == id)?;
                let model = self.registered.remove(position);
                if model.loaded.is_some() || ended.is_ok() {
                    self.unloads += 1;
                    self.failed.retain(|_, failed| failed.retry != Retry::WithMemory);
                }
                match ended {
                    Err(failure) if failure.is_device_lost() || self.was_needed(&model) => {
                        self.on_failure(&model, failure)
                    }
                    Err(failure) => {
                        tracing::info!(model = %model.options.name, %failure, "model unloaded after a failure");
                        None
                    }
                    Ok(()) => None,
                }
            }
        }
    }

    /// Drains older instances of this name.
    fn drain_predecessors(&mut self, name: &str, successor: u64) {
        let older = |model: &&mut RegisteredModel| model.options.name == name && model.id < successor;
        self.registered.iter_mut().filter(older).for_each(RegisteredModel::drain);
    }

    /// Whether the end of this instance leaves a wanted model unserved.
    fn was_needed(&self, ended: &RegisteredModel) -> bool {
        let same_name =
            |model: &RegisteredModel| model.is_staying() && model.options.name == ended.options.name;
        let wanted = self.wanted.models.get(&ended.options.name);
        // While another of its name serves, only the options that are wanted now are missed.
        let is_gap = wanted
            .is_some_and(|options| *options == *ended.options || !self.registered.iter().any(same_name));
        is_gap && !ended.draining
    }

    /// Decides when a failed model is tried again; returns the error that ends the worker, if it does.
    fn on_failure(&mut self, model: &RegisteredModel, failure: ModelFailure) -> Option<NothingServable> {
        let name = model.options.name.clone();
        let reason = one_line(&failure.to_string());
        tracing::error!(model = %name, %reason, "model unavailable");
        let alone = !self.registered.iter().any(RegisteredModel::is_staying);
        let has_crashed = matches!(failure, ModelFailure::Engine(_));
        // The other models may share the device, and another process can use it again.
        if failure.is_device_lost() || alone && (has_crashed || !self.has_served) {
            return Some(NothingServable { name, failure });
        }
        let (crashes, retry) = match &failure {
            ModelFailure::Engine(_) => {
                let crashes = if model.since.elapsed() > STEADY { 0 } else { model.crashes };
                let pause = FIRST_PAUSE.saturating_mul(1 << crashes.min(10)).min(LONGEST_PAUSE);
                (crashes + 1, Retry::At(Instant::now() + pause))
            }
            // Memory was freed during the attempt.
            ModelFailure::Load(LoadFailure::Memory(_)) if model.unloads != self.unloads => {
                (0, Retry::At(Instant::now()))
            }
            ModelFailure::Load(LoadFailure::Memory(_)) => {
                // There is no room beside the instance that it is to replace: that one is drained first.
                let same_name = |other: &&mut RegisteredModel| other.options.name == name;
                self.registered.iter_mut().filter(same_name).for_each(RegisteredModel::drain);
                (0, Retry::WithMemory)
            }
            _ => (0, Retry::Never),
        };
        self.failed.insert(name, Failed { reason, crashes, retry });
        None
    }

    fn publish(&self) {
        let makes_room = self.registered.iter().any(|model| model.draining);
        let failed = self.failed.iter().filter_map(|(name, failed)| {
            let options = self.wanted.models.get(name)?;
            let state = match failed.retry {
                Retry::WithMemory if makes_room => ModelState::Loading,
                Retry::At(_) => ModelState::Loading,
                _ => ModelState::Failed,
            };
            let reason = Some(failed.reason.clone());
            let (name, engine) = (name.clone(), options.engine());
            Some(ModelStatus { name, state, reason, engine, loaded: None, loading: None })
        });
        let mut models: Vec<ModelStatus> =
            failed.chain(self.registered.iter().rev().map(RegisteredModel::status)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        self.status.send_replace(RegistryStatus { models, problem: self.wanted.problem.clone() });
    }
}

impl RegisteredModel {
    /// Whether it serves or will serve.
    fn is_staying(&self) -> bool {
        !self.draining && self.stage != Stage::Drained
    }

    /// Has it finish its jobs and be unloaded.
    fn drain(&mut self) {
        self.draining = true;
        self.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::Draining;
            }
            serving
        });
    }

    fn status(&self) -> ModelStatus {
        let state = match self.stage {
            Stage::Loading if !self.draining => ModelState::Loading,
            Stage::Serving if !self.draining => ModelState::Serving,
            _ => ModelState::Draining,
        };
        ModelStatus {
            name: self.options.name.clone(),
            state,
            reason: None,
            engine: self.options.engine(),
            loaded: self.loaded.clone(),
            loading: (state == ModelState::Loading).then(|| self.loading.progress.clone()),
        }
    }
}
