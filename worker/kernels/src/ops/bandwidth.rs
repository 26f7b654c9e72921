//! How fast a device moves memory: the ceiling of everything that reads weights once for each token.

use burn::backend::{DispatchDevice, ExecutionError};
use burn::tensor::Device;

use crate::cpu;
#[cfg(feature = "gpu")]
use crate::cube;

/// Bytes that are read and written in a second while `bytes` bytes, or the most that one buffer
/// holds, are copied on the device. It should be far more than the device's caches hold.
pub fn copy_bandwidth(device: &Device, bytes: usize) -> Result<f64, ExecutionError> {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => Ok(cpu::copy_bandwidth(bytes)),
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(cube) => cube::copy_bandwidth(cube, device, bytes),
        #[allow(unreachable_patterns)]
        _ => Err(ExecutionError::generic("no way to measure this device".to_owned())),
    }
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
