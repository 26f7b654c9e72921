//! One part of the positions of a few rows, for one key/value head.

use super::inputs::{Attention, BLOCKS, Group, PART, STRETCH, vectors};
use super::softmax::{Merge, Soften, State, Total};
use super::values::Weigh;
use crate::cpu::kv_element::{Padded, Stored};
use crate::cpu::microkernel::{Sums, multiply};
use crate::cpu::simd::{self, LANES, Simd, With};
use crate::types::{BLOCK_SIZE, HeadShape};

/// A thread's memory.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) queries: Vec<f32>,
    pub(super) scores: Vec<[[f32; LANES]; BLOCKS]>,
    pub(super) weights: Vec<[f32; LANES]>,
    pub(super) corrections: Vec<f32>,
    pub(super) padded: Padded,
    pub(super) part: State,
    pub(super) merged: State,
}

impl Buffers {
    /// Merges a part's state into that of the parts before it.
    pub(super) fn merge(&mut self, first: bool) {
        let Self { part, merged, .. } = self;
        if first {
            std::mem::swap(part, merged);
        } else {
            simd::run(Merge { part, merged });
        }
    }
}

/// One part of a group with a key/value head; leaves its state in the buffers.
pub(super) struct Part<'a, 'b, E> {
    pub(super) attention: &'a Attention<'b, E>,
    pub(super) group: Group,
    pub(super) head: usize,
    pub(super) part: usize,
    pub(super) buffers: &'a mut Buffers,
}

impl<E: Stored> With for Part<'_, '_, E> {
    fn call<S: Simd>(self, s: S) {
        let Self { attention, group, head, part, buffers } = self;
        let HeadShape { heads, kv_heads, head_dim, scale, .. } = attention.shape;
        let each = heads / kv_heads;
        let count = group.rows * each;
        let width = vectors(head_dim);
        pack_queries::<S, E>(attention, group, head, &mut buffers.queries);
        buffers.part.reset(count, width);
        buffers.scores.resize(count, Default::default());
        buffers.corrections.resize(count, 0.0);
        buffers.weights.clear();
        buffers.weights.resize(count, [0.0; LANES]);
        let position = attention.rows[group.first][0];
        let begin = attention.first_seen(position).max(part * PART) / STRETCH;
        let end = (position + group.rows).min((part + 1) * PART);
        for start in (begin * STRETCH..end).step_by(STRETCH) {
            let stretch = Stretch::new(attention, group, head, start, end);
            stretch.scores(s, &buffers.queries, count, &mut buffers.scores);
            s.run(Soften {
                start,
                first_row: position,
                each,
                window: attention.shape.window.unwrap_or(usize::MAX),
                scale,
                blocks: stretch.blocks,
                scores: &mut buffers.scores,
                largest: &mut buffers.part.largest,
                weights: &mut buffers.weights,
                corrections: &mut buffers.corrections,
            });
            stretch.add_values(s, buffers);
        }
        s.run(Total { weights: &buffers.weights, totals: &mut buffers.part.weights });
    }
}

/// Lays the queries of a group out for [`multiply`].
fn pack_queries<S: Simd, E>(attention: &Attention<'_, E>, group: Group, head: usize, out: &mut Vec<f32>) {
    let HeadShape { heads, kv_heads, head_dim, .. } = attention.shape;
    let each = heads / kv_heads;
    let count = group.rows * each;
    out.clear();
    out.resize(count * head_dim, 0.0);
    for query in 0..count {
        let (row, head) = (group.first + query / each, head * each + query % each);
        let numbers = &attention.queries[(row * heads + head) * head_dim..][..head_dim];
        let first = query / S::ROWS * S::ROWS;
        let rows = S::ROWS.min(count - first);
        let out = &mut out[first * head_dim..][..rows * head_dim];
        for (out, number) in out[query - first..].iter_mut().step_by(rows).zip(numbers) {
            *out = *number;
        }
    }
}

/// The keys and values of a stretch.
struct Stretch<'a, E> {
    /// `[head_dim, BLOCK_SIZE]` each.
    keys: [&'a [E]; BLOCKS],
    /// `[BLOCK_SIZE, head_dim]` each.
    values: [&'a [E]; BLOCKS],
    blocks: usize,
    /// Positions that some row sees.
    positions: usize,
    head_dim: usize,
}

impl<'a, E: Stored> Stretch<'a, E> {
    fn new(attention: &Attention<'a, E>, group: Group, head: usize, start: usize, end: usize) -> Self {
        let HeadShape { kv_heads, head_dim, .. } = attention.shape;
        let positions = (end - start).min(STRETCH);
        let blocks = positions.div_ceil(BLOCK_SIZE);
        let table = &attention.tables[attention.rows[group.first][1] * attention.width..];
        let (mut keys, mut values): ([&[E]; BLOCKS], [&[E]; BLOCKS]) = Default::default();
        for index in 0..blocks {
            let block = table[start / BLOCK_SIZE + index];
            let at = (block * kv_heads + head) * head_dim * BLOCK_SIZE;
            keys[index] = &attention.keys[at..at + head_dim * BLOCK_SIZE];
            values[index] = &attention.values[at..at + head_dim * BLOCK_SIZE];
        }
        Self { keys, values, blocks, positions, head_dim }
    }

    /// Products of all queries and keys.
    fn scores<S: Simd>(&self, s: S, queries: &[f32], count: usize, scores: &mut [[[f32; LANES]; BLOCKS]]) {
        for (group, scores) in scores[..count].chunks_mut(S::ROWS).enumerate() {
            let rows = scores.len();
            let queries = &queries[group * S::ROWS * self.head_dim..][..rows * self.head_dim];
            for pair in (0..self.blocks).step_by(2) {
                let first = self.keys[pair].as_chunks().0;
                let second = if pair + 1 < self.blocks { self.keys[pair + 1].as_chunks().0 } else { first };
                let sums = Sums { lines: scores.as_flattened_mut(), stride: BLOCKS, at: pair };
                multiply(s, [first, second], queries, rows, sums, true);
            }
        }
    }

    /// Adds the values, weighted by the softened scores.
    fn add_values<S: Simd>(&self, s: S, buffers: &mut Buffers) {
        let Buffers { scores, corrections, padded, part, .. } = buffers;
        let width = vectors(self.head_dim);
        let mut values = self.values;
        if width * LANES != self.head_dim {
            let padded = E::padded(padded);
            padded.clear();
            padded.resize(STRETCH * width * LANES, E::default());
            let rows = self.values.iter().flat_map(|values| values.chunks_exact(self.head_dim));
            for (padded, row) in padded.chunks_exact_mut(width * LANES).zip(rows) {
                padded[..self.head_dim].copy_from_slice(row);
            }
            for (values, padded) in values.iter_mut().zip(padded.chunks_exact(BLOCK_SIZE * width * LANES)) {
                *values = padded;
            }
        }
        let groups = scores.chunks(S::ROWS).zip(corrections.chunks(S::ROWS));
        for ((scores, corrections), sums) in groups.zip(part.values.chunks_mut(S::ROWS * width)) {
            for at in (0..width).step_by(2) {
                let values = values.map(|values| values.as_chunks().0);
                let weigh = Weigh { values, positions: self.positions, width, at };
                weigh.any(s, scores, corrections, sums);
            }
        }
    }
}
