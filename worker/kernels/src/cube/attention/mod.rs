//! Attention over the inputs cache.
//!
//! A cube computes a few query heads of one key/value head, for one row or for a tile of consecutive
//! rows of a sequence. It processes the sequence in partitions of 128 positions, aligned to multiples
//! of 128: the scores of a partition, their maximum, the sum of their exponentials, and the weighted
//! values. `merge_partition` merges partitions in order, either in the cube itself or, for few rows
//! with long contexts, in a second kernel after one cube for each partition. The arithmetic of a row
//! is the same in all cases, and so are its bits.
//!
//! Dao et al., "FlashAttention" (2022), and "Flash-Decoding" (2023).

mod config;
mod kernel;

use burn::backend::wgpu::CubeTensor;
use burn::cubecl::prelude::*;

use self::config::{Config, MAX_PARTIAL_BYTES, MAX_PARTITIONS, PARTITION};
use self::kernel::{attend_kernel, merge_kernel};
use super::launch;
use crate::types::{BLOCK_SIZE, HeadShape, TILE_ROWS};

/// The tensors of the cache ([`crate::KvBlocks`]) and of a step's rows ([`crate::StepRows`]).
pub(crate) struct AttentionInputs {
    pub(crate) keys: CubeTensor,
    pub(crate) values: CubeTensor,
    pub(crate) rows: CubeTensor,
    pub(crate) tables: CubeTensor,
    pub(crate) tiles: CubeTensor,
}

/// See [`crate::attention`].
pub(crate) fn attention(queries: CubeTensor, inputs: AttentionInputs, shape: HeadShape) -> CubeTensor {
    let queries = launch::contiguous(queries);
    let rows = inputs.rows.meta.shape()[0];
    let tiles = inputs.tiles.meta.shape()[0];
    let width = inputs.tables.meta.shape()[1];
    let out = launch::empty(&queries, &[rows, shape.query_width()], queries.dtype);
    if rows == 0 {
        return out;
    }
    let partitions = (width * BLOCK_SIZE).div_ceil(PARTITION);
    let partials = rows * shape.heads * partitions;
    let config = config(shape, rows, tiles, partitions);
    if !config.split {
        attend(&queries, &inputs, &out, &out, shape, config, partitions);
        return out;
    }
    let sums = launch::empty(&queries, &[partials, shape.head_dim], queries.dtype);
    let stats = launch::empty(&queries, &[partials, 2], queries.dtype);
    attend(&queries, &inputs, &sums, &stats, shape, config, partitions);
    launch::count();
    // SAFETY: there is one cube for each row and head; it reads the partial results that the first
    // kernel wrote.
    #[allow(unsafe_code)]
    unsafe {
        merge_kernel::launch_unchecked(
            &queries.client,
            CubeCount::Static(rows as u32, shape.heads as u32, 1),
            CubeDim::new_1d(64),
            config.vector_len,
            launch::buffer(&sums),
            launch::buffer(&stats),
            launch::buffer(&launch::contiguous(inputs.rows)),
            launch::buffer(&out),
            partitions,
            window(shape),
            shape.heads,
            config.vectors(),
        );
    }
    out
}

fn config(shape: HeadShape, rows: usize, tiles: usize, partitions: usize) -> Config {
    let mut config = Config::new(shape, tiles != rows);
    let partials = rows * shape.heads * partitions;
    config.split = !config.tiled
        && partitions > MAX_PARTITIONS
        && 4 * partials * (shape.head_dim + 2) <= MAX_PARTIAL_BYTES;
    config
}

/// Reads that a thread makes one after another to attend to `positions`: keys of its position, vector
/// by vector, then its vector of the values, position by position; four of them at a time.
#[cfg(feature = "report")]
pub(crate) fn rounds(shape: HeadShape, rows: usize, tiles: usize, positions: usize) -> usize {
    let partitions = positions.div_ceil(PARTITION);
    let config = config(shape, rows, tiles, partitions);
    let one = (config.vectors() + PARTITION / config.slices()) / 4;
    if config.split { one } else { partitions * one }
}

/// Number of positions that a row attends to; without a sliding window, more than there can be.
fn window(shape: HeadShape) -> usize {
    shape.window.unwrap_or(i32::MAX as usize).max(1)
}

/// Launches the kernel that computes partitions. With `config.split` it writes partial results to
/// `out` and `stats`, and otherwise the result to `out`.
fn attend(
    queries: &CubeTensor,
    inputs: &AttentionInputs,
    out: &CubeTensor,
    stats: &CubeTensor,
    shape: HeadShape,
    config: Config,
    partitions: usize,
) {
    let cubes = match config.tiled {
        true => inputs.tiles.meta.shape()[0] * (TILE_ROWS / config.rows),
        false => inputs.rows.meta.shape()[0],
    };
    let count = CubeCount::Static(
        cubes as u32,
        (shape.heads / config.heads) as u32,
        if config.split { partitions as u32 } else { 1 },
    );
    launch::count();
    // SAFETY: rows and tiles are those of the step, the kernel stays within the blocks of the pool, and
    // block tables cover the last position of their rows (see `StepRows`).
    #[allow(unsafe_code)]
    unsafe {
        attend_kernel::launch_unchecked(
            &queries.client,
            count,
            CubeDim::new_1d(PARTITION as u32),
            config.vector_len,
            launch::buffer(queries),
            launch::buffer(&inputs.keys),
            launch::buffer(&inputs.values),
            launch::buffer(&launch::contiguous(inputs.rows.clone())),
            launch::buffer(&launch::contiguous(inputs.tables.clone())),
            launch::buffer(&launch::contiguous(inputs.tiles.clone())),
            launch::buffer(out),
            launch::buffer(stats),
            inputs.tables.meta.shape()[1],
            inputs.keys.meta.shape()[0],
            partitions,
            window(shape),
            shape.scale,
            config,
        );
    }
}
