//! What the operations, their implementations and their callers share: shapes, weights, the paged
//! cache, errors, and the traits that a backend with kernels implements.

mod heads;
mod kernel_ops;
mod kv_cache;
mod matrix;
mod matrix_spec;
mod precision;
mod rows;
mod sampling;
mod sizes;
mod upload;
mod work;

pub use heads::{Activation, HeadShape};
pub(crate) use kernel_ops::KernelOps;
#[cfg(feature = "gpu")]
pub(crate) use kernel_ops::SamplingOps;
pub use kv_cache::{KvBlocks, KvType};
pub use matrix::{Matrix, MatrixRows};
pub(crate) use matrix::{MatrixData, MatrixPart};
pub use matrix_spec::{MatrixError, MatrixSpec};
pub use precision::Precision;
pub use rows::{RowSample, RowSpan, Step, StepInput, StepRows, StepSamples};
pub use sampling::SamplingParams;
#[cfg(feature = "gpu")]
pub(crate) use sampling::SamplingStages;
pub use sizes::BLOCK_SIZE;
pub(crate) use sizes::F16_MAX;
#[cfg(feature = "gpu")]
pub(crate) use sizes::{BUFFER_ALIGNMENT, PARTITION, SAMPLE_WORDS, TILE_ROWS};
pub(crate) use work::Pass;
