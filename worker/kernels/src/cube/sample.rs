//! Sampling.
//!
//! A cube reads one row several times. Probabilities are summed as integer multiples of 2^-31, so a
//! sum does not depend on its order, and the result depends on the row alone. The k-th most probable
//! token and the end of the nucleus are found by radix select: digit by digit, in a histogram over one
//! byte of the logits at a time.

use burn::backend::DType;
use burn::backend::wgpu::CubeTensor;
use burn::cubecl;
use burn::cubecl::prelude::*;

use super::launch;
use super::rms_norm::cube_sum;
use crate::types::SAMPLE_WORDS;

/// Threads of a cube, and bins of the histogram.
const THREADS: usize = 256;
/// Probability 1, in units of 2^-31.
const ONE: f32 = 2_147_483_648.0;
/// Logits up to this one have probability 0.
const LOWEST: f32 = -3.0e38;

/// See [`crate::sample_rows`].
pub(crate) fn sample(logits: CubeTensor, samples: CubeTensor) -> CubeTensor {
    let (logits, samples) = (launch::contiguous(logits), launch::contiguous(samples));
    let shape = logits.meta.shape().to_vec();
    let count = samples.meta.shape()[0];
    let out = launch::empty(&logits, &[count], DType::I32);
    if count == 0 || shape[0] == 0 || shape[1] == 0 {
        return out;
    }
    launch::count();
    // SAFETY: there is one cube for each sample, and it stays within the `vocabulary` logits of one of the `rows`.
    #[allow(unsafe_code)]
    unsafe {
        sample_kernel::launch_unchecked(
            &logits.client,
            CubeCount::Static(count as u32, 1, 1),
            CubeDim::new_1d(THREADS as u32),
            launch::buffer(&logits),
            launch::buffer(&samples),
            launch::buffer(&out),
            shape[0],
            shape[1],
        );
    }
    out
}

/// Reads that a thread makes one after another to find the largest logit, four of them at a time.
#[cfg(feature = "report")]
pub(crate) fn rounds(vocabulary: usize) -> usize {
    vocabulary.div_ceil(4 * THREADS)
}

/// The tokens that the filters keep: those with a key above `key`, and those with this key and an id
/// below `end`. A key is that of [`order_key`].
#[derive(CubeType)]
struct Threshold {
    key: u32,
    end: usize,
}

/// A row of logits, and how they become weights.
#[derive(CubeType)]
struct Row {
    /// Index of the row's first logit.
    base: usize,
    vocabulary: usize,
    largest: f32,
    temperature: f32,
    /// Converts a weight to a probability in units of 2^-31.
    unit: f32,
    min_p: f32,
}

#[cube(launch_unchecked)]
fn sample_kernel(logits: &[f32], samples: &[u32], out: &mut [u32], rows: usize, vocabulary: usize) {
    let unit = UNIT_POS as usize;
    let number = CUBE_POS_X as usize;
    let first = number * SAMPLE_WORDS;
    let base = min(samples[first] as usize, rows - 1) * vocabulary;
    let temperature = f32::reinterpret(samples[first + 1]);
    let top_k = samples[first + 2];
    let top_p = f32::reinterpret(samples[first + 3]);

    // The largest logit, and the lowest id with it.
    let mut largest = Shared::<[f32]>::new_slice(THREADS);
    let mut ids = Shared::<[u32]>::new_slice(THREADS);
    let mut best = LOWEST.runtime();
    let mut best_id = 0u32;
    for id in range_stepped(unit, vocabulary, THREADS) {
        if logits[base + id] > best {
            best = logits[base + id];
            best_id = id as u32;
        }
    }
    largest[unit] = best;
    ids[unit] = best_id;
    sync_cube();
    #[unroll]
    for level in 0..8u32 {
        let half = 128usize >> level;
        if unit < half {
            let other = largest[unit + half];
            let mine = largest[unit];
            if other > mine || (other == mine && ids[unit + half] < ids[unit]) {
                largest[unit] = other;
                ids[unit] = ids[unit + half];
            }
        }
        sync_cube();
    }
    if temperature <= 0.0 {
        if unit == 0 {
            out[number] = ids[0];
        }
        terminate!();
    }

    let mut row = Row {
        base,
        vocabulary,
        largest: largest[0],
        temperature,
        unit: 1.0,
        min_p: f32::reinterpret(samples[first + 4]),
    };
    sync_cube();
    let mut sum = 0.0f32;
    for id in range_stepped(unit, vocabulary, THREADS) {
        sum += weight(logits[base + id], &row);
    }
    largest[unit] = sum;
    row.unit = ONE / cube_sum(&mut largest, THREADS);

    let bins = Shared::<[Atomic<u32>]>::new_slice(THREADS);
    let mut scan = Shared::<[u32]>::new_slice(THREADS);
    let mut found = Shared::<[u32]>::new_slice(4usize);
    let mut kept = Threshold { key: 0, end: vocabulary };
    if top_k > 0 && (top_k as usize) < vocabulary {
        let new = select_threshold(logits, &row, &kept, top_k, &bins, &mut scan, &mut found, false);
        kept.key = new.key;
        kept.end = new.end;
    }
    if top_p < 1.0 {
        let whole = total(logits, &row, &kept, &mut scan);
        let wanted = max(u32::cast_from(f32::cast_from(whole) * top_p), 1);
        let new = select_threshold(logits, &row, &kept, wanted, &bins, &mut scan, &mut found, true);
        kept.key = new.key;
        kept.end = new.end;
    }

    // The first id whose cumulative probability exceeds the random share of the total.
    let random = f32::reinterpret(samples[first + 5]);
    let mut mass = 0u32;
    let each = vocabulary.div_ceil(THREADS);
    let from = unit * each;
    let to = min(from + each, vocabulary);
    for id in from..to {
        mass += probability(logits[base + id], id, &row, &kept);
    }
    let up_to = inclusive_scan(&mut scan, mass);
    let all = scan[THREADS - 1];
    let target = min(u32::cast_from(f32::cast_from(all) * random), all - 1);
    if target < up_to && target >= up_to - mass {
        let mut left = target - (up_to - mass);
        let mut sampled = ids[0];
        let mut searching = true;
        for id in from..to {
            let mass = probability(logits[base + id], id, &row, &kept);
            if searching && left < mass {
                sampled = id as u32;
                searching = false;
            }
            left -= min(mass, left);
        }
        out[number] = sampled;
    }
}

/// The weight of a token: its probability relative to the most probable token.
#[cube]
fn weight(logit: f32, row: &Row) -> f32 {
    select(logit > LOWEST, ((logit - row.largest) / row.temperature).exp(), 0.0)
}

/// The probability of a token in units of 2^-31; 0 if it is filtered out.
#[cube]
fn probability(logit: f32, id: usize, row: &Row, kept: &Threshold) -> u32 {
    let weight = weight(logit, row);
    let key = order_key(logit);
    let passes = weight >= row.min_p && (key > kept.key || (key == kept.key && id < kept.end));
    select(passes, u32::cast_from(fma(weight, row.unit, 0.5)), 0)
}

/// An integer that is ordered like its logit.
#[cube]
fn order_key(logit: f32) -> u32 {
    let bits = u32::reinterpret(logit);
    select(bits >> 31 == 1, !bits, bits | 0x8000_0000)
}

/// The sum of the probabilities of the tokens that are kept.
#[cube]
fn total(logits: &[f32], row: &Row, kept: &Threshold, scan: &mut [u32]) -> u32 {
    let mut mass = 0u32;
    for id in range_stepped(UNIT_POS as usize, row.vocabulary, THREADS) {
        mass += probability(logits[row.base + id], id, row, kept);
    }
    inclusive_scan(scan, mass);
    scan[THREADS - 1]
}

/// The sum of `mine` over all threads up to and including this one.
#[cube]
fn inclusive_scan(scan: &mut [u32], mine: u32) -> u32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    scan[unit] = mine;
    sync_cube();
    #[unroll]
    for level in 0..8u32 {
        let distance = 1usize << level;
        let before = select(unit >= distance, scan[max(unit, distance) - distance], 0);
        sync_cube();
        scan[unit] += before;
        sync_cube();
    }
    scan[unit]
}

/// Keeps the most probable tokens: `wanted` of them, or with `by_mass` as many as it takes for their
/// probabilities to add up to `wanted`.
#[allow(clippy::too_many_arguments)]
#[cube]
fn select_threshold(
    logits: &[f32],
    row: &Row,
    kept: &Threshold,
    wanted: u32,
    bins: &[Atomic<u32>],
    scan: &mut [u32],
    found: &mut [u32],
    #[comptime] by_mass: bool,
) -> Threshold {
    let unit = UNIT_POS as usize;
    let mut left = wanted;
    let mut key = 0u32;
    let mut enough = true;
    #[unroll]
    for digit in 0..4u32 {
        let shift = comptime!(24 - 8 * digit);
        bins[unit].store(0);
        sync_cube();
        if unit == 0 {
            found[0] = 0;
            found[1] = left;
            found[2] = 0;
        }
        for id in range_stepped(unit, row.vocabulary, THREADS) {
            let logit = logits[row.base + id];
            let mass = probability(logit, id, row, kept);
            let this = order_key(logit);
            // The digits before this one must equal those found so far.
            let known = comptime!(if digit == 0 { 0u32 } else { u32::MAX << (32 - 8 * digit) });
            if mass > 0 && (this & known) == key {
                let bin = ((this >> shift) & 0xFF) as usize;
                if comptime!(by_mass) {
                    bins[bin].fetch_add(mass);
                } else {
                    bins[bin].fetch_add(1);
                }
            }
        }
        sync_cube();
        // The bins are scanned from the largest down.
        let mine = bins[THREADS - 1 - unit].load();
        let up_to = inclusive_scan(scan, mine);
        if up_to >= left && up_to - mine < left {
            found[0] = (THREADS - 1 - unit) as u32;
            found[1] = left - (up_to - mine);
            found[2] = 1;
        }
        sync_cube();
        key |= found[0] << shift;
        left = found[1];
        enough = enough && found[2] == 1;
        sync_cube();
    }
    // Of the tokens with this key, those with the lowest ids are kept.
    let mut keep = left;
    if comptime!(by_mass) {
        let one = u32::cast_from(fma(weight(logit_of(key), row), row.unit, 0.5));
        keep = left.div_ceil(max(one, 1));
    }
    let mut ties = 0u32;
    let each = row.vocabulary.div_ceil(THREADS);
    let from = unit * each;
    let to = min(from + each, row.vocabulary);
    for id in from..to {
        let logit = logits[row.base + id];
        if order_key(logit) == key && probability(logit, id, row, kept) > 0 {
            ties += 1;
        }
    }
    let up_to = inclusive_scan(scan, ties);
    if unit == 0 {
        found[3] = row.vocabulary as u32;
    }
    sync_cube();
    if up_to >= keep && up_to - ties < keep {
        let mut seen = up_to - ties;
        for id in from..to {
            let logit = logits[row.base + id];
            if order_key(logit) == key && probability(logit, id, row, kept) > 0 {
                seen += 1;
                if seen == keep {
                    found[3] = id as u32 + 1;
                }
            }
        }
    }
    sync_cube();
    let end = found[3] as usize;
    sync_cube();
    Threshold { key: select(enough, key, kept.key), end: select(enough, end, kept.end) }
}

/// The inverse of [`order_key`].
#[cube]
fn logit_of(key: u32) -> f32 {
    f32::reinterpret(select(key >> 31 == 1, key & 0x7FFF_FFFF, !key))
}
