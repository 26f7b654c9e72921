//! Attention over the paged cache.
//!
//! Positions are gone through in stretches of [`STRETCH`], each an update of an online softmax
//! (Milakov and Gimelshein, 2018), and stretches in parts of [`PART`] positions that begin afresh
//! and are merged in order (as in Dao et al., "Flash-Decoding", 2023). Both are counted from the
//! sequence's beginning, so a row's numbers do not depend on which rows are computed with it, nor
//! on how the parts are shared among threads.

mod inputs;
mod partition;
mod softmax;
mod values;

use std::cell::RefCell;

use self::inputs::{Group, vectors};
use self::partition::{Buffers, Part};
use self::softmax::State;
use super::disjoint::Parts;
use super::kv_element::Stored;
use super::simd::{self, LANES};
use super::threads;
use crate::types::HeadShape;

pub(crate) use self::inputs::Attention;

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl<E: Stored> Attention<'_, E> {
    /// `[rows, heads * head_dim]`.
    pub(crate) fn compute(&self) -> Vec<f32> {
        let HeadShape { heads, kv_heads, head_dim, .. } = self.shape;
        let mut out = vec![0.0; self.rows.len() * heads * head_dim];
        let parts = Parts::new(&mut out);
        let groups = self.groups();
        let wide = groups.iter().map(|group| self.parts(*group).len()).max().unwrap_or(0);
        if wide <= 1 || groups.len() * kv_heads >= 4 * rayon::current_num_threads() {
            threads::each(groups.len() * kv_heads, |task| {
                let (group, head) = (groups[task / kv_heads], task % kv_heads);
                BUFFERS.with_borrow_mut(|buffers| {
                    for (index, part) in self.parts(group).enumerate() {
                        simd::with(Part { attention: self, group, head, part, buffers: &mut *buffers });
                        buffers.merge(index == 0);
                    }
                    self.finish(group, head, &buffers.merged, &parts);
                });
            });
            return out;
        }
        self.split(&groups, wide, &parts);
        out
    }

    /// Few long rows: threads share their parts.
    fn split(&self, groups: &[Group], wide: usize, out: &Parts<'_, f32>) {
        let kv_heads = self.shape.kv_heads;
        let mut states: Vec<State> = Vec::new();
        states.resize_with(groups.len() * kv_heads * wide, State::default);
        let shared = Parts::new(&mut states);
        threads::each(groups.len() * kv_heads * wide, |task| {
            let (group, head) = (groups[task / wide / kv_heads], task / wide % kv_heads);
            if let Some(part) = self.parts(group).nth(task % wide) {
                BUFFERS.with_borrow_mut(|buffers| {
                    simd::with(Part { attention: self, group, head, part, buffers: &mut *buffers });
                    // SAFETY: each task has its own state.
                    #[allow(unsafe_code)]
                    let state = unsafe { shared.part(task, 1) };
                    std::mem::swap(&mut state[0], &mut buffers.part);
                });
            }
        });
        for (task, states) in states.chunks_exact_mut(wide).enumerate() {
            let (group, head) = (groups[task / kv_heads], task % kv_heads);
            BUFFERS.with_borrow_mut(|buffers| {
                for (index, state) in states.iter_mut().take(self.parts(group).len()).enumerate() {
                    std::mem::swap(state, &mut buffers.part);
                    buffers.merge(index == 0);
                }
                self.finish(group, head, &buffers.merged, out);
            });
        }
    }

    /// Writes the result.
    fn finish(&self, group: Group, head: usize, state: &State, out: &Parts<'_, f32>) {
        let HeadShape { heads, kv_heads, head_dim, .. } = self.shape;
        let each = heads / kv_heads;
        let values = state.values.as_flattened().chunks_exact(vectors(head_dim) * LANES);
        for (query, (values, weights)) in values.zip(&state.weights).enumerate() {
            let (row, head) = (group.first + query / each, head * each + query % each);
            // SAFETY: a task is the only one with these rows and heads.
            #[allow(unsafe_code)]
            let out = unsafe { out.part((row * heads + head) * head_dim, head_dim) };
            for (out, value) in out.iter_mut().zip(values) {
                // Positions that only other rows of the group see may have made a -0 a 0.
                *out = value / weights + 0.0;
            }
        }
    }
}
