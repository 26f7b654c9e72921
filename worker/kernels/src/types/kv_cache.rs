//! The paged cache of keys and values.

use burn::backend::DType;
use burn::tensor::{Device, Tensor};

/// Positions in a block of the cache.
pub const BLOCK_SIZE: usize = 16;

/// The largest number that f16 has.
pub(crate) const F16_LARGEST: f32 = 65504.0;

/// How a cache stores its numbers. They are computed with as f32 in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// As they are.
    F32,
    /// Rounded to the nearest f16, ties to even; what lies beyond its range becomes its largest
    /// number, and is counted by [`crate::clamped`]. On the CPU only.
    F16,
}

impl KvType {
    /// What a number takes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

impl From<KvType> for DType {
    fn from(stored: KvType) -> Self {
        match stored {
            KvType::F32 => Self::F32,
            KvType::F16 => Self::F16,
        }
    }
}

/// One layer's pool of keys and values.
///
/// Keys are `[blocks, kv_heads, head_dim, BLOCK_SIZE]`, so that neighbouring positions lie side by
/// side for the products with a query; values are `[blocks, kv_heads, BLOCK_SIZE, head_dim]`. The
/// pool is written in place and must have one owner: operations that write take it and give it
/// back.
#[derive(Debug)]
pub struct KvBlocks {
    /// Keys, rotated.
    pub keys: Tensor<4>,
    /// Values.
    pub values: Tensor<4>,
}

impl KvBlocks {
    /// A pool of `blocks` zeroed blocks.
    pub fn zeros(blocks: usize, kv_heads: usize, head_dim: usize, stored: KvType, device: &Device) -> Self {
        let options = (device, DType::from(stored));
        Self {
            keys: Tensor::zeros([blocks, kv_heads, head_dim, BLOCK_SIZE], options),
            values: Tensor::zeros([blocks, kv_heads, BLOCK_SIZE, head_dim], options),
        }
    }
}
