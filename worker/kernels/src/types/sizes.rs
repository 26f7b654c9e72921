//! Sizes that are the same everywhere.

/// Number of positions in a block of the cache.
pub const BLOCK_SIZE: usize = 16;

/// Largest number of rows of one sequence that a GPU kernel computes together.
pub(crate) const TILE_ROWS: usize = 8;

/// Words of a sampled row in the table of a step: the row, then the bits of its parameters.
pub(crate) const SAMPLE_WORDS: usize = 6;

/// Alignment in words of what lies in a common buffer: the strictest that a device requires of an offset.
pub(crate) const BUFFER_ALIGNMENT: usize = 64;
