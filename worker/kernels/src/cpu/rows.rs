//! A product's left side: rows of activations, laid out for the registers.

use super::disjoint::Parts;
use super::format::GROUP;
use super::simd::{self, Kernel, LANES, Simd, With};
use super::threads;

/// Rows in groups of as many as a tile has; in a group, each input's numbers of all its rows lie
/// side by side. The last group has the remaining rows.
pub(crate) struct Rows {
    numbers: Vec<f32>,
    /// Rows of a full group.
    group: usize,
    /// How many rows there are.
    pub(crate) count: usize,
    /// Inputs, filled up with zeros to whole groups of a format.
    pub(crate) inputs: usize,
}

/// What is done to a row before the product.
#[derive(Clone, Copy)]
pub(crate) enum Prepare<'a> {
    /// Nothing.
    Plain,
    /// RMS normalisation with these weights and epsilon.
    Norm(&'a [f32], f32),
}

impl Rows {
    /// Packs rows of `width` numbers for products with matrices whose rows are padded to `inputs`.
    pub(crate) fn new(x: &[f32], width: usize, inputs: usize, prepare: Prepare<'_>) -> Self {
        let count = x.len() / width;
        let mut group = 0;
        simd::with(GroupSize(&mut group));
        let mut numbers = vec![0.0; count * inputs];
        let parts = Parts::new(&mut numbers);
        threads::each_of_many(count.div_ceil(group), 4, |index| {
            let first = index * group;
            let rows = group.min(count - first);
            // SAFETY: each group is packed once, and groups don't overlap.
            #[allow(unsafe_code)]
            let out = unsafe { parts.part(first * inputs, rows * inputs) };
            let x = &x[first * width..(first + rows) * width];
            simd::run(Pack { x, width, rows, prepare, out });
        });
        Self { numbers, group, count, inputs }
    }

    /// Rows of a full group.
    pub(crate) fn group(&self) -> usize {
        self.group
    }

    /// The numbers of a group: for each input, those of its rows.
    pub(crate) fn of_group(&self, group: usize) -> &[f32] {
        let first = group * self.group;
        let rows = self.group.min(self.count - first);
        &self.numbers[first * self.inputs..(first + rows) * self.inputs]
    }
}

/// Finds the rows of a group for this instruction set.
struct GroupSize<'a>(&'a mut usize);

impl With for GroupSize<'_> {
    fn call<S: Simd>(self, _: S) {
        *self.0 = S::ROWS;
    }
}

struct Pack<'a> {
    x: &'a [f32],
    width: usize,
    rows: usize,
    prepare: Prepare<'a>,
    out: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { x, width, rows, prepare, out } = self;
        let mut normed = vec![0.0; if rows > 1 { width } else { 0 }];
        for (row, x) in x.chunks_exact(width).enumerate() {
            if rows == 1 {
                return prepared(s, x, prepare, &mut out[..width]);
            }
            let x = match prepare {
                Prepare::Plain => x,
                Prepare::Norm(..) => {
                    prepared(s, x, prepare, &mut normed);
                    &normed
                }
            };
            for (out, number) in out[row..].iter_mut().step_by(rows).zip(x) {
                *out = *number;
            }
        }
    }
}

/// One row, prepared.
#[inline(always)]
fn prepared<S: Simd>(s: S, x: &[f32], prepare: Prepare<'_>, out: &mut [f32]) {
    match prepare {
        Prepare::Plain => out.copy_from_slice(x),
        Prepare::Norm(gamma, epsilon) => rms_norm(s, x, gamma, epsilon, out),
    }
}

/// [`rms_norm`] of rows as wide as `gamma`.
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

/// `x / sqrt(mean(x²) + epsilon) * gamma`.
#[inline(always)]
pub(crate) fn rms_norm<S: Simd>(s: S, x: &[f32], gamma: &[f32], epsilon: f32, out: &mut [f32]) {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut sum = s.zero();
    for lanes in whole {
        let lanes = s.load(lanes);
        sum = s.fma(lanes, lanes, sum);
    }
    if !rest.is_empty() {
        let lanes = s.load(&filled(rest));
        sum = s.fma(lanes, lanes, sum);
    }
    let scale = 1.0 / (s.sum(sum) / x.len() as f32 + epsilon).sqrt();
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

/// Fewer than a vector's numbers, filled up with zeros.
#[inline(always)]
pub(crate) fn filled(numbers: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..numbers.len()].copy_from_slice(numbers);
    lanes
}

/// A width filled up to whole stretches of a format.
pub(crate) fn padded(inputs: usize) -> usize {
    inputs.next_multiple_of(GROUP)
}
