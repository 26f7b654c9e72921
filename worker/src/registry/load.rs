//! Loads a model: the one place that knows which engine serves which source.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use emberline_inference::clock;
use emberline_inference::device::ComputeDevice;
use emberline_inference::engine::Engine;
use emberline_inference::engine::inference::{self, CacheSize, LoadError, LoadOptions, LoadProgress};
use emberline_inference::engine::simulated::SimulatedEngine;
use emberline_inference::memory::{self, NotEnough};
use emberline_protocol::bytes::Bytes;

use super::options::{ModelOptions, Source};

/// Makes a model's engine; called on the thread that then drives it.
pub type Loader = Arc<dyn Fn(&ModelOptions, &Loading) -> Result<Box<dyn Engine>, LoadFailure> + Send + Sync>;

/// The load of one model.
#[derive(Debug, Clone)]
pub struct Loading {
    /// How far it is.
    pub progress: LoadProgress,
    pending: PendingLoads,
}

/// How many models are to be loaded onto a device: they share what it has left.
#[derive(Debug, Clone, Default)]
pub struct PendingLoads(Arc<AtomicUsize>);

/// A model that is to be loaded, until this is dropped.
#[derive(Debug)]
pub struct PendingLoad(PendingLoads);

impl PendingLoads {
    /// One more; the simulated engine takes no part of any device.
    pub fn add(&self, source: &Source) -> Option<PendingLoad> {
        matches!(source, Source::Weights(_)).then(|| {
            self.0.fetch_add(1, Ordering::SeqCst);
            PendingLoad(self.clone())
        })
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for PendingLoad {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Loading {
    /// Not begun, and one of those that are pending.
    pub fn new(pending: &PendingLoads) -> Self {
        Self { progress: LoadProgress::default(), pending: pending.clone() }
    }
}

/// Concurrent jobs of a simulated model that names no number.
const SIMULATED_SLOTS: usize = 32;

/// Why a model can't be loaded; the message names the remedy.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum LoadFailure {
    #[error(transparent)]
    Model(#[from] LoadError),
    #[error(transparent)]
    Memory(#[from] NotEnough),
}

/// Loads the model that `options` describe, ready to serve.
pub fn load_engine(options: &ModelOptions, loading: &Loading) -> Result<Box<dyn Engine>, LoadFailure> {
    /// Loads run one at a time: each must find the memory gone that the one before took, and uses all cores.
    static TURN: Mutex<()> = Mutex::new(());
    let settings = &options.settings;
    match &options.source {
        Source::Simulated { tokens_per_s } => {
            tracing::warn!(model = %options.name, "using the simulated engine: fixed words, no model");
            let now = clock::unix_time();
            let (name, slots) = (options.name.clone(), settings.slots.map_or(SIMULATED_SLOTS, usize::from));
            Ok(Box::new(SimulatedEngine::new(name, slots, *tokens_per_s, now.as_secs())))
        }
        Source::Weights(source) => {
            let path = source.fetch().map_err(LoadError::from)?;
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            let device = ComputeDevice::open(settings.backend, settings.adapter.as_deref())
                .map_err(LoadError::Device)?;
            let sharers = loading.pending.count();
            let most = settings.max_memory.map(|Bytes(bytes)| bytes);
            let room = device.memory().map(|memory| memory.room(sharers));
            let room = room.map_or(most, |room| Some(most.map_or(room, |most| most.min(room))));
            memory::check(&path, settings.quantize, settings.cache_memory, room)?;
            let engine = inference::load(&LoadOptions {
                slots: settings.slots.map(usize::from),
                max_memory: most,
                sharers,
                progress: loading.progress.clone(),
                cache: settings.cache_memory.map_or(CacheSize::Auto, |Bytes(bytes)| CacheSize::Bytes(bytes)),
                cache_dtype: settings.cache_dtype,
                context_length: settings.context_length,
                prefill_budget: settings.prefill_budget.map(usize::from),
                quantize: settings.quantize,
                speculation: settings.speculation,
                precision: settings.precision,
                ..LoadOptions::new(path, &options.name, device)
            })?;
            Ok(Box::new(engine))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_are_to_be_loaded_are_counted_until_they_are() {
        let pending = PendingLoads::default();
        let weights = Source::Weights("x.gguf".parse().unwrap());
        let (first, second) = (pending.add(&weights), pending.add(&weights));
        assert!(pending.add(&Source::Simulated { tokens_per_s: 0.0 }).is_none());
        assert_eq!(Loading::new(&pending).pending.count(), 2);
        drop(first);
        assert_eq!(pending.count(), 1);
        drop(second);
        assert_eq!(pending.count(), 0);
    }
}
