//! The Llama network as burn modules, and how it gets its weights.
//!
//! [`load`] checks a file against its own metadata and builds a [`Llama`]; [`Llama::forward`]
//! takes one sequence further. Everything is computed in 32-bit floats. A sequence's numbers
//! depend on nothing but its own tokens: sequences share weights, never a product.

mod cache;
mod config;
mod error;
mod layers;
mod llama;
#[cfg(test)]
pub(crate) mod testing;
mod weights;

pub use cache::KvCache;
pub use config::LlamaConfig;
pub use error::{ComputeError, LoadError};
pub use llama::{Llama, Shapes};
pub use weights::load;
