//! The kernels of attention.

use burn::cubecl;
use burn::cubecl::prelude::*;

use super::config::{Config, MASKED, PARTITION, REDUCERS};
use crate::types::{BLOCK_SIZE, TILE_ROWS};

/// The online softmax over some partitions of a query: the maximum of the scores, the sum of their
/// exponentials relative to it, and the values weighted with these.
#[derive(CubeType)]
struct Accumulator<N: Size> {
    max: f32,
    sum: f32,
    values: Vector<f32, N>,
}

/// Merges the next partition into `running`.
#[cube]
#[allow(clippy::needless_pass_by_value)] // kernels pass values
fn merge_partition<N: Size>(
    running: Accumulator<N>,
    partition_max: f32,
    sum: f32,
    values: Vector<f32, N>,
) -> Accumulator<N> {
    let new = max(running.max, partition_max);
    let old_share = (running.max - new).exp();
    let share = (partition_max - new).exp();
    // A partition without a visible position must change nothing, not even the sign of a zero.
    let seen = partition_max > MASKED;
    let both = fma(values, Vector::new(share), running.values * Vector::new(old_share));
    Accumulator::<N> {
        max: new,
        sum: select(seen, fma(sum, share, running.sum * old_share), running.sum),
        values: select(seen, both, running.values),
    }
}

/// The first position that a row attends to.
#[cube]
fn first_visible(position: usize, window: usize) -> usize {
    select(position + 1 > window, position + 1 - min(window, position + 1), 0)
}

#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(crate) fn attend_kernel<N: Size>(
    queries: &[Vector<f32, N>],
    keys: &[f32],
    values: &[Vector<f32, N>],
    rows: &[u32],
    tables: &[u32],
    tiles: &[u32],
    out: &mut [Vector<f32, N>],
    stats: &mut [f32],
    width: usize,
    blocks: usize,
    partitions: usize,
    window: usize,
    scale: f32,
    #[comptime] config: Config,
) {
    let tile_rows = comptime!(config.rows);
    let vectors = comptime!(config.vectors());
    let count_queries = comptime!(config.queries());
    let items = comptime!(config.items());
    let items_per_thread = comptime!(config.items_per_thread());
    let slices = comptime!(config.slices());
    let all_heads = comptime!(config.kv_heads * config.group);
    let unit = UNIT_POS as usize;

    // The rows of this cube.
    let mut first_row = CUBE_POS_X as usize;
    let mut count = 1usize;
    if comptime!(config.tiled) {
        let cubes = comptime!(TILE_ROWS / tile_rows);
        let tile = CUBE_POS_X as usize / cubes;
        let offset = CUBE_POS_X as usize % cubes * tile_rows;
        let all = tiles[2 * tile + 1] as usize;
        if offset >= all {
            terminate!();
        }
        first_row = tiles[2 * tile] as usize + offset;
        count = min(all - offset, tile_rows);
    }
    // Its heads.
    let sets = comptime!(config.group / config.heads);
    let kv_head = CUBE_POS_Y as usize / sets;
    let first_head = CUBE_POS_Y as usize * config.heads;
    // Its positions.
    let position = rows[3 * first_row] as usize;
    let table = rows[3 * first_row + 1] as usize * width;
    let last = position + count - 1;
    let mut start = first_visible(position, window) / PARTITION;
    let mut end = last / PARTITION + 1;
    if comptime!(config.split) {
        let own = CUBE_POS_Z as usize;
        if own < start || own >= end {
            terminate!();
        }
        start = own;
        end = own + 1;
    }

    let mut queried = Shared::<[Vector<f32, N>]>::new_slice(comptime!(count_queries * vectors));
    for i in range_stepped(unit, comptime!(count_queries * vectors), PARTITION) {
        let query = i / vectors;
        let row = first_row + min(query % tile_rows, count - 1);
        let head = first_head + query / tile_rows;
        queried[i] = queries[(row * all_heads + head) * vectors + i % vectors];
    }
    let mut scores = Shared::<[f32]>::new_slice(comptime!(count_queries * PARTITION));
    let mut maxima = Shared::<[f32]>::new_slice(comptime!(count_queries * REDUCERS));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(count_queries * REDUCERS));
    let mut sliced = Shared::<[Vector<f32, N>]>::new_slice(comptime!(config.sliced()));

    let mut run_max = Array::<f32>::new(comptime!(items_per_thread * tile_rows));
    let mut run_sum = Array::<f32>::new(comptime!(items_per_thread * tile_rows));
    let mut run_values = Array::<Vector<f32, N>>::new(comptime!(items_per_thread * tile_rows));
    #[unroll]
    for i in 0..comptime!(items_per_thread * tile_rows) {
        run_max[i] = MASKED;
        run_sum[i] = 0.0;
        run_values[i] = Vector::new(0.0);
    }

    for partition in start..end {
        let first = partition * PARTITION;
        sync_cube();
        // Scores: a position for each thread.
        let at = first + unit;
        let clamped = min(at, last);
        let block = min(tables[table + clamped / BLOCK_SIZE] as usize, blocks - 1);
        let key = (block * config.kv_heads + kv_head) * comptime!(config.head_dim * BLOCK_SIZE)
            + clamped % BLOCK_SIZE;
        let mut own = Array::<f32>::new(count_queries);
        #[unroll]
        for q in 0..count_queries {
            own[q] = 0.0;
        }
        for c in 0..vectors {
            let mut numbers = Array::<f32>::new(config.vector_len);
            #[unroll]
            for i in 0..config.vector_len {
                numbers[i] = keys[key + (c * config.vector_len + i) * BLOCK_SIZE];
            }
            #[unroll]
            for q in 0..count_queries {
                let query = queried[q * vectors + c];
                #[unroll]
                for i in 0..config.vector_len {
                    own[q] = fma(query.extract(i), numbers[i], own[q]);
                }
            }
        }
        #[unroll]
        for q in 0..count_queries {
            let of = position + comptime!(q % tile_rows);
            let visible = at <= of && at + window > of;
            scores[q * PARTITION + unit] = select(visible, own[q] * scale, MASKED);
        }
        sync_cube();
        // The largest score of each query, then the exponentials relative to it and their sum.
        #[unroll]
        for i in 0..comptime!((count_queries * REDUCERS).div_ceil(PARTITION)) {
            let share = unit + i * PARTITION;
            if share < count_queries * REDUCERS {
                let from = share / REDUCERS * PARTITION + share % REDUCERS;
                let mut found = scores[from];
                for j in 1..comptime!(PARTITION / REDUCERS) {
                    found = max(found, scores[from + j * REDUCERS]);
                }
                maxima[share] = found;
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime!((count_queries * REDUCERS).div_ceil(PARTITION)) {
            let share = unit + i * PARTITION;
            if share < count_queries * REDUCERS {
                let from = share / REDUCERS * PARTITION + share % REDUCERS;
                let top = max_of(&maxima, share / REDUCERS);
                let mut sum = 0.0f32;
                for j in 0..comptime!(PARTITION / REDUCERS) {
                    let score = scores[from + j * REDUCERS];
                    let weight = select(score > MASKED, (score - top).exp(), 0.0);
                    scores[from + j * REDUCERS] = weight;
                    sum += weight;
                }
                sums[share] = sum;
            }
        }
        sync_cube();
        // Values: each thread sums one vector of a head over one slice of the positions.
        let visible = min(last + 1 - first, PARTITION);
        let slice = unit / items;
        let from = slice * comptime!(PARTITION / slices);
        let to = min(from + comptime!(PARTITION / slices), visible);
        let mut partial = Array::<Vector<f32, N>>::new(comptime!(items_per_thread * tile_rows));
        #[unroll]
        for i in 0..comptime!(items_per_thread * tile_rows) {
            partial[i] = Vector::new(0.0);
        }
        #[unroll]
        for i in 0..items_per_thread {
            let item = select(comptime!(slices > 1), unit % items, unit + i * PARTITION);
            let busy = select(comptime!(slices > 1), slice < slices, item < items);
            if busy {
                let weights = item / vectors * tile_rows * PARTITION;
                for in_block in range_stepped(from, to, BLOCK_SIZE) {
                    let block = min(tables[table + (first + in_block) / BLOCK_SIZE] as usize, blocks - 1);
                    let value = (block * config.kv_heads + kv_head) * comptime!(BLOCK_SIZE * vectors)
                        + item % vectors;
                    for offset in 0..min(to - in_block, BLOCK_SIZE) {
                        let numbers = values[value + offset * vectors];
                        #[unroll]
                        for r in 0..tile_rows {
                            let weight = scores[weights + r * PARTITION + in_block + offset];
                            let sum = partial[i * tile_rows + r];
                            partial[i * tile_rows + r] = fma(numbers, Vector::new(weight), sum);
                        }
                    }
                }
            }
        }
        if comptime!(slices > 1) {
            if slice < slices {
                #[unroll]
                for r in 0..tile_rows {
                    sliced[(slice * tile_rows + r) * items + unit % items] = partial[r];
                }
            }
            sync_cube();
            if slice == 0 {
                #[unroll]
                for r in 0..tile_rows {
                    let mut sum = sliced[r * items + unit];
                    #[unroll]
                    for s in 1..slices {
                        sum += sliced[(s * tile_rows + r) * items + unit];
                    }
                    partial[r] = sum;
                }
            }
        }
        // Merge with the partitions before this one.
        #[unroll]
        for i in 0..items_per_thread {
            let item = unit + i * PARTITION;
            if item < items {
                #[unroll]
                for r in 0..tile_rows {
                    let state = comptime!(i * tile_rows + r);
                    let query = item / vectors * tile_rows + r;
                    let top = max_of(&maxima, query);
                    let sum = sum_of(&sums, query);
                    if comptime!(config.split) {
                        let head = first_head + item / vectors;
                        let to = (first_row * all_heads + head) * partitions + partition;
                        out[to * vectors + item % vectors] = partial[state];
                        if item.is_multiple_of(vectors) {
                            stats[2 * to] = top;
                            stats[2 * to + 1] = sum;
                        }
                    } else {
                        let before = Accumulator::<N> {
                            max: run_max[state],
                            sum: run_sum[state],
                            values: run_values[state],
                        };
                        let now = merge_partition::<N>(before, top, sum, partial[state]);
                        run_max[state] = now.max;
                        run_sum[state] = now.sum;
                        run_values[state] = now.values;
                    }
                }
            }
        }
    }
    if comptime!(!config.split) {
        #[unroll]
        for i in 0..items_per_thread {
            let item = unit + i * PARTITION;
            #[unroll]
            for r in 0..tile_rows {
                if item < items && r < count {
                    let state = comptime!(i * tile_rows + r);
                    let head = first_head + item / vectors;
                    let to = ((first_row + r) * all_heads + head) * vectors + item % vectors;
                    out[to] = run_values[state] / Vector::new(run_sum[state]);
                }
            }
        }
    }
}

/// The largest score of a query, from those that its reducers found.
#[cube]
fn max_of(maxima: &[f32], query: usize) -> f32 {
    let mut found = maxima[query * REDUCERS];
    #[unroll]
    for i in 1..REDUCERS {
        found = max(found, maxima[query * REDUCERS + i]);
    }
    found
}

/// The sum of a query's exponentials, from those of its reducers.
#[cube]
fn sum_of(sums: &[f32], query: usize) -> f32 {
    let mut sum = sums[query * REDUCERS];
    #[unroll]
    for i in 1..REDUCERS {
        sum += sums[query * REDUCERS + i];
    }
    sum
}

/// Merges the partitions of one row and head, in order.
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(crate) fn merge_kernel<N: Size>(
    sums: &[Vector<f32, N>],
    stats: &[f32],
    rows: &[u32],
    out: &mut [Vector<f32, N>],
    partitions: usize,
    window: usize,
    heads: usize,
    vectors: usize,
) {
    let row = CUBE_POS_X as usize;
    let position = rows[3 * row] as usize;
    let to = row * heads + CUBE_POS_Y as usize;
    let start = first_visible(position, window) / PARTITION;
    let end = position / PARTITION + 1;
    for vector in range_stepped(UNIT_POS as usize, vectors, 64) {
        let mut running_max = MASKED.runtime();
        let mut sum = 0.0f32;
        let mut values = Vector::<f32, N>::new(0.0);
        for partition in start..end {
            let partial = to * partitions + partition;
            let before = Accumulator::<N> { max: running_max, sum, values };
            let now = merge_partition::<N>(
                before,
                stats[2 * partial],
                stats[2 * partial + 1],
                sums[partial * vectors + vector],
            );
            running_max = now.max;
            sum = now.sum;
            values = now.values;
        }
        out[to * vectors + vector] = values / Vector::new(sum);
    }
}
