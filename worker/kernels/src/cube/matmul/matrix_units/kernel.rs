//! The kernel of products on matrix units.

use burn::cubecl;
use burn::cubecl::cmma::MmaDefinition;
use burn::cubecl::prelude::*;
use half::f16;

use super::layout::{GROUP, LANES, TILE};
use super::rows::{COLUMNS, find_scales, fragment};
use super::variant::{PARTS, Variant};
use super::weights::{Pair, load_side, set_factors, set_steps, side_words, step_weights, steps};
use crate::cube::dequant::{F4, U4, factor_sets, has_offset};
use crate::cube::matmul::kernel::activate;
use crate::cube::matmul::variant::Epilogue;

/// A pair of sums in a register pair: of two rows.
type Sums = Vector<f32, Const<2>>;

/// Multiplies rows with a matrix in tiles.
///
/// `x` and `gamma` are read if cubes make fragments of their own rows, `fragments` and `after` otherwise.
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(super) fn matrix_unit_kernel(
    x: &[F4],
    gamma: &[F4],
    fragments: &[U4],
    after: &[f32],
    quants: &[U4],
    scales: &[u32],
    residual: &[f32],
    out: &mut [f32],
    rows: usize,
    outputs: usize,
    vectors: usize,
    units: usize,
    stride: usize,
    width: f32,
    epsilon: f32,
    #[comptime] variant: Variant,
) {
    let shape = comptime!(variant.shape);
    let lane = UNIT_POS as usize % LANES;
    let plane = UNIT_POS as usize / LANES;
    let first_row = CUBE_POS_X as usize * comptime!(shape.rows());
    let groups = units.div_ceil(GROUP);
    let each = groups.div_ceil(PARTS);
    let own = plane % comptime!(shape.planes);
    let first_tile =
        CUBE_POS_Y as usize * comptime!(variant.wide() / TILE) + own * comptime!(variant.result_tiles());
    // The plane's parts: its own, or all.
    let mut first_part = 0usize.runtime();
    let mut last_part = comptime!(PARTS - 1).runtime();
    if comptime!(shape.divided) {
        first_part = plane / comptime!(shape.planes);
        last_part = first_part;
    }

    let own_rows = comptime!(shape.own_rows);
    let mut row_scales = Shared::<[f32]>::new_slice(comptime!(2 * own_rows.max(1)));
    let mut staged =
        Shared::<[U4]>::new_slice(comptime!((shape.all_planes() * variant.own_fragments()).max(1)));
    if comptime!(own_rows > 0) {
        find_scales(
            &mut row_scales,
            x,
            gamma,
            first_row,
            rows,
            vectors,
            width,
            epsilon,
            own_rows,
            variant.norm,
        );
    }

    // A plane that has all parts keeps their sum in shared memory: registers don't suffice for both.
    let pairs = comptime!(shape.pairs());
    let mut sums = zeros(pairs);
    let mut totals =
        Shared::<[Sums]>::new_slice(comptime!(if shape.divided { 1 } else { pairs * shape.threads() }));
    for part in first_part..last_part + 1 {
        #[unroll]
        for i in 0..pairs {
            sums[i] = Sums::new(0.0);
        }
        add_part(
            &mut sums,
            &mut staged,
            &row_scales,
            x,
            gamma,
            fragments,
            quants,
            scales,
            first_row,
            first_tile,
            rows,
            outputs,
            vectors,
            units,
            stride,
            part * each,
            min(part * each + each, groups),
            lane,
            plane,
            variant,
        );
        if comptime!(!shape.divided) {
            #[unroll]
            for i in 0..pairs {
                let own = i * comptime!(shape.threads()) + UNIT_POS as usize;
                if part == 0 {
                    totals[own] = sums[i];
                } else {
                    totals[own] += sums[i];
                }
            }
        }
    }

    // A pair is two rows of one output; the next pair of a tile has the output eight further on.
    let result_tiles = comptime!(variant.result_tiles());
    if comptime!(shape.divided) {
        let cells = comptime!(shape.planes * pairs * LANES);
        let mut all = Shared::<[Sums]>::new_slice(comptime!(PARTS * cells));
        #[unroll]
        for i in 0..pairs {
            all[first_part * cells + (own * pairs + i) * LANES + lane] = sums[i];
        }
        sync_cube();
        // The planes of the parts share the results.
        let results = comptime!(shape.planes * result_tiles * shape.eights * 2 * LANES);
        #[unroll]
        for i in 0..comptime!(results.div_ceil(shape.threads())) {
            let at = UNIT_POS as usize + i * comptime!(shape.threads());
            if at < results {
                let of_lane = at % LANES;
                let rest = at / LANES;
                let upper = rest % 2;
                let eight = rest / 2 % comptime!(shape.eights);
                let tile = rest / comptime!(2 * shape.eights) % result_tiles;
                let of_plane = rest / comptime!(2 * shape.eights * result_tiles);
                let cell = ((of_plane * comptime!(shape.tiles) + tile) * comptime!(shape.eights) + eight) * 2
                    + upper;
                let value = in_order(&all, cell * LANES + of_lane, cells);
                let mut up = Sums::new(0.0);
                if comptime!(variant.gated()) {
                    let distance = comptime!(result_tiles * shape.eights * 2 * LANES);
                    up = in_order(&all, cell * LANES + of_lane + distance, cells);
                }
                let output = (first_tile - own * result_tiles + of_plane * result_tiles + tile) * TILE
                    + upper * 8
                    + of_lane / 4;
                store(
                    out,
                    residual,
                    after,
                    &row_scales,
                    value,
                    up,
                    first_row,
                    eight * COLUMNS + of_lane % 4 * 2,
                    rows,
                    output,
                    outputs,
                    variant,
                );
            }
        }
    } else {
        #[unroll]
        for tile in 0..result_tiles {
            #[unroll]
            for i in 0..comptime!(2 * shape.eights) {
                let value =
                    totals[comptime!((tile * 2 * shape.eights + i) * shape.threads()) + UNIT_POS as usize];
                let mut up = Sums::new(0.0);
                if comptime!(variant.gated()) {
                    let other = comptime!(((result_tiles + tile) * 2 * shape.eights + i) * shape.threads());
                    up = totals[other + UNIT_POS as usize];
                }
                let output = (first_tile + tile) * TILE + comptime!(i % 2 * 8) + lane / 4;
                store(
                    out,
                    residual,
                    after,
                    &row_scales,
                    value,
                    up,
                    first_row,
                    comptime!(i / 2 * COLUMNS) + lane % 4 * 2,
                    rows,
                    output,
                    outputs,
                    variant,
                );
            }
        }
    }
}

#[cube]
fn zeros(#[comptime] count: usize) -> Array<Sums> {
    let mut out = Array::<Sums>::new(count);
    #[unroll]
    for i in 0..count {
        out[i] = Sums::new(0.0);
    }
    out
}

/// The parts' sums of a cell, added in order.
#[cube]
fn in_order(all: &[Sums], cell: usize, #[comptime] cells: usize) -> Sums {
    let mut sum = all[cell];
    #[unroll]
    for part in 1..PARTS {
        sum += all[part * cells + cell];
    }
    sum
}

/// Adds the groups from `from` to `to` of all tiles and rows of the plane.
#[allow(clippy::too_many_arguments)]
#[cube]
fn add_part(
    sums: &mut Array<Sums>,
    staged: &mut [U4],
    row_scales: &[f32],
    x: &[F4],
    gamma: &[F4],
    fragments: &[U4],
    quants: &[U4],
    scales: &[u32],
    first_row: usize,
    first_tile: usize,
    rows: usize,
    outputs: usize,
    vectors: usize,
    units: usize,
    stride: usize,
    from: usize,
    to: usize,
    lane: usize,
    plane: usize,
    #[comptime] variant: Variant,
) {
    let shape = comptime!(variant.shape);
    let dtype = comptime!(variant.dtype);
    let groups = units.div_ceil(GROUP);
    let batch = comptime!(variant.batch());
    let side_count = comptime!(side_words(dtype));
    let result_tiles = comptime!(variant.result_tiles());
    let tiles = outputs / TILE;
    let mut words = Array::<U4>::new(comptime!(batch * shape.tiles * 2));
    let mut side = Array::<u32>::new(comptime!((batch * shape.tiles * 2 * side_count).max(1)));
    for first in range_stepped(from, to, batch) {
        #[unroll]
        for j in 0..batch {
            let group = min(first + j, groups - 1);
            #[unroll]
            for t in 0..comptime!(shape.tiles) {
                // With a gate, the tiles of up follow those of gate in the matrix.
                let tile = min(first_tile + comptime!(t % result_tiles), tiles - 1)
                    + comptime!(t / result_tiles) * tiles;
                #[unroll]
                for upper in 0..2usize {
                    let at = comptime!((j * shape.tiles + t) * 2 + upper);
                    words[at] = quants[((tile * groups + group) * 2 + upper) * LANES + lane];
                    let row = tile * TILE + upper * 8 + lane / 4;
                    load_side(
                        &mut side,
                        comptime!(at * side_count),
                        scales,
                        row * stride,
                        stride,
                        group,
                        units,
                        lane % 4,
                        dtype,
                    );
                }
            }
        }
        #[unroll]
        for j in 0..batch {
            let group = first + j;
            if group < to {
                if comptime!(shape.own_rows > 0) {
                    stage(
                        staged, row_scales, x, gamma, first_row, rows, vectors, group, lane, plane, variant,
                    );
                }
                add_group(
                    sums, staged, fragments, &words, &side, first_row, units, group, lane, plane, j, variant,
                );
            }
        }
    }
}

/// Makes the fragments of the cube's own rows for a group, for this plane.
#[allow(clippy::too_many_arguments)]
#[cube]
fn stage(
    staged: &mut [U4],
    row_scales: &[f32],
    x: &[F4],
    gamma: &[F4],
    first_row: usize,
    rows: usize,
    vectors: usize,
    group: usize,
    lane: usize,
    plane: usize,
    #[comptime] variant: Variant,
) {
    let own_rows = comptime!(variant.shape.own_rows);
    let count = comptime!(variant.own_fragments());
    sync_plane();
    #[unroll]
    for i in 0..comptime!(count.div_ceil(LANES)) {
        let at = lane + i * LANES;
        if at < count {
            let r = at / GROUP % own_rows;
            let step = at / comptime!(GROUP * own_rows);
            let row = min(first_row + r, rows - 1);
            staged[plane * count + at] = fragment(
                x,
                gamma,
                row,
                vectors,
                group,
                step,
                at % GROUP,
                row_scales[2 * r],
                variant.norm,
                variant.dtype,
            );
        }
    }
    sync_plane();
}

/// Adds the products of one group.
#[allow(clippy::too_many_arguments)]
#[cube]
fn add_group(
    sums: &mut Array<Sums>,
    staged: &mut [U4],
    fragments: &[U4],
    words: &Array<U4>,
    side: &Array<u32>,
    first_row: usize,
    units: usize,
    group: usize,
    lane: usize,
    plane: usize,
    #[comptime] j: usize,
    #[comptime] variant: Variant,
) {
    let shape = comptime!(variant.shape);
    let dtype = comptime!(variant.dtype);
    let side_count = comptime!(side_words(dtype));
    let in_set = comptime!(set_steps(dtype));
    let groups = units.div_ceil(GROUP);
    let steps = comptime!(steps(dtype));
    #[unroll]
    for set in 0..comptime!(steps / in_set) {
        let mut weights = Sequence::<Array<Pair>>::new();
        #[unroll]
        for s in 0..in_set {
            #[unroll]
            for t in 0..comptime!(shape.tiles) {
                let at = comptime!((j * shape.tiles + t) * 2);
                let step = comptime!(set * in_set + s);
                let lower = step_weights(words[at], side, comptime!(at * side_count), group, step, dtype);
                let upper = step_weights(
                    words[comptime!(at + 1)],
                    side,
                    comptime!((at + 1) * side_count),
                    group,
                    step,
                    dtype,
                );
                let mut registers = Array::<Pair>::new(4usize);
                registers[0] = lower.first;
                registers[1] = upper.first;
                registers[2] = lower.second;
                registers[3] = upper.second;
                weights.push(registers);
            }
        }
        #[unroll]
        for eight in 0..comptime!(shape.eights) {
            let mut numbers = Array::<U4>::new(in_set);
            #[unroll]
            for s in 0..in_set {
                let step = comptime!(set * in_set + s);
                if comptime!(shape.own_rows > 0) {
                    let r = lane / GROUP % comptime!(shape.own_rows);
                    let at = (step * comptime!(shape.own_rows) + r) * GROUP + lane % GROUP;
                    numbers[s] = staged[plane * comptime!(variant.own_fragments()) + at];
                } else {
                    let of_eight = first_row / COLUMNS + eight;
                    numbers[s] = fragments[((of_eight * groups + group) * steps + step) * LANES + lane];
                }
            }
            let inputs = sum_of_inputs(&numbers, in_set, variant);
            #[unroll]
            for t in 0..comptime!(shape.tiles) {
                let at = comptime!((t * shape.eights + eight) * 2);
                let mut set_sums = zeros(2usize);
                if comptime!(factor_sets(dtype) == 0) {
                    set_sums[0] = sums[at];
                    set_sums[1] = sums[comptime!(at + 1)];
                }
                #[unroll]
                for s in 0..in_set {
                    let registers = weights.index(comptime!(s * shape.tiles + t));
                    if comptime!(variant.exact) {
                        set_sums = multiplied(registers, numbers[s], 2usize, &set_sums);
                    }
                    set_sums = multiplied(registers, numbers[s], 0usize, &set_sums);
                }
                #[unroll]
                for upper in 0..2usize {
                    if comptime!(factor_sets(dtype) == 0) {
                        sums[comptime!(at + upper)] = set_sums[upper];
                    } else {
                        let of_row = comptime!(((j * shape.tiles + t) * 2 + upper) * side_count);
                        let factors = set_factors(side, of_row, group, units, set, dtype);
                        let mut sum =
                            fma(set_sums[upper], Sums::new(factors.scale), sums[comptime!(at + upper)]);
                        if comptime!(has_offset(dtype)) {
                            sum = fma(inputs, Sums::new(factors.offset), sum);
                        }
                        sums[comptime!(at + upper)] = sum;
                    }
                }
            }
        }
    }
}

/// `sums` plus the product of a tile with 16 inputs of eight rows: the words of `numbers` from `from` on.
#[cube]
fn multiplied(
    weights: &Array<Pair>,
    numbers: U4,
    #[comptime] from: usize,
    sums: &Array<Sums>,
) -> Array<Sums> {
    let product = MmaDefinition::<f16, f16, f32>::new(16usize, 8usize, 16usize);
    let mut registers = Array::<Pair>::new(2usize);
    registers[0] = Pair::reinterpret(numbers.extract(from));
    registers[1] = Pair::reinterpret(numbers.extract(comptime!(from + 1)));
    product.execute(weights, &registers, sums)
}

/// The sums of a set's inputs of the thread's two rows.
#[cube]
fn sum_of_inputs(numbers: &Array<U4>, #[comptime] count: usize, #[comptime] variant: Variant) -> Sums {
    let mut sums = zeros(2usize);
    if comptime!(has_offset(variant.dtype)) {
        // A tile of ones has them in each output.
        let mut ones = Array::<Pair>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            ones[i] = Pair::new(comptime!(f16::from_f32(1.0)));
        }
        #[unroll]
        for s in 0..count {
            if comptime!(variant.exact) {
                sums = multiplied(&ones, numbers[s], 2usize, &sums);
            }
            sums = multiplied(&ones, numbers[s], 0usize, &sums);
        }
    }
    sums[0]
}

/// Applies what follows the product to an output of two rows, and stores it.
#[allow(clippy::too_many_arguments)]
#[cube]
fn store(
    out: &mut [f32],
    residual: &[f32],
    after: &[f32],
    row_scales: &[f32],
    value: Sums,
    up: Sums,
    first_row: usize,
    row: usize,
    rows: usize,
    output: usize,
    outputs: usize,
    #[comptime] variant: Variant,
) {
    #[unroll]
    for i in 0..2usize {
        let this = first_row + row + i;
        if this < rows && output < outputs {
            let scale = if comptime!(variant.shape.own_rows > 0) {
                row_scales[2 * (row + i) + 1]
            } else {
                after[this]
            };
            let mut result = value.extract(i) * scale;
            match variant.epilogue {
                Epilogue::Store => {}
                Epilogue::Add => {
                    result += residual[this * outputs + output];
                }
                Epilogue::Gate(activation) => {
                    result = activate(result, activation) * (up.extract(i) * scale);
                }
            }
            out[this * outputs + output] = result;
        }
    }
}
