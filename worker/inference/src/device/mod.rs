//! Chooses the device that computes, at run time.
//!
//! CUDA where it is compiled in and there is an NVIDIA GPU, wgpu where there is another GPU, burn's
//! CPU backend (flex) where there is none. A software adapter such as llvmpipe counts as none, since
//! the CPU backend is many times faster; it is used only when asked for by name. Without the feature
//! `gpu` there is only the CPU. A GPU that stays unused is told of.

#[cfg(feature = "gpu")]
mod adapter;
#[cfg(feature = "cuda")]
mod cuda;
mod memory;
mod unused;

use burn::backend::ExecutionError;
use burn::tensor::Device;
use clap::ValueEnum;

pub use memory::DeviceMemory;
pub use unused::UnusedGpu;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Backend {
    /// The GPU if there is one (by CUDA where that is compiled in), the CPU otherwise.
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
    /// wgpu was asked for, and finds no GPU.
    #[error(
        "wgpu finds no GPU ({found}){}; {}, or use the cpu backend. A software adapter is used only where --adapter \
         names it",
        unused.as_ref().map_or_else(String::new, |gpu| format!(", though this machine has {}", gpu.nodes)),
        unused::REMEDY
    )]
    NoGpu {
        /// The adapters that there are.
        found: String,
        /// The GPU that wgpu does not find.
        unused: Option<UnusedGpu>,
    },
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
    /// wgpu's own objects, if it was opened by wgpu.
    #[cfg(feature = "gpu")]
    pub(crate) wgpu: Option<adapter::OpenedAdapter>,
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
            #[cfg(feature = "gpu")]
            wgpu: None,
        }
    }

    /// Why nothing can be computed on it any more in this process; `None` if it can.
    pub fn lost(&self) -> Option<String> {
        match self.device.sync() {
            Err(ExecutionError::DevicePoisoned { reason }) => Some(reason),
            Ok(()) | Err(_) => None,
        }
    }

    /// Gives back what a GPU's allocator holds for this thread and nothing uses.
    pub(crate) fn free_unused(&self) {
        if self.class != DeviceClass::Host {
            // What is still computed keeps its memory; if this fails, so will whatever is loaded next.
            let _ = self.device.sync();
            self.device.memory_cleanup();
        }
    }

    /// The memory that a model can take here; `None` if the device does not say.
    pub fn memory(&self) -> Option<DeviceMemory> {
        match self.class {
            DeviceClass::Host | DeviceClass::Software => memory::of_machine(),
            DeviceClass::Gpu => self.gpu_memory(),
        }
    }

    #[cfg(feature = "gpu")]
    fn gpu_memory(&self) -> Option<DeviceMemory> {
        let by_wgpu = self.wgpu.as_ref().and_then(adapter::OpenedAdapter::memory);
        by_wgpu.or_else(|| memory::by_runtime(&self.device))
    }

    #[cfg(not(feature = "gpu"))]
    fn gpu_memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// The CPU, with a warning about a GPU that stays `unused`.
    fn cpu_instead_of(unused: Option<UnusedGpu>) -> Self {
        let cpu = Self::cpu();
        match unused {
            None => cpu,
            Some(gpu) => {
                tracing::warn!("{gpu}; computing on the CPU. {}", gpu.remedy());
                Self { description: format!("{}; {gpu}", cpu.description), ..cpu }
            }
        }
    }

    /// Opens what the operator wants; `adapter` is a wgpu adapter's number or part of its name.
    #[cfg(feature = "gpu")]
    pub fn open(backend: Backend, adapter: Option<&str>) -> Result<Self, DeviceError> {
        match backend {
            Backend::Cpu => Ok(Self::cpu()),
            #[cfg(feature = "cuda")]
            Backend::Auto if adapter.is_none() => match cuda::open() {
                Some(cuda) => Ok(cuda),
                None => adapter::open(backend, adapter),
            },
            Backend::Auto | Backend::Wgpu => adapter::open(backend, adapter),
        }
    }

    /// Opens what the operator wants: the CPU, for there is nothing else.
    #[cfg(not(feature = "gpu"))]
    pub fn open(backend: Backend, adapter: Option<&str>) -> Result<Self, DeviceError> {
        match (backend, adapter) {
            (Backend::Cpu, _) => Ok(Self::cpu()),
            (Backend::Auto, None) => {
                Ok(Self::cpu_instead_of(UnusedGpu::find("this worker was built without GPUs")))
            }
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

    #[test]
    fn a_gpu_that_stays_unused_is_told_of_with_the_remedy() {
        let gpu =
            UnusedGpu { nodes: "/dev/nvidia0".to_owned(), reason: "wgpu finds no Vulkan driver for it" };
        let cpu = ComputeDevice::cpu_instead_of(Some(gpu.clone()));
        assert_eq!(cpu.class, DeviceClass::Host);
        for part in ["CPU (flex, ", "the GPU (/dev/nvidia0) is not used", "no Vulkan driver"] {
            assert!(cpu.description.contains(part), "{}", cpu.description);
        }
        assert_eq!(ComputeDevice::cpu_instead_of(None).description, ComputeDevice::cpu().description);
        let error = DeviceError::NoGpu { found: "no adapters".to_owned(), unused: Some(gpu) }.to_string();
        for part in ["though this machine has /dev/nvidia0", "NVIDIA_DRIVER_CAPABILITIES", "libvulkan1"] {
            assert!(error.contains(part), "{error}");
        }
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
