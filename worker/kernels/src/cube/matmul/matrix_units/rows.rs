//! Rows as the instruction takes them: pairs of f16 in a word.
//!
//! A row is multiplied with the power of two that brings its largest number just below the largest f16. Then each number
//! becomes the f16 nearest to it and a second one for the rest, which together have 22 bits or more of it.

use burn::cubecl;
use burn::cubecl::prelude::*;

use super::layout::{GROUP, LANES};
use super::weights::{Pair, step_place, steps};
use crate::cube::dequant::{F4, U4, unit_vectors};
use crate::ggml::GgmlType;

/// Rows that an instruction multiplies with a tile.
pub(super) const COLUMNS: usize = 8;
/// Threads that sum a row's squares. The order of the sum depends on it.
pub(super) const THREADS: usize = 256;
/// The largest exponent of a number of a scaled row: the largest f16 is below 2^16.
const EXPONENT: u32 = 14;

/// What one thread of [`THREADS`] finds of a row: its sum of squares, and its largest number times `gamma`.
#[derive(CubeType, Clone, Copy)]
struct Share {
    squares: f32,
    largest: f32,
}

#[cube]
fn share(x: &[F4], gamma: &[F4], row: usize, vectors: usize, #[comptime] norm: bool) -> Share {
    let mut found = Share { squares: 0.0, largest: 0.0 };
    for vector in range_stepped(UNIT_POS as usize, vectors, THREADS) {
        let mut numbers = x[row * vectors + vector];
        if comptime!(norm) {
            #[unroll]
            for i in 0..4usize {
                found.squares = fma(numbers.extract(i), numbers.extract(i), found.squares);
            }
            numbers *= gamma[vector];
        }
        #[unroll]
        for i in 0..4usize {
            found.largest = max(found.largest, numbers.extract(i).abs());
        }
    }
    found
}

/// Writes to `scales` what each of `rows` rows from `first` on, of `all`, is multiplied with before and after the product.
/// All threads of a cube call it.
#[allow(clippy::too_many_arguments)]
#[cube]
pub(super) fn find_scales(
    scales: &mut [f32],
    x: &[F4],
    gamma: &[F4],
    first: usize,
    all: usize,
    vectors: usize,
    width: f32,
    epsilon: f32,
    #[comptime] rows: usize,
    #[comptime] norm: bool,
) {
    let mut squares = Shared::<[f32]>::new_slice(comptime!(rows * THREADS));
    let mut largest = Shared::<[f32]>::new_slice(comptime!(rows * THREADS));
    let unit = UNIT_POS as usize;
    #[unroll]
    for r in 0..rows {
        let found = share(x, gamma, min(first + r, all - 1), vectors, norm);
        squares[r * THREADS + unit] = found.squares;
        largest[r * THREADS + unit] = found.largest;
    }
    sync_cube();
    let lane = unit % LANES;
    for r in range_stepped(unit / LANES, rows, comptime!(THREADS / LANES)) {
        let at = r * THREADS + lane;
        let mut sum = squares[at];
        let mut most = largest[at];
        #[unroll]
        for i in 1..comptime!(THREADS / LANES) {
            sum += squares[at + i * LANES];
            most = max(most, largest[at + i * LANES]);
        }
        let sum = plane_sum(sum);
        let most = plane_max(most);
        if lane == 0 {
            let exponent = (u32::reinterpret(most) >> 23) & 0xFF;
            // Between 2^-123 and 2^123, so that both this power and its inverse are normal numbers.
            let power = min(max(comptime!(2 * 127 + EXPONENT), exponent + 4) - exponent, 250);
            let mut after = f32::reinterpret((254 - power) << 23);
            if comptime!(norm) {
                after *= 1.0 / (sum / width + epsilon).sqrt();
            }
            scales[2 * r] = f32::reinterpret(power << 23);
            scales[2 * r + 1] = after;
        }
    }
    sync_cube();
}

/// The numbers that thread `thread` of the four multiplies its weights of a step with.
#[allow(clippy::too_many_arguments)]
#[cube]
pub(super) fn fragment(
    x: &[F4],
    gamma: &[F4],
    row: usize,
    vectors: usize,
    group: usize,
    step: usize,
    thread: usize,
    before: f32,
    #[comptime] norm: bool,
    #[comptime] dtype: GgmlType,
) -> U4 {
    if comptime!(dtype == GgmlType::F16) {
        // Two weights of each of two units.
        let unit = group * GROUP + 2 * step;
        let in_unit = comptime!(unit_vectors(dtype));
        let first = scaled(x, gamma, row, vectors, unit * in_unit + thread / 2, before, norm);
        let second = scaled(x, gamma, row, vectors, (unit + 1) * in_unit + thread / 2, before, norm);
        let upper = thread % 2 == 1;
        let mut numbers = F4::empty();
        numbers.insert(0usize, select(upper, first.extract(2usize), first.extract(0usize)));
        numbers.insert(1usize, select(upper, second.extract(2usize), second.extract(0usize)));
        numbers.insert(2usize, select(upper, first.extract(3usize), first.extract(1usize)));
        numbers.insert(3usize, select(upper, second.extract(3usize), second.extract(1usize)));
        halves(numbers)
    } else {
        let place = step_place(group, step, thread, dtype);
        halves(scaled(x, gamma, row, vectors, place, before, norm))
    }
}

/// Vector `place` of a row; those beyond the last meet weights that are 0.
#[cube]
fn scaled(
    x: &[F4],
    gamma: &[F4],
    row: usize,
    vectors: usize,
    place: usize,
    before: f32,
    #[comptime] norm: bool,
) -> F4 {
    let inside = min(place, vectors - 1);
    let mut numbers = x[row * vectors + inside];
    if comptime!(norm) {
        numbers *= gamma[inside];
    }
    numbers * F4::new(before)
}

/// First and third number, second and fourth, then the same of what is left of them.
#[cube]
fn halves(numbers: F4) -> U4 {
    let first = pair(numbers.extract(0usize), numbers.extract(2usize));
    let second = pair(numbers.extract(1usize), numbers.extract(3usize));
    let mut words = U4::empty();
    words.insert(0usize, u32::reinterpret(first));
    words.insert(1usize, u32::reinterpret(second));
    words.insert(2usize, u32::reinterpret(rest(first, numbers.extract(0usize), numbers.extract(2usize))));
    words.insert(3usize, u32::reinterpret(rest(second, numbers.extract(1usize), numbers.extract(3usize))));
    words
}

#[cube]
fn pair(a: f32, b: f32) -> Pair {
    let mut both = Vector::<f32, Const<2>>::empty();
    both.insert(0usize, a);
    both.insert(1usize, b);
    Pair::cast_from(both)
}

#[cube]
fn rest(rounded: Pair, a: f32, b: f32) -> Pair {
    pair(a - f32::cast_from(rounded.extract(0usize)), b - f32::cast_from(rounded.extract(1usize)))
}

/// Writes rows as fragments, in the order in which products read them, and after them what each row's results are
/// multiplied with. A cube has one row.
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(super) fn fragments_kernel(
    x: &[F4],
    gamma: &[F4],
    fragments: &mut [U4],
    after: &mut [f32],
    rows: usize,
    vectors: usize,
    groups: usize,
    width: f32,
    epsilon: f32,
    #[comptime] norm: bool,
    #[comptime] dtype: GgmlType,
) {
    let row = CUBE_POS_X as usize;
    let mut scales = Shared::<[f32]>::new_slice(2usize);
    find_scales(&mut scales, x, gamma, row, rows, vectors, width, epsilon, 1usize, norm);
    if UNIT_POS == 0 {
        after[row] = scales[1];
    }
    let steps = comptime!(steps(dtype));
    for at in range_stepped(UNIT_POS as usize, groups * comptime!(steps * GROUP), THREADS) {
        let step = at / GROUP;
        let thread = at % GROUP;
        let words =
            fragment(x, gamma, row, vectors, step / steps, step % steps, thread, scales[0], norm, dtype);
        let lane = row % COLUMNS * GROUP + thread;
        fragments[(row / COLUMNS * groups * steps + step) * LANES + lane] = words;
    }
}
