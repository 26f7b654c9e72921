//! The online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).

use super::inputs::BLOCKS;
use crate::cpu::simd::{Kernel, LANES, Simd, exp};
use crate::types::BLOCK_SIZE;

/// The softmax-weighted values of some queries so far.
#[derive(Default)]
pub(super) struct State {
    /// The largest score, by query.
    pub(super) largest: Vec<f32>,
    /// Sums of the weights, by query.
    pub(super) weights: Vec<f32>,
    /// Sums of weighted values: `[queries, vectors]`.
    pub(super) values: Vec<[f32; LANES]>,
}

impl State {
    pub(super) fn reset(&mut self, queries: usize, width: usize) {
        self.largest.clear();
        self.largest.resize(queries, f32::NEG_INFINITY);
        self.weights.clear();
        self.weights.resize(queries, 0.0);
        self.values.clear();
        self.values.resize(queries * width, [0.0; LANES]);
    }
}

pub(super) struct Merge<'a> {
    pub(super) part: &'a State,
    pub(super) merged: &'a mut State,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { part, merged } = self;
        let width = part.values.len() / part.largest.len();
        let values = merged.values.chunks_exact_mut(width).zip(part.values.chunks_exact(width));
        for (query, (merged_values, part_values)) in values.enumerate() {
            let (before, new) = (merged.largest[query], part.largest[query]);
            if new == f32::NEG_INFINITY {
                continue;
            }
            let largest = before.max(new);
            let keep = exp(s, s.splat(before - largest));
            let take = exp(s, s.splat(new - largest));
            for (merged, part) in merged_values.iter_mut().zip(part_values) {
                let sum = s.fma(s.load(part), take, s.mul(s.load(merged), keep));
                s.store(merged, sum);
            }
            let (keep, take) = (s.largest(keep), s.largest(take));
            merged.weights[query] = part.weights[query].mul_add(take, merged.weights[query] * keep);
            merged.largest[query] = largest;
        }
    }
}

/// One step of the online softmax: scores become weights.
pub(super) struct Soften<'a> {
    pub(super) start: usize,
    /// Position of the group's first row.
    pub(super) first_row: usize,
    /// Queries of a row.
    pub(super) each: usize,
    pub(super) window: usize,
    pub(super) scale: f32,
    pub(super) blocks: usize,
    pub(super) scores: &'a mut [[[f32; LANES]; BLOCKS]],
    pub(super) largest: &'a mut [f32],
    pub(super) weights: &'a mut [[f32; LANES]],
    /// What the sums so far are to be multiplied with.
    pub(super) corrections: &'a mut [f32],
}

impl Kernel for Soften<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        for (query, scores) in self.scores.iter_mut().enumerate() {
            let position = self.first_row + query / self.each;
            let seen_from = (position + 1).saturating_sub(self.window).max(self.start) - self.start;
            let seen_to = (position + 1).saturating_sub(self.start).min(self.blocks * BLOCK_SIZE);
            if seen_from >= seen_to {
                *scores = [[0.0; LANES]; BLOCKS];
                self.corrections[query] = 1.0;
                continue;
            }
            let none = s.splat(f32::NEG_INFINITY);
            let mut vectors = [none; BLOCKS];
            let mut most = none;
            for block in 0..self.blocks {
                let first = block * BLOCK_SIZE;
                let (from, to) = (within(seen_from, first), within(seen_to, first));
                let scaled = s.mul(s.load(&scores[block]), s.splat(self.scale));
                vectors[block] = s.within(from, to, scaled, none);
                most = s.max(most, vectors[block]);
            }
            let before = self.largest[query];
            let largest = s.largest(most).max(before);
            let correction = exp(s, s.splat(before - largest));
            let mut weights = s.mul(s.load(&self.weights[query]), correction);
            for block in 0..self.blocks {
                let first = block * BLOCK_SIZE;
                let (from, to) = (within(seen_from, first), within(seen_to, first));
                let softened = exp(s, s.sub(vectors[block], s.splat(largest)));
                let softened = s.within(from, to, softened, s.zero());
                weights = s.add(weights, softened);
                s.store(&mut scores[block], softened);
            }
            s.store(&mut self.weights[query], weights);
            self.largest[query] = largest;
            self.corrections[query] = s.largest(correction);
        }
    }
}

/// A position in a stretch as one in the block that begins at `first`.
#[inline(always)]
pub(super) fn within(position: usize, first: usize) -> usize {
    position.saturating_sub(first).min(BLOCK_SIZE)
}

/// Sums up weights.
pub(super) struct Total<'a> {
    pub(super) weights: &'a [[f32; LANES]],
    pub(super) totals: &'a mut [f32],
}

impl Kernel for Total<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        for (total, weights) in self.totals.iter_mut().zip(self.weights) {
            *total = s.sum(s.load(weights));
        }
    }
}
