//! How much memory a device has, and how much of it is free.

#[cfg(feature = "gpu")]
use burn::backend::DispatchDevice;
#[cfg(feature = "gpu")]
use burn::tensor::Device;
#[cfg(feature = "gpu")]
use burn::tensor::wgpu::wgpu;

use crate::memory::available;

/// The smallest and the largest part of a GPU's memory that stays free: for what the driver and the allocator take
/// besides what is asked of them, and for other programs.
const LEAST_RESERVE: u64 = 256 << 20;
const MOST_RESERVE: u64 = 4 << 30;
/// One sixteenth of the memory, between these two.
const RESERVE_SHARE: u64 = 16;

/// A device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All that it has.
    pub total: u64,
    /// What is free now; everything, where the driver does not say.
    pub free: u64,
    /// Whether it is the device's own; otherwise it is the machine's.
    pub own: bool,
}

impl DeviceMemory {
    /// Bytes for a model, where as many as `sharers` are still to be loaded, this one included.
    pub fn room(&self, sharers: usize) -> u64 {
        if !self.own {
            return self.free;
        }
        let reserve = (self.total / RESERVE_SHARE).clamp(LEAST_RESERVE, MOST_RESERVE);
        self.free.saturating_sub(reserve) / sharers.max(1) as u64
    }
}

/// What this process may still take of the machine's memory.
pub(super) fn of_machine() -> Option<DeviceMemory> {
    available().map(|free| DeviceMemory { total: free, free, own: false })
}

/// The largest heap of an adapter by Vulkan.
#[cfg(all(feature = "gpu", any(target_os = "linux", target_os = "windows")))]
#[allow(unsafe_code)]
pub(super) fn by_vulkan(adapter: &wgpu::Adapter, own: bool) -> Option<DeviceMemory> {
    use ash::vk;

    // SAFETY: nothing here destroys the adapter.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance();
    if instance.instance_api_version() < vk::API_VERSION_1_1 {
        return None;
    }
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let has_budget = adapter.physical_device_capabilities().supports_extension(ash::ext::memory_budget::NAME);
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if has_budget {
        properties = properties.push_next(&mut budget);
    }
    // SAFETY: the instance and its physical device live as long as the adapter, and both structures are Vulkan's own.
    unsafe {
        let device = adapter.raw_physical_device();
        instance.raw_instance().get_physical_device_memory_properties2(device, &mut properties);
    }
    let properties = properties.memory_properties;
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize).enumerate();
    let heaps = heaps.filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let (index, heap) = heaps.max_by_key(|(_, heap)| heap.size)?;
    let free = match (has_budget, budget.heap_budget.get(index), budget.heap_usage.get(index)) {
        (true, Some(budget), Some(usage)) => budget.saturating_sub(*usage),
        _ => heap.size,
    };
    Some(DeviceMemory { total: heap.size, free, own })
}

/// Other systems have no Vulkan.
#[cfg(all(feature = "gpu", not(any(target_os = "linux", target_os = "windows"))))]
pub(super) fn by_vulkan(_: &wgpu::Adapter, _: bool) -> Option<DeviceMemory> {
    None
}

/// The memory by cubecl's runtime (CUDA, Metal), which does not know how much of it is free.
#[cfg(feature = "gpu")]
pub(super) fn by_runtime(device: &Device) -> Option<DeviceMemory> {
    let DispatchDevice::Cube(cube) = device.as_dispatch() else { return None };
    let total = cube.client().properties().memory.max_memory()?;
    // A Mac's GPU computes in the machine's memory.
    Some(DeviceMemory { total, free: total, own: !cfg!(target_os = "macos") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn models_that_are_to_be_loaded_share_what_is_free_of_a_gpu() {
        let card = DeviceMemory { total: 16 * GIB, free: 13 * GIB, own: true };
        assert_eq!(card.room(1), 12 * GIB);
        assert_eq!(card.room(3), 4 * GIB);
        assert_eq!(DeviceMemory { free: GIB / 2, ..card }.room(1), 0);
        // The reserve is neither tiny nor huge.
        assert_eq!(DeviceMemory { total: 2 * GIB, free: 2 * GIB, own: true }.room(0), 2 * GIB - (256 << 20));
        assert_eq!(DeviceMemory { total: 141 * GIB, free: 141 * GIB, own: true }.room(1), 137 * GIB);
    }

    #[test]
    fn the_machines_memory_is_not_shared_out() {
        let machine = of_machine().unwrap();
        assert_eq!(machine.room(4), machine.free);
    }
}
