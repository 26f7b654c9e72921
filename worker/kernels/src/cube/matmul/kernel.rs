//! The kernel of products.

use burn::cubecl;
use burn::cubecl::prelude::*;

use super::variant::{Epilogue, LANES, THREADS, Variant};
use crate::cube::dequant::{
    F4, U4, factor_sets, has_offset, load_side, side_words, unit_factors, unit_place, unit_vector,
    unit_vectors, vector_place,
};
use crate::types::Activation;

/// Words of shared memory for the lanes' sums of a column: one more than there are lanes, so that
/// adjacent threads read from different banks.
const COLUMN: usize = LANES + 1;
/// Threads that copy the vectors of a lane. The order in which squares are summed depends on it.
const LANE_THREADS: usize = THREADS / LANES;

/// Multiplies rows of `x` with a packed matrix.
///
/// A step of the loop takes `variant.units()` units of each lane. Each thread first reads the units of
/// its outputs, so that they arrive while the cube copies the rows' vectors for these to shared memory,
/// in one part or in two. `magic` is [`MAGIC`](crate::cube::dequant::MAGIC).
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(crate) fn matmul_kernel(
    x: &[F4],
    gamma: &[F4],
    quants: &[U4],
    scales: &[u32],
    residual: &[f32],
    out: &mut [f32],
    rows: usize,
    outputs: usize,
    units: usize,
    stride: usize,
    magic: u32,
    width: f32,
    epsilon: f32,
    #[comptime] variant: Variant,
) {
    let tile = comptime!(variant.tile);
    let dtype = comptime!(variant.dtype);
    let results = comptime!(variant.results());
    let lane = UNIT_POS as usize % LANES;
    let group = UNIT_POS as usize / LANES;
    let first_row = CUBE_POS_X as usize * tile.rows;
    let first_output = CUBE_POS_Y as usize * comptime!(variant.wide());

    let mut sums = Sums {
        all: zeros(comptime!(variant.sums())),
        set: zeros(comptime!(variant.sums())),
        plain: zeros(tile.rows),
    };
    let mut squares = zeros(tile.rows);
    // The last threads compute outputs of others once more instead of those beyond the last.
    let first_matrix_row = min(first_output + group * results, outputs - results);

    let lane_units = comptime!(variant.units());
    let side_count = comptime!(side_words(dtype));
    let stages = comptime!(variant.stages());
    let mut staged = Shared::<[F4]>::new_slice(comptime!(stages * variant.staged_vectors()));
    let mut words = Array::<U4>::new(comptime!(lane_units * tile.outputs));
    let mut side = Array::<u32>::new(comptime!((lane_units * tile.outputs * side_count).max(1)));
    for step in 0..units.div_ceil(comptime!(LANES * lane_units)) {
        let first_unit = step * comptime!(LANES * lane_units) + lane;
        #[unroll]
        for j in 0..lane_units {
            // Units beyond the last are computed like the last, but with zeros.
            let unit = min(first_unit + j * LANES, units - 1);
            #[unroll]
            for o in 0..tile.outputs {
                let at = comptime!(j * tile.outputs + o);
                let matrix_row = first_matrix_row + comptime!(o % results) + comptime!(o / results) * outputs;
                words[at] = quants[matrix_row * units + unit];
                let base = matrix_row * stride;
                load_side(&mut side, comptime!(at * side_count), scales, base, unit, units, dtype);
            }
        }
        let stage = step % stages * comptime!(variant.staged_vectors());
        #[unroll]
        for part in 0..comptime!(variant.parts()) {
            if comptime!(stages == 1) {
                sync_cube();
            }
            let vectors = units * comptime!(unit_vectors(dtype));
            stage_part(
                &mut staged,
                &mut squares,
                x,
                gamma,
                stage,
                step,
                part,
                first_row,
                rows,
                vectors,
                variant,
            );
            sync_cube();
            add_part(&mut sums, &words, &side, &staged, stage, lane, first_unit, units, part, magic, variant);
        }
    }

    let mut shared = Shared::<[f32]>::new_slice(comptime!(
        (THREADS / LANES * variant.pass_sums() * COLUMN).max(tile.rows * THREADS)
    ));
    let mut row_scales = Shared::<[f32]>::new_slice(tile.rows);
    if comptime!(variant.norm) {
        #[unroll]
        for r in 0..tile.rows {
            shared[r * THREADS + UNIT_POS as usize] = squares[r];
        }
        sync_cube();
        if (UNIT_POS as usize) < tile.rows {
            let sum = sum_of(&shared, UNIT_POS as usize * THREADS, THREADS);
            row_scales[UNIT_POS as usize] = 1.0 / (sum / width + epsilon).sqrt();
        }
    }
    #[unroll]
    for pass in 0..comptime!(tile.rows / variant.pass_rows()) {
        let pass_rows = comptime!(variant.pass_rows());
        let pass_sums = comptime!(variant.pass_sums());
        sync_cube();
        #[unroll]
        for i in 0..pass_sums {
            shared[(group * pass_sums + i) * COLUMN + lane] = sums.all[comptime!(pass * pass_sums + i)];
        }
        sync_cube();
        let wide = comptime!(variant.wide());
        #[unroll]
        for i in 0..comptime!((pass_rows * wide).div_ceil(THREADS)) {
            let at = UNIT_POS as usize + i * THREADS;
            let r = at / wide;
            let o = at % wide;
            let row = first_row + pass * pass_rows + r;
            let output = min(first_output + o / results * results, outputs - results) + o % results;
            if at < pass_rows * wide && row < rows {
                let column = (o / results) * pass_sums + r * tile.outputs + o % results;
                let mut value = sum_of(&shared, column * COLUMN, LANES);
                if comptime!(variant.norm) {
                    value *= row_scales[pass * pass_rows + r];
                }
                match variant.epilogue {
                    Epilogue::Store => {}
                    Epilogue::Add => {
                        value += residual[row * outputs + output];
                    }
                    Epilogue::Gate(activation) => {
                        let mut up = sum_of(&shared, (column + results) * COLUMN, LANES);
                        if comptime!(variant.norm) {
                            up *= row_scales[pass * pass_rows + r];
                        }
                        value = activate(value, activation) * up;
                    }
                }
                out[row * outputs + output] = value;
            }
        }
    }
}

/// The sums of a thread.
#[derive(CubeType)]
struct Sums {
    /// `[rows, outputs]`.
    all: Array<f32>,
    /// `[rows, outputs]`: without the factors of the set of weights that is added now.
    set: Array<f32>,
    /// `[rows]`: the numbers that the weights of that set are multiplied with.
    plain: Array<f32>,
}

#[cube]
fn zeros(#[comptime] count: usize) -> Array<f32> {
    let mut out = Array::<f32>::new(count);
    #[unroll]
    for i in 0..count {
        out[i] = 0.0;
    }
    out
}

/// Copies the rows' vectors for part `part` of a step to shared memory, times `gamma`, lane by lane.
/// The lanes' vectors are one place apart, so that adjacent lanes read from different banks.
#[allow(clippy::too_many_arguments)]
#[cube]
fn stage_part(
    staged: &mut [F4],
    squares: &mut Array<f32>,
    x: &[F4],
    gamma: &[F4],
    stage: usize,
    step: usize,
    #[comptime] part: usize,
    first_row: usize,
    rows: usize,
    vectors: usize,
    #[comptime] variant: Variant,
) {
    let dtype = comptime!(variant.dtype);
    let in_unit = comptime!(unit_vectors(dtype));
    let slots = comptime!(variant.part_slots());
    let lane = UNIT_POS as usize / LANE_THREADS;
    #[unroll]
    for i in 0..comptime!(slots / LANE_THREADS) {
        let in_part = UNIT_POS as usize % LANE_THREADS + i * LANE_THREADS;
        let slot = in_part + part * slots;
        let index = slot % in_unit;
        let unit = slot / in_unit * LANES + lane;
        let skipped = index / 4 * comptime!(vector_place(dtype, 4) - 4);
        let place = step * comptime!(variant.step_vectors()) + unit_place(unit, dtype) + index + skipped;
        let inside = min(place, vectors - 1);
        #[unroll]
        for r in 0..comptime!(variant.tile.rows) {
            let mut numbers = x[min(first_row + r, rows - 1) * vectors + inside];
            if place >= vectors {
                numbers = F4::new(0.0);
            }
            if comptime!(variant.norm) {
                squares[r] = sum_of_products(numbers, numbers, squares[r]);
                numbers *= gamma[inside];
            }
            staged[stage + r * comptime!(variant.row_vectors()) + lane * (slots + 1) + in_part] = numbers;
        }
    }
}

/// Adds the products of part `part` of a step.
#[allow(clippy::too_many_arguments)]
#[cube]
fn add_part(
    sums: &mut Sums,
    words: &Array<U4>,
    side: &Array<u32>,
    staged: &[F4],
    stage: usize,
    lane: usize,
    first_unit: usize,
    units: usize,
    #[comptime] part: usize,
    magic: u32,
    #[comptime] variant: Variant,
) {
    let tile = comptime!(variant.tile);
    let dtype = comptime!(variant.dtype);
    let in_unit = comptime!(unit_vectors(dtype));
    let sets = comptime!(factor_sets(dtype));
    let side_count = comptime!(side_words(dtype));
    let slots = comptime!(variant.part_slots());
    #[unroll]
    for slot in 0..slots {
        let all = comptime!(part * slots + slot);
        let index = comptime!(all % in_unit);
        let first = comptime!(all / in_unit * tile.outputs);
        let unit = min(first_unit + comptime!(all / in_unit * LANES), units - 1);
        let mut weights = Array::<F4>::new(tile.outputs);
        #[unroll]
        for o in 0..tile.outputs {
            let at = comptime!(first + o);
            weights[o] = unit_vector(words[at], side, comptime!(at * side_count), unit, index, magic, dtype);
        }
        #[unroll]
        for r in 0..tile.rows {
            let numbers = staged[stage + r * comptime!(variant.row_vectors()) + lane * (slots + 1) + slot];
            if comptime!(has_offset(dtype)) {
                sums.plain[r] += (numbers.extract(0usize) + numbers.extract(1usize))
                    + (numbers.extract(2usize) + numbers.extract(3usize));
            }
            #[unroll]
            for o in 0..tile.outputs {
                let at = comptime!(r * tile.outputs + o);
                if comptime!(sets == 0) {
                    sums.all[at] = sum_of_products(weights[o], numbers, sums.all[at]);
                } else {
                    sums.set[at] = sum_of_products(weights[o], numbers, sums.set[at]);
                }
            }
        }
        if comptime!(sets > 0 && (index + 1) % (in_unit / sets.max(1)) == 0) {
            add_set(sums, side, first, unit, comptime!(sets == 2 && index >= 4), magic, variant);
        }
    }
}

/// Adds the sums of a set of weights, scaled, to all sums, and begins the next set.
#[cube]
fn add_set(
    sums: &mut Sums,
    side: &Array<u32>,
    #[comptime] first: usize,
    unit: usize,
    #[comptime] second: bool,
    magic: u32,
    #[comptime] variant: Variant,
) {
    let tile = comptime!(variant.tile);
    let dtype = comptime!(variant.dtype);
    let side_count = comptime!(side_words(dtype));
    #[unroll]
    for o in 0..tile.outputs {
        let factors = unit_factors(side, comptime!((first + o) * side_count), unit, magic, dtype);
        let scale = if comptime!(second) { factors.scale_1 } else { factors.scale_0 };
        let offset = if comptime!(second) { factors.offset_1 } else { factors.offset_0 };
        #[unroll]
        for r in 0..tile.rows {
            let at = comptime!(r * tile.outputs + o);
            sums.all[at] = fma(scale, sums.set[at], sums.all[at]);
            if comptime!(has_offset(dtype)) {
                sums.all[at] = fma(offset, sums.plain[r], sums.all[at]);
            }
            sums.set[at] = 0.0;
        }
    }
    #[unroll]
    for r in 0..tile.rows {
        sums.plain[r] = 0.0;
    }
}

/// `sum` plus the four products, added in order.
#[cube]
fn sum_of_products(a: F4, b: F4, sum: f32) -> f32 {
    let mut sum = sum;
    #[unroll]
    for i in 0..4usize {
        sum = fma(a.extract(i), b.extract(i), sum);
    }
    sum
}

/// The total of `count` numbers from `base` on, a multiple of four.
#[cube]
fn sum_of(shared: &[f32], base: usize, #[comptime] count: usize) -> f32 {
    let mut quarters = Array::<f32>::new(4usize);
    #[unroll]
    for q in 0..4usize {
        quarters[q] = shared[base + q];
    }
    #[unroll]
    for i in 1..comptime!(count / 4) {
        #[unroll]
        for q in 0..4usize {
            quarters[q] += shared[base + 4 * i + q];
        }
    }
    (quarters[0] + quarters[1]) + (quarters[2] + quarters[3])
}

#[cube]
pub(super) fn activate(x: f32, #[comptime] activation: Activation) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = 0.797_884_6 * fma(0.044715 * x * x, x, x);
            // Far from zero tanh is ±1, but on some GPUs it overflows.
            0.5 * x * (1.0 + min(max(inner, -15.0), 15.0).tanh())
        }
    }
}
