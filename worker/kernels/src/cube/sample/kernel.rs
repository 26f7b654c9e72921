//! The kernels of sampling.
//!
//! A sample's record has the words of the threshold ([`KEPT_KEY`] to [`LEFT`]), then those of each chunk
//! ([`LARGEST`] to [`AMOUNT`]).

use burn::cubecl;
use burn::cubecl::prelude::*;

use crate::cube::rms_norm::cube_sum;
use crate::types::SAMPLE_WORDS;

/// Threads of a cube.
pub(super) const THREADS: usize = 256;
/// Ids of a chunk.
pub(super) const CHUNK: usize = 4096;
/// Ids of a chunk that a thread reads.
pub(super) const EACH: usize = CHUNK / THREADS;
/// Digits of a key, from the highest: their lowest bit and their number of bits.
pub(super) const DIGITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];
/// Bins of a histogram: one for each value of a digit.
pub(super) const BINS: usize = 1 << 11;
/// Bins of a thread.
const BINS_EACH: usize = BINS / THREADS;

/// Probability 1, in units of 2^-31.
const ONE: f32 = 2_147_483_648.0;
/// Logits up to this one have probability 0.
const LOWEST: f32 = -3.0e38;

/// Tokens are kept with a key above this one, see [`order_key`].
const KEPT_KEY: usize = 0;
/// Of the tokens with that key, those with ids below this one are kept.
const KEPT_END: usize = 1;
/// The digits of the next such key, as far as they are found.
const KEY: usize = 2;
/// What the tokens that share these digits have to add to those above them; 0 if all tokens together are
/// not enough.
const LEFT: usize = 3;
/// Where the words of chunks begin.
const CHUNKS: usize = 4;

/// The largest logit of a chunk.
const LARGEST: usize = 0;
/// The lowest id with it.
const LARGEST_ID: usize = 1;
/// The sum of a chunk's weights.
const WEIGHT: usize = 2;
/// The sum of what its tokens add to a stage, see [`amount`].
const AMOUNT: usize = 3;
const CHUNK_WORDS: usize = 4;

/// Words of a record.
#[cube]
pub(super) fn record_words(chunks: usize) -> usize {
    CHUNKS + CHUNK_WORDS * chunks
}

/// A search for an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// The last of the most probable tokens, as many as are kept.
    TopK,
    /// The last of the most probable tokens that have enough of the probability together.
    TopP,
    /// The token that is drawn.
    Draw,
}

/// A row of the table of samples, and where its logits and its record are.
#[derive(CubeType)]
struct Sample {
    /// Index of its first logit.
    base: usize,
    vocabulary: usize,
    /// Index of its record.
    record: usize,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    random: f32,
}

/// The largest logit, and the lowest id with it.
#[derive(CubeType)]
struct Largest {
    logit: f32,
    id: u32,
}

/// How logits become probabilities.
#[derive(CubeType)]
struct Distribution {
    largest: f32,
    temperature: f32,
    /// Converts a weight to a probability in units of 2^-31.
    unit: f32,
    min_p: f32,
    kept_key: u32,
    kept_end: usize,
}

/// Finds the largest logit of each chunk, and prepares the record.
#[cube(launch_unchecked)]
pub(super) fn largest_kernel(
    logits: &[f32],
    samples: &[u32],
    records: &mut [u32],
    rows: usize,
    vocabulary: usize,
) {
    let unit = UNIT_POS as usize;
    let sample = read_sample(samples, CUBE_POS_Y as usize, rows, vocabulary);
    let first = CUBE_POS_X as usize * CHUNK + unit;
    let own = read_logits(logits, &sample, first, THREADS);
    let mut best = LOWEST.runtime();
    let mut best_id = 0u32;
    #[unroll]
    for i in 0..EACH {
        if own[i] > best {
            best = own[i];
            best_id = (first + i * THREADS) as u32;
        }
    }
    let largest = cube_largest(best, best_id);
    if unit == 0 {
        let chunk = sample.record + CHUNKS + CUBE_POS_X as usize * CHUNK_WORDS;
        records[chunk + LARGEST] = u32::reinterpret(largest.logit);
        records[chunk + LARGEST_ID] = largest.id;
        if CUBE_POS_X == 0 {
            records[sample.record + KEPT_KEY] = 0;
            records[sample.record + KEPT_END] = vocabulary as u32;
        }
    }
}

/// Sums the weights of each chunk, and clears the bins.
#[cube(launch_unchecked)]
pub(super) fn weigh_kernel(
    logits: &[f32],
    samples: &[u32],
    records: &mut [u32],
    bins: &mut [u32],
    rows: usize,
    vocabulary: usize,
) {
    let unit = UNIT_POS as usize;
    let sample = read_sample(samples, CUBE_POS_Y as usize, rows, vocabulary);
    if sample.temperature <= 0.0 {
        terminate!();
    }
    if CUBE_POS_X == 0 {
        for bin in range_stepped(unit, BINS, THREADS) {
            bins[CUBE_POS_Y as usize * BINS + bin] = 0;
        }
    }
    let largest = row_largest(&*records, &sample);
    let own = read_logits(logits, &sample, CUBE_POS_X as usize * CHUNK + unit, THREADS);
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..EACH {
        sum += weight(own[i], largest.logit, sample.temperature);
    }
    let mut sums = Shared::<[f32]>::new_slice(THREADS);
    sums[unit] = sum;
    let sum = cube_sum(&mut sums, THREADS);
    if unit == 0 {
        let chunk = sample.record + CHUNKS + CUBE_POS_X as usize * CHUNK_WORDS;
        records[chunk + WEIGHT] = u32::reinterpret(sum);
    }
}

/// Adds what the tokens of each chunk have for `stage` to the bins of their `digit`, if they share the digits
/// before it.
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(super) fn histogram_kernel(
    logits: &[f32],
    samples: &[u32],
    records: &[u32],
    bins: &[Atomic<u32>],
    rows: usize,
    vocabulary: usize,
    #[comptime] stage: Stage,
    #[comptime] digit: usize,
) {
    let unit = UNIT_POS as usize;
    let (shift, bits) = comptime!(DIGITS[digit]);
    let known = comptime!(if digit == 0 { 0u32 } else { u32::MAX << DIGITS[digit - 1].0 });
    let sample = read_sample(samples, CUBE_POS_Y as usize, rows, vocabulary);
    if !has_stage(&sample, stage) {
        terminate!();
    }
    let mut found = 0u32;
    if comptime!(digit > 0) {
        if records[sample.record + LEFT] == 0 {
            terminate!();
        }
        found = records[sample.record + KEY];
    }
    let own_bins = Shared::<[Atomic<u32>]>::new_slice(BINS);
    for bin in range_stepped(unit, BINS, THREADS) {
        own_bins[bin].store(0);
    }
    // Waits for all threads, too.
    let largest = row_largest(records, &sample);
    let distribution = distribution(records, &sample, &largest);
    let first = CUBE_POS_X as usize * CHUNK + unit;
    let own = read_logits(logits, &sample, first, THREADS);
    #[unroll]
    for i in 0..EACH {
        let amount = amount(own[i], first + i * THREADS, &distribution, found, known, stage);
        if amount > 0 {
            let bin = (order_key(own[i]) >> shift) & comptime!((1u32 << bits) - 1);
            own_bins[bin as usize].fetch_add(amount);
        }
    }
    sync_cube();
    for bin in range_stepped(unit, BINS, THREADS) {
        let amount = own_bins[bin].load();
        if amount > 0 {
            bins[CUBE_POS_Y as usize * BINS + bin].fetch_add(amount);
        }
    }
}

/// Finds the `digit` of the key at which the largest logits have enough for `stage`, and clears the bins.
#[cube(launch_unchecked)]
pub(super) fn pick_kernel(
    samples: &[u32],
    records: &mut [u32],
    bins: &mut [u32],
    rows: usize,
    vocabulary: usize,
    #[comptime] stage: Stage,
    #[comptime] digit: usize,
) {
    let unit = UNIT_POS as usize;
    let sample = read_sample(samples, CUBE_POS_X as usize, rows, vocabulary);
    if !has_stage(&sample, stage) {
        terminate!();
    }
    let mut key = 0u32;
    let mut wanted = 0u32;
    if comptime!(digit > 0) {
        key = records[sample.record + KEY];
        wanted = records[sample.record + LEFT];
        if wanted == 0 {
            terminate!();
        }
    }
    // A thread's bins, from the largest down.
    let largest = CUBE_POS_X as usize * BINS + BINS - 1 - unit * BINS_EACH;
    let mut own = Array::<u32>::new(BINS_EACH);
    let mut sum = 0u32;
    #[unroll]
    for i in 0..BINS_EACH {
        own[i] = bins[largest - i];
        bins[largest - i] = 0;
        sum += own[i];
    }
    let mut scan = Shared::<[u32]>::new_slice(THREADS);
    let up_to = inclusive_scan(&mut scan, sum);
    let all = scan[THREADS - 1];
    if comptime!(digit == 0) {
        wanted = sample.top_k;
        if comptime!(stage == Stage::TopP) {
            wanted = max(u32::cast_from(f32::cast_from(all) * sample.top_p), 1);
        }
    }
    if all < wanted {
        if unit == 0 {
            records[sample.record + LEFT] = 0;
        }
        terminate!();
    }
    if up_to >= wanted && up_to - sum < wanted {
        let mut left = wanted - (up_to - sum);
        let mut searching = true;
        #[unroll]
        for i in 0..BINS_EACH {
            if searching {
                if own[i] >= left {
                    let bin = (BINS - 1 - unit * BINS_EACH - i) as u32;
                    records[sample.record + KEY] = key | (bin << comptime!(DIGITS[digit].0));
                    records[sample.record + LEFT] = left;
                    searching = false;
                } else {
                    left -= own[i];
                }
            }
        }
    }
}

/// Sums what the tokens of each chunk have for `stage`: those with the key that was found, or all to draw
/// from.
#[cube(launch_unchecked)]
pub(super) fn sum_kernel(
    logits: &[f32],
    samples: &[u32],
    records: &mut [u32],
    rows: usize,
    vocabulary: usize,
    #[comptime] stage: Stage,
) {
    let unit = UNIT_POS as usize;
    let sample = read_sample(samples, CUBE_POS_Y as usize, rows, vocabulary);
    if !has_stage(&sample, stage) {
        terminate!();
    }
    let mut key = 0u32;
    if comptime!(stage != Stage::Draw) {
        if records[sample.record + LEFT] == 0 {
            terminate!();
        }
        key = records[sample.record + KEY];
    }
    let largest = row_largest(&*records, &sample);
    let distribution = distribution(&*records, &sample, &largest);
    let first = CUBE_POS_X as usize * CHUNK + unit;
    let own = read_logits(logits, &sample, first, THREADS);
    let mut sum = 0u32;
    #[unroll]
    for i in 0..EACH {
        sum += amount(own[i], first + i * THREADS, &distribution, key, comptime!(whole_key(stage)), stage);
    }
    let mut scan = Shared::<[u32]>::new_slice(THREADS);
    inclusive_scan(&mut scan, sum);
    if unit == 0 {
        let chunk = sample.record + CHUNKS + CUBE_POS_X as usize * CHUNK_WORDS;
        records[chunk + AMOUNT] = scan[THREADS - 1];
    }
}

/// Finds the first id at which the sums have enough for `stage`: the end of what a filter keeps, or the
/// sampled token.
#[allow(clippy::collapsible_if)] // one of the two is decided when the kernel is compiled
#[cube(launch_unchecked)]
pub(super) fn search_kernel(
    logits: &[f32],
    samples: &[u32],
    records: &mut [u32],
    out: &mut [u32],
    rows: usize,
    vocabulary: usize,
    #[comptime] stage: Stage,
) {
    let unit = UNIT_POS as usize;
    let number = CUBE_POS_X as usize;
    let sample = read_sample(samples, number, rows, vocabulary);
    let mut key = 0u32;
    let mut wanted = 0u32;
    if comptime!(stage != Stage::Draw) {
        if !has_stage(&sample, stage) {
            terminate!();
        }
        key = records[sample.record + KEY];
        wanted = records[sample.record + LEFT];
        if wanted == 0 {
            terminate!();
        }
    }
    let largest = row_largest(&*records, &sample);
    if comptime!(stage == Stage::Draw) {
        if sample.temperature <= 0.0 {
            if unit == 0 {
                out[number] = largest.id;
            }
            terminate!();
        }
    }

    // The chunk.
    let chunks = vocabulary.div_ceil(CHUNK);
    let each = chunks.div_ceil(THREADS);
    let from = min(unit * each, chunks);
    let to = min(from + each, chunks);
    let amounts = sample.record + CHUNKS + AMOUNT;
    let mut sum = 0u32;
    for chunk in from..to {
        sum += records[amounts + chunk * CHUNK_WORDS];
    }
    let mut scan = Shared::<[u32]>::new_slice(THREADS);
    let up_to = inclusive_scan(&mut scan, sum);
    let all = scan[THREADS - 1];
    if comptime!(stage == Stage::Draw) {
        if all == 0 {
            // No token has a probability.
            if unit == 0 {
                out[number] = largest.id;
            }
            terminate!();
        }
        wanted = min(u32::cast_from(f32::cast_from(all) * sample.random), all - 1) + 1;
    }
    let mut found = Shared::<[u32]>::new_slice(2usize);
    if up_to >= wanted && up_to - sum < wanted {
        let mut left = wanted - (up_to - sum);
        let mut searching = true;
        for chunk in from..to {
            let amount = records[amounts + chunk * CHUNK_WORDS];
            if searching {
                if amount >= left {
                    found[0] = chunk as u32;
                    found[1] = left;
                    searching = false;
                } else {
                    left -= amount;
                }
            }
        }
    }

    // The id: here a thread's share of the chunk are consecutive ids.
    let distribution = distribution(&*records, &sample, &largest);
    let first = found[0] as usize * CHUNK + unit * EACH;
    let own = read_logits(logits, &sample, first, 1usize);
    let mut own_amounts = Array::<u32>::new(EACH);
    let mut sum = 0u32;
    #[unroll]
    for i in 0..EACH {
        own_amounts[i] = amount(own[i], first + i, &distribution, key, comptime!(whole_key(stage)), stage);
        sum += own_amounts[i];
    }
    let up_to = inclusive_scan(&mut scan, sum);
    let wanted = found[1];
    if up_to >= wanted && up_to - sum < wanted {
        let mut left = wanted - (up_to - sum);
        let mut searching = true;
        #[unroll]
        for i in 0..EACH {
            if searching {
                if own_amounts[i] >= left {
                    let id = (first + i) as u32;
                    if comptime!(stage == Stage::Draw) {
                        out[number] = id;
                    } else {
                        records[sample.record + KEPT_KEY] = key;
                        records[sample.record + KEPT_END] = id + 1;
                    }
                    searching = false;
                } else {
                    left -= own_amounts[i];
                }
            }
        }
    }
}

/// Which bits of a key tell the tokens that a search is among.
fn whole_key(stage: Stage) -> u32 {
    if stage == Stage::Draw { 0 } else { u32::MAX }
}

#[cube]
fn read_sample(samples: &[u32], number: usize, rows: usize, vocabulary: usize) -> Sample {
    let first = number * SAMPLE_WORDS;
    Sample {
        base: min(samples[first] as usize, rows - 1) * vocabulary,
        vocabulary,
        record: number * record_words(vocabulary.div_ceil(CHUNK)),
        temperature: f32::reinterpret(samples[first + 1]),
        top_k: samples[first + 2],
        top_p: f32::reinterpret(samples[first + 3]),
        min_p: f32::reinterpret(samples[first + 4]),
        random: f32::reinterpret(samples[first + 5]),
    }
}

/// Whether the sample needs `stage`.
#[cube]
fn has_stage(sample: &Sample, #[comptime] stage: Stage) -> bool {
    let mut needs = sample.temperature > 0.0;
    if comptime!(stage == Stage::TopK) {
        needs = needs && sample.top_k > 0 && (sample.top_k as usize) < sample.vocabulary;
    }
    if comptime!(stage == Stage::TopP) {
        needs = needs && sample.top_p < 1.0;
    }
    needs
}

/// The logits with ids `first`, `first + stride`, and so on.
#[cube]
fn read_logits(logits: &[f32], sample: &Sample, first: usize, #[comptime] stride: usize) -> Array<f32> {
    let mut own = Array::<f32>::new(EACH);
    #[unroll]
    for i in 0..EACH {
        let id = first + i * stride;
        let logit = logits[sample.base + min(id, sample.vocabulary - 1)];
        own[i] = select(id < sample.vocabulary, logit, LOWEST);
    }
    own
}

/// The largest of the logits that threads have found.
#[cube]
fn cube_largest(logit: f32, id: u32) -> Largest {
    let unit = UNIT_POS as usize;
    let mut logits = Shared::<[f32]>::new_slice(THREADS);
    let mut ids = Shared::<[u32]>::new_slice(THREADS);
    logits[unit] = logit;
    ids[unit] = id;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(THREADS.ilog2() as usize) {
        let half = comptime!(THREADS >> (level + 1));
        if unit < half {
            let other = logits[unit + half];
            let mine = logits[unit];
            if other > mine || (other == mine && ids[unit + half] < ids[unit]) {
                logits[unit] = other;
                ids[unit] = ids[unit + half];
            }
        }
        sync_cube();
    }
    Largest { logit: logits[0], id: ids[0] }
}

/// The largest logit of a row.
#[cube]
fn row_largest(records: &[u32], sample: &Sample) -> Largest {
    let mut best = LOWEST.runtime();
    let mut best_id = 0u32;
    for chunk in range_stepped(UNIT_POS as usize, sample.vocabulary.div_ceil(CHUNK), THREADS) {
        let at = sample.record + CHUNKS + chunk * CHUNK_WORDS;
        let logit = f32::reinterpret(records[at + LARGEST]);
        if logit > best {
            best = logit;
            best_id = records[at + LARGEST_ID];
        }
    }
    cube_largest(best, best_id)
}

/// How the logits of a row become probabilities.
#[cube]
fn distribution(records: &[u32], sample: &Sample, largest: &Largest) -> Distribution {
    let unit = UNIT_POS as usize;
    let mut sum = 0.0f32;
    for chunk in range_stepped(unit, sample.vocabulary.div_ceil(CHUNK), THREADS) {
        sum += f32::reinterpret(records[sample.record + CHUNKS + chunk * CHUNK_WORDS + WEIGHT]);
    }
    let mut sums = Shared::<[f32]>::new_slice(THREADS);
    sums[unit] = sum;
    let sum = cube_sum(&mut sums, THREADS);
    Distribution {
        largest: largest.logit,
        temperature: sample.temperature,
        unit: select(sum > 0.0, ONE / sum, 0.0),
        min_p: sample.min_p,
        kept_key: records[sample.record + KEPT_KEY],
        kept_end: records[sample.record + KEPT_END] as usize,
    }
}

/// The weight of a token: its probability relative to the most probable token.
#[cube]
fn weight(logit: f32, largest: f32, temperature: f32) -> f32 {
    select(logit > LOWEST, ((logit - largest) / temperature).exp(), 0.0)
}

/// The probability of a token in units of 2^-31; 0 if it is filtered out.
#[cube]
fn probability(logit: f32, id: usize, distribution: &Distribution) -> u32 {
    let weight = weight(logit, distribution.largest, distribution.temperature);
    let key = order_key(logit);
    let is_kept = key > distribution.kept_key || (key == distribution.kept_key && id < distribution.kept_end);
    let passes = weight >= distribution.min_p && is_kept;
    select(passes, u32::cast_from(fma(weight, distribution.unit, 0.5)), 0)
}

/// What a token adds to `stage`, if the bits `known` of its key are those of `key`: 1 to the tokens that are
/// counted, or its probability.
#[cube]
fn amount(
    logit: f32,
    id: usize,
    distribution: &Distribution,
    key: u32,
    #[comptime] known: u32,
    #[comptime] stage: Stage,
) -> u32 {
    let mut amount = probability(logit, id, distribution);
    if comptime!(stage == Stage::TopK) {
        amount = min(amount, 1);
    }
    select((order_key(logit) & known) == key, amount, 0)
}

/// An integer that is ordered like its logit.
#[cube]
fn order_key(logit: f32) -> u32 {
    let bits = u32::reinterpret(logit);
    select(bits >> 31 == 1, !bits, bits | 0x8000_0000)
}

/// The sum of `mine` over all threads up to and including this one.
#[cube]
fn inclusive_scan(scan: &mut [u32], mine: u32) -> u32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    scan[unit] = mine;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(THREADS.ilog2() as usize) {
        let distance = comptime!(1usize << level);
        let before = select(unit >= distance, scan[max(unit, distance) - distance], 0);
        sync_cube();
        scan[unit] += before;
        sync_cube();
    }
    scan[unit]
}
