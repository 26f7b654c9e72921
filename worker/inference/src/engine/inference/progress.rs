//! How far the loading of a model is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The part of a model that is loaded, for whoever looks from another thread.
#[derive(Debug, Clone, Default)]
pub struct LoadProgress(Arc<AtomicU32>);

impl LoadProgress {
    /// In percent; 100 once it can serve.
    pub fn percent(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it to a part between `from` and `to` percent.
    pub(crate) fn set(&self, part: f32, from: u32, to: u32) {
        let percent = from as f32 + part.clamp(0.0, 1.0) * to.saturating_sub(from) as f32;
        self.0.store(percent as u32, Ordering::Relaxed);
    }
}
