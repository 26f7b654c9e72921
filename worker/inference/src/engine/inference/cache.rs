//! The size of a model's key/value cache, and the type of its numbers.

use clap::ValueEnum;
use emberline_kernels::{BLOCK_SIZE, KvType};
use serde::Deserialize;

use super::LoadError;
use crate::device::{ComputeDevice, DeviceClass};
use crate::memory::available;
use crate::network::Network;

/// Tokens of cache for each slot by default: most conversations are shorter, and a longer one uses
/// what the others leave.
const SLOT_TOKENS: usize = 768;
/// The default cache takes at most this part of the available memory: one eighth.
const MEMORY_SHARE: u64 = 8;
/// Most bytes of the default cache where the available memory is not known.
const UNKNOWN_MEMORY: u64 = 2 << 30;

/// How much memory there is for keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheSize {
    /// What the slots need, but not more than a part of the memory.
    #[default]
    Auto,
    /// This many bytes.
    Bytes(u64),
    /// This many blocks.
    Blocks(usize),
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CacheDtype {
    /// f16 on the CPU, f32 on a GPU.
    #[default]
    Auto,
    /// 16 bits, on the CPU only.
    F16,
    /// 32 bits, as they are computed.
    F32,
}

impl CacheDtype {
    /// The type on `device`.
    pub(crate) fn on(self, device: &ComputeDevice) -> Result<KvType, LoadError> {
        match (self, device.class) {
            (Self::F32, _) | (Self::Auto, DeviceClass::Gpu | DeviceClass::Software) => Ok(KvType::F32),
            (Self::F16 | Self::Auto, DeviceClass::Host) => Ok(KvType::F16),
            (Self::F16, DeviceClass::Gpu | DeviceClass::Software) => {
                Err(LoadError::CacheDtype { device: device.description.clone() })
            }
        }
    }
}

/// Blocks of the cache of a network that runs `slots` sequences at once.
pub(super) fn blocks(
    size: CacheSize,
    network: &Network,
    stored: KvType,
    device: &ComputeDevice,
    slots: usize,
) -> usize {
    let block_bytes = network.block_bytes(stored).max(1);
    let in_bytes = |bytes: u64| usize::try_from(bytes / block_bytes).unwrap_or(usize::MAX);
    let wanted = match size {
        CacheSize::Blocks(blocks) => blocks,
        CacheSize::Bytes(bytes) => in_bytes(bytes),
        CacheSize::Auto => {
            // How much of a GPU's memory is free is not known.
            let memory = if device.max_buffer_bytes.is_none() { available() } else { None };
            let most = memory.map_or(UNKNOWN_MEMORY, |bytes| bytes / MEMORY_SHARE);
            needed(network.config().context_length, slots).min(in_bytes(most))
        }
    };
    // Each layer has one buffer for keys and one for values.
    let layers = network.config().layers.len().max(1) as u64;
    let buffer_bytes = (block_bytes / (2 * layers)).max(1);
    let limit = device.max_buffer_bytes.map_or(u64::MAX, |bytes| bytes / buffer_bytes);
    wanted.min(usize::try_from(limit).unwrap_or(usize::MAX)).max(1)
}

/// Blocks for this many slots: [`SLOT_TOKENS`] for each, and the whole context for at least one.
fn needed(context: usize, slots: usize) -> usize {
    let each = context.min(SLOT_TOKENS).div_ceil(BLOCK_SIZE);
    slots.saturating_mul(each).max(context.div_ceil(BLOCK_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing;

    #[test]
    fn slots_have_room_for_some_pages_each_and_one_for_the_whole_context() {
        for (context, slots, tokens) in [
            (8192, 32, 32 * SLOT_TOKENS),
            (8192, 4, 8192),
            (131_072, 32, 131_072),
            (100, 3, 3 * 112),
            (1, 1, 16),
        ] {
            assert_eq!(needed(context, slots) * BLOCK_SIZE, tokens, "{context} tokens, {slots} slots");
        }
        assert!(needed(usize::MAX, usize::MAX) >= usize::MAX / BLOCK_SIZE);
    }

    #[test]
    fn the_cpu_stores_16_bits_unless_it_is_told_otherwise_and_a_gpu_32() {
        let cpu = ComputeDevice::cpu();
        assert!(matches!(CacheDtype::Auto.on(&cpu), Ok(KvType::F16)));
        assert!(matches!(CacheDtype::F16.on(&cpu), Ok(KvType::F16)));
        assert!(matches!(CacheDtype::F32.on(&cpu), Ok(KvType::F32)));
        for class in [DeviceClass::Gpu, DeviceClass::Software] {
            let gpu = ComputeDevice { class, description: "that GPU".to_owned(), ..ComputeDevice::cpu() };
            assert!(matches!(CacheDtype::Auto.on(&gpu), Ok(KvType::F32)));
            let error = CacheDtype::F16.on(&gpu).unwrap_err().to_string();
            assert!(error.contains("that GPU") && error.contains("--cache-dtype"), "{error}");
        }
    }

    #[test]
    fn what_the_operator_sets_counts_and_a_devices_buffers_limit_it() {
        let (_folder, file) = testing::builder(&testing::tensors()).open();
        let cpu = ComputeDevice::cpu();
        let network = Network::from_gguf(&file, &cpu).unwrap();
        let per_block = network.block_bytes(KvType::F16);
        assert_eq!(network.block_bytes(KvType::F32), 2 * per_block);
        let blocks = |size, stored, device: &ComputeDevice| blocks(size, &network, stored, device, 3);
        assert_eq!(blocks(CacheSize::Blocks(5), KvType::F16, &cpu), 5);
        assert_eq!(blocks(CacheSize::Bytes(4 * per_block + 1), KvType::F16, &cpu), 4);
        assert_eq!(blocks(CacheSize::Bytes(4 * per_block + 1), KvType::F32, &cpu), 2);
        assert_eq!(blocks(CacheSize::Bytes(0), KvType::F16, &cpu), 1);
        assert_eq!(blocks(CacheSize::Auto, KvType::F16, &cpu), needed(testing::CONTEXT, 3));
        let layers = testing::LAYERS as u64;
        let small = ComputeDevice { max_buffer_bytes: Some(per_block / (2 * layers) * 2), ..cpu };
        assert_eq!(blocks(CacheSize::Auto, KvType::F16, &small), 2);
    }
}
