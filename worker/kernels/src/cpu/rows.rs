//! The left side of a product: rows of activations, packed for the microkernel.

use super::disjoint::DisjointMut;
use super::format::GROUP;
use super::simd::{self, Kernel, LANES, Simd, WithSimd};
use super::threads;

/// Rows in groups of [`Simd::TILE_ROWS`]. A group is `[inputs, rows]`, so that the values of one input
/// are adjacent. The last group has the remaining rows.
pub(crate) struct PackedRows {
    values: Vec<f32>,
    /// Rows of a full group.
    group_rows: usize,
    /// Number of rows.
    pub(crate) count: usize,
    /// Number of inputs, padded with zeros to a multiple of [`GROUP`].
    pub(crate) inputs: usize,
}

/// What is applied to a row before the product.
#[derive(Clone, Copy)]
pub(crate) enum Prologue<'a> {
    /// Nothing.
    Plain,
    /// RMS norm with these weights and epsilon.
    Norm(&'a [f32], f32),
}

impl PackedRows {
    /// Packs the rows `x`, `[rows, width]`, padded to `inputs`.
    pub(crate) fn new(x: &[f32], width: usize, inputs: usize, prologue: Prologue<'_>) -> Self {
        let count = x.len() / width;
        let mut group_rows = 0;
        simd::dispatch(GroupRows(&mut group_rows));
        let mut values = vec![0.0; count * inputs];
        let shared = DisjointMut::new(&mut values);
        threads::for_each_if_many(count.div_ceil(group_rows), 4, |index| {
            let first = index * group_rows;
            let rows = group_rows.min(count - first);
            // SAFETY: each group is packed once, and groups don't overlap.
            #[allow(unsafe_code)]
            let out = unsafe { shared.slice_mut(first * inputs, rows * inputs) };
            let x = &x[first * width..(first + rows) * width];
            simd::run(Pack { x, width, rows, prologue, out });
        });
        Self { values, group_rows, count, inputs }
    }

    /// Rows of a full group.
    pub(crate) fn group_rows(&self) -> usize {
        self.group_rows
    }

    /// The values of a group, `[inputs, rows]`.
    pub(crate) fn group(&self, group: usize) -> &[f32] {
        let first = group * self.group_rows;
        let rows = self.group_rows.min(self.count - first);
        &self.values[first * self.inputs..(first + rows) * self.inputs]
    }
}

/// Stores the instruction set's [`Simd::TILE_ROWS`].
struct GroupRows<'a>(&'a mut usize);

impl WithSimd for GroupRows<'_> {
    fn call<S: Simd>(self, _: S) {
        *self.0 = S::TILE_ROWS;
    }
}

struct Pack<'a> {
    x: &'a [f32],
    width: usize,
    rows: usize,
    prologue: Prologue<'a>,
    out: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { x, width, rows, prologue, out } = self;
        let mut normed = vec![0.0; if rows > 1 { width } else { 0 }];
        for (row, x) in x.chunks_exact(width).enumerate() {
            if rows == 1 {
                return apply_prologue(s, x, prologue, &mut out[..width]);
            }
            let x = match prologue {
                Prologue::Plain => x,
                Prologue::Norm(..) => {
                    apply_prologue(s, x, prologue, &mut normed);
                    &normed
                }
            };
            for (out, number) in out[row..].iter_mut().step_by(rows).zip(x) {
                *out = *number;
            }
        }
    }
}

/// Writes row `x` to `out`, after the prologue.
#[inline(always)]
pub(crate) fn apply_prologue<S: Simd>(s: S, x: &[f32], prologue: Prologue<'_>, out: &mut [f32]) {
    match prologue {
        Prologue::Plain => out.copy_from_slice(x),
        Prologue::Norm(gamma, epsilon) => rms_norm(s, x, gamma, epsilon, out),
    }
}

/// [`rms_norm`] of each row of `x`, which is as wide as `gamma`.
pub(crate) fn rms_norm_rows(x: &[f32], gamma: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (x, out) in x.chunks_exact(gamma.len()).zip(out.chunks_exact_mut(gamma.len())) {
        simd::run(Norm { x, gamma, epsilon, out });
    }
    out
}

struct Norm<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        rms_norm(s, self.x, self.gamma, self.epsilon, self.out);
    }
}

/// Writes `x / sqrt(mean(x²) + epsilon) * gamma` to `out`.
#[inline(always)]
pub(crate) fn rms_norm<S: Simd>(s: S, x: &[f32], gamma: &[f32], epsilon: f32, out: &mut [f32]) {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut sum = s.zero();
    for lanes in whole {
        let lanes = s.load(lanes);
        sum = s.fma(lanes, lanes, sum);
    }
    if !rest.is_empty() {
        let lanes = s.load(&padded_vector(rest));
        sum = s.fma(lanes, lanes, sum);
    }
    let scale = 1.0 / (s.reduce_sum(sum) / x.len() as f32 + epsilon).sqrt();
    let (gammas, gamma_rest) = gamma.as_chunks::<LANES>();
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    let scales = s.splat(scale);
    for ((x, gamma), out) in whole.iter().zip(gammas).zip(outs) {
        s.store(out, s.mul(s.mul(s.load(x), scales), s.load(gamma)));
    }
    for ((x, gamma), out) in rest.iter().zip(gamma_rest).zip(out_rest) {
        *out = x * scale * gamma;
    }
}

/// At most a vector of values, padded with zeros.
#[inline(always)]
pub(crate) fn padded_vector(values: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

/// A number of inputs, padded to a multiple of [`GROUP`].
pub(crate) fn padded(inputs: usize) -> usize {
    inputs.next_multiple_of(GROUP)
}
