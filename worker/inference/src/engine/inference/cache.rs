//! The size of a model's key/value cache, and the type of its numbers.

use clap::ValueEnum;
use emberline_kernels::{BLOCK_SIZE, KvType};
use serde::Deserialize;

use crate::device::ComputeDevice;
use crate::memory::available;
use crate::network::Network;

/// Tokens of cache for each slot by default: most conversations are shorter, and a longer one uses
/// what the others leave.
const SLOT_TOKENS: usize = 768;
/// The default cache takes at most this part of the machine's available memory: one eighth.
const MEMORY_SHARE: u64 = 8;
/// Most bytes of the default cache where the available memory is not known.
const UNKNOWN_MEMORY: u64 = 2 << 30;
/// Concurrent jobs by default, but on a GPU with memory of its own.
const SLOTS: usize = 32;
/// There, most of them.
const MOST_SLOTS: usize = 256;

/// How much memory there is for keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheSize {
    /// All that a GPU has left; elsewhere what the slots need, but not more than a part of the memory.
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
    /// f16.
    #[default]
    Auto,
    /// 16 bits.
    F16,
    /// 32 bits, as they are computed.
    F32,
}

impl CacheDtype {
    /// The type of the pool's numbers.
    pub(crate) fn stored(self) -> KvType {
        match self {
            Self::F32 => KvType::F32,
            Self::F16 | Self::Auto => KvType::F16,
        }
    }
}

/// The memory that a model may take, before any of it is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Bytes; `None` if not known.
    bytes: Option<u64>,
    /// Whether it is a GPU's own memory, which nothing but models needs.
    own: bool,
    /// Most bytes by the operator's word.
    most: Option<u64>,
}

/// The memory that is left for a cache of the default size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Bytes that nothing else needs.
    All(u64),
    /// Most bytes, if the slots need so many.
    AtMost(u64),
}

impl Room {
    /// What there is on `device` for one of `sharers` models, by `most` if it is given.
    pub(super) fn find(device: &ComputeDevice, most: Option<u64>, sharers: usize) -> Self {
        let memory = device.memory();
        let own = memory.is_some_and(|memory| memory.own);
        Self { bytes: memory.map(|memory| memory.room(sharers)), own, most }
    }

    /// What is left once the model has `taken` so many bytes for the rest.
    pub(super) fn left(self, taken: u64) -> Left {
        let most = self.most.map_or(u64::MAX, |most| most.saturating_sub(taken));
        match self.bytes {
            Some(bytes) if self.own => Left::All(bytes.saturating_sub(taken).min(most)),
            // The rest is taken already.
            Some(_) => {
                Left::AtMost(available().map_or(UNKNOWN_MEMORY, |bytes| bytes / MEMORY_SHARE).min(most))
            }
            None => Left::AtMost(if self.most.is_some() { most } else { UNKNOWN_MEMORY }),
        }
    }

    /// The most slots that the model gets by default.
    pub(super) fn most_slots(self) -> usize {
        if self.own { MOST_SLOTS } else { SLOTS }
    }

    /// The slots that it gets by default with a cache of so many blocks.
    pub(super) fn slots(self, blocks: usize, context: usize) -> usize {
        let each = context.min(SLOT_TOKENS).div_ceil(BLOCK_SIZE).max(1);
        if self.own { (blocks / each).clamp(1, MOST_SLOTS) } else { SLOTS }
    }
}

/// Blocks of the cache of a network that runs up to `slots` sequences at once.
pub(super) fn blocks(
    size: CacheSize,
    network: &Network,
    stored: KvType,
    device: &ComputeDevice,
    slots: usize,
    left: Left,
) -> usize {
    let block_bytes = network.block_bytes(stored).max(1);
    let in_bytes = |bytes: u64| usize::try_from(bytes / block_bytes).unwrap_or(usize::MAX);
    let wanted = match size {
        CacheSize::Blocks(blocks) => blocks,
        CacheSize::Bytes(bytes) => in_bytes(bytes),
        CacheSize::Auto => {
            let context = network.config().context_length;
            match left {
                // More than all slots can fill is of no use.
                Left::All(bytes) => slots.saturating_mul(context.div_ceil(BLOCK_SIZE)).min(in_bytes(bytes)),
                Left::AtMost(bytes) => needed(context, slots).min(in_bytes(bytes)),
            }
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
    fn a_gpus_cache_takes_what_is_left_and_the_slots_follow_it() {
        const GIB: u64 = 1 << 30;
        let card = Room { bytes: Some(20 * GIB), own: true, most: None };
        assert_eq!(card.left(5 * GIB), Left::All(15 * GIB));
        assert_eq!(card.left(21 * GIB), Left::All(0));
        assert_eq!(Room { most: Some(8 * GIB), ..card }.left(5 * GIB), Left::All(3 * GIB));
        assert_eq!(Room { bytes: None, own: false, most: None }.left(GIB), Left::AtMost(UNKNOWN_MEMORY));
        assert_eq!(Room { bytes: None, own: false, most: Some(9 * GIB) }.left(GIB), Left::AtMost(8 * GIB));
        let machine = Room { bytes: Some(20 * GIB), own: false, most: Some(GIB) };
        assert_eq!(machine.left(2 * GIB), Left::AtMost(0));
        for (blocks, context, slots) in [
            (48 * 10, 8192, 10),
            (48 * 10 - 1, 8192, 9),
            (1 << 20, 8192, MOST_SLOTS),
            (1, 8192, 1),
            (70, 100, 10),
        ] {
            assert_eq!(card.slots(blocks, context), slots, "{blocks} blocks, context {context}");
            assert_eq!(machine.slots(blocks, context), SLOTS);
        }
        let (_folder, file) = testing::builder(&testing::tensors()).open();
        let cpu = ComputeDevice::cpu();
        let network = Network::from_gguf(&file, &cpu).unwrap();
        let of = |bytes| blocks(CacheSize::Auto, &network, KvType::F32, &cpu, 3, Left::All(bytes));
        assert_eq!(of(5 * network.block_bytes(KvType::F32) + 1), 5);
        assert_eq!(of(u64::MAX), 3 * testing::CONTEXT.div_ceil(BLOCK_SIZE));
    }

    #[test]
    fn what_the_operator_sets_counts_and_a_devices_buffers_limit_it() {
        let (_folder, file) = testing::builder(&testing::tensors()).open();
        let cpu = ComputeDevice::cpu();
        let network = Network::from_gguf(&file, &cpu).unwrap();
        let per_block = network.block_bytes(KvType::F16);
        assert_eq!(network.block_bytes(KvType::F32), 2 * per_block);
        let left = Left::AtMost(u64::MAX);
        let blocks = |size, stored, device: &ComputeDevice| blocks(size, &network, stored, device, 3, left);
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
