//! The paged cache of keys and values.
//!
//! Kwon et al., "Efficient memory management for large language model serving with
//! PagedAttention" (2023).

use burn::backend::DType;
#[cfg(feature = "gpu")]
use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor};

use super::sizes::BLOCK_SIZE;

/// How a cache stores its elements. Attention computes with f32 in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// As computed.
    F32,
    /// Rounded to the nearest f16, ties to even. Elements beyond f16's range are clamped to its
    /// largest finite number, and the CPU counts them: [`crate::clamped`].
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
/// On GPUs, f16 come in pairs: elements i and i + n of a key or value are the lower and upper half of
/// word i of its n words, of which f32 tensors of as many elements have the bits.
///
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
        let (width, dtype) = match stored {
            KvType::F16 if in_words(device) => (head_dim.div_ceil(2), DType::F32),
            _ => (head_dim, DType::from(stored)),
        };
        let options = (device, dtype);
        Self {
            keys: Tensor::zeros([blocks, kv_heads, width, BLOCK_SIZE], options),
            values: Tensor::zeros([blocks, kv_heads, BLOCK_SIZE, width], options),
        }
    }
}

/// Whether the kernels of `device` read f16 in pairs.
fn in_words(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns)] // which others exist depends on burn's features
        _ => false,
    }
}
