//! The online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).

use super::inputs::TILE_BLOCKS;
use crate::cpu::simd::{Kernel, LANES, Simd, exp};
use crate::types::BLOCK_SIZE;

/// The online softmax of some queries, over the positions so far.
#[derive(Default)]
pub(super) struct Accumulator {
    /// The largest score of each query.
    pub(super) max: Vec<f32>,
    /// The sum of the weights of each query.
    pub(super) sums: Vec<f32>,
    /// The sums of the weighted values, `[queries, vectors]`.
    pub(super) values: Vec<[f32; LANES]>,
}

impl Accumulator {
    /// Starts with no position, for `queries` queries of `width` vectors.
    pub(super) fn reset(&mut self, queries: usize, width: usize) {
        self.max.clear();
        self.max.resize(queries, f32::NEG_INFINITY);
        self.sums.clear();
        self.sums.resize(queries, 0.0);
        self.values.clear();
        self.values.resize(queries * width, [0.0; LANES]);
    }
}

/// Merges the accumulator of a partition into that of the partitions before it.
pub(super) struct Merge<'a> {
    pub(super) current: &'a Accumulator,
    pub(super) merged: &'a mut Accumulator,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { current, merged } = self;
        let width = current.values.len() / current.max.len();
        let values = merged.values.chunks_exact_mut(width).zip(current.values.chunks_exact(width));
        for (query, (merged_values, current_values)) in values.enumerate() {
            let (before, new) = (merged.max[query], current.max[query]);
            if new == f32::NEG_INFINITY {
                continue;
            }
            let max = before.max(new);
            let keep = exp(s, s.splat(before - max));
            let take = exp(s, s.splat(new - max));
            for (merged, current) in merged_values.iter_mut().zip(current_values) {
                let sum = s.fma(s.load(current), take, s.mul(s.load(merged), keep));
                s.store(merged, sum);
            }
            let (keep, take) = (s.reduce_max(keep), s.reduce_max(take));
            merged.sums[query] = current.sums[query].mul_add(take, merged.sums[query] * keep);
            merged.max[query] = max;
        }
    }
}

/// One tile's update of the online softmax: its scores become weights.
pub(super) struct OnlineSoftmax<'a> {
    /// First position of the tile.
    pub(super) start: usize,
    /// Position of the group's first row.
    pub(super) first_row: usize,
    /// Queries of a row: query heads of a key/value head.
    pub(super) group_size: usize,
    pub(super) window: usize,
    pub(super) scale: f32,
    /// Cache blocks of the tile.
    pub(super) blocks: usize,
    /// Scores of each query, which become weights.
    pub(super) scores: &'a mut [[[f32; LANES]; TILE_BLOCKS]],
    /// The largest score of each query so far.
    pub(super) max: &'a mut [f32],
    /// Sums of the weights of each query, by lane.
    pub(super) weights: &'a mut [[f32; LANES]],
    /// Factor for each query's sums so far.
    pub(super) corrections: &'a mut [f32],
}

impl Kernel for OnlineSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        for (query, scores) in self.scores.iter_mut().enumerate() {
            let position = self.first_row + query / self.group_size;
            let visible_from = (position + 1).saturating_sub(self.window).max(self.start) - self.start;
            let visible_to = (position + 1).saturating_sub(self.start).min(self.blocks * BLOCK_SIZE);
            if visible_from >= visible_to {
                *scores = [[0.0; LANES]; TILE_BLOCKS];
                self.corrections[query] = 1.0;
                continue;
            }
            let none = s.splat(f32::NEG_INFINITY);
            let mut vectors = [none; TILE_BLOCKS];
            let mut tile_max = none;
            for block in 0..self.blocks {
                let first = block * BLOCK_SIZE;
                let (from, to) = (offset_in_block(visible_from, first), offset_in_block(visible_to, first));
                let scaled = s.mul(s.load(&scores[block]), s.splat(self.scale));
                vectors[block] = s.select_lanes(from, to, scaled, none);
                tile_max = s.max(tile_max, vectors[block]);
            }
            let before = self.max[query];
            let max = s.reduce_max(tile_max).max(before);
            let correction = exp(s, s.splat(before - max));
            let mut weights = s.mul(s.load(&self.weights[query]), correction);
            for block in 0..self.blocks {
                let first = block * BLOCK_SIZE;
                let (from, to) = (offset_in_block(visible_from, first), offset_in_block(visible_to, first));
                let weight = exp(s, s.sub(vectors[block], s.splat(max)));
                let weight = s.select_lanes(from, to, weight, s.zero());
                weights = s.add(weights, weight);
                s.store(&mut scores[block], weight);
            }
            s.store(&mut self.weights[query], weights);
            self.max[query] = max;
            self.corrections[query] = s.reduce_max(correction);
        }
    }
}

/// The offset of a tile's position in the block that begins at position `first` of the tile, clamped
/// to the block.
#[inline(always)]
pub(super) fn offset_in_block(position: usize, first: usize) -> usize {
    position.saturating_sub(first).min(BLOCK_SIZE)
}

/// Adds up the lanes of each query's weights.
pub(super) struct SumWeights<'a> {
    pub(super) weights: &'a [[f32; LANES]],
    pub(super) sums: &'a mut [f32],
}

impl Kernel for SumWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        for (sum, weights) in self.sums.iter_mut().zip(self.weights) {
            *sum = s.reduce_sum(s.load(weights));
        }
    }
}
