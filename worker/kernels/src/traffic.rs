//! Counts what host and GPUs exchange.

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(feature = "report"))]
use burn::{backend::DispatchDevice, tensor::Device};

static LAUNCHES: AtomicU64 = AtomicU64::new(0);
static UPLOADS: AtomicU64 = AtomicU64::new(0);
static READ_BACKS: AtomicU64 = AtomicU64::new(0);
static ROUND_TRIPS: AtomicU64 = AtomicU64::new(0);

/// What this process has exchanged with GPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Kernels launched.
    pub launches: u64,
    /// Buffers sent to a GPU.
    pub uploads: u64,
    /// Buffers read from a GPU.
    pub read_backs: u64,
    /// Times that the host has waited for a GPU.
    pub round_trips: u64,
}

impl Traffic {
    /// One kernel.
    pub const LAUNCH: Self = Self { launches: 1, uploads: 0, read_backs: 0, round_trips: 0 };
    /// One buffer to the GPU.
    pub const UPLOAD: Self = Self { launches: 0, uploads: 1, read_backs: 0, round_trips: 0 };
    /// One buffer from the GPU, for which the host waits.
    pub const READ_BACK: Self = Self { launches: 0, uploads: 0, read_backs: 1, round_trips: 1 };
    /// The host waits for the GPU.
    pub const ROUND_TRIP: Self = Self { launches: 0, uploads: 0, read_backs: 0, round_trips: 1 };

    /// What came after `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            launches: self.launches.saturating_sub(before.launches),
            uploads: self.uploads.saturating_sub(before.uploads),
            read_backs: self.read_backs.saturating_sub(before.read_backs),
            round_trips: self.round_trips.saturating_sub(before.round_trips),
        }
    }
}

/// Everything so far, of all threads and devices. The kernels of this crate are counted here, and those of burn where
/// they are called.
pub fn traffic() -> Traffic {
    Traffic {
        launches: LAUNCHES.load(Ordering::Relaxed),
        uploads: UPLOADS.load(Ordering::Relaxed),
        read_backs: READ_BACKS.load(Ordering::Relaxed),
        round_trips: ROUND_TRIPS.load(Ordering::Relaxed),
    }
}

/// Counts `more`, unless `device` is the CPU.
#[cfg(not(feature = "report"))]
pub fn count(device: &Device, more: Traffic) {
    if !matches!(device.as_dispatch(), DispatchDevice::Flex(_)) {
        add(more);
    }
}

/// Counts `more`.
pub(crate) fn add(more: Traffic) {
    LAUNCHES.fetch_add(more.launches, Ordering::Relaxed);
    UPLOADS.fetch_add(more.uploads, Ordering::Relaxed);
    READ_BACKS.fetch_add(more.read_backs, Ordering::Relaxed);
    ROUND_TRIPS.fetch_add(more.round_trips, Ordering::Relaxed);
}
