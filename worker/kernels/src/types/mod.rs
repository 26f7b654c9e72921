//! What the operations, their implementations and their callers share: shapes, weights, the paged
//! cache, errors, and the traits that a backend with kernels implements.

mod heads;
mod kernel_ops;
mod kv_cache;
mod matrix;
mod rows;
mod sampling;
mod upload;

pub use heads::{Activation, HeadShape};
pub(crate) use kernel_ops::KernelOps;
#[cfg(feature = "gpu")]
pub(crate) use kernel_ops::SamplingOps;
pub(crate) use kv_cache::F16_MAX;
pub use kv_cache::{BLOCK_SIZE, KvBlocks, KvType};
pub use matrix::{Matrix, MatrixError, MatrixRows, MatrixSpec};
pub(crate) use matrix::{MatrixData, MatrixPart};
pub use rows::{RowSample, RowSpan, Step, StepInput, StepRows, StepSamples};
#[cfg(feature = "gpu")]
pub(crate) use rows::{SAMPLE_WORDS, TILE_ROWS};
pub use sampling::SamplingParams;
