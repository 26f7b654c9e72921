//! GPUs, and software that takes their place, by way of wgpu.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use burn::tensor::wgpu::{WgpuBackend, wgpu};
use burn::tensor::{Device, DeviceKind};

use super::unused::UnusedGpu;
use super::{Backend, ComputeDevice, DeviceClass, DeviceError, DeviceMemory, memory};

/// Opens the adapter that fits best, or the CPU where there is no GPU and none is insisted on.
pub(super) fn open(backend: Backend, wanted: Option<&str>) -> Result<ComputeDevice, DeviceError> {
    let adapters = adapters();
    let unused = || UnusedGpu::find("wgpu finds no Vulkan driver for it");
    match choose(backend, wanted, &adapters) {
        Ok(Some(chosen)) => chosen.open(),
        Ok(None) => Ok(ComputeDevice::cpu_instead_of(unused())),
        Err(DeviceError::NoGpu { found, .. }) => Err(DeviceError::NoGpu { found, unused: unused() }),
        Err(error) => Err(error),
    }
}

/// What wgpu can run on.
#[derive(Debug, Clone, PartialEq)]
struct Adapter {
    name: String,
    api: WgpuBackend,
    kind: DeviceKind,
    max_buffer_bytes: u64,
}

impl Adapter {
    /// Rasterises on the CPU.
    fn is_software(&self) -> bool {
        self.kind == DeviceKind::Cpu
    }

    fn open(&self) -> Result<ComputeDevice, DeviceError> {
        if self.is_software() {
            tracing::warn!(adapter = %self, "a software adapter computes far slower than the cpu backend");
        }
        let (device, opened) = self.device()?;
        Ok(ComputeDevice {
            class: if self.is_software() { DeviceClass::Software } else { DeviceClass::Gpu },
            device,
            description: self.to_string(),
            max_buffer_bytes: Some(self.max_buffer_bytes),
            wgpu: Some(opened),
        })
    }

    /// An adapter can be initialised only once in a process, so the opened ones are kept. One that is lost can't be
    /// opened again: then the process ends.
    fn device(&self) -> Result<(Device, OpenedAdapter), DeviceError> {
        static OPENED: Mutex<Vec<(Adapter, Device, OpenedAdapter)>> = Mutex::new(Vec::new());
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, device, handles)) = opened.iter().find(|(adapter, ..)| adapter == self) {
            return Ok((device.clone(), handles.clone()));
        }
        let options = Device::wgpu_options().device_kind(self.kind.clone()).graphics_api(self.api);
        let (device, setup) = options
            .init_with_setup()
            .map_err(|error| DeviceError::Open { adapter: self.to_string(), reason: error.to_string() })?;
        let handles = OpenedAdapter {
            adapter: setup.adapter,
            #[cfg(test)]
            device: setup.device,
        };
        opened.push((self.clone(), device.clone(), handles.clone()));
        Ok((device, handles))
    }
}

/// wgpu's objects of an adapter that was opened.
#[derive(Debug, Clone)]
pub(crate) struct OpenedAdapter {
    adapter: wgpu::Adapter,
    /// What burn computes on.
    #[cfg(test)]
    device: wgpu::Device,
}

impl OpenedAdapter {
    /// The adapter's memory, if the graphics API says.
    pub(crate) fn memory(&self) -> Option<DeviceMemory> {
        let is_integrated = self.adapter.get_info().device_type == wgpu::DeviceType::IntegratedGpu;
        memory::by_vulkan(&self.adapter, !is_integrated)
    }

    /// Loses the device, as a driver's reset does: whoever uses it next has been told.
    #[cfg(test)]
    pub(crate) fn destroy(&self) {
        self.device.destroy();
        // Unlike a reset, this is told when the device is polled.
        let _ = self.device.poll(wgpu::PollType::Poll);
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let api = match self.api {
            WgpuBackend::Vulkan => "vulkan",
            WgpuBackend::Metal => "metal",
            WgpuBackend::Dx12 => "dx12",
            WgpuBackend::Gl => "gl",
            WgpuBackend::WebGpu => "webgpu",
            WgpuBackend::Auto => "auto",
        };
        let software = if self.is_software() { ", software" } else { "" };
        write!(f, "{} (wgpu/{api}{software})", self.name)
    }
}

/// Decides on an adapter; `None` for the CPU backend. A software adapter is none unless it is named.
fn choose<'a>(
    backend: Backend,
    wanted: Option<&str>,
    adapters: &'a [Adapter],
) -> Result<Option<&'a Adapter>, DeviceError> {
    if let Some(wanted) = wanted {
        let lowercase = wanted.to_lowercase();
        let by_number = wanted.parse().ok().and_then(|number: usize| adapters.get(number));
        let by_name = || adapters.iter().find(|a| a.name.to_lowercase().contains(&lowercase));
        let found = by_number.or_else(by_name);
        return match found {
            Some(adapter) => Ok(Some(adapter)),
            None if adapters.is_empty() => Err(no_gpu(adapters)),
            None => Err(DeviceError::UnknownAdapter { wanted: wanted.to_owned(), found: list(adapters) }),
        };
    }
    let rank = |adapter: &&Adapter| match adapter.kind {
        DeviceKind::DiscreteGpu(_) => 0,
        DeviceKind::IntegratedGpu(_) => 1,
        _ => 2,
    };
    let best = adapters.iter().filter(|adapter| !adapter.is_software()).min_by_key(rank);
    match (backend, best) {
        (Backend::Wgpu, None) => Err(no_gpu(adapters)),
        (_, best) => Ok(best),
    }
}

fn no_gpu(adapters: &[Adapter]) -> DeviceError {
    DeviceError::NoGpu { found: list(adapters), unused: None }
}

fn list(adapters: &[Adapter]) -> String {
    let each = adapters.iter().enumerate().map(|(number, adapter)| format!("{number}: {adapter}"));
    match adapters.is_empty() {
        true => "no adapters".to_owned(),
        false => each.collect::<Vec<_>>().join("; "),
    }
}

/// Every adapter that can be opened, on the graphics APIs in order of preference.
fn adapters() -> Vec<Adapter> {
    let apis = [
        (wgpu::Backend::Vulkan, WgpuBackend::Vulkan),
        (wgpu::Backend::Metal, WgpuBackend::Metal),
        (wgpu::Backend::Dx12, WgpuBackend::Dx12),
    ];
    apis.into_iter().flat_map(|(backend, api)| adapters_on(backend, api)).collect()
}

fn adapters_on(backend: wgpu::Backend, api: WgpuBackend) -> Vec<Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backend.into(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let found = futures::executor::block_on(instance.enumerate_adapters(backend.into()));
    let (mut discrete, mut integrated, mut virtual_) = (0.., 0.., 0..);
    let describe = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(discrete.next()?),
            wgpu::DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(integrated.next()?),
            wgpu::DeviceType::VirtualGpu => DeviceKind::VirtualGpu(virtual_.next()?),
            wgpu::DeviceType::Cpu => DeviceKind::Cpu,
            // There is no way to name it to burn.
            wgpu::DeviceType::Other => return None,
        };
        let limits = adapter.limits();
        let max_buffer_bytes = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
        Some(Adapter { name: info.name, api, kind, max_buffer_bytes })
    };
    found.iter().filter_map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, kind: DeviceKind) -> Adapter {
        Adapter { name: name.to_owned(), api: WgpuBackend::Vulkan, kind, max_buffer_bytes: 1 << 30 }
    }

    fn machine() -> Vec<Adapter> {
        vec![
            adapter("llvmpipe (LLVM 15)", DeviceKind::Cpu),
            adapter("Intel UHD", DeviceKind::IntegratedGpu(0)),
            adapter("NVIDIA H100", DeviceKind::DiscreteGpu(0)),
        ]
    }

    fn chosen(backend: Backend, wanted: Option<&str>, adapters: &[Adapter]) -> Option<String> {
        choose(backend, wanted, adapters).unwrap().map(|adapter| adapter.name.clone())
    }

    #[test]
    fn the_discrete_gpu_comes_first() {
        assert_eq!(chosen(Backend::Auto, None, &machine()).as_deref(), Some("NVIDIA H100"));
        assert_eq!(chosen(Backend::Wgpu, None, &machine()[..2]).as_deref(), Some("Intel UHD"));
    }

    #[test]
    fn a_software_adapter_must_be_asked_for() {
        let software = &machine()[..1];
        assert_eq!(chosen(Backend::Auto, None, software), None);
        let error = choose(Backend::Wgpu, None, software).unwrap_err().to_string();
        for part in ["no GPU", "0: llvmpipe (LLVM 15) (wgpu/vulkan, software)", "--adapter"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(chosen(Backend::Wgpu, Some("0"), software).as_deref(), Some("llvmpipe (LLVM 15)"));
        assert_eq!(chosen(Backend::Auto, Some("llvm"), software).as_deref(), Some("llvmpipe (LLVM 15)"));
        assert_eq!(chosen(Backend::Auto, None, &[]), None);
    }

    #[test]
    fn an_adapter_is_named_by_number_or_part_of_its_name() {
        assert_eq!(chosen(Backend::Auto, Some("1"), &machine()).as_deref(), Some("Intel UHD"));
        assert_eq!(chosen(Backend::Wgpu, Some("nvidia"), &machine()).as_deref(), Some("NVIDIA H100"));
    }

    #[test]
    fn an_adapter_that_is_not_there_is_refused_with_a_list() {
        let error = choose(Backend::Wgpu, Some("Radeon"), &machine()).unwrap_err().to_string();
        for part in ["'Radeon'", "0: llvmpipe", "2: NVIDIA H100 (wgpu/vulkan)"] {
            assert!(error.contains(part), "{error}");
        }
        for wanted in [None, Some("Radeon")] {
            let error = choose(Backend::Wgpu, wanted, &[]).unwrap_err().to_string();
            assert!(error.contains("no GPU (no adapters)"), "{error}");
        }
    }
}
