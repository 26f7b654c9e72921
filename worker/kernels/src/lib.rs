//! The operations that a network computes: few, and large.
//!
//! The functions of this crate take burn tensors and run on the device of their arguments: with
//! native code on the CPU, with cubecl kernels on GPUs (feature `gpu`). [`reference`] has each
//! operation in plain burn operators over dequantised weights; it is slow, and what the others are
//! tested against.
//!
//! Everything is computed in f32, unless products are to be fast ([`Precision`]). Only weights
//! ([`Matrix`]) and the cache ([`KvType`]) are stored in other formats, and they become f32 inside the
//! kernels, never as a whole. Each row of a result is
//! computed from the same row of the argument, always in the same order, so its bits depend neither
//! on the other rows nor on their number.
//!
//! Start with [`ops`] for the operations, [`Matrix`] for weights and [`KvBlocks`] for the cache.

mod cpu;
#[cfg(feature = "gpu")]
mod cube;
pub mod ggml;
pub mod ops;
pub mod reference;
mod timing;
pub mod traffic;
pub mod types;

pub use cpu::{InstructionSet, UnknownInstructionSet, clamped, limit_instruction_set, run_step};
pub use ops::{
    attention, copy_bandwidth, copy_blocks, embedding, linear, linear_add, norm_gated, norm_linear, rms_norm,
    rotate_and_store, sample, sample_rows,
};
pub use traffic::{Traffic, traffic};
pub use types::{
    Activation, BLOCK_SIZE, HeadShape, KvBlocks, KvType, Matrix, MatrixError, MatrixRows, MatrixSpec,
    Precision, RowSample, RowSpan, SamplingParams, Step, StepInput, StepRows, StepSamples,
};
