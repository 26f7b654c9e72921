//! Attention over the paged cache.
//!
//! A cube holds a few query heads that share a key/value head, for one row or for a tile of
//! consecutive rows of a sequence, and walks over the sequence in partitions of 128 positions,
//! which are cut at multiples of 128: scores of a partition, its largest and their sum, its share
//! of the values. Partitions are put together in their order by `fold`, by the cube itself or,
//! for few rows with long contexts, by a second kernel after a cube for each partition. What a
//! row's numbers go through is the same in all cases, and so are their bits.
//!
//! Dao et al., "FlashAttention" (2022), and "Flash-Decoding" (2023).

mod config;
mod kernel;

use burn::backend::wgpu::CubeTensor;
use burn::cubecl::prelude::*;

use self::config::{Config, MOST_PARTITIONS, MOST_PARTS_BYTES, PARTITION};
use self::kernel::{attend_kernel, merge_kernel};
use super::launch;
use crate::types::{BLOCK_SIZE, HeadShape, TILE_ROWS};

/// The step's tensors, as [`crate::StepRows`] and [`crate::KvBlocks`] have them.
pub(crate) struct Paged {
    pub(crate) keys: CubeTensor,
    pub(crate) values: CubeTensor,
    pub(crate) rows: CubeTensor,
    pub(crate) tables: CubeTensor,
    pub(crate) tiles: CubeTensor,
}

/// See [`crate::attention`].
pub(crate) fn attention(queries: CubeTensor, paged: Paged, shape: HeadShape) -> CubeTensor {
    let queries = launch::contiguous(queries);
    let rows = paged.rows.meta.shape()[0];
    let tiles = paged.tiles.meta.shape()[0];
    let width = paged.tables.meta.shape()[1];
    let out = launch::empty(&queries, &[rows, shape.query_width()], queries.dtype);
    if rows == 0 {
        return out;
    }
    let partitions = (width * BLOCK_SIZE).div_ceil(PARTITION);
    let mut config = Config::new(shape, tiles != rows);
    let parts = rows * shape.heads * partitions;
    config.split =
        !config.tiled && partitions > MOST_PARTITIONS && 4 * parts * (shape.head_dim + 2) <= MOST_PARTS_BYTES;
    if !config.split {
        attend(&queries, &paged, &out, &out, shape, config, partitions);
        return out;
    }
    let sums = launch::empty(&queries, &[parts, shape.head_dim], queries.dtype);
    let stats = launch::empty(&queries, &[parts, 2], queries.dtype);
    attend(&queries, &paged, &sums, &stats, shape, config, partitions);
    launch::count();
    // SAFETY: one cube for each row and head, over the parts that the first kernel wrote.
    #[allow(unsafe_code)]
    unsafe {
        merge_kernel::launch_unchecked(
            &queries.client,
            CubeCount::Static(rows as u32, shape.heads as u32, 1),
            CubeDim::new_1d(64),
            config.chunk,
            launch::buffer(&sums),
            launch::buffer(&stats),
            launch::buffer(&launch::contiguous(paged.rows)),
            launch::buffer(&out),
            partitions,
            window(shape),
            shape.heads,
            config.chunks(),
        );
    }
    out
}

/// How many positions a row sees; more than there are where it sees all.
fn window(shape: HeadShape) -> usize {
    shape.window.unwrap_or(i32::MAX as usize).max(1)
}

fn attend(
    queries: &CubeTensor,
    paged: &Paged,
    out: &CubeTensor,
    stats: &CubeTensor,
    shape: HeadShape,
    config: Config,
    partitions: usize,
) {
    let cubes = match config.tiled {
        true => paged.tiles.meta.shape()[0] * (TILE_ROWS / config.rows),
        false => paged.rows.meta.shape()[0],
    };
    let count = CubeCount::Static(
        cubes as u32,
        (shape.heads / config.heads) as u32,
        if config.split { partitions as u32 } else { 1 },
    );
    launch::count();
    // SAFETY: rows and tiles are those of the step, blocks are kept below those of the pool, and
    // block tables reach to the last position of their rows (see `StepRows`).
    #[allow(unsafe_code)]
    unsafe {
        attend_kernel::launch_unchecked(
            &queries.client,
            count,
            CubeDim::new_1d(PARTITION as u32),
            config.chunk,
            launch::buffer(queries),
            launch::buffer(&paged.keys),
            launch::buffer(&paged.values),
            launch::buffer(&launch::contiguous(paged.rows.clone())),
            launch::buffer(&launch::contiguous(paged.tables.clone())),
            launch::buffer(&launch::contiguous(paged.tiles.clone())),
            launch::buffer(out),
            launch::buffer(stats),
            paged.tables.meta.shape()[1],
            paged.keys.meta.shape()[0],
            partitions,
            window(shape),
            shape.scale,
            config,
        );
    }
}
