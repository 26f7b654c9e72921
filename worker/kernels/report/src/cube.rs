//! The kernels.

#[path = "../../src/cube/attention/mod.rs"]
pub(crate) mod attention;
#[path = "../../src/cube/dequant.rs"]
mod dequant;
#[path = "../../src/cube/embedding.rs"]
pub(crate) mod embedding;
#[path = "../../src/cube/halves.rs"]
mod halves;
#[path = "../../src/cube/launch.rs"]
mod launch;
#[path = "../../src/cube/matmul/mod.rs"]
pub(crate) mod matmul;
#[path = "../../src/cube/pack.rs"]
pub(crate) mod pack;
#[path = "../../src/cube/rms_norm.rs"]
mod rms_norm;
#[path = "../../src/cube/rotary.rs"]
pub(crate) mod rotary;
#[path = "../../src/cube/sample/mod.rs"]
pub(crate) mod sample;
