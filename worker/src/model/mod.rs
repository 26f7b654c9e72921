//! The network, and how it gets its weights.
//!
//! [`ModelConfig`] says what a network looks like; [`Network`] computes it over the operations of
//! `emberline-kernels`, for many sequences at once, with keys and values in blocks of a common
//! pool. All families of models are the same few layers; `config` has the differences.
//!
//! A [`ModelSource`] is a path or a name on the hub. What it leads to is a [`Checkpoint`]: a GGUF
//! file, or a folder with safetensors. [`Checkpoint::load`] checks its tensors against its
//! settings and puts them on a device as they are stored, or quantised.

mod checkpoint;
mod config;
mod error;
mod layer;
mod load;
mod logits;
mod names;
mod network;
mod quantize;
mod random;
mod rotary;
mod rows;
mod safetensors;
mod source;
mod tensors;
#[cfg(test)]
pub(crate) mod testing;

pub use checkpoint::Checkpoint;
pub use config::{LayerConfig, ModelConfig};
pub use error::{ComputeError, LoadError};
pub use logits::{Hidden, Logits};
pub use network::{MemoryUse, Network, StepSpan};
pub use quantize::Quantize;
pub use random::{RandomShape, UnknownShape};
pub use rotary::{LongContext, Rotary};
pub use source::ModelSource;
