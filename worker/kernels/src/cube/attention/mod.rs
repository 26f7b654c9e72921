//! Attention over the paged cache.
//!
//! The positions of a sequence are processed in partitions of 64, aligned to multiples of 64: the scores
//! of a partition, their maximum, the sum of their exponentials, and the weighted values. Partitions are
//! merged in order. Rows that come in tiles, those of a prompt or a draft, have all of their partitions
//! computed and merged in one cube. A row that is alone, which decodes a token, has each partition
//! computed in a cube of its own, whatever else is in the step, and a second kernel merges them. The
//! arithmetic of a row is the same in all cases, and so are its bits.
//!
//! A cube has the queries of one key/value head, which share what it reads: some or all query heads of
//! the head's group, times the rows of a tile. A thread first reads all that it needs of a partition, keys
//! and values in units of 16 bytes: of a key, four positions and every eighth word; of a value, four words
//! and the positions of one block or less. So it waits for memory once in a partition, and once each for
//! its item of work and for the block table before that.
//!
//! Why 64 positions: with a head of 128 numbers that is 16 units of keys and 16 of values for each of 128
//! threads (half as many of f16), as much as its registers hold at once. A partial result is 520 bytes for
//! each head, written and read once: where a group has 4 heads and the cache f16, an eighth of what the
//! partition's keys and values are. Smaller partitions would cost more of that and of exchanging sums among
//! threads; larger ones would give a short context too few cubes. Where 64 still gives too few for a large
//! GPU, a group's heads are divided among cubes: their bits don't depend on it.
//!
//! Partial results are bounded: lone rows are computed in passes of as many as have `PASS_PARTS` partitions
//! together.
//!
//! Dao et al., "FlashAttention" (2022), and "Flash-Decoding" (2023).

mod accumulator;
mod config;
mod kernel;
mod merge;

use burn::backend::wgpu::CubeTensor;
use burn::cubecl::prelude::*;

use self::config::Config;
use self::kernel::attend_kernel;
use self::merge::{THREADS, merge_kernel};
use super::launch;
use crate::types::{HeadShape, Pass, TILE_ROWS};

/// The tensors of the cache ([`crate::KvBlocks`]) and of a step's rows ([`crate::StepRows`]).
pub(crate) struct AttentionInputs {
    pub(crate) keys: CubeTensor,
    pub(crate) values: CubeTensor,
    pub(crate) tables: CubeTensor,
    pub(crate) tiles: CubeTensor,
    pub(crate) singles: CubeTensor,
    pub(crate) parts: CubeTensor,
}

/// Where partitions are to be found, and what becomes of them.
struct Work<'a> {
    /// Tiles or parts.
    items: &'a CubeTensor,
    first: usize,
    cubes: usize,
    out: &'a CubeTensor,
    stats: &'a CubeTensor,
}

/// See [`crate::attention`].
pub(crate) fn attention(
    queries: CubeTensor,
    inputs: &AttentionInputs,
    passes: &[Pass],
    shape: HeadShape,
) -> CubeTensor {
    let queries = launch::contiguous(queries);
    let rows = queries.meta.shape()[0];
    let out = launch::empty(&queries, &[rows, shape.query_width()], queries.dtype);
    let halves = has_halves(&inputs.keys, shape);
    let tiles = inputs.tiles.meta.shape()[0];
    if tiles > 0 {
        let config = Config::tiles(shape, halves);
        let cubes = tiles * (TILE_ROWS / config.rows);
        let work = Work { items: &inputs.tiles, first: 0, cubes, out: &out, stats: &out };
        attend(&queries, inputs, &work, shape, config);
    }
    let (mut single, mut part) = (0, 0);
    for &Pass { singles, parts } in passes {
        let values = launch::empty(&queries, &[parts * shape.heads, shape.head_dim], queries.dtype);
        let stats = launch::empty(&queries, &[parts * shape.heads, 2], queries.dtype);
        let config = Config::parts(shape, halves, parts);
        let work = Work { items: &inputs.parts, first: part, cubes: parts, out: &values, stats: &stats };
        attend(&queries, inputs, &work, shape, config);
        launch::count();
        // SAFETY: cubes are those of the pass, and read the partial results that the first kernel wrote.
        #[allow(unsafe_code)]
        unsafe {
            merge_kernel::launch_unchecked(
                &queries.client,
                CubeCount::Static(
                    singles as u32,
                    shape.heads as u32,
                    shape.head_dim.div_ceil(THREADS) as u32,
                ),
                CubeDim::new_1d(THREADS as u32),
                launch::buffer(&values),
                launch::buffer(&stats),
                launch::buffer(&launch::contiguous(inputs.singles.clone())),
                launch::buffer(&out),
                single,
                part,
                window(shape),
                shape.heads,
                shape.head_dim,
            );
        }
        single += singles;
        part += parts;
    }
    out
}

/// Whether a pool's words have two f16 each.
pub(super) fn has_halves(keys: &CubeTensor, shape: HeadShape) -> bool {
    keys.meta.shape()[2] != shape.head_dim
}

/// Reads that a thread makes one after another to attend to a lone row, or to a tile at so many positions.
#[cfg(feature = "report")]
pub(crate) fn rounds(tile_positions: Option<usize>) -> usize {
    // The item of work, the block table, and a partition's keys and values together; in a tile, for each
    // partition the latter two.
    1 + 2 * tile_positions.map_or(1, |positions| positions.div_ceil(crate::types::PARTITION))
}

/// The same of the kernel that merges the partitions of a lone row at so many positions.
#[cfg(feature = "report")]
pub(crate) fn merge_rounds(positions: usize) -> usize {
    1 + positions.div_ceil(crate::types::PARTITION).div_ceil(THREADS)
}

/// Number of positions that a row attends to; without a sliding window, more than there can be.
fn window(shape: HeadShape) -> usize {
    shape.window.unwrap_or(i32::MAX as usize).max(1)
}

/// Launches the kernel that computes partitions.
fn attend(queries: &CubeTensor, inputs: &AttentionInputs, work: &Work<'_>, shape: HeadShape, config: Config) {
    launch::count();
    // SAFETY: rows and items are those of the step, the kernel stays within the blocks of the pool, and
    // block tables cover the last position of their rows (see `StepRows`).
    #[allow(unsafe_code)]
    unsafe {
        attend_kernel::launch_unchecked(
            &queries.client,
            CubeCount::Static(work.cubes as u32, config.head_sets() as u32, 1),
            CubeDim::new_1d(config.threads() as u32),
            config.vector_len(),
            launch::buffer(queries),
            launch::buffer(&inputs.keys),
            launch::buffer(&inputs.values),
            launch::buffer(&launch::contiguous(inputs.tables.clone())),
            launch::buffer(&launch::contiguous(work.items.clone())),
            launch::buffer(work.out),
            launch::buffer(work.stats),
            work.first,
            inputs.tables.meta.shape()[1],
            inputs.keys.meta.shape()[0],
            window(shape),
            shape.scale,
            config,
        );
    }
}
