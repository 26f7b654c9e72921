//! How often the device is given work.

use std::sync::atomic::{AtomicU64, Ordering};

static DISPATCHES: AtomicU64 = AtomicU64::new(0);

/// How many kernels of this crate have been launched on a GPU in this process.
pub fn dispatches() -> u64 {
    DISPATCHES.load(Ordering::Relaxed)
}

/// To be called at each launch.
#[cfg(feature = "gpu")]
pub(crate) fn count() {
    DISPATCHES.fetch_add(1, Ordering::Relaxed);
}
