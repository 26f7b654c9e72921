//! The network, and how it gets its weights.
//!
//! An [`Architecture`] is read from a checkpoint's settings: a [`ModelConfig`], which says what the
//! network looks like, and how its tensors are stored. All families of models are the same few
//! layers; `config` has what sets each family apart. [`Network::open`] checks the tensors against the
//! settings and puts them on a device as they are stored, or quantised. [`Network::forward`] computes
//! many sequences at once over the operations of `emberline-kernels`, with keys and values in blocks
//! of a common pool.

mod architecture;
mod config;
mod error;
mod forward;
mod layer;
mod load;
mod logits;
mod quantize;
mod random;
mod rotary;
mod rows;
mod tensor_names;
#[cfg(test)]
pub(crate) mod testing;

pub use architecture::Architecture;
pub use config::{LayerConfig, ModelConfig};
pub use error::{ComputeError, NetworkError};
pub use forward::{MemoryUse, Network, NetworkStep, StepSpan};
pub use logits::{Hidden, Logits};
pub use quantize::Quantize;
pub use random::{RandomShape, UnknownShape};
pub use rotary::{LongContext, Rotary};
