//! How attention is cut into cubes.

use crate::types::{BLOCK_SIZE, HeadShape};

/// Positions of a partition, and threads of a cube.
pub(super) const PARTITION: usize = 128;
/// Threads that share a head's scores when their largest and their sum are found.
pub(super) const SHARERS: usize = 8;
/// Query heads times rows that a cube holds at most.
pub(super) const MOST_QUERIES: usize = 32;
/// Shared memory that a cube uses at most, so that several fit on a processor.
pub(super) const MOST_SHARED: usize = 24 << 10;
/// Partitions that a cube walks over before a row's are given to many cubes.
pub(super) const MOST_PARTITIONS: usize = 4;
/// What the parts of a split row may take until they are put together.
pub(super) const MOST_PARTS_BYTES: usize = 64 << 20;
/// Stands for minus infinity.
pub(super) const LOWEST: f32 = -1.0e30;

/// What is compiled into the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Config {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Query heads to a key/value head.
    pub(super) group: usize,
    /// Of these, how many a cube holds.
    pub(super) heads: usize,
    /// Rows that a cube holds.
    pub(super) rows: usize,
    /// Rows come in tiles; otherwise each for itself.
    pub(super) tiled: bool,
    /// A cube has one partition.
    pub(super) split: bool,
    /// Numbers that are read at once.
    pub(super) chunk: usize,
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
            chunk: if shape.head_dim.is_multiple_of(4) { 4 } else { 1 },
        };
        let with = |rows: usize| Self { rows, ..config };
        let fits = |config: &Self| config.queries() <= MOST_QUERIES && config.shared() <= MOST_SHARED;
        let rows = if tiled { [8, 4, 2].map(with).into_iter().find(fits) } else { None };
        rows.unwrap_or(config)
    }

    pub(super) fn queries(&self) -> usize {
        self.heads * self.rows
    }

    /// Chunks of a head.
    pub(super) fn chunks(&self) -> usize {
        self.head_dim / self.chunk
    }

    /// Chunks of the heads of a cube, each the work of a thread.
    pub(super) fn items(&self) -> usize {
        self.heads * self.chunks()
    }

    /// Items of a thread.
    pub(super) fn items_each(&self) -> usize {
        self.items().div_ceil(PARTITION)
    }

    /// Parts of a partition whose values different threads add up; whole blocks.
    pub(super) fn slices(&self) -> usize {
        let most = (PARTITION / self.items().min(PARTITION)).min(PARTITION / BLOCK_SIZE);
        1 << most.ilog2()
    }

    /// Numbers of the slices' sums.
    pub(super) fn sliced(&self) -> usize {
        if self.slices() > 1 { self.slices() * self.queries() * self.chunks() } else { 1 }
    }

    pub(super) fn shared(&self) -> usize {
        4 * (self.queries() * (self.head_dim + PARTITION + 2 * SHARERS) + self.sliced() * self.chunk)
    }
}
