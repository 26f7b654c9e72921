//! Tokens from logits.
//!
//! A cube takes a row and passes over it a few times. Probabilities are whole numbers of 2^-31
//! where they are added up, so that no order of adding changes a sum: what is kept and what is
//! drawn depends on the row alone. The k-th most probable token and the end of the nucleus are
//! found digit by digit (radix select), in a histogram over one byte of the logits at a time.

use burn::backend::DType;
use burn::backend::wgpu::CubeTensor;
use burn::cubecl;
use burn::cubecl::prelude::*;

use super::launch;
use super::rms_norm::cube_sum;
use crate::types::PickRow;

/// Threads of a cube, and bins of a histogram.
const THREADS: usize = 256;
/// Numbers of a [`PickRow`].
const FIELDS: usize = 5;
/// Probability one.
const ONE: f32 = 2_147_483_648.0;
/// Logits below can't be picked.
const LOWEST: f32 = -3.0e38;

/// See [`crate::pick`].
pub(crate) fn pick(logits: CubeTensor, picks: &[PickRow]) -> CubeTensor {
    let logits = launch::contiguous(logits);
    let shape = logits.meta.shape().to_vec();
    let rows = shape[0].min(picks.len());
    let out = launch::empty(&logits, &[rows], DType::I32);
    if rows == 0 || shape[1] == 0 {
        return out;
    }
    let fields = |pick: &PickRow| [pick.temperature, pick.top_k as f32, pick.top_p, pick.min_p, pick.random];
    let bytes: Vec<u8> = picks.iter().flat_map(fields).flat_map(f32::to_le_bytes).collect();
    let options = logits.client.create_from_slice(&bytes);
    launch::count();
    // SAFETY: one cube a row, which keeps to the `vocabulary` logits of its own.
    #[allow(unsafe_code)]
    unsafe {
        pick_kernel::launch_unchecked(
            &logits.client,
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(THREADS as u32),
            launch::buffer(&logits),
            launch::part(options, FIELDS * picks.len()),
            launch::buffer(&out),
            shape[1],
        );
    }
    out
}

/// Which tokens are left: those with a larger key than `key`, and those with this key and an id
/// below `end`.
#[derive(CubeType)]
struct Cut {
    key: u32,
    end: usize,
}

/// How a row's logits become weights.
#[derive(CubeType)]
struct Row {
    base: usize,
    vocabulary: usize,
    largest: f32,
    temperature: f32,
    /// Makes weights to whole numbers.
    unit: f32,
    min_p: f32,
}

#[cube(launch_unchecked)]
fn pick_kernel(logits: &[f32], options: &[f32], out: &mut [u32], vocabulary: usize) {
    let unit = UNIT_POS as usize;
    let number = CUBE_POS_X as usize;
    let base = number * vocabulary;
    let temperature = options[number * FIELDS];
    let top_k = u32::cast_from(options[number * FIELDS + 1]);
    let top_p = options[number * FIELDS + 2];

    // The largest logit, and the lowest id that has it.
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
        min_p: options[number * FIELDS + 3],
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
    let mut cut = Cut { key: 0, end: vocabulary };
    if top_k > 0 && (top_k as usize) < vocabulary {
        let new = select_cut(logits, &row, &cut, top_k, &bins, &mut scan, &mut found, false);
        cut.key = new.key;
        cut.end = new.end;
    }
    if top_p < 1.0 {
        let whole = total(logits, &row, &cut, &mut scan);
        let wanted = max(u32::cast_from(f32::cast_from(whole) * top_p), 1);
        let new = select_cut(logits, &row, &cut, wanted, &bins, &mut scan, &mut found, true);
        cut.key = new.key;
        cut.end = new.end;
    }

    // The first id, in their order, whose probability reaches over the random share.
    let random = options[number * FIELDS + 4];
    let mut mass = 0u32;
    let each = vocabulary.div_ceil(THREADS);
    let from = unit * each;
    let to = min(from + each, vocabulary);
    for id in from..to {
        mass += mass_of(logits[base + id], id, &row, &cut);
    }
    let up_to = inclusive_scan(&mut scan, mass);
    let all = scan[THREADS - 1];
    let target = min(u32::cast_from(f32::cast_from(all) * random), all - 1);
    if target < up_to && target >= up_to - mass {
        let mut left = target - (up_to - mass);
        let mut picked = ids[0];
        let mut open = true;
        for id in from..to {
            let mass = mass_of(logits[base + id], id, &row, &cut);
            if open && left < mass {
                picked = id as u32;
                open = false;
            }
            left -= min(mass, left);
        }
        out[number] = picked;
    }
}

/// Not normalised: the most probable token has 1.
#[cube]
fn weight(logit: f32, row: &Row) -> f32 {
    select(logit > LOWEST, ((logit - row.largest) / row.temperature).exp(), 0.0)
}

/// The probability of a token that is left, in whole numbers.
#[cube]
fn mass_of(logit: f32, id: usize, row: &Row, cut: &Cut) -> u32 {
    let weight = weight(logit, row);
    let key = order(logit);
    let kept = weight >= row.min_p && (key > cut.key || (key == cut.key && id < cut.end));
    select(kept, u32::cast_from(fma(weight, row.unit, 0.5)), 0)
}

/// Orders as its logit does.
#[cube]
fn order(logit: f32) -> u32 {
    let bits = u32::reinterpret(logit);
    select(bits >> 31 == 1, !bits, bits | 0x8000_0000)
}

/// What all tokens that are left have together.
#[cube]
fn total(logits: &[f32], row: &Row, cut: &Cut, scan: &mut [u32]) -> u32 {
    let mut mass = 0u32;
    for id in range_stepped(UNIT_POS as usize, row.vocabulary, THREADS) {
        mass += mass_of(logits[row.base + id], id, row, cut);
    }
    inclusive_scan(scan, mass);
    scan[THREADS - 1]
}

/// The numbers of all threads up to and with this one's, added up.
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

/// Leaves the most probable tokens that are `wanted` many, or have `wanted` mass together.
#[allow(clippy::too_many_arguments)]
#[cube]
fn select_cut(
    logits: &[f32],
    row: &Row,
    cut: &Cut,
    wanted: u32,
    bins: &[Atomic<u32>],
    scan: &mut [u32],
    found: &mut [u32],
    #[comptime] by_mass: bool,
) -> Cut {
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
            let mass = mass_of(logit, id, row, cut);
            let this = order(logit);
            // All digits before this one are those that were found.
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
        // From the largest bin down.
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
    // Of those with this key, the lowest ids.
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
        if order(logit) == key && mass_of(logit, id, row, cut) > 0 {
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
            if order(logit) == key && mass_of(logit, id, row, cut) > 0 {
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
    Cut { key: select(enough, key, cut.key), end: select(enough, end, cut.end) }
}

/// The other way round than [`order`].
#[cube]
fn logit_of(key: u32) -> f32 {
    f32::reinterpret(select(key >> 31 == 1, key & 0x7FFF_FFFF, !key))
}
