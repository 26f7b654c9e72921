//! How the work of attention is divided among cubes and threads.

use crate::types::{BLOCK_SIZE, HeadShape};

/// Positions of a partition, which is also the number of threads of a cube.
pub(super) const PARTITION: usize = 128;
/// Threads that reduce a query's scores to their maximum and sum.
pub(super) const REDUCERS: usize = 8;
/// Largest number of queries (query heads times rows) of a cube.
pub(super) const MAX_QUERIES: usize = 32;
/// Largest size of a cube's shared memory in bytes, so that several cubes fit on a multiprocessor.
pub(super) const MAX_SHARED_BYTES: usize = 24 << 10;
/// Largest number of partitions that one cube computes in turn; with more, each has a cube of its own.
pub(super) const MAX_PARTITIONS: usize = 4;
/// Largest size of all partial results in bytes, until they are merged.
pub(super) const MAX_PARTIAL_BYTES: usize = 64 << 20;
/// Score of a masked position, in place of minus infinity.
pub(super) const MASKED: f32 = -1.0e30;

/// Constants that are compiled into the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Config {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Query heads of a key/value head.
    pub(super) group: usize,
    /// Query heads of a cube.
    pub(super) heads: usize,
    /// Rows of a cube.
    pub(super) rows: usize,
    /// Whether rows come in tiles; otherwise a cube has one row.
    pub(super) tiled: bool,
    /// Whether a cube has one partition; otherwise it computes all of its rows'.
    pub(super) split: bool,
    /// Elements of a vector, which are read together.
    pub(super) vector_len: usize,
}

impl Config {
    pub(super) fn new(shape: HeadShape, tiled: bool) -> Self {
        let group = shape.heads / shape.kv_heads;
        let heads = (1..=8).rev().find(|heads| group.is_multiple_of(*heads)).unwrap_or(1);
        let config = Self {
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            group,
            heads,
            rows: 1,
            tiled,
            split: false,
            vector_len: if shape.head_dim.is_multiple_of(4) { 4 } else { 1 },
        };
        let with = |rows: usize| Self { rows, ..config };
        let fits =
            |config: &Self| config.queries() <= MAX_QUERIES && config.shared_bytes() <= MAX_SHARED_BYTES;
        let rows = if tiled { [8, 4, 2].map(with).into_iter().find(fits) } else { None };
        rows.unwrap_or(config)
    }

    /// Queries of a cube.
    pub(super) fn queries(&self) -> usize {
        self.heads * self.rows
    }

    /// Vectors of a head.
    pub(super) fn vectors(&self) -> usize {
        self.head_dim / self.vector_len
    }

    /// Vectors of all query heads of a cube. Each is summed by one thread, or one thread per slice.
    pub(super) fn items(&self) -> usize {
        self.heads * self.vectors()
    }

    /// Items of a thread.
    pub(super) fn items_per_thread(&self) -> usize {
        self.items().div_ceil(PARTITION)
    }

    /// Number of slices of a partition, whole blocks each, whose values different threads sum.
    pub(super) fn slices(&self) -> usize {
        let largest = (PARTITION / self.items().min(PARTITION)).min(PARTITION / BLOCK_SIZE);
        1 << largest.ilog2()
    }

    /// Vectors of the slices' sums.
    pub(super) fn sliced(&self) -> usize {
        if self.slices() > 1 { self.slices() * self.queries() * self.vectors() } else { 1 }
    }

    /// Size of a cube's shared memory in bytes.
    pub(super) fn shared_bytes(&self) -> usize {
        4 * (self.queries() * (self.head_dim + PARTITION + 2 * REDUCERS) + self.sliced() * self.vector_len)
    }
}
