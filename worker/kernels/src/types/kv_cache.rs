//! The paged cache of keys and values.
//!
//! Kwon et al., "Efficient memory management for large language model serving with
//! PagedAttention" (2023).

use burn::backend::DType;
use burn::tensor::{Device, Tensor};

use super::sizes::BLOCK_SIZE;

/// The largest finite f16.
pub(crate) const F16_MAX: f32 = 65504.0;

/// How a cache stores its elements. Attention computes with f32 in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// As computed.
    F32,
    /// Rounded to the nearest f16, ties to even. Elements beyond f16's range are clamped to its
    /// largest finite number and counted by [`crate::clamped`]. CPU only.
    F16,
}

impl KvType {
    /// Size of an element in bytes.
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

/// One layer's pool of cache blocks.
///
/// Keys are `[blocks, kv_heads, head_dim, BLOCK_SIZE]`, so that a product with a query reads
/// adjacent positions from adjacent memory; values are `[blocks, kv_heads, BLOCK_SIZE, head_dim]`.
/// The pool is written in place and must have one owner: operations that write to it take it by
/// value and return it.
#[derive(Debug)]
pub struct KvBlocks {
    /// Keys, after rotation.
    pub keys: Tensor<4>,
    /// Values.
    pub values: Tensor<4>,
}

impl KvBlocks {
    /// A pool of `blocks` blocks filled with zeros.
    pub fn zeros(blocks: usize, kv_heads: usize, head_dim: usize, stored: KvType, device: &Device) -> Self {
        let options = (device, DType::from(stored));
        Self {
            keys: Tensor::zeros([blocks, kv_heads, head_dim, BLOCK_SIZE], options),
            values: Tensor::zeros([blocks, kv_heads, BLOCK_SIZE, head_dim], options),
        }
    }
}
