//! Counts kernel launches.

use std::sync::atomic::{AtomicU64, Ordering};

static DISPATCHES: AtomicU64 = AtomicU64::new(0);

/// Number of kernels of this crate that this process has launched on GPUs.
pub fn dispatches() -> u64 {
    DISPATCHES.load(Ordering::Relaxed)
}

/// Counts one launch.
#[cfg(feature = "gpu")]
pub(crate) fn count() {
    DISPATCHES.fetch_add(1, Ordering::Relaxed);
}
