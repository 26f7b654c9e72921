//! ggml's number formats: how weights are stored in files and in memory.

mod dequant;
mod finite;
mod types;

pub use dequant::extend_f32;
pub use finite::all_finite;
pub use types::{GgmlType, unsupported_name};
