//! Products with packed weights.
//!
//! Each output is one chain of fused multiply-adds over the inputs in ascending order, whatever
//! the number of rows and the instruction set. A few rows are multiplied with weights as these are
//! decoded, in registers; for more, a strip's weights are decoded once per [`STRETCH`] inputs into
//! a buffer that the first-level cache holds, and multiplied from there with one group of rows
//! after the other.

use std::cell::RefCell;
use std::marker::PhantomData;

use super::disjoint::Parts;
use super::format::{self, Format, GROUP, OCTET, each_format};
use super::microkernel::{Sums, multiply};
use super::pack::{PANELS, STRIP, Strips};
use super::rows::Rows;
use super::simd::{self, Kernel, LANES, Simd, With};
use super::{activation, threads};
use crate::ggml::GgmlType;
use crate::types::Activation;

/// Inputs whose decoded weights are kept: with a group of rows they fill the cache.
const STRETCH: usize = 6 * GROUP;
/// Rows that go through all strips together: theirs and the weights' share of the second level.
const BLOCK_ROWS: usize = 240;

/// Results of one row with one strip.
type Line = [[f32; LANES]; PANELS];

/// What becomes of a product.
#[derive(Clone, Copy)]
pub(crate) enum Finish<'a> {
    /// It is the result.
    Store,
    /// Added to as many numbers.
    Add(&'a [f32]),
    /// The first half of the outputs, activated, times the second.
    Gate(Activation),
}

/// `x` times `weight`: `[rows, outputs]`, or half as wide if gated.
pub(crate) fn product(x: &Rows, weight: &Strips<'_>, finish: Finish<'_>) -> Vec<f32> {
    let gated = matches!(finish, Finish::Gate(_));
    if gated && !(weight.outputs / 2).is_multiple_of(STRIP) {
        return gated_apart(x, weight, finish);
    }
    let width = if gated { weight.outputs / 2 } else { weight.outputs };
    let mut out = vec![0.0; x.count * width];
    let parts = Parts::new(&mut out);
    let strips = width.div_ceil(STRIP);
    let block_rows = BLOCK_ROWS.next_multiple_of(x.group());
    threads::each(x.count.div_ceil(block_rows) * strips, |task| {
        let (block, strip) = (task / strips, task % strips);
        let first = block * block_rows;
        let rows = block_rows.min(x.count - first);
        let task = Task { x, weight, finish, strip, first, rows, width, out: &parts };
        BUFFERS.with_borrow_mut(|buffers| task.compute(buffers));
    });
    out
}

/// Gating where a strip holds outputs of both halves.
fn gated_apart(x: &Rows, weight: &Strips<'_>, finish: Finish<'_>) -> Vec<f32> {
    let Finish::Gate(activation) = finish else { return Vec::new() };
    let both = product(x, weight, Finish::Store);
    let half = weight.outputs / 2;
    let mut out = vec![0.0; x.count * half];
    for (out, both) in out.chunks_exact_mut(half).zip(both.chunks_exact(2 * half)) {
        let (gate, up) = both.split_at(half);
        out.copy_from_slice(gate);
        simd::run(activation::Gate { activation, gate: out, up });
    }
    out
}

/// A strip times a block of rows.
struct Task<'a, 'b> {
    x: &'a Rows,
    weight: &'a Strips<'a>,
    finish: Finish<'a>,
    strip: usize,
    first: usize,
    rows: usize,
    /// Of a row of the result.
    width: usize,
    out: &'a Parts<'b, f32>,
}

/// Buffers of a thread.
#[derive(Default)]
struct Buffers {
    tile: Vec<[f32; LANES]>,
    lines: Vec<Line>,
    more_lines: Vec<Line>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl Task<'_, '_> {
    fn compute(&self, buffers: &mut Buffers) {
        let Buffers { tile, lines, more_lines } = buffers;
        tile.resize(STRETCH * PANELS, [0.0; LANES]);
        lines.resize(self.rows, [[0.0; LANES]; PANELS]);
        simd::with(Lines { task: self, strip: self.strip, tile, lines });
        if let Finish::Gate(activation) = self.finish {
            more_lines.resize(self.rows, [[0.0; LANES]; PANELS]);
            let strip = self.width / STRIP + self.strip;
            simd::with(Lines { task: self, strip, tile, lines: more_lines });
            let up = more_lines.as_flattened().as_flattened();
            simd::run(activation::Gate { activation, gate: lines.as_flattened_mut().as_flattened_mut(), up });
        }
        let column = self.strip * STRIP;
        let columns = STRIP.min(self.width - column);
        for (row, line) in lines.iter().enumerate() {
            let at = (self.first + row) * self.width + column;
            // SAFETY: a task is the only one with this strip and these rows.
            #[allow(unsafe_code)]
            let out = unsafe { self.out.part(at, columns) };
            let line = &line.as_flattened()[..columns];
            match self.finish {
                Finish::Add(residual) => {
                    for ((out, number), residual) in out.iter_mut().zip(line).zip(&residual[at..]) {
                        *out = number + residual;
                    }
                }
                _ => out.copy_from_slice(line),
            }
        }
    }
}

/// The products of a task's rows with a strip.
struct Lines<'a, 'b> {
    task: &'a Task<'a, 'b>,
    strip: usize,
    tile: &'a mut [[f32; LANES]],
    lines: &'a mut [Line],
}

impl With for Lines<'_, '_> {
    fn call<S: Simd>(self, s: S) {
        macro_rules! of {
            ($($dtype:ident: $format:ty,)+) => {
                match self.task.weight.dtype {
                    $(GgmlType::$dtype => self.compute::<S, $format>(s),)+
                }
            };
        }
        each_format!(of);
    }
}

impl Lines<'_, '_> {
    fn compute<S: Simd, F: Format>(self, s: S) {
        let Self { task, strip, tile, lines } = self;
        let (x, first) = (task.x, task.first);
        let bytes = task.weight.strip(strip);
        if lines.len() <= S::DIRECT {
            return direct::<S, F>(s, bytes, x.of_group(first / x.group()), lines);
        }
        for start in (0..x.inputs).step_by(STRETCH) {
            let inputs = STRETCH.min(x.inputs - start);
            let tile = &mut tile[..inputs * PANELS];
            s.run(Decode::<F> { bytes, first: start / GROUP, tile, format: PhantomData });
            for (group, lines) in lines.chunks_mut(x.group()).enumerate() {
                let rows = lines.len();
                let x = &x.of_group(first / x.group() + group)[start * rows..(start + inputs) * rows];
                let (first, second) = tile.split_at(inputs);
                let out = Sums { lines: lines.as_flattened_mut(), stride: PANELS, at: 0 };
                multiply(s, [first, second], x, rows, out, start == 0);
            }
        }
    }
}

/// Decodes groups of a strip's weights from group `first` on, one panel after the other.
struct Decode<'a, F> {
    bytes: &'a [u8],
    first: usize,
    tile: &'a mut [[f32; LANES]],
    format: PhantomData<F>,
}

impl<F: Format> Kernel for Decode<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let inputs = self.tile.len() / PANELS;
        for (panel, tile) in self.tile.chunks_exact_mut(inputs).enumerate() {
            for (index, tile) in tile.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let index = self.first + index;
                let (block, group) = (index / (F::LEN / GROUP), index % (F::LEN / GROUP));
                let record = &self.bytes[(block * PANELS + panel) * F::RECORD..][..F::RECORD];
                let scales = F::scales(s, record, group);
                for (octet, tile) in tile.as_chunks_mut::<OCTET>().0.iter_mut().enumerate() {
                    let weights = F::octet(s, record, group, octet, scales);
                    for i in 0..OCTET {
                        s.store(&mut tile[i], weights[i]);
                    }
                }
            }
        }
    }
}

/// Multiplies a few rows with weights as they are decoded.
fn direct<S: Simd, F: Format>(s: S, bytes: &[u8], x: &[f32], lines: &mut [Line]) {
    macro_rules! rows {
        ($($rows:literal)+) => {
            match lines.len() {
                $($rows if $rows <= S::DIRECT => {
                    let x = x.as_chunks::<$rows>().0;
                    let lines = &mut lines.as_chunks_mut::<$rows>().0[0];
                    let format = PhantomData::<F>;
                    if S::PANELS == 2 {
                        s.run(Direct::<F, $rows, 2> { bytes, panel: 0, x, lines, format });
                    } else {
                        s.run(Direct::<F, $rows, 1> { bytes, panel: 0, x, lines, format });
                        s.run(Direct::<F, $rows, 1> { bytes, panel: 1, x, lines, format });
                    }
                })+
                _ => unreachable!("more rows than are multiplied directly"),
            }
        };
    }
    rows!(1 2 3 4);
}

struct Direct<'a, F, const ROWS: usize, const N: usize> {
    bytes: &'a [u8],
    panel: usize,
    x: &'a [[f32; ROWS]],
    lines: &'a mut [Line; ROWS],
    format: PhantomData<F>,
}

impl<F: Format, const ROWS: usize, const N: usize> Kernel for Direct<'_, F, ROWS, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { bytes, panel, x, lines, .. } = self;
        let mut sums = [[s.zero(); N]; ROWS];
        let blocks = x.chunks_exact(F::LEN).zip(bytes.chunks_exact(PANELS * F::RECORD));
        for (x, records) in blocks {
            let records = &records[panel * F::RECORD..][..N * F::RECORD];
            for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
                let mut scales = [(s.zero(), s.zero()); N];
                for n in 0..N {
                    scales[n] = F::scales(s, &records[n * F::RECORD..][..F::RECORD], group);
                }
                for (octet, x) in x.as_chunks::<OCTET>().0.iter().enumerate() {
                    for n in 0..N {
                        let record = &records[n * F::RECORD..][..F::RECORD];
                        let done = (group * 4 + octet) * (F::RECORD * OCTET / F::LEN);
                        s.prefetch(record, AHEAD + done);
                        let weights = F::octet(s, record, group, octet, scales[n]);
                        for i in 0..OCTET {
                            for row in 0..ROWS {
                                sums[row][n] = s.fma(weights[i], s.splat(x[i][row]), sums[row][n]);
                            }
                        }
                    }
                }
            }
        }
        for row in 0..ROWS {
            for n in 0..N {
                s.store(&mut lines[row][panel + n], sums[row][n]);
            }
        }
    }
}

/// How far ahead weights are fetched: a strip's memory goes on in the next.
const AHEAD: usize = 4096;
