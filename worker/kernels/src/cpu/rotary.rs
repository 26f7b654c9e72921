//! Bias, head norm and rotary embedding of a step's queries, keys and values, and the store to the
//! cache.

use super::disjoint::DisjointMut;
use super::kv_element::{KvElement, store};
use super::rows::rms_norm;
use super::simd::{self, Kernel, Simd};
use super::threads;
use crate::types::{BLOCK_SIZE, HeadShape};

/// Smallest number of rows for which several threads are used.
const MIN_PARALLEL_ROWS: usize = 8;

/// The arguments of [`crate::rotate_and_store`] except the cache.
#[derive(Clone, Copy)]
pub(crate) struct Projections<'a> {
    pub(crate) qkv: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) norms: &'a [f32],
    pub(crate) rotary: &'a [f32],
    /// Position, span and slot of each row.
    pub(crate) rows: &'a [[usize; 3]],
    pub(crate) shape: HeadShape,
}

/// The pools of a cache.
pub(crate) struct Pools<'a, E> {
    pub(crate) keys: &'a mut [E],
    pub(crate) values: &'a mut [E],
}

impl Projections<'_> {
    /// Stores keys and values, and returns the queries.
    #[allow(clippy::needless_pass_by_value)] // the mutable borrows are consumed
    pub(crate) fn run<E: KvElement>(self, pools: Pools<'_, E>) -> Vec<f32> {
        let HeadShape { heads, kv_heads, .. } = self.shape;
        let mut queries = vec![0.0; self.rows.len() * self.shape.query_width()];
        let outputs = Outputs {
            queries: DisjointMut::new(&mut queries),
            keys: DisjointMut::new(pools.keys),
            values: DisjointMut::new(pools.values),
        };
        // A task is a head: whatever the slots, no two heads write to the same memory.
        let work = |head| simd::run(Head { projections: self, head, outputs: &outputs });
        if self.rows.len() < MIN_PARALLEL_ROWS {
            (0..heads + 2 * kv_heads).for_each(work);
        } else {
            threads::for_each(heads + 2 * kv_heads, work);
        }
        queries
    }
}

struct Outputs<'a, E> {
    queries: DisjointMut<'a, f32>,
    keys: DisjointMut<'a, E>,
    values: DisjointMut<'a, E>,
}

/// One head of all rows: a query, key or value head, numbered in the order of `qkv`.
struct Head<'a, 'b, E> {
    projections: Projections<'a>,
    head: usize,
    outputs: &'a Outputs<'b, E>,
}

impl<E: KvElement> Kernel for Head<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { projections: Projections { qkv, bias, norms, rotary, rows, shape }, head, outputs } = self;
        let HeadShape { heads, kv_heads, head_dim, rotary_dim, head_norm, .. } = shape;
        let width = (heads + 2 * kv_heads) * head_dim;
        let (mut input, mut rotated) = (vec![0.0; head_dim], vec![0.0; head_dim]);
        let mut column = vec![E::default(); head_dim];
        for (row, [position, _, slot]) in rows.iter().enumerate() {
            input.copy_from_slice(&qkv[row * width + head * head_dim..][..head_dim]);
            if shape.bias {
                for (number, bias) in input.iter_mut().zip(&bias[head * head_dim..]) {
                    *number += bias;
                }
            }
            if head < heads + kv_heads {
                if let Some(epsilon) = head_norm {
                    let gamma = &norms[usize::from(head >= heads) * head_dim..][..head_dim];
                    rms_norm(s, &input, gamma, epsilon, &mut rotated);
                    input.copy_from_slice(&rotated);
                }
                let half = rotary_dim / 2;
                let (cos, sin) = rotary[position * rotary_dim..][..rotary_dim].split_at(half);
                rotated.copy_from_slice(&input);
                let (first, second) = rotated[..rotary_dim].split_at_mut(half);
                for i in 0..half {
                    let (a, b) = (input[i], input[half + i]);
                    first[i] = a * cos[i] - b * sin[i];
                    second[i] = b * cos[i] + a * sin[i];
                }
            }
            let (block, offset) = (slot / BLOCK_SIZE, slot % BLOCK_SIZE);
            let in_pool = |head: usize| (block * kv_heads + head) * head_dim * BLOCK_SIZE;
            // SAFETY: these are this head's queries, or its part of a cache block, which no other head
            // writes to.
            #[allow(unsafe_code)]
            unsafe {
                if head < heads {
                    let at = (row * heads + head) * head_dim;
                    outputs.queries.slice_mut(at, head_dim).copy_from_slice(&rotated);
                } else if head < heads + kv_heads {
                    let keys = outputs.keys.slice_mut(in_pool(head - heads), head_dim * BLOCK_SIZE);
                    store(s, &rotated, &mut column);
                    for (key, number) in keys[offset..].iter_mut().step_by(BLOCK_SIZE).zip(&column) {
                        *key = *number;
                    }
                } else {
                    let at = in_pool(head - heads - kv_heads) + offset * head_dim;
                    store(s, &input, outputs.values.slice_mut(at, head_dim));
                }
            }
        }
    }
}
