//! Memory bandwidth of a device: the upper limit for whatever reads all weights once per token.

use burn::backend::{DispatchDevice, ExecutionError};
use burn::tensor::Device;

use crate::cpu;
#[cfg(feature = "gpu")]
use crate::cube;

/// Memory bandwidth of `device` in bytes per second, reads and writes together, measured by copying
/// `bytes` bytes several times.
///
/// Less is copied if a buffer of the device does not hold so much. `bytes` should be far more than
/// the device's caches hold.
///
/// # Errors
/// Fails if the device can't run the copy, or has no kernel for it.
pub fn copy_bandwidth(device: &Device, bytes: usize) -> Result<f64, ExecutionError> {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => Ok(cpu::copy_bandwidth(bytes)),
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(cube) => cube::copy_bandwidth(cube, device, bytes),
        #[allow(unreachable_patterns)] // which others exist depends on burn's features
        _ => Err(ExecutionError::generic("this backend has no kernel that measures bandwidth".to_owned())),
    }
}
