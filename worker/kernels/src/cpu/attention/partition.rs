//! Attention of a group of rows over one partition, for one key/value head.

use super::inputs::{AttentionInputs, PARTITION, RowGroup, TILE, TILE_BLOCKS, vectors};
use super::softmax::{Accumulator, Merge, OnlineSoftmax, SumWeights};
use super::values::WeightedSum;
use crate::cpu::kv_element::{KvElement, PaddingBuffers};
use crate::cpu::microkernel::{Sums, multiply};
use crate::cpu::simd::{self, LANES, Simd, WithSimd};
use crate::types::{BLOCK_SIZE, HeadShape};

/// Buffers of a thread, kept between calls.
#[derive(Default)]
pub(super) struct Buffers {
    /// Queries, packed for [`multiply`].
    queries: Vec<f32>,
    /// Scores of a tile, then its weights.
    scores: Vec<[[f32; LANES]; TILE_BLOCKS]>,
    weights: Vec<[f32; LANES]>,
    corrections: Vec<f32>,
    padding: PaddingBuffers,
    /// Of the partition that was computed last.
    pub(super) current: Accumulator,
    /// Of the partitions before it.
    pub(super) merged: Accumulator,
}

impl Buffers {
    /// Merges the current partition into those before it, if it is not the `first`.
    pub(super) fn merge(&mut self, first: bool) {
        let Self { current, merged, .. } = self;
        if first {
            std::mem::swap(current, merged);
        } else {
            simd::run(Merge { current, merged });
        }
    }
}

/// Computes one partition of a group and a key/value head into `buffers.current`.
pub(super) struct PartitionTask<'a, 'b, E> {
    pub(super) inputs: &'a AttentionInputs<'b, E>,
    pub(super) group: RowGroup,
    pub(super) head: usize,
    pub(super) partition: usize,
    pub(super) buffers: &'a mut Buffers,
}

impl<E: KvElement> WithSimd for PartitionTask<'_, '_, E> {
    fn call<S: Simd>(self, s: S) {
        let Self { inputs, group, head, partition, buffers } = self;
        let HeadShape { heads, kv_heads, head_dim, scale, .. } = inputs.shape;
        let group_size = heads / kv_heads;
        let count = group.rows * group_size;
        let width = vectors(head_dim);
        pack_queries::<S, E>(inputs, group, head, &mut buffers.queries);
        buffers.current.reset(count, width);
        buffers.scores.resize(count, Default::default());
        buffers.corrections.resize(count, 0.0);
        buffers.weights.clear();
        buffers.weights.resize(count, [0.0; LANES]);
        let position = inputs.rows[group.first][0];
        let begin = inputs.first_visible(position).max(partition * PARTITION) / TILE;
        let end = (position + group.rows).min((partition + 1) * PARTITION);
        for start in (begin * TILE..end).step_by(TILE) {
            let tile = KvTile::new(inputs, group, head, start, end);
            tile.scores(s, &buffers.queries, count, &mut buffers.scores);
            s.run(OnlineSoftmax {
                start,
                first_row: position,
                group_size,
                window: inputs.shape.window.unwrap_or(usize::MAX),
                scale,
                blocks: tile.blocks,
                scores: &mut buffers.scores,
                max: &mut buffers.current.max,
                weights: &mut buffers.weights,
                corrections: &mut buffers.corrections,
            });
            tile.add_values(s, buffers);
        }
        s.run(SumWeights { weights: &buffers.weights, sums: &mut buffers.current.sums });
    }
}

/// Packs the queries of a group for [`multiply`]: `[head_dim, queries]` for each
/// [`Simd::TILE_ROWS`] queries.
fn pack_queries<S: Simd, E>(
    inputs: &AttentionInputs<'_, E>,
    group: RowGroup,
    head: usize,
    out: &mut Vec<f32>,
) {
    let HeadShape { heads, kv_heads, head_dim, .. } = inputs.shape;
    let group_size = heads / kv_heads;
    let count = group.rows * group_size;
    out.clear();
    out.resize(count * head_dim, 0.0);
    for query in 0..count {
        let (row, head) = (group.first + query / group_size, head * group_size + query % group_size);
        let numbers = &inputs.queries[(row * heads + head) * head_dim..][..head_dim];
        let first = query / S::TILE_ROWS * S::TILE_ROWS;
        let rows = S::TILE_ROWS.min(count - first);
        let out = &mut out[first * head_dim..][..rows * head_dim];
        for (out, number) in out[query - first..].iter_mut().step_by(rows).zip(numbers) {
            *out = *number;
        }
    }
}

/// The keys and values of a tile of one key/value head.
struct KvTile<'a, E> {
    /// `[head_dim, BLOCK_SIZE]` each.
    keys: [&'a [E]; TILE_BLOCKS],
    /// `[BLOCK_SIZE, head_dim]` each.
    values: [&'a [E]; TILE_BLOCKS],
    blocks: usize,
    /// Positions of the tile that some row attends to.
    positions: usize,
    head_dim: usize,
}

impl<'a, E: KvElement> KvTile<'a, E> {
    fn new(inputs: &AttentionInputs<'a, E>, group: RowGroup, head: usize, start: usize, end: usize) -> Self {
        let HeadShape { kv_heads, head_dim, .. } = inputs.shape;
        let positions = (end - start).min(TILE);
        let blocks = positions.div_ceil(BLOCK_SIZE);
        let table = &inputs.tables[inputs.rows[group.first][1] * inputs.width..];
        let (mut keys, mut values): ([&[E]; TILE_BLOCKS], [&[E]; TILE_BLOCKS]) = Default::default();
        for index in 0..blocks {
            let block = table[start / BLOCK_SIZE + index];
            let at = (block * kv_heads + head) * head_dim * BLOCK_SIZE;
            keys[index] = &inputs.keys[at..at + head_dim * BLOCK_SIZE];
            values[index] = &inputs.values[at..at + head_dim * BLOCK_SIZE];
        }
        Self { keys, values, blocks, positions, head_dim }
    }

    /// Writes the products of all queries and keys to `scores`.
    fn scores<S: Simd>(
        &self,
        s: S,
        queries: &[f32],
        count: usize,
        scores: &mut [[[f32; LANES]; TILE_BLOCKS]],
    ) {
        for (group, scores) in scores[..count].chunks_mut(S::TILE_ROWS).enumerate() {
            let rows = scores.len();
            let queries = &queries[group * S::TILE_ROWS * self.head_dim..][..rows * self.head_dim];
            for pair in (0..self.blocks).step_by(2) {
                let first = self.keys[pair].as_chunks().0;
                let second = if pair + 1 < self.blocks { self.keys[pair + 1].as_chunks().0 } else { first };
                let sums = Sums { vectors: scores.as_flattened_mut(), stride: TILE_BLOCKS, at: pair };
                multiply(s, [first, second], queries, rows, sums, true);
            }
        }
    }

    /// Adds the values, multiplied with their weights, to the current accumulator.
    fn add_values<S: Simd>(&self, s: S, buffers: &mut Buffers) {
        let Buffers { scores, corrections, padding, current, .. } = buffers;
        let width = vectors(self.head_dim);
        let mut values = self.values;
        if width * LANES != self.head_dim {
            let padded = E::padding_buffer(padding);
            padded.clear();
            padded.resize(TILE * width * LANES, E::default());
            let rows = self.values.iter().flat_map(|values| values.chunks_exact(self.head_dim));
            for (padded, row) in padded.chunks_exact_mut(width * LANES).zip(rows) {
                padded[..self.head_dim].copy_from_slice(row);
            }
            for (values, padded) in values.iter_mut().zip(padded.chunks_exact(BLOCK_SIZE * width * LANES)) {
                *values = padded;
            }
        }
        let groups = scores.chunks(S::TILE_ROWS).zip(corrections.chunks(S::TILE_ROWS));
        for ((scores, corrections), sums) in groups.zip(current.values.chunks_mut(S::TILE_ROWS * width)) {
            for at in (0..width).step_by(2) {
                let values = values.map(|values| values.as_chunks().0);
                let sum = WeightedSum { values, positions: self.positions, width, at };
                sum.add_to(s, scores, corrections, sums);
            }
        }
    }
}
