//! What a network computes, in few and large operations.
//!
//! The functions of this crate work on burn tensors; the device of their arguments decides what
//! runs: the CPU's operations, or with the feature `gpu` those of a GPU. [`twin`] has each of them in
//! plain burn operators over expanded weights: slow, and the standard that the others are tested
//! against.
//!
//! Numbers are f32, except where weights ([`Matrix`]) and the cache ([`KvType`]) are stored; these
//! are expanded inside the products, never as a whole. Every row of a result is computed from its own
//! row of the argument, always in the same order: a row's bits do not depend on the other rows, nor
//! on how many there are.
//!
//! Start with [`ops`] for the operations, [`Matrix`] for weights and [`KvBlocks`] for the cache.

mod bandwidth;
mod cpu;
#[cfg(feature = "gpu")]
mod cube;
mod dispatches;
pub mod ggml;
mod matrix;
mod native;
pub mod ops;
mod paged;
pub mod twin;

pub use bandwidth::copy_bandwidth;
pub use cpu::{clamped, run_step};
pub use dispatches::dispatches;
pub use matrix::{Matrix, MatrixError, MatrixSpec};
pub use ops::{
    Activation, HeadShape, PickRow, attention, copy_blocks, embedding, linear, linear_add, norm_gated,
    norm_linear, pick, rms_norm, rotate_and_store,
};
pub use paged::{BLOCK_SIZE, KvBlocks, KvType, RowSpan, StepRows};
