//! The kernels.

use burn::cubecl;
use burn::cubecl::prelude::*;

use super::config::{Config, LOWEST, PARTITION, SHARERS};
use crate::types::{BLOCK_SIZE, TILE_ROWS};

/// What has been put together of a row's partitions: the largest score, the sum of the scores'
/// exponentials over it, and the values weighted with these.
#[derive(CubeType)]
struct Running<N: Size> {
    largest: f32,
    sum: f32,
    values: Vector<f32, N>,
}

/// `running` and the next partition.
#[cube]
#[allow(clippy::needless_pass_by_value)] // a kernel passes values
fn fold<N: Size>(running: Running<N>, largest: f32, sum: f32, values: Vector<f32, N>) -> Running<N> {
    let new = max(running.largest, largest);
    let old_share = (running.largest - new).exp();
    let share = (largest - new).exp();
    // A partition without any visible position must not even change a zero's sign.
    let seen = largest > LOWEST;
    let both = fma(values, Vector::new(share), running.values * Vector::new(old_share));
    Running::<N> {
        largest: new,
        sum: select(seen, fma(sum, share, running.sum * old_share), running.sum),
        values: select(seen, both, running.values),
    }
}

/// The first position that a row sees.
#[cube]
fn oldest(position: usize, window: usize) -> usize {
    select(position + 1 > window, position + 1 - min(window, position + 1), 0)
}

#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(super) fn attend_kernel<N: Size>(
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
    let chunks = comptime!(config.chunks());
    let count_queries = comptime!(config.queries());
    let items = comptime!(config.items());
    let items_each = comptime!(config.items_each());
    let slices = comptime!(config.slices());
    let all_heads = comptime!(config.kv_heads * config.group);
    let unit = UNIT_POS as usize;

    // Which rows.
    let mut first_row = CUBE_POS_X as usize;
    let mut count = 1usize;
    if comptime!(config.tiled) {
        let cubes = comptime!(TILE_ROWS / tile_rows);
        let tile = CUBE_POS_X as usize / cubes;
        let skipped = CUBE_POS_X as usize % cubes * tile_rows;
        let all = tiles[2 * tile + 1] as usize;
        if skipped >= all {
            terminate!();
        }
        first_row = tiles[2 * tile] as usize + skipped;
        count = min(all - skipped, tile_rows);
    }
    // Which heads.
    let sets = comptime!(config.group / config.heads);
    let kv_head = CUBE_POS_Y as usize / sets;
    let first_head = CUBE_POS_Y as usize * config.heads;
    // Which positions.
    let position = rows[3 * first_row] as usize;
    let table = rows[3 * first_row + 1] as usize * width;
    let last = position + count - 1;
    let mut start = oldest(position, window) / PARTITION;
    let mut end = last / PARTITION + 1;
    if comptime!(config.split) {
        let own = CUBE_POS_Z as usize;
        if own < start || own >= end {
            terminate!();
        }
        start = own;
        end = own + 1;
    }

    let mut queried = Shared::<[Vector<f32, N>]>::new_slice(comptime!(count_queries * chunks));
    for i in range_stepped(unit, comptime!(count_queries * chunks), PARTITION) {
        let query = i / chunks;
        let row = first_row + min(query % tile_rows, count - 1);
        let head = first_head + query / tile_rows;
        queried[i] = queries[(row * all_heads + head) * chunks + i % chunks];
    }
    let mut scores = Shared::<[f32]>::new_slice(comptime!(count_queries * PARTITION));
    let mut largest = Shared::<[f32]>::new_slice(comptime!(count_queries * SHARERS));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(count_queries * SHARERS));
    let mut sliced = Shared::<[Vector<f32, N>]>::new_slice(comptime!(config.sliced()));

    let mut run_largest = Array::<f32>::new(comptime!(items_each * tile_rows));
    let mut run_sum = Array::<f32>::new(comptime!(items_each * tile_rows));
    let mut run_values = Array::<Vector<f32, N>>::new(comptime!(items_each * tile_rows));
    #[unroll]
    for i in 0..comptime!(items_each * tile_rows) {
        run_largest[i] = LOWEST;
        run_sum[i] = 0.0;
        run_values[i] = Vector::new(0.0);
    }

    for partition in start..end {
        let first = partition * PARTITION;
        sync_cube();
        // Scores: a position to each thread.
        let at = first + unit;
        let kept = min(at, last);
        let block = min(tables[table + kept / BLOCK_SIZE] as usize, blocks - 1);
        let key =
            (block * config.kv_heads + kv_head) * comptime!(config.head_dim * BLOCK_SIZE) + kept % BLOCK_SIZE;
        let mut own = Array::<f32>::new(count_queries);
        #[unroll]
        for q in 0..count_queries {
            own[q] = 0.0;
        }
        for c in 0..chunks {
            let mut numbers = Array::<f32>::new(config.chunk);
            #[unroll]
            for i in 0..config.chunk {
                numbers[i] = keys[key + (c * config.chunk + i) * BLOCK_SIZE];
            }
            #[unroll]
            for q in 0..count_queries {
                let query = queried[q * chunks + c];
                #[unroll]
                for i in 0..config.chunk {
                    own[q] = fma(query.extract(i), numbers[i], own[q]);
                }
            }
        }
        #[unroll]
        for q in 0..count_queries {
            let of = position + comptime!(q % tile_rows);
            let visible = at <= of && at + window > of;
            scores[q * PARTITION + unit] = select(visible, own[q] * scale, LOWEST);
        }
        sync_cube();
        // The largest score of each query, then the exponentials over it and their sum.
        #[unroll]
        for i in 0..comptime!((count_queries * SHARERS).div_ceil(PARTITION)) {
            let share = unit + i * PARTITION;
            if share < count_queries * SHARERS {
                let from = share / SHARERS * PARTITION + share % SHARERS;
                let mut found = scores[from];
                for j in 1..comptime!(PARTITION / SHARERS) {
                    found = max(found, scores[from + j * SHARERS]);
                }
                largest[share] = found;
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime!((count_queries * SHARERS).div_ceil(PARTITION)) {
            let share = unit + i * PARTITION;
            if share < count_queries * SHARERS {
                let from = share / SHARERS * PARTITION + share % SHARERS;
                let top = largest_of(&largest, share / SHARERS);
                let mut sum = 0.0f32;
                for j in 0..comptime!(PARTITION / SHARERS) {
                    let score = scores[from + j * SHARERS];
                    let weight = select(score > LOWEST, (score - top).exp(), 0.0);
                    scores[from + j * SHARERS] = weight;
                    sum += weight;
                }
                sums[share] = sum;
            }
        }
        sync_cube();
        // The values of the partition: a chunk of a head, in a slice of the positions, to each
        // thread.
        let known = min(last + 1 - first, PARTITION);
        let slice = unit / items;
        let from = slice * comptime!(PARTITION / slices);
        let to = min(from + comptime!(PARTITION / slices), known);
        let mut part = Array::<Vector<f32, N>>::new(comptime!(items_each * tile_rows));
        #[unroll]
        for i in 0..comptime!(items_each * tile_rows) {
            part[i] = Vector::new(0.0);
        }
        #[unroll]
        for i in 0..items_each {
            let item = select(comptime!(slices > 1), unit % items, unit + i * PARTITION);
            let busy = select(comptime!(slices > 1), slice < slices, item < items);
            if busy {
                let weights = item / chunks * tile_rows * PARTITION;
                for in_block in range_stepped(from, to, BLOCK_SIZE) {
                    let block = min(tables[table + (first + in_block) / BLOCK_SIZE] as usize, blocks - 1);
                    let value =
                        (block * config.kv_heads + kv_head) * comptime!(BLOCK_SIZE * chunks) + item % chunks;
                    for offset in 0..min(to - in_block, BLOCK_SIZE) {
                        let numbers = values[value + offset * chunks];
                        #[unroll]
                        for r in 0..tile_rows {
                            let weight = scores[weights + r * PARTITION + in_block + offset];
                            let sum = part[i * tile_rows + r];
                            part[i * tile_rows + r] = fma(numbers, Vector::new(weight), sum);
                        }
                    }
                }
            }
        }
        if comptime!(slices > 1) {
            if slice < slices {
                #[unroll]
                for r in 0..tile_rows {
                    sliced[(slice * tile_rows + r) * items + unit % items] = part[r];
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
                    part[r] = sum;
                }
            }
        }
        // Together with the partitions before it.
        #[unroll]
        for i in 0..items_each {
            let item = unit + i * PARTITION;
            if item < items {
                #[unroll]
                for r in 0..tile_rows {
                    let state = comptime!(i * tile_rows + r);
                    let query = item / chunks * tile_rows + r;
                    let top = largest_of(&largest, query);
                    let sum = sum_of(&sums, query);
                    if comptime!(config.split) {
                        let head = first_head + item / chunks;
                        let to = (first_row * all_heads + head) * partitions + partition;
                        out[to * chunks + item % chunks] = part[state];
                        if item.is_multiple_of(chunks) {
                            stats[2 * to] = top;
                            stats[2 * to + 1] = sum;
                        }
                    } else {
                        let before = Running::<N> {
                            largest: run_largest[state],
                            sum: run_sum[state],
                            values: run_values[state],
                        };
                        let now = fold::<N>(before, top, sum, part[state]);
                        run_largest[state] = now.largest;
                        run_sum[state] = now.sum;
                        run_values[state] = now.values;
                    }
                }
            }
        }
    }
    if comptime!(!config.split) {
        #[unroll]
        for i in 0..items_each {
            let item = unit + i * PARTITION;
            #[unroll]
            for r in 0..tile_rows {
                if item < items && r < count {
                    let state = comptime!(i * tile_rows + r);
                    let head = first_head + item / chunks;
                    let to = ((first_row + r) * all_heads + head) * chunks + item % chunks;
                    out[to] = run_values[state] / Vector::new(run_sum[state]);
                }
            }
        }
    }
}

#[cube]
fn largest_of(largest: &[f32], query: usize) -> f32 {
    let mut found = largest[query * SHARERS];
    #[unroll]
    for i in 1..SHARERS {
        found = max(found, largest[query * SHARERS + i]);
    }
    found
}

#[cube]
fn sum_of(sums: &[f32], query: usize) -> f32 {
    let mut sum = sums[query * SHARERS];
    #[unroll]
    for i in 1..SHARERS {
        sum += sums[query * SHARERS + i];
    }
    sum
}

/// Puts the partitions of a row and head together.
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(super) fn merge_kernel<N: Size>(
    sums: &[Vector<f32, N>],
    stats: &[f32],
    rows: &[u32],
    out: &mut [Vector<f32, N>],
    partitions: usize,
    window: usize,
    heads: usize,
    chunks: usize,
) {
    let row = CUBE_POS_X as usize;
    let position = rows[3 * row] as usize;
    let to = row * heads + CUBE_POS_Y as usize;
    let start = oldest(position, window) / PARTITION;
    let end = position / PARTITION + 1;
    for chunk in range_stepped(UNIT_POS as usize, chunks, 64) {
        let mut largest = LOWEST.runtime();
        let mut sum = 0.0f32;
        let mut values = Vector::<f32, N>::new(0.0);
        for partition in start..end {
            let part = to * partitions + partition;
            let before = Running::<N> { largest, sum, values };
            let now = fold::<N>(before, stats[2 * part], stats[2 * part + 1], sums[part * chunks + chunk]);
            largest = now.largest;
            sum = now.sum;
            values = now.values;
        }
        out[to * chunks + chunk] = values / Vector::new(sum);
    }
}
