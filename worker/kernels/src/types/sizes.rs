//! Sizes that are the same everywhere.

/// Number of positions in a block of the cache.
pub const BLOCK_SIZE: usize = 16;

/// Largest number of rows of one sequence that a GPU kernel computes together.
pub(crate) const TILE_ROWS: usize = 16;

/// Positions that attention on GPUs computes together: `cube/attention/mod.rs` says why so many.
pub(crate) const PARTITION: usize = 64;

/// Partitions of lone rows that a GPU computes before it merges them; one row may have more. With 32 heads
/// of 128 numbers, their partial results are 34 MB, which is less than the cache of a large GPU.
pub(crate) const PASS_PARTS: usize = 2048;

/// Words of a sampled row in the table of a step: the row, then the bits of its parameters.
pub(crate) const SAMPLE_WORDS: usize = 6;

/// Alignment in words of what lies in a common buffer: the strictest that a device requires of an offset.
pub(crate) const BUFFER_ALIGNMENT: usize = 64;

/// The largest finite f16.
pub(crate) const F16_MAX: f32 = 65504.0;
