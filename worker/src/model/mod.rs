//! The network, and how it gets its weights.
//!
//! [`ModelConfig`] says what a network looks like; [`Network`] computes it over the operations of
//! `emberline-kernels`, for many sequences at once, with keys and values in blocks of a common
//! pool. [`Network::from_gguf`] checks a file against its own metadata and builds one; weights
//! stay as they are stored.

mod cache;
mod checkpoint;
mod config;
mod error;
mod layer;
mod layers;
mod llama;
mod llama_config;
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
mod weights;

pub use cache::KvCache;
pub use checkpoint::Checkpoint;
pub use config::{LayerConfig, ModelConfig};
pub use error::{ComputeError, LoadError};
pub use llama::{Llama, Shapes};
pub use llama_config::LlamaConfig;
pub use logits::Logits;
pub use network::{MemoryUse, Network, StepSpan};
pub use quantize::Quantize;
pub use random::{RandomShape, UnknownShape};
pub use rotary::{LongContext, Rotary};
pub use source::ModelSource;
pub use weights::load;
