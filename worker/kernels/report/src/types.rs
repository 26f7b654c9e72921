//! Those types of the kernels that have no tensors.

#[path = "../../src/types/heads.rs"]
mod heads;
#[path = "../../src/types/matrix_spec.rs"]
mod matrix_spec;
#[path = "../../src/types/precision.rs"]
mod precision;
#[path = "../../src/types/sampling.rs"]
mod sampling;
#[path = "../../src/types/sizes.rs"]
mod sizes;
#[path = "../../src/types/work.rs"]
mod work;

pub use heads::{Activation, HeadShape};
pub use matrix_spec::MatrixSpec;
pub use precision::Precision;
pub(crate) use sampling::SamplingStages;
pub use sizes::BLOCK_SIZE;
pub(crate) use sizes::{BUFFER_ALIGNMENT, F16_MAX, PARTITION, SAMPLE_WORDS, TILE_ROWS};
pub(crate) use work::{Pass, WorkList};
