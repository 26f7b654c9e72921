//! ggml's number formats: how weights are stored in files and in memory.

mod dequant;
mod types;

pub use dequant::extend_f32;
pub(crate) use dequant::k_scale_and_min;
pub use types::{GgmlType, unsupported_name};
