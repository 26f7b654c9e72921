//! Attention over the paged cache.
//!
//! Positions are gone through in stretches of [`STRETCH`], each an update of an online softmax
//! (Milakov and Gimelshein, 2018), and stretches in parts of [`PART`] positions that begin afresh
//! and are merged in order (as in Dao et al., "Flash-Decoding", 2023). Both are counted from the
//! sequence's beginning, so a row's numbers do not depend on which rows are computed with it, nor
//! on how the parts are shared among threads.

use std::cell::RefCell;

use super::super::disjoint::Parts;
use super::super::kv_element::{Padded, Stored};
use super::super::microkernel::{Sums, multiply};
use super::super::simd::{self, Kernel, LANES, Simd, With, exp};
use super::super::threads;
use crate::types::{BLOCK_SIZE, HeadShape};

/// Blocks of a stretch.
const BLOCKS: usize = 4;
/// Positions of a stretch.
const STRETCH: usize = BLOCKS * BLOCK_SIZE;
/// Positions of a part.
const PART: usize = 4 * STRETCH;
/// Queries (of a row and a head) that share keys and values once these are in the cache.
const QUERIES: usize = 24;

/// What attention reads.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a, E> {
    /// `[rows, heads * head_dim]`.
    pub(crate) queries: &'a [f32],
    pub(crate) keys: &'a [E],
    pub(crate) values: &'a [E],
    /// Position, span and slot of each row.
    pub(crate) rows: &'a [[usize; 3]],
    /// `[spans, width]`.
    pub(crate) tables: &'a [usize],
    pub(crate) width: usize,
    pub(crate) shape: HeadShape,
}

/// Successive rows of a span.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    rows: usize,
}

/// The softmax-weighted values of some queries so far.
#[derive(Default)]
struct State {
    /// The largest score, by query.
    largest: Vec<f32>,
    /// Sums of the weights, by query.
    weights: Vec<f32>,
    /// Sums of weighted values: `[queries, vectors]`.
    values: Vec<[f32; LANES]>,
}

/// A thread's memory.
#[derive(Default)]
struct Buffers {
    queries: Vec<f32>,
    scores: Vec<[[f32; LANES]; BLOCKS]>,
    weights: Vec<[f32; LANES]>,
    corrections: Vec<f32>,
    padded: Padded,
    part: State,
    merged: State,
}

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

    /// All rows, in groups.
    fn groups(&self) -> Vec<Group> {
        let most = (QUERIES * self.shape.kv_heads / self.shape.heads).max(1);
        let mut groups = Vec::new();
        let mut first = 0;
        for rows in self.rows.chunk_by(|a, b| a[1] == b[1] && a[0] + 1 == b[0]) {
            for rows in rows.chunks(most) {
                groups.push(Group { first, rows: rows.len() });
                first += rows.len();
            }
        }
        groups
    }

    /// The first position that a row at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The parts that a group sees.
    fn parts(&self, group: Group) -> std::ops::Range<usize> {
        let position = self.rows[group.first][0];
        self.first_seen(position) / PART..(position + group.rows - 1) / PART + 1
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

/// Vectors that hold a head's numbers, in pairs.
fn vectors(head_dim: usize) -> usize {
    head_dim.div_ceil(2 * LANES) * 2
}

impl Buffers {
    /// Merges a part's state into that of the parts before it.
    fn merge(&mut self, first: bool) {
        let Self { part, merged, .. } = self;
        if first {
            std::mem::swap(part, merged);
        } else {
            simd::run(Merge { part, merged });
        }
    }
}

struct Merge<'a> {
    part: &'a State,
    merged: &'a mut State,
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

/// One part of a group with a key/value head; leaves its state in the buffers.
struct Part<'a, 'b, E> {
    attention: &'a Attention<'b, E>,
    group: Group,
    head: usize,
    part: usize,
    buffers: &'a mut Buffers,
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

impl State {
    fn reset(&mut self, queries: usize, width: usize) {
        self.largest.clear();
        self.largest.resize(queries, f32::NEG_INFINITY);
        self.weights.clear();
        self.weights.resize(queries, 0.0);
        self.values.clear();
        self.values.resize(queries * width, [0.0; LANES]);
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

/// One step of the online softmax: scores become weights.
struct Soften<'a> {
    start: usize,
    /// Position of the group's first row.
    first_row: usize,
    /// Queries of a row.
    each: usize,
    window: usize,
    scale: f32,
    blocks: usize,
    scores: &'a mut [[[f32; LANES]; BLOCKS]],
    largest: &'a mut [f32],
    weights: &'a mut [[f32; LANES]],
    /// What the sums so far are to be multiplied with.
    corrections: &'a mut [f32],
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
fn within(position: usize, first: usize) -> usize {
    position.saturating_sub(first).min(BLOCK_SIZE)
}

/// Sums up weights.
struct Total<'a> {
    weights: &'a [[f32; LANES]],
    totals: &'a mut [f32],
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

/// Adds values to two vectors of each of a group's sums.
#[derive(Clone, Copy)]
struct Weigh<'a, E> {
    /// `[BLOCK_SIZE, width]` vectors each.
    values: [&'a [[E; LANES]]; BLOCKS],
    positions: usize,
    width: usize,
    /// Where the two vectors are.
    at: usize,
}

impl<E: Stored> Weigh<'_, E> {
    fn any<S: Simd>(
        self,
        s: S,
        scores: &[[[f32; LANES]; BLOCKS]],
        corrections: &[f32],
        sums: &mut [[f32; LANES]],
    ) {
        macro_rules! rows {
            ($($rows:literal)+) => {
                match scores.len() {
                    $($rows if $rows <= S::ROWS => {
                        let scores = &scores.as_chunks::<$rows>().0[0];
                        let corrections = &corrections.as_chunks::<$rows>().0[0];
                        if S::PANELS == 2 {
                            s.run(WeighOf::<E, $rows, 2> { weigh: self, scores, corrections, sums });
                        } else {
                            let weigh = self;
                            s.run(WeighOf::<E, $rows, 1> { weigh, scores, corrections, sums: &mut *sums });
                            let weigh = Weigh { at: self.at + 1, ..self };
                            s.run(WeighOf::<E, $rows, 1> { weigh, scores, corrections, sums });
                        }
                    })+
                    _ => unreachable!("a group of more queries than registers hold"),
                }
            };
        }
        rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

struct WeighOf<'a, E, const ROWS: usize, const N: usize> {
    weigh: Weigh<'a, E>,
    scores: &'a [[[f32; LANES]; BLOCKS]; ROWS],
    corrections: &'a [f32; ROWS],
    sums: &'a mut [[f32; LANES]],
}

impl<E: Stored, const ROWS: usize, const N: usize> Kernel for WeighOf<'_, E, ROWS, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { weigh: Weigh { values, positions, width, at }, scores, corrections, sums } = self;
        let mut totals = [[s.zero(); N]; ROWS];
        for row in 0..ROWS {
            for n in 0..N {
                totals[row][n] = s.mul(s.load(&sums[row * width + at + n]), s.splat(corrections[row]));
            }
        }
        for block in 0..BLOCKS {
            let count = within(positions, block * BLOCK_SIZE);
            for (position, vectors) in values[block].chunks_exact(width).take(count).enumerate() {
                let vectors = &vectors[at..at + N];
                let mut loaded = [s.zero(); N];
                for n in 0..N {
                    loaded[n] = E::load(s, &vectors[n]);
                }
                for row in 0..ROWS {
                    let weight = s.splat(scores[row][block][position % LANES]);
                    for n in 0..N {
                        totals[row][n] = s.fma(loaded[n], weight, totals[row][n]);
                    }
                }
            }
        }
        for row in 0..ROWS {
            for n in 0..N {
                s.store(&mut sums[row * width + at + n], totals[row][n]);
            }
        }
    }
}
