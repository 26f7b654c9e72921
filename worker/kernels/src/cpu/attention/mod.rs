//! Attention over the paged cache.
//!
//! Keys and values are read in tiles of [`inputs::TILE`] positions, each an update of an online
//! softmax (Milakov and Gimelshein, 2018). Tiles belong to partitions of [`inputs::PARTITION`]
//! positions, which are computed separately and merged in order (as in Dao et al., "Flash-Decoding",
//! 2023). Both are counted from the beginning of the sequence, so a row's numbers depend neither on
//! the rows that are computed with it, nor on how partitions are distributed among threads.

mod inputs;
mod partition;
mod softmax;
mod values;

use std::cell::RefCell;

use self::inputs::{RowGroup, vectors};
use self::partition::{Buffers, PartitionTask};
use self::softmax::Accumulator;
use super::disjoint::DisjointMut;
use super::kv_element::KvElement;
use super::simd::{self, LANES};
use super::threads;
use crate::types::HeadShape;

pub(crate) use self::inputs::AttentionInputs;

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl<E: KvElement> AttentionInputs<'_, E> {
    /// The result of [`crate::attention`], `[rows, heads * head_dim]`.
    pub(crate) fn compute(&self) -> Vec<f32> {
        let HeadShape { heads, kv_heads, head_dim, .. } = self.shape;
        let mut out = vec![0.0; self.rows.len() * heads * head_dim];
        let shared_out = DisjointMut::new(&mut out);
        let groups = self.groups();
        let max_partitions = groups.iter().map(|group| self.partitions(*group).len()).max().unwrap_or(0);
        if max_partitions <= 1 || groups.len() * kv_heads >= 4 * rayon::current_num_threads() {
            threads::for_each(groups.len() * kv_heads, |task| {
                let (group, head) = (groups[task / kv_heads], task % kv_heads);
                BUFFERS.with_borrow_mut(|buffers| {
                    for (index, partition) in self.partitions(group).enumerate() {
                        simd::dispatch(PartitionTask {
                            inputs: self,
                            group,
                            head,
                            partition,
                            buffers: &mut *buffers,
                        });
                        buffers.merge(index == 0);
                    }
                    self.write_output(group, head, &buffers.merged, &shared_out);
                });
            });
            return out;
        }
        self.compute_split(&groups, max_partitions, &shared_out);
        out
    }

    /// For few groups with long contexts: a task for each partition.
    fn compute_split(&self, groups: &[RowGroup], max_partitions: usize, out: &DisjointMut<'_, f32>) {
        let kv_heads = self.shape.kv_heads;
        let mut accumulators: Vec<Accumulator> = Vec::new();
        accumulators.resize_with(groups.len() * kv_heads * max_partitions, Accumulator::default);
        let shared = DisjointMut::new(&mut accumulators);
        threads::for_each(groups.len() * kv_heads * max_partitions, |task| {
            let (group, head) = (groups[task / max_partitions / kv_heads], task / max_partitions % kv_heads);
            if let Some(partition) = self.partitions(group).nth(task % max_partitions) {
                BUFFERS.with_borrow_mut(|buffers| {
                    simd::dispatch(PartitionTask {
                        inputs: self,
                        group,
                        head,
                        partition,
                        buffers: &mut *buffers,
                    });
                    // SAFETY: each task has its own accumulator.
                    #[allow(unsafe_code)]
                    let accumulator = unsafe { shared.slice_mut(task, 1) };
                    std::mem::swap(&mut accumulator[0], &mut buffers.current);
                });
            }
        });
        for (task, accumulators) in accumulators.chunks_exact_mut(max_partitions).enumerate() {
            let (group, head) = (groups[task / kv_heads], task % kv_heads);
            BUFFERS.with_borrow_mut(|buffers| {
                for (index, accumulator) in
                    accumulators.iter_mut().take(self.partitions(group).len()).enumerate()
                {
                    std::mem::swap(accumulator, &mut buffers.current);
                    buffers.merge(index == 0);
                }
                self.write_output(group, head, &buffers.merged, out);
            });
        }
    }

    /// Divides the sums of a group and a key/value head by their weights and writes them to `out`.
    fn write_output(
        &self,
        group: RowGroup,
        head: usize,
        accumulator: &Accumulator,
        out: &DisjointMut<'_, f32>,
    ) {
        let HeadShape { heads, kv_heads, head_dim, .. } = self.shape;
        let group_size = heads / kv_heads;
        let values = accumulator.values.as_flattened().chunks_exact(vectors(head_dim) * LANES);
        for (query, (values, sum)) in values.zip(&accumulator.sums).enumerate() {
            let (row, head) = (group.first + query / group_size, head * group_size + query % group_size);
            // SAFETY: no other task has these rows and heads.
            #[allow(unsafe_code)]
            let out = unsafe { out.slice_mut((row * heads + head) * head_dim, head_dim) };
            for (out, value) in out.iter_mut().zip(values) {
                // Adding 0 makes -0 positive, as positions that only other rows of the group attend to
                // may have done already.
                *out = value / sum + 0.0;
            }
        }
    }
}
