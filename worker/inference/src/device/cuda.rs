//! NVIDIA GPUs by way of CUDA.

use burn::backend::DispatchDevice;
use burn::tensor::{Device, DeviceType};

use super::{ComputeDevice, DeviceClass};

/// The first NVIDIA GPU, if CUDA finds one.
pub(super) fn open() -> Option<ComputeDevice> {
    let device = Device::enumerate(DeviceType::Cuda).into_vec().into_iter().next()?;
    let DispatchDevice::Cube(cube) = device.as_dispatch() else { return None };
    let client = cube.client();
    let properties = client.properties();
    Some(ComputeDevice {
        class: DeviceClass::Gpu,
        description: format!("{} (CUDA)", properties.identity.name),
        max_buffer_bytes: Some(properties.memory.max_page_size),
        device: device.clone(),
        wgpu: None,
    })
}
