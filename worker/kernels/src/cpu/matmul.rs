//! Products with packed weights.
//!
//! Each output is one chain of fused multiply-adds over the inputs in ascending order, whatever the
//! number of rows and the instruction set. A few rows are multiplied with weights in registers, as
//! these are decoded. For more rows, [`TILE_INPUTS`] inputs of a strip are decoded at a time into a
//! buffer that fits the first-level cache, and multiplied from there with one group of rows after the
//! other. Rows of 8 bits are multiplied in [`super::quantized_matmul`].

use std::cell::RefCell;
use std::marker::PhantomData;

use super::disjoint::DisjointMut;
use super::format::{self, CHUNK, Format, GROUP, each_format};
use super::microkernel::{Sums, multiply};
use super::pack::{PANELS, PackedMatrix, STRIP_OUTPUTS};
use super::rows::PackedRows;
use super::simd::{self, Kernel, LANES, Simd, WithSimd};
use super::{CACHE_LINE, activation, threads};
use crate::ggml::GgmlType;
use crate::types::Activation;

/// Inputs whose weights are decoded together: with a group of rows they fill the first-level cache.
const TILE_INPUTS: usize = 6 * GROUP;
/// Rows that pass through all strips together: they leave room for weights in the second-level cache.
const BLOCK_ROWS: usize = 240;

/// The products of one row with one strip.
pub(crate) type StripRow = [[f32; LANES]; PANELS];

/// Rows that can be multiplied with packed weights.
pub(crate) trait LeftSide: Sync {
    /// Number of rows.
    fn count(&self) -> usize;

    /// Rows that share each decoding of weights.
    fn tile_rows(&self) -> usize;

    /// Writes the products of the rows from `first` on, a multiple of [`Self::tile_rows`], with a strip.
    /// `decoded` is kept between calls.
    fn multiply(
        &self,
        weight: &PackedMatrix<'_>,
        strip: usize,
        first: usize,
        decoded: &mut DecodedWeights,
        sums: &mut [StripRow],
    );
}

/// What is applied to a product.
#[derive(Clone, Copy)]
pub(crate) enum Epilogue<'a> {
    /// Nothing.
    Store,
    /// These values, `[rows, outputs]`, are added.
    Add(&'a [f32]),
    /// The activation of the first half of the outputs is multiplied with the second half.
    Gate(Activation),
}

/// `x` times `weight`, after the epilogue: `[rows, outputs]`, or half as wide if gated.
pub(crate) fn matmul(x: &impl LeftSide, weight: &PackedMatrix<'_>, epilogue: Epilogue<'_>) -> Vec<f32> {
    let gated = matches!(epilogue, Epilogue::Gate(_));
    if gated && !(weight.outputs / 2).is_multiple_of(STRIP_OUTPUTS) {
        return gate_unaligned(x, weight, epilogue);
    }
    let (count, width) = (x.count(), if gated { weight.outputs / 2 } else { weight.outputs });
    let mut out = vec![0.0; count * width];
    let shared = DisjointMut::new(&mut out);
    let strips = width.div_ceil(STRIP_OUTPUTS);
    let block_rows = BLOCK_ROWS.next_multiple_of(x.tile_rows());
    threads::for_each(count.div_ceil(block_rows) * strips, |task| {
        let (block, strip) = (task / strips, task % strips);
        let first = block * block_rows;
        let rows = block_rows.min(count - first);
        let task = StripTask { x, weight, epilogue, strip, first, rows, width, out: &shared };
        BUFFERS.with_borrow_mut(|buffers| task.compute(buffers));
    });
    out
}

/// A gated product whose halves are not a whole number of strips.
fn gate_unaligned(x: &impl LeftSide, weight: &PackedMatrix<'_>, epilogue: Epilogue<'_>) -> Vec<f32> {
    let Epilogue::Gate(activation) = epilogue else { return Vec::new() };
    let both = matmul(x, weight, Epilogue::Store);
    let half = weight.outputs / 2;
    let mut out = vec![0.0; x.count() * half];
    for (out, both) in out.chunks_exact_mut(half).zip(both.chunks_exact(2 * half)) {
        let (gate, up) = both.split_at(half);
        out.copy_from_slice(gate);
        simd::run(activation::Gate { activation, gate: out, up });
    }
    out
}

/// The product of a block of rows with a strip.
struct StripTask<'a, 'b, X> {
    x: &'a X,
    weight: &'a PackedMatrix<'a>,
    epilogue: Epilogue<'a>,
    strip: usize,
    /// First row of the block.
    first: usize,
    rows: usize,
    /// Width of the result.
    width: usize,
    out: &'a DisjointMut<'b, f32>,
}

/// A buffer for weights on their way from a strip to products.
#[derive(Default)]
pub(crate) struct DecodedWeights(Vec<f32>);

impl DecodedWeights {
    /// `vectors` vectors, each in a cache line of its own, or loading them would take twice the time.
    pub(crate) fn vectors(&mut self, vectors: usize) -> &mut [[f32; LANES]] {
        self.0.resize(self.0.len().max((vectors + 1) * LANES), 0.0);
        let start = self.0.as_ptr().align_offset(CACHE_LINE).min(LANES);
        &mut self.0[start..].as_chunks_mut().0[..vectors]
    }
}

/// Buffers of a thread, kept between calls.
#[derive(Default)]
struct Buffers {
    decoded: DecodedWeights,
    sums: Vec<StripRow>,
    /// Sums of the second half of a gated product.
    up_sums: Vec<StripRow>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl<X: LeftSide> StripTask<'_, '_, X> {
    fn compute(&self, buffers: &mut Buffers) {
        let Buffers { decoded, sums, up_sums } = buffers;
        sums.resize(self.rows, [[0.0; LANES]; PANELS]);
        self.x.multiply(self.weight, self.strip, self.first, decoded, sums);
        if let Epilogue::Gate(activation) = self.epilogue {
            up_sums.resize(self.rows, [[0.0; LANES]; PANELS]);
            let strip = self.width / STRIP_OUTPUTS + self.strip;
            self.x.multiply(self.weight, strip, self.first, decoded, up_sums);
            let up = up_sums.as_flattened().as_flattened();
            simd::run(activation::Gate { activation, gate: sums.as_flattened_mut().as_flattened_mut(), up });
        }
        let column = self.strip * STRIP_OUTPUTS;
        let columns = STRIP_OUTPUTS.min(self.width - column);
        for (row, sums) in sums.iter().enumerate() {
            let at = (self.first + row) * self.width + column;
            // SAFETY: no other task has this strip and these rows.
            #[allow(unsafe_code)]
            let out = unsafe { self.out.slice_mut(at, columns) };
            let sums = &sums.as_flattened()[..columns];
            match self.epilogue {
                Epilogue::Add(residual) => {
                    for ((out, sum), residual) in out.iter_mut().zip(sums).zip(&residual[at..]) {
                        *out = sum + residual;
                    }
                }
                // The same copy of a known length needs no call.
                _ if columns == STRIP_OUTPUTS => {
                    out[..STRIP_OUTPUTS].copy_from_slice(&sums[..STRIP_OUTPUTS]);
                }
                _ => out.copy_from_slice(sums),
            }
        }
    }
}

impl LeftSide for PackedRows {
    fn count(&self) -> usize {
        self.count
    }

    fn tile_rows(&self) -> usize {
        self.group_rows()
    }

    fn multiply(
        &self,
        weight: &PackedMatrix<'_>,
        strip: usize,
        first: usize,
        decoded: &mut DecodedWeights,
        sums: &mut [StripRow],
    ) {
        let tile = decoded.vectors(TILE_INPUTS * PANELS);
        simd::dispatch(StripProduct { x: self, weight, strip, first, tile, sums });
    }
}

struct StripProduct<'a> {
    x: &'a PackedRows,
    weight: &'a PackedMatrix<'a>,
    strip: usize,
    first: usize,
    tile: &'a mut [[f32; LANES]],
    sums: &'a mut [StripRow],
}

impl WithSimd for StripProduct<'_> {
    fn call<S: Simd>(self, s: S) {
        macro_rules! of {
            ($($dtype:ident: $format:ty,)+) => {
                match self.weight.dtype {
                    $(GgmlType::$dtype => self.compute::<S, $format>(s),)+
                }
            };
        }
        each_format!(of);
    }
}

impl StripProduct<'_> {
    fn compute<S: Simd, F: Format>(self, s: S) {
        let Self { x, weight, strip, first, tile, sums } = self;
        let bytes = weight.strip(strip);
        if sums.len() <= S::DIRECT_ROWS {
            return direct::<S, F>(s, bytes, x.group(first / x.group_rows()), sums);
        }
        for start in (0..x.inputs).step_by(TILE_INPUTS) {
            let inputs = TILE_INPUTS.min(x.inputs - start);
            let tile = &mut tile[..inputs * PANELS];
            s.run(Decode::<F> { bytes, first: start / GROUP, tile, format: PhantomData });
            for (group, sums) in sums.chunks_mut(x.group_rows()).enumerate() {
                let rows = sums.len();
                let x = &x.group(first / x.group_rows() + group)[start * rows..(start + inputs) * rows];
                let (first, second) = tile.split_at(inputs);
                let out = Sums { vectors: sums.as_flattened_mut(), stride: PANELS, at: 0 };
                multiply(s, [first, second], x, rows, out, start == 0);
            }
        }
    }
}

/// Decodes a strip's weights from group `first` on into `tile`, `[panels, inputs]` vectors.
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
                let (block, group) = (index / (F::INPUTS / GROUP), index % (F::INPUTS / GROUP));
                let record = &self.bytes[(block * PANELS + panel) * F::BYTES..][..F::BYTES];
                let scales = F::scales(s, record, group);
                for (chunk, tile) in tile.as_chunks_mut::<CHUNK>().0.iter_mut().enumerate() {
                    let weights = F::decode(s, record, group, chunk, scales);
                    for i in 0..CHUNK {
                        s.store(&mut tile[i], weights[i]);
                    }
                }
            }
        }
    }
}

/// Multiplies a few rows with weights in registers, as these are decoded.
fn direct<S: Simd, F: Format>(s: S, bytes: &[u8], x: &[f32], sums: &mut [StripRow]) {
    macro_rules! rows {
        ($($rows:literal)+) => {
            match sums.len() {
                $($rows if $rows <= S::DIRECT_ROWS => {
                    let x = x.as_chunks::<$rows>().0;
                    let sums = &mut sums.as_chunks_mut::<$rows>().0[0];
                    let format = PhantomData::<F>;
                    if S::TILE_PANELS == 2 {
                        s.run(Direct::<F, $rows, 2> { bytes, panel: 0, x, sums, format });
                    } else {
                        s.run(Direct::<F, $rows, 1> { bytes, panel: 0, x, sums, format });
                        s.run(Direct::<F, $rows, 1> { bytes, panel: 1, x, sums, format });
                    }
                })+
                _ => unreachable!("at most `DIRECT_ROWS` rows"),
            }
        };
    }
    rows!(1 2 3 4);
}

struct Direct<'a, F, const ROWS: usize, const N: usize> {
    bytes: &'a [u8],
    panel: usize,
    x: &'a [[f32; ROWS]],
    sums: &'a mut [StripRow; ROWS],
    format: PhantomData<F>,
}

impl<F: Format, const ROWS: usize, const N: usize> Kernel for Direct<'_, F, ROWS, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { bytes, panel, x, sums: out, .. } = self;
        let mut sums = [[s.zero(); N]; ROWS];
        let blocks = x.chunks_exact(F::INPUTS).zip(bytes.chunks_exact(PANELS * F::BYTES));
        for (x, records) in blocks {
            let records = &records[panel * F::BYTES..][..N * F::BYTES];
            for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
                let mut scales = [(s.zero(), s.zero()); N];
                for n in 0..N {
                    scales[n] = F::scales(s, &records[n * F::BYTES..][..F::BYTES], group);
                }
                for (chunk, x) in x.as_chunks::<CHUNK>().0.iter().enumerate() {
                    for n in 0..N {
                        let record = &records[n * F::BYTES..][..F::BYTES];
                        let done = (group * 4 + chunk) * (F::BYTES * CHUNK / F::INPUTS);
                        s.prefetch(record, PREFETCH_DISTANCE + done);
                        let weights = F::decode(s, record, group, chunk, scales[n]);
                        for i in 0..CHUNK {
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
                s.store(&mut out[row][panel + n], sums[row][n]);
            }
        }
    }
}

/// How many bytes ahead weights are prefetched. Strips are contiguous, so the end of one prefetches
/// the next.
const PREFETCH_DISTANCE: usize = 4096;
