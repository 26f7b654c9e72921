//! How fast memory is: the ceiling of decoding, which reads every weight for each token.

use std::time::Instant;

use rayon::prelude::*;

use crate::device::{ComputeDevice, DeviceClass};

/// Larger than any cache, last-level caches of servers included.
const HOST_BYTES: usize = 1 << 30;
/// Repetitions; the fastest counts.
const REPEAT: usize = 5;

/// Bytes read and written in a second by a large copy on the device; `None` where it has no memory
/// for that.
pub(super) fn copy(device: &ComputeDevice) -> Option<f64> {
    (device.class == DeviceClass::Host).then(|| host_copy(HOST_BYTES))
}

/// All threads copy, each its own part.
fn host_copy(bytes: usize) -> f64 {
    let part = bytes.div_ceil(rayon::current_num_threads());
    let source = vec![1_u8; bytes];
    let mut target = vec![0_u8; bytes];
    let mut copy = || {
        let began = Instant::now();
        let parts = target.par_chunks_mut(part).zip(source.par_chunks(part));
        parts.for_each(|(target, source)| target.copy_from_slice(source));
        began.elapsed().as_secs_f64()
    };
    let fastest = (0..REPEAT).map(|_| copy()).fold(f64::INFINITY, f64::min);
    // Both sides: each byte is read once and written once.
    2.0 * bytes as f64 / fastest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_a_speed() {
        let bytes_per_s = host_copy(1 << 24);
        assert!(bytes_per_s.is_finite() && bytes_per_s > 1e6, "{bytes_per_s}");
    }
}
