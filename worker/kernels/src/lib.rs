//! What a network computes, in few and large operations.
//!
//! The functions of this crate work on burn tensors; the device of their arguments decides what
//! runs: the CPU's operations, or with the feature `gpu` those of a GPU. [`reference`] has each of them in
//! plain burn operators over expanded weights: slow, and the standard that the others are tested
//! against.
//!
//! Numbers are f32, except where weights ([`Matrix`]) and the cache ([`KvType`]) are stored; these
//! are expanded inside the products, never as a whole. Every row of a result is computed from its own
//! row of the argument, always in the same order: a row's bits do not depend on the other rows, nor
//! on how many there are.
//!
//! Start with [`ops`] for the operations, [`Matrix`] for weights and [`KvBlocks`] for the cache.

mod cpu;
#[cfg(feature = "gpu")]
mod cube;
mod dispatches;
pub mod ggml;
pub mod ops;
pub mod reference;
mod timing;
pub mod types;

pub use cpu::{clamped, run_step};
pub use dispatches::dispatches;
pub use ops::{
    attention, copy_bandwidth, copy_blocks, embedding, linear, linear_add, norm_gated, norm_linear, pick,
    rms_norm, rotate_and_store,
};
pub use types::{
    Activation, BLOCK_SIZE, HeadShape, KvBlocks, KvType, Matrix, MatrixError, MatrixSpec, PickRow, RowSpan,
    StepRows,
};
