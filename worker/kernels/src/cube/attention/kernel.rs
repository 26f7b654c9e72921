//! The kernel that attends to partitions.

use burn::cubecl;
use burn::cubecl::prelude::*;

use super::accumulator::{first_visible, merged, merged_values, shares};
use super::config::{Config, MASKED, QUAD, QUADS};
use crate::cube::dequant::{F4, U4};
use crate::cube::halves::{BEYOND, high_halves, low_halves, singles};
use crate::types::{BLOCK_SIZE, PARTITION, TILE_ROWS};

/// The rows of a cube, and where their sequence lies in the cache.
#[derive(CubeType)]
struct Rows {
    /// Number of the first.
    first: usize,
    count: usize,
    /// Position of the first.
    position: usize,
    /// Position of the last.
    last: usize,
    /// Where their block table begins.
    table: usize,
}

/// Attends to all partitions of some rows of a tile (`out` is the result), or to one partition of one row
/// (`out` and `stats` are what [`merge_kernel`](super::merge::merge_kernel) reads).
///
/// `work` has four words for each tile (first row, number of rows, first position, span) or part (row,
/// partition, position, span), from `first_work` on.
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(crate) fn attend_kernel<N: Size>(
    queries: &[f32],
    keys: &[U4],
    values: &[Vector<u32, N>],
    tables: &[u32],
    work: &[u32],
    out: &mut [Vector<f32, N>],
    stats: &mut [f32],
    first_work: usize,
    width: usize,
    blocks: usize,
    window: usize,
    scale: f32,
    #[comptime] config: Config,
) {
    let unit = UNIT_POS as usize;
    let threads = comptime!(config.threads());
    let cubes = comptime!(if config.tiled { TILE_ROWS / config.rows } else { 1 });
    let item = 4 * (first_work + CUBE_POS_X as usize / cubes);
    let number = work[item + 1] as usize;
    let span = work[item + 3] as usize;
    let mut rows = Rows {
        first: work[item] as usize,
        count: 1usize.runtime(),
        position: work[item + 2] as usize,
        last: work[item + 2] as usize,
        table: span * width,
    };
    if comptime!(config.tiled) {
        let offset = CUBE_POS_X as usize % cubes * config.rows;
        if offset >= number {
            terminate!();
        }
        rows.first += offset;
        rows.count = min(number - offset, config.rows);
        rows.position += offset;
        rows.last = rows.position + rows.count - 1;
    }
    let mut start = first_visible(rows.position, window) / PARTITION;
    let mut end = rows.last / PARTITION + 1;
    if comptime!(!config.tiled) {
        if number < start {
            terminate!();
        }
        start = number;
        end = number + 1;
    }
    let kv_head = CUBE_POS_Y as usize / comptime!(config.group / config.heads);
    let first_head = CUBE_POS_Y as usize * config.heads;
    let all_heads = comptime!(config.kv_heads * config.group);

    let len = comptime!(config.vector_len());
    let query_count = comptime!(config.queries());
    let batches = comptime!(config.batches());
    let batch_size = comptime!(config.batch());
    let out_vectors = comptime!(config.out_vectors());
    let per_thread = comptime!(config.merged_per_thread());
    let mut queried = Shared::<[F4]>::new_slice(comptime!(query_count * config.query_vectors()));
    let mut weights = Shared::<[F4]>::new_slice(comptime!(query_count * QUADS));
    let mut quad_maxima = Shared::<[f32]>::new_slice(comptime!(query_count * QUADS));
    let mut quad_sums = Shared::<[f32]>::new_slice(comptime!(query_count * QUADS));
    let mut maxima = Shared::<[f32]>::new_slice(query_count);
    let mut sums = Shared::<[f32]>::new_slice(query_count);
    // What threads sum of scores, and later of values.
    let mut exchanged = Shared::<[F4]>::new_slice(comptime!(config.exchanged_vectors()));

    let factor = scale * comptime!(config.score_factors().1);
    let states = comptime!(batches * per_thread);
    let mut run_max = Array::<f32>::new(states);
    let mut run_sum = Array::<f32>::new(states);
    let mut run_values = Array::<Vector<f32, N>>::new(states);
    #[unroll]
    for i in 0..states {
        run_max[i] = MASKED;
        run_sum[i] = 0.0;
        run_values[i] = Vector::new(0.0);
    }

    for partition in start..end {
        let first = partition * PARTITION;
        // All that the thread needs of the partition is on its way before it waits for any of it.
        let mut key_words = Array::<U4>::new(comptime!(config.slice_words()));
        load_keys(&mut key_words, keys, tables, &rows, first, kv_head, blocks, config);
        let mut value_words = Array::<Vector<u32, N>>::new(comptime!(config.slice_positions()));
        load_values::<N>(&mut value_words, values, tables, &rows, first, kv_head, blocks, config);
        // A branch that is never taken, for a compiler may move reads behind the barriers, to where what they
        // read is used, but not out of the way of a branch that uses it.
        if window == 0 {
            #[unroll]
            for i in 0..comptime!(config.slice_words()) {
                exchanged[unit] = singles(key_words[i], 4usize);
                sync_cube();
            }
            #[unroll]
            for i in 0..comptime!(config.slice_positions()) {
                exchanged[unit] = widened::<N>(singles::<N>(value_words[i], len), len);
                sync_cube();
            }
        }
        if partition == start {
            stage_queries(&mut queried, queries, &rows, first_head, config);
        }

        // Scores: four positions' for each thread, over a slice of the key.
        let mut key_numbers = Array::<F4>::new(comptime!(config.numbers() * config.slice_words()));
        #[unroll]
        for i in 0..comptime!(config.slice_words()) {
            if comptime!(config.halves) {
                key_numbers[2 * i] = low_halves(key_words[i], 4usize);
                key_numbers[2 * i + 1] = high_halves(key_words[i], 4usize);
            } else {
                key_numbers[i] = singles(key_words[i], 4usize);
            }
        }
        let zero = if comptime!(config.halves) { zero_of(&key_numbers, config) } else { F4::new(0.0) };
        let mut scores = Array::<F4>::new(batches);
        let quad = unit % QUADS;
        #[unroll]
        for batch in 0..batches {
            let count = comptime!(config.batch_queries(batch));
            sync_cube();
            #[unroll]
            for b in 0..count {
                let sum =
                    slice_scores(&queried, &key_numbers, zero, comptime!(batch * batch_size + b), config);
                exchanged[b * threads + unit] = sum;
            }
            sync_cube();
            scores[batch] = F4::new(MASKED);
            if unit < comptime!(count * QUADS) {
                let query = batch * batch_size + unit / QUADS;
                let of = rows.position + query % config.rows;
                let at = unit / QUADS * threads + quad;
                let mut sum = exchanged[at];
                #[unroll]
                for slice in 1..comptime!(config.key_slices()) {
                    sum += exchanged[at + slice * QUADS];
                }
                let mut score = F4::empty();
                #[unroll]
                for i in 0..QUAD {
                    let at = first + quad * QUAD + i;
                    let visible = at <= of && at + window > of;
                    score.insert(i, select(visible, sum.extract(i) * factor, MASKED));
                }
                scores[batch] = score;
                quad_maxima[query * QUADS + quad] = max_of(score);
            }
        }
        sync_cube();
        // Exponentials relative to the largest score of a query.
        #[unroll]
        for batch in 0..batches {
            if unit < comptime!(config.batch_queries(batch) * QUADS) {
                let query = batch * batch_size + unit / QUADS;
                let mut largest = quad_maxima[query * QUADS];
                #[unroll]
                for i in 1..QUADS {
                    largest = max(largest, quad_maxima[query * QUADS + i]);
                }
                let mut weight = F4::empty();
                #[unroll]
                for i in 0..QUAD {
                    let score = scores[batch].extract(i);
                    weight.insert(i, select(score > MASKED, (score - largest).exp(), 0.0));
                }
                weights[query * QUADS + quad] = weight * F4::new(comptime!(config.weight_factor()));
                let first_two = weight.extract(0usize) + weight.extract(1usize);
                let last_two = weight.extract(2usize) + weight.extract(3usize);
                quad_sums[query * QUADS + quad] = first_two + last_two;
                if quad == 0 {
                    maxima[query] = largest;
                }
            }
        }
        sync_cube();
        if unit < query_count {
            let mut sum = quad_sums[unit * QUADS];
            #[unroll]
            for i in 1..QUADS {
                sum += quad_sums[unit * QUADS + i];
            }
            sums[unit] = sum;
        }
        // Values: a vector for each thread, over a slice of the positions.
        #[unroll]
        for batch in 0..batches {
            let count = comptime!(config.batch_queries(batch));
            if comptime!(batch > 0) {
                sync_cube();
            }
            weigh_values::<N>(&mut exchanged, &value_words, &weights, batch, config);
            sync_cube();
            #[unroll]
            for i in 0..per_thread {
                let at = unit + i * threads;
                if at < comptime!(count * out_vectors) {
                    let of = at / out_vectors;
                    let vector = at % out_vectors;
                    let query = batch * batch_size + of;
                    let from = of * comptime!(config.value_slices() * out_vectors) + vector;
                    let mut sums_of = exchanged[from];
                    #[unroll]
                    for slice in 1..comptime!(config.value_slices()) {
                        sums_of += exchanged[from + slice * out_vectors];
                    }
                    let sum = narrowed::<N>(sums_of, len);
                    let state = comptime!(batch * per_thread + i);
                    if comptime!(config.tiled) {
                        let next = maxima[query];
                        let shares = shares(run_max[state], next);
                        run_max[state] = max(run_max[state], next);
                        run_sum[state] = merged(run_sum[state], sums[query], &shares);
                        run_values[state] = merged_values::<N>(run_values[state], sum, &shares);
                    } else {
                        let to = CUBE_POS_X as usize * all_heads + first_head + query;
                        out[to * out_vectors + vector] = sum;
                        if vector == 0 {
                            stats[2 * to] = maxima[query];
                            stats[2 * to + 1] = sums[query];
                        }
                    }
                }
            }
        }
    }
    if comptime!(config.tiled) {
        #[unroll]
        for state in 0..states {
            let at = unit + comptime!(state % per_thread * threads);
            let query = comptime!(state / per_thread * batch_size) + at / out_vectors;
            let row = query % config.rows;
            if at < comptime!(config.batch_queries(state / per_thread) * out_vectors) && row < rows.count {
                let to = (rows.first + row) * all_heads + first_head + query / config.rows;
                out[to * out_vectors + at % out_vectors] = run_values[state] / Vector::new(run_sum[state]);
            }
        }
    }
}

/// Copies the queries to shared memory: for each of a word's numbers and each slice of a key, what the
/// slice is multiplied with, filled up with zeros.
#[cube]
fn stage_queries(
    queried: &mut Shared<[F4]>,
    queries: &[f32],
    rows: &Rows,
    first_head: usize,
    #[comptime] config: Config,
) {
    let vectors = comptime!(config.query_vectors());
    let slice_vectors = comptime!(config.slice_vectors());
    let slices = comptime!(config.key_slices());
    let all_heads = comptime!(config.kv_heads * config.group);
    for at in
        range_stepped(UNIT_POS as usize, comptime!(config.queries() * vectors), comptime!(config.threads()))
    {
        let query = at / vectors;
        let row = rows.first + min(query % config.rows, rows.count - 1);
        let from = (row * all_heads + first_head + query / config.rows) * config.head_dim;
        let slice = at / slice_vectors % slices;
        let number = at % vectors / comptime!(slice_vectors * slices);
        let mut vector = F4::empty();
        #[unroll]
        for i in 0..4usize {
            let word = (at % slice_vectors * 4 + i) * slices + slice;
            let dim = number * config.words() + word;
            let there = word < config.words() && dim < config.head_dim;
            let read = queries[from + min(dim, comptime!(config.head_dim - 1))];
            vector.insert(i, select(there, read * comptime!(config.score_factors().0), 0.0));
        }
        queried[at] = vector;
    }
}

/// The block of the cache that has `position`.
#[cube]
fn block_of(position: usize, tables: &[u32], rows: &Rows, blocks: usize) -> usize {
    min(tables[rows.table + min(position, rows.last) / BLOCK_SIZE] as usize, blocks - 1)
}

/// Reads a slice of the keys of four positions. Words beyond the last are read like the last.
#[allow(clippy::too_many_arguments)]
#[cube]
fn load_keys(
    words: &mut Array<U4>,
    keys: &[U4],
    tables: &[u32],
    rows: &Rows,
    first: usize,
    kv_head: usize,
    blocks: usize,
    #[comptime] config: Config,
) {
    let quad = UNIT_POS as usize % QUADS;
    let slice = UNIT_POS as usize / QUADS;
    let block = block_of(first + quad * QUAD, tables, rows, blocks);
    let quads = comptime!(BLOCK_SIZE / QUAD);
    let base =
        (block * config.kv_heads + kv_head) * comptime!(config.words() * BLOCK_SIZE / QUAD) + quad % quads;
    #[unroll]
    for i in 0..comptime!(config.slice_words()) {
        let word = min(comptime!(i * config.key_slices()) + slice, comptime!(config.words() - 1));
        words[i] = keys[base + word * quads];
    }
}

/// Reads a vector of the values of a slice of the positions. Those behind the last row's are read like
/// that one's, and count for nothing.
#[allow(clippy::too_many_arguments)]
#[cube]
fn load_values<N: Size>(
    words: &mut Array<Vector<u32, N>>,
    values: &[Vector<u32, N>],
    tables: &[u32],
    rows: &Rows,
    first: usize,
    kv_head: usize,
    blocks: usize,
    #[comptime] config: Config,
) {
    let columns = comptime!(config.columns());
    let positions = comptime!(config.slice_positions());
    let per_block = comptime!(positions.min(BLOCK_SIZE));
    let column = UNIT_POS as usize % columns;
    // Threads beyond the last slice read what that reads.
    let slice = min(UNIT_POS as usize / columns, comptime!(config.value_slices() - 1));
    #[unroll]
    for group in 0..comptime!(positions / per_block) {
        let from = first + slice * positions + group * per_block;
        let block = block_of(from, tables, rows, blocks);
        let base = (block * config.kv_heads + kv_head) * comptime!(BLOCK_SIZE * columns) + column;
        #[unroll]
        for i in 0..per_block {
            let offset = min(from + i, rows.last) % BLOCK_SIZE;
            words[comptime!(group * per_block + i)] = values[base + offset * columns];
        }
    }
}

/// What sums of products with f16 begin with: zeros, or for a position whose key has a NaN a number so large
/// that the score becomes infinite, and whatever the position contributes to NaN.
///
/// That need not be looked for in values: whatever makes one of them NaN does so to the whole row.
#[cube]
fn zero_of(numbers: &Array<F4>, #[comptime] config: Config) -> F4 {
    let mut largest = numbers[0].abs();
    #[unroll]
    for i in 1..comptime!(config.numbers() * config.slice_words()) {
        largest = max(largest, numbers[i].abs());
    }
    let mut zero = F4::empty();
    #[unroll]
    for i in 0..QUAD {
        zero.insert(i, select(largest.extract(i) < BEYOND, 0.0, f32::MAX));
    }
    zero
}

/// The products of a query with a slice of four positions' keys.
#[cube]
fn slice_scores(
    queried: &Shared<[F4]>,
    numbers: &Array<F4>,
    zero: F4,
    #[comptime] query: usize,
    #[comptime] config: Config,
) -> F4 {
    let slice = UNIT_POS as usize / QUADS;
    let per_word = comptime!(config.numbers());
    let vectors = comptime!(config.slice_vectors());
    let mut sum = zero;
    #[unroll]
    for number in 0..per_word {
        let base = comptime!((query * per_word + number) * config.key_slices() * vectors) + slice * vectors;
        #[unroll]
        for vector in 0..vectors {
            let wanted = queried[base + vector];
            #[unroll]
            for i in 0..comptime!((config.slice_words() - 4 * vector).min(4)) {
                let key = numbers[comptime!((4 * vector + i) * per_word + number)];
                sum = fma(key, F4::new(wanted.extract(i)), sum);
            }
        }
    }
    sum
}

/// The values of a slice, weighted for each query of a batch, to shared memory.
#[cube]
fn weigh_values<N: Size>(
    sums: &mut Shared<[F4]>,
    words: &Array<Vector<u32, N>>,
    weights: &Shared<[F4]>,
    #[comptime] batch: usize,
    #[comptime] config: Config,
) {
    let columns = comptime!(config.columns());
    let column = UNIT_POS as usize % columns;
    let slice = UNIT_POS as usize / columns;
    let quads = comptime!(config.slice_positions() / QUAD);
    let count = comptime!(config.batch_queries(batch));
    let per_word = comptime!(config.numbers());
    let len = comptime!(config.vector_len());
    if slice < comptime!(config.value_slices()) {
        let mut own = Array::<Vector<f32, N>>::new(comptime!(count * per_word));
        #[unroll]
        for i in 0..comptime!(count * per_word) {
            own[i] = Vector::new(0.0);
        }
        #[unroll]
        for quad in 0..quads {
            // Converted for each batch: the registers don't hold all numbers for long.
            let mut numbers = Array::<Vector<f32, N>>::new(comptime!(QUAD * per_word));
            #[unroll]
            for i in 0..QUAD {
                let read = words[comptime!(quad * QUAD + i)];
                if comptime!(config.halves) {
                    numbers[2 * i] = low_halves::<N>(read, len);
                    numbers[2 * i + 1] = high_halves::<N>(read, len);
                } else {
                    numbers[i] = singles::<N>(read, len);
                }
            }
            #[unroll]
            for b in 0..count {
                let query = comptime!(batch * config.batch() + b);
                let weight = weights[query * QUADS + slice * quads + quad];
                #[unroll]
                for i in 0..QUAD {
                    let weight = Vector::new(weight.extract(i));
                    #[unroll]
                    for number in 0..per_word {
                        let value = numbers[comptime!(i * per_word + number)];
                        let to = comptime!(b * per_word + number);
                        own[to] = fma(value, weight, own[to]);
                    }
                }
            }
        }
        #[unroll]
        for i in 0..comptime!(count * per_word) {
            let at = (i / per_word * config.value_slices() + slice) * per_word + i % per_word;
            sums[at * columns + column] = widened::<N>(own[i], len);
        }
    }
}

/// The first numbers of a vector of four.
#[cube]
fn narrowed<N: Size>(vector: F4, #[comptime] len: usize) -> Vector<f32, N> {
    let mut out = Vector::<f32, N>::empty();
    #[unroll]
    for i in 0..len {
        out.insert(i, vector.extract(i));
    }
    out
}

/// `vector` as the first numbers of a vector of four.
#[cube]
fn widened<N: Size>(vector: Vector<f32, N>, #[comptime] len: usize) -> F4 {
    let mut out = F4::new(0.0);
    #[unroll]
    for i in 0..len {
        out.insert(i, vector.extract(i));
    }
    out
}

#[cube]
fn max_of(vector: F4) -> f32 {
    max(
        max(vector.extract(0usize), vector.extract(1usize)),
        max(vector.extract(2usize), vector.extract(3usize)),
    )
}
