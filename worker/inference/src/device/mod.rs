//! Chooses the device that computes, at run time.
//!
//! wgpu where there is a real GPU, burn's CPU backend (flex) where there is none. A software
//! adapter such as llvmpipe counts as none, since the CPU backend is many times faster; it is
//! used only when asked for. Without the feature `gpu` there is only the CPU.

#[cfg(feature = "gpu")]
mod adapter;

use burn::tensor::Device;
use clap::ValueEnum;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Backend {
    /// The GPU if there is one, the CPU otherwise.
    #[default]
    Auto,
    /// wgpu: Vulkan, Metal or DX12.
    Wgpu,
    /// burn's CPU backend.
    Cpu,
}

/// No device to compute on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// wgpu was asked for, and is not compiled in.
    #[error(
        "this worker was built without GPUs: build it with `--features emberline-worker/gpu`, or use the cpu \
         backend"
    )]
    NotBuilt,
    /// wgpu was asked for, and finds nothing at all.
    #[error(
        "wgpu finds no adapter; install a graphics driver and its Vulkan loader (Debian: libvulkan1, and \
         mesa-vulkan-drivers for a software adapter), or use the cpu backend"
    )]
    NoAdapter,
    /// The adapter that was asked for is not there.
    #[error(
        "there is no wgpu adapter '{wanted}'; name one of these by its number or part of its name: {found}"
    )]
    UnknownAdapter {
        /// What was asked for.
        wanted: String,
        /// The adapters that there are.
        found: String,
    },
    /// The adapter exists but can't be used.
    #[error("the wgpu adapter {adapter} can't be opened: {reason}; check its driver or use the cpu backend")]
    Open {
        /// The adapter.
        adapter: String,
        /// What wgpu says.
        reason: String,
    },
}

/// What kind of device computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceClass {
    /// This process's own threads.
    Host,
    /// A graphics driver that computes on the CPU.
    Software,
    /// A GPU.
    Gpu,
}

/// A device, ready to compute.
#[derive(Debug, Clone)]
pub struct ComputeDevice {
    /// What kind it is.
    pub class: DeviceClass,
    /// Where tensors live.
    pub device: Device,
    /// In words, as the heartbeat shows it.
    pub description: String,
    /// Largest tensor it can hold; `None` for no limit but memory.
    pub max_buffer_bytes: Option<u64>,
}

impl ComputeDevice {
    /// The CPU.
    pub fn cpu() -> Self {
        let threads = rayon::current_num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        Self {
            class: DeviceClass::Host,
            device: Device::flex(),
            description: format!("CPU (flex, {threads} thread{plural})"),
            max_buffer_bytes: None,
        }
    }

    /// Opens what the operator wants; `adapter` is a wgpu adapter's number or part of its name.
    #[cfg(feature = "gpu")]
    pub fn open(backend: Backend, adapter: Option<&str>) -> Result<Self, DeviceError> {
        match backend {
            Backend::Cpu => Ok(Self::cpu()),
            Backend::Auto | Backend::Wgpu => adapter::open(backend, adapter),
        }
    }

    /// Opens what the operator wants: the CPU, for there is nothing else.
    #[cfg(not(feature = "gpu"))]
    pub fn open(backend: Backend, adapter: Option<&str>) -> Result<Self, DeviceError> {
        match (backend, adapter) {
            (Backend::Cpu, _) | (Backend::Auto, None) => Ok(Self::cpu()),
            (Backend::Wgpu, _) | (Backend::Auto, Some(_)) => Err(DeviceError::NotBuilt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_described_with_its_threads() {
        let cpu = ComputeDevice::open(Backend::Cpu, None).unwrap();
        assert!(cpu.description.starts_with("CPU (flex, "), "{}", cpu.description);
    }

    #[cfg(not(feature = "gpu"))]
    #[test]
    fn a_gpu_that_is_not_compiled_in_is_refused_with_the_remedy() {
        for (backend, adapter) in [(Backend::Wgpu, None), (Backend::Auto, Some("NVIDIA"))] {
            let error = ComputeDevice::open(backend, adapter).unwrap_err().to_string();
            assert!(error.contains("--features emberline-worker/gpu"), "{error}");
        }
        assert!(ComputeDevice::open(Backend::Auto, None).is_ok());
    }
}
