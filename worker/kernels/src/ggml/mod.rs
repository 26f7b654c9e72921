//! ggml's storage formats: how weights are stored in files and in memory.

mod dequant;
mod finite;
mod quantize;
mod types;

pub use dequant::extend_f32;
pub(crate) use dequant::k_scale_and_min;
pub use finite::all_finite;
pub use quantize::{quantize_q4_0, quantize_q8_0};
pub use types::{GgmlType, unsupported_name};
