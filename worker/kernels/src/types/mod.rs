//! What operations, backends and their callers agree on: shapes, weights, the cache, errors.

mod heads;
mod kernel_ops;
mod kv_cache;
mod matrix;
mod rows;
mod sampling;

pub use heads::{Activation, HeadShape};
pub(crate) use kernel_ops::KernelOps;
pub(crate) use kv_cache::F16_LARGEST;
pub use kv_cache::{BLOCK_SIZE, KvBlocks, KvType};
pub(crate) use matrix::MatrixData;
pub use matrix::{Matrix, MatrixError, MatrixSpec};
#[cfg(feature = "gpu")]
pub(crate) use rows::TILE_ROWS;
pub use rows::{RowSpan, StepRows};
pub use sampling::PickRow;
