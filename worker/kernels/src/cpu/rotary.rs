//! Queries, keys and values of a step: bias, head norm, rotation, and into the cache.

use super::disjoint::Parts;
use super::kv_element::{Stored, store};
use super::rows::rms_norm;
use super::simd::{self, Kernel, Simd};
use super::threads;
use crate::types::{BLOCK_SIZE, HeadShape};

/// From this many rows on, threads share them.
const MANY: usize = 8;

/// A step's products and what is done to them; see [`crate::rotate_and_store`].
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) qkv: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) norms: &'a [f32],
    pub(crate) rotary: &'a [f32],
    /// Position, span and slot of each row.
    pub(crate) rows: &'a [[usize; 3]],
    pub(crate) shape: HeadShape,
}

/// A cache's pools.
pub(crate) struct Pools<'a, E> {
    pub(crate) keys: &'a mut [E],
    pub(crate) values: &'a mut [E],
}

impl Step<'_> {
    /// Stores keys and values and gives the queries.
    #[allow(clippy::needless_pass_by_value)] // what is lent for writing is used up
    pub(crate) fn run<E: Stored>(self, pools: Pools<'_, E>) -> Vec<f32> {
        let HeadShape { heads, kv_heads, .. } = self.shape;
        let mut queries = vec![0.0; self.rows.len() * self.shape.query_width()];
        let targets = Targets {
            queries: Parts::new(&mut queries),
            keys: Parts::new(pools.keys),
            values: Parts::new(pools.values),
        };
        // A head is the unit: whatever the slots, no two heads share memory.
        let work = |head| simd::run(Head { step: self, head, targets: &targets });
        if self.rows.len() < MANY {
            (0..heads + 2 * kv_heads).for_each(work);
        } else {
            threads::each(heads + 2 * kv_heads, work);
        }
        queries
    }
}

struct Targets<'a, E> {
    queries: Parts<'a, f32>,
    keys: Parts<'a, E>,
    values: Parts<'a, E>,
}

/// One head of all rows: a query head, key head or value head, in the order of `qkv`.
struct Head<'a, 'b, E> {
    step: Step<'a>,
    head: usize,
    targets: &'a Targets<'b, E>,
}

impl<E: Stored> Kernel for Head<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { step: Step { qkv, bias, norms, rotary, rows, shape }, head, targets } = self;
        let HeadShape { heads, kv_heads, head_dim, rotary_dim, head_norm, .. } = shape;
        let width = (heads + 2 * kv_heads) * head_dim;
        let (mut plain, mut turned) = (vec![0.0; head_dim], vec![0.0; head_dim]);
        let mut column = vec![E::default(); head_dim];
        for (row, [position, _, slot]) in rows.iter().enumerate() {
            plain.copy_from_slice(&qkv[row * width + head * head_dim..][..head_dim]);
            if shape.bias {
                for (number, bias) in plain.iter_mut().zip(&bias[head * head_dim..]) {
                    *number += bias;
                }
            }
            if head < heads + kv_heads {
                if let Some(epsilon) = head_norm {
                    let gamma = &norms[usize::from(head >= heads) * head_dim..][..head_dim];
                    rms_norm(s, &plain, gamma, epsilon, &mut turned);
                    plain.copy_from_slice(&turned);
                }
                let half = rotary_dim / 2;
                let (cos, sin) = rotary[position * rotary_dim..][..rotary_dim].split_at(half);
                turned.copy_from_slice(&plain);
                let (first, second) = turned[..rotary_dim].split_at_mut(half);
                for i in 0..half {
                    let (a, b) = (plain[i], plain[half + i]);
                    first[i] = a * cos[i] - b * sin[i];
                    second[i] = b * cos[i] + a * sin[i];
                }
            }
            let (block, offset) = (slot / BLOCK_SIZE, slot % BLOCK_SIZE);
            let of_pool = |head: usize| (block * kv_heads + head) * head_dim * BLOCK_SIZE;
            // SAFETY: this head's part of the queries, or of a block of the cache, which no other
            // head writes to.
            #[allow(unsafe_code)]
            unsafe {
                if head < heads {
                    let at = (row * heads + head) * head_dim;
                    targets.queries.part(at, head_dim).copy_from_slice(&turned);
                } else if head < heads + kv_heads {
                    let keys = targets.keys.part(of_pool(head - heads), head_dim * BLOCK_SIZE);
                    store(s, &turned, &mut column);
                    for (key, number) in keys[offset..].iter_mut().step_by(BLOCK_SIZE).zip(&column) {
                        *key = *number;
                    }
                } else {
                    let at = of_pool(head - heads - kv_heads) + offset * head_dim;
                    store(s, &plain, targets.values.part(at, head_dim));
                }
            }
        }
    }
}
