//! How fast a device moves memory: the ceiling of everything that reads weights once for each token.

use std::time::{Duration, Instant};

use burn::backend::{DispatchDevice, ExecutionError};
use burn::tensor::Device;
use rayon::prelude::*;

#[cfg(feature = "gpu")]
use crate::cube;

/// How often the copy is repeated; the fastest counts.
const REPEATS: usize = 8;
/// Bytes that a thread of the CPU copies at a time.
const CHUNK: usize = 1 << 20;

/// Bytes that are read and written in a second while `bytes` bytes, or the most that one buffer
/// holds, are copied on the device. It should be far more than the device's caches hold.
pub fn copy_bandwidth(device: &Device, bytes: usize) -> Result<f64, ExecutionError> {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => Ok(on_cpu(bytes)),
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(cube) => cube::copy_bandwidth(cube, device, bytes),
        #[allow(unreachable_patterns)]
        _ => Err(ExecutionError::generic("no way to measure this device".to_owned())),
    }
}

fn on_cpu(bytes: usize) -> f64 {
    let from = vec![1_u8; bytes.max(1)];
    let mut to = vec![0_u8; from.len()];
    let copy = || {
        let start = Instant::now();
        let chunks = to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK));
        chunks.for_each(|(to, from)| to.copy_from_slice(from));
        std::hint::black_box(&mut to);
        start.elapsed()
    };
    rate(from.len(), fastest(copy))
}

/// The shortest of a few times.
pub(crate) fn fastest(run: impl FnMut() -> Duration) -> Duration {
    std::iter::repeat_with(run).take(REPEATS).min().unwrap_or_default()
}

/// Bytes read and written in a second.
pub(crate) fn rate(copied: usize, took: Duration) -> f64 {
    2.0 * copied as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_copies_at_a_sane_speed() {
        let rate = copy_bandwidth(&Device::flex(), 64 << 20).unwrap();
        assert!((1e8..1e13).contains(&rate), "{rate} bytes/s");
    }
}
