//! How the work of attention is divided among cubes and threads.

use crate::cube::halves::RESCALE;
use crate::types::{HeadShape, PARTITION, TILE_ROWS};

/// Adjacent positions that a thread computes scores of: those of a vector of key words.
pub(super) const QUAD: usize = 4;
/// Quads of a partition.
pub(super) const QUADS: usize = PARTITION / QUAD;
/// Largest number of queries whose sums the threads exchange at once.
const MAX_BATCH: usize = 4;
/// Largest number of query heads of a cube.
const MAX_HEADS: usize = 8;
/// Largest number of queries (query heads times rows) of a cube.
const MAX_QUERIES: usize = 32;
/// Largest size of a cube's shared memory in bytes.
const MAX_SHARED_BYTES: usize = 32 << 10;
/// Cubes that keep a large GPU busy: with fewer, a group's query heads are divided among cubes.
const ENOUGH_CUBES: usize = 192;
/// Factor of queries where keys are f16, which are read scaled: half of [`RESCALE`]'s exponent and some, so
/// that neither queries nor sums overflow or vanish. Powers of two change no bit but the exponent's.
const QUERY_FACTOR: f32 = f32::from_bits((127 + 64) << 23);
/// Score of a masked position, in place of minus infinity.
pub(super) const MASKED: f32 = -1.0e30;

/// Constants that are compiled into the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Config {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Query heads of a key/value head.
    pub(super) group: usize,
    /// Whether a word of the cache has two f16; otherwise it has an f32.
    pub(super) halves: bool,
    /// Query heads of a cube.
    pub(super) heads: usize,
    /// Rows of a cube.
    pub(super) rows: usize,
    /// Whether a cube computes all partitions of a tile's rows; otherwise it has one of one row.
    pub(super) tiled: bool,
}

impl Config {
    /// For tiles.
    pub(super) fn tiles(shape: HeadShape, halves: bool) -> Self {
        let config = Self::new(shape, halves);
        let with = |rows: usize| Self { rows, tiled: true, ..config };
        let fits =
            |config: &Self| config.queries() <= MAX_QUERIES && config.shared_bytes() <= MAX_SHARED_BYTES;
        let tiles = [TILE_ROWS, TILE_ROWS / 2, TILE_ROWS / 4, TILE_ROWS / 8].map(with);
        tiles.into_iter().find(fits).unwrap_or(with(1))
    }

    /// For so many partitions, each of one row. From one choice to the next, the number of heads is at least
    /// halved: steps of 1, 2, 4, 8 and so on partitions make all choices.
    pub(super) fn parts(shape: HeadShape, halves: bool, parts: usize) -> Self {
        let mut config = Self::new(shape, halves);
        while config.heads > 1 && parts * config.head_sets() < ENOUGH_CUBES {
            config.heads = config.divisor(config.heads / 2);
        }
        config
    }

    fn new(shape: HeadShape, halves: bool) -> Self {
        let HeadShape { heads, kv_heads, head_dim, .. } = shape;
        let group = heads / kv_heads;
        let config = Self { kv_heads, head_dim, group, halves, heads: 1, rows: 1, tiled: false };
        Self { heads: config.divisor(MAX_HEADS), ..config }
    }

    /// The largest number up to `most` of which the heads of a group are a multiple.
    fn divisor(&self, most: usize) -> usize {
        (1..=most).rev().find(|heads| self.group.is_multiple_of(*heads)).unwrap_or(1)
    }

    /// Factor of queries, and of what comes out of their products with keys.
    pub(super) fn score_factors(&self) -> (f32, f32) {
        if self.halves { (QUERY_FACTOR, RESCALE / QUERY_FACTOR) } else { (1.0, 1.0) }
    }

    /// Factor of weights, for values that are read scaled.
    pub(super) fn weight_factor(&self) -> f32 {
        if self.halves { RESCALE } else { 1.0 }
    }

    /// Threads of a cube.
    pub(super) fn threads(&self) -> usize {
        if self.head_dim > 128 { 256 } else { 128 }
    }

    /// Cubes that have the same rows.
    pub(super) fn head_sets(&self) -> usize {
        self.kv_heads * (self.group / self.heads)
    }

    /// Queries of a cube.
    pub(super) fn queries(&self) -> usize {
        self.heads * self.rows
    }

    /// Queries whose sums the threads exchange at once.
    pub(super) fn batch(&self) -> usize {
        self.queries().min(MAX_BATCH)
    }

    /// Batches of a cube's queries, of which the last may be smaller.
    pub(super) fn batches(&self) -> usize {
        self.queries().div_ceil(self.batch())
    }

    /// Queries of this batch.
    pub(super) fn batch_queries(&self, batch: usize) -> usize {
        self.batch().min(self.queries() - batch * self.batch())
    }

    /// Numbers of a word of the cache.
    pub(super) fn numbers(&self) -> usize {
        if self.halves { 2 } else { 1 }
    }

    /// Words of a key or a value.
    pub(super) fn words(&self) -> usize {
        self.head_dim.div_ceil(self.numbers())
    }

    /// Words of a vector, which are read together from a value.
    pub(super) fn vector_len(&self) -> usize {
        let divides = |len: &usize| self.words().is_multiple_of(*len);
        let whole = self.words() * self.numbers() == self.head_dim;
        [4, 2].into_iter().filter(|_| whole).find(divides).unwrap_or(1)
    }

    /// Slices of a key, whose products different threads sum.
    pub(super) fn key_slices(&self) -> usize {
        self.threads() / QUADS
    }

    /// Words of a slice: every `key_slices`th of a key.
    pub(super) fn slice_words(&self) -> usize {
        self.words().div_ceil(self.key_slices())
    }

    /// Vectors of four numbers of a query in each slice, for each number of a word.
    pub(super) fn slice_vectors(&self) -> usize {
        self.slice_words().div_ceil(4)
    }

    /// Vectors of a query in shared memory.
    pub(super) fn query_vectors(&self) -> usize {
        self.numbers() * self.key_slices() * self.slice_vectors()
    }

    /// Vectors of a value.
    pub(super) fn columns(&self) -> usize {
        self.words() / self.vector_len()
    }

    /// Vectors of the numbers of a value.
    pub(super) fn out_vectors(&self) -> usize {
        self.numbers() * self.columns()
    }

    /// Slices of a partition's positions, whose values different threads sum.
    pub(super) fn value_slices(&self) -> usize {
        1 << (self.threads() / self.columns()).clamp(1, QUADS).ilog2()
    }

    /// Positions of such a slice.
    pub(super) fn slice_positions(&self) -> usize {
        PARTITION / self.value_slices()
    }

    /// Vectors of a batch's sums that a thread merges.
    pub(super) fn merged_per_thread(&self) -> usize {
        (self.batch() * self.out_vectors()).div_ceil(self.threads())
    }

    /// Vectors that threads exchange at once: a batch's scores, or its values.
    pub(super) fn exchanged_vectors(&self) -> usize {
        let scores = self.key_slices() * QUADS;
        let values = self.value_slices() * self.out_vectors();
        self.batch() * scores.max(values)
    }

    /// Size of a cube's shared memory in bytes.
    fn shared_bytes(&self) -> usize {
        let queries = self.queries() * (4 * self.query_vectors() + PARTITION + 2 * QUADS + 2);
        4 * (queries + 4 * self.exchanged_vectors())
    }
}
