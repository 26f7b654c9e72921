//! The merge of partitions that different cubes computed.

use burn::cubecl;
use burn::cubecl::prelude::*;

use super::accumulator::{Shares, first_visible, merged, shares};
use super::config::MASKED;
use crate::types::PARTITION;

/// Threads of a cube, each of which has one number of a head, and partitions that they read at once.
pub(super) const THREADS: usize = 64;
/// Partitions of which all are read if there is any: a branch for each would cost more.
const GROUP: usize = 8;

/// Merges the partitions of one row and head, in order.
///
/// The factors of up to [`THREADS`] partitions follow from their largest scores at once; what is left to
/// be done one after another are two operations for each partition.
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
pub(crate) fn merge_kernel(
    values: &[f32],
    stats: &[f32],
    singles: &[u32],
    out: &mut [f32],
    first_single: usize,
    first_part: usize,
    window: usize,
    heads: usize,
    head_dim: usize,
) {
    let unit = UNIT_POS as usize;
    let single = 3 * (first_single + CUBE_POS_X as usize);
    let row = singles[single] as usize;
    let parts = singles[single + 1] as usize - first_part;
    let position = singles[single + 2] as usize;
    let head = CUBE_POS_Y as usize;
    let number = CUBE_POS_Z as usize * THREADS + unit;
    // Threads beyond the last number compute that one again.
    let clamped = min(number, head_dim - 1);
    let end = position / PARTITION + 1;

    let mut maxima = Shared::<[f32]>::new_slice(THREADS);
    let mut sums = Shared::<[f32]>::new_slice(THREADS);
    let mut before = Shared::<[f32]>::new_slice(THREADS);
    let mut next = Shared::<[f32]>::new_slice(THREADS);
    let mut running_max = MASKED.runtime();
    let mut running_sum = 0.0f32;
    let mut running = 0.0f32;
    for first in range_stepped(first_visible(position, window) / PARTITION, end, THREADS) {
        let count = min(end - first, THREADS);
        let base = (parts + first) * heads + head;
        let own = base + min(unit, count - 1) * heads;
        let own_max = stats[2 * own];
        let own_sum = stats[2 * own + 1];
        let mut read = Array::<f32>::new(THREADS);
        #[unroll]
        for group in 0..comptime!(THREADS / GROUP) {
            #[unroll]
            for i in 0..GROUP {
                read[comptime!(group * GROUP + i)] = 0.0;
            }
            if group * GROUP < count {
                #[unroll]
                for i in 0..GROUP {
                    let at = comptime!(group * GROUP + i);
                    read[at] = values[(base + min(at, count - 1) * heads) * head_dim + clamped];
                }
            }
        }
        // Never taken: see the other kernel.
        if window == 0 {
            #[unroll]
            for i in 0..THREADS {
                next[unit] = read[i];
                sync_cube();
            }
        }
        sync_cube();
        maxima[unit] = own_max;
        sums[unit] = own_sum;
        sync_cube();
        let mut largest = running_max;
        for i in 0..min(unit, count) {
            largest = max(largest, maxima[i]);
        }
        let own = shares(largest, own_max);
        before[unit] = own.before;
        next[unit] = own.next;
        sync_cube();
        #[unroll]
        for group in 0..comptime!(THREADS / GROUP) {
            if group * GROUP < count {
                #[unroll]
                for i in 0..GROUP {
                    let at = comptime!(group * GROUP + i);
                    let seen = at < count && maxima[at] > MASKED;
                    let shares = Shares { before: before[at], next: next[at], seen };
                    running = merged(running, read[at], &shares);
                    running_sum = merged(running_sum, sums[at], &shares);
                    running_max = max(running_max, select(seen, maxima[at], MASKED));
                }
            }
        }
    }
    if number < head_dim {
        out[(row * heads + head) * head_dim + number] = running / running_sum;
    }
}
