//! Loads a model: the one place that knows which engine serves which source.

use std::sync::{Arc, Mutex, PoisonError};

use emberline_inference::clock;
use emberline_inference::device::ComputeDevice;
use emberline_inference::engine::Engine;
use emberline_inference::engine::inference::{self, CacheSize, LoadError, LoadOptions};
use emberline_inference::engine::simulated::SimulatedEngine;
use emberline_inference::memory::{self, NotEnough};
use emberline_protocol::bytes::Bytes;

use super::options::{ModelOptions, Source};

/// Makes a model's engine; called on a thread that may block.
pub type Loader = Arc<dyn Fn(&ModelOptions) -> Result<Box<dyn Engine>, LoadFailure> + Send + Sync>;

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
pub fn load_engine(options: &ModelOptions) -> Result<Box<dyn Engine>, LoadFailure> {
    /// Loads run one at a time: each must find the memory gone that the one before took, and uses all cores.
    static TURN: Mutex<()> = Mutex::new(());
    let settings = &options.settings;
    match &options.source {
        Source::Simulated { tokens_per_s } => {
            tracing::warn!(model = %options.name, "using the simulated engine: fixed words, no model");
            let now = clock::unix_time();
            let (name, slots) = (options.name.clone(), usize::from(settings.slots));
            Ok(Box::new(SimulatedEngine::new(name, slots, *tokens_per_s, now.as_secs())))
        }
        Source::Weights(source) => {
            let path = source.fetch().map_err(LoadError::from)?;
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            let device = ComputeDevice::open(settings.backend, settings.adapter.as_deref())
                .map_err(LoadError::Device)?;
            if device.max_buffer_bytes.is_none() {
                // It computes in the machine's own memory. How much memory another device has is not known.
                memory::check(&path, settings.quantize, settings.cache_memory)?;
            }
            let engine = inference::load(&LoadOptions {
                slots: usize::from(settings.slots),
                cache: settings.cache_memory.map_or(CacheSize::Auto, |Bytes(bytes)| CacheSize::Bytes(bytes)),
                cache_dtype: settings.cache_dtype,
                context_length: settings.context_length,
                prefill_budget: settings.prefill_budget.map(usize::from),
                quantize: settings.quantize,
                ..LoadOptions::new(path, &options.name, device)
            })?;
            Ok(Box::new(engine))
        }
    }
}
