//! Products of quantised activations with packed weights of integers.
//!
//! Products of a block are summed as integers, exactly. Each output is then one chain over the blocks
//! in ascending order: for each block a fused multiply-add of the sum with the product of both scales,
//! and one more of the activations' sum with the weights' offset if their format has one. The chain is the
//! same whatever the number of rows and the instruction set.
//!
//! Weights stay in registers while they are multiplied with a tile of rows.

use std::marker::PhantomData;

use super::format::{self, GROUP, IntegerFormat, each_integer_format};
use super::matmul::{DecodedWeights, LeftSide, StripRow};
use super::pack::{PANELS, PackedMatrix};
use super::quantized_rows::{QuantizedBlock, QuantizedRows};
use super::simd::{self, ByteDot, DotKernel, Simd, WithByteDot};
use crate::ggml::GgmlType;

impl<const BYTES: usize> LeftSide for QuantizedRows<BYTES> {
    fn count(&self) -> usize {
        self.count
    }

    fn tile_rows(&self) -> usize {
        self.tile_rows()
    }

    fn multiply(
        &self,
        weight: &PackedMatrix<'_>,
        strip: usize,
        first: usize,
        _decoded: &mut DecodedWeights,
        sums: &mut [StripRow],
    ) {
        simd::dispatch_dot(StripProduct { x: self, weight, strip, first, sums });
    }
}

struct StripProduct<'a, const BYTES: usize> {
    x: &'a QuantizedRows<BYTES>,
    weight: &'a PackedMatrix<'a>,
    strip: usize,
    first: usize,
    sums: &'a mut [StripRow],
}

impl<const BYTES: usize> WithByteDot for StripProduct<'_, BYTES> {
    fn call<D: ByteDot>(self, dot: D) {
        macro_rules! of {
            ($($dtype:ident: $format:ty,)+) => {
                match self.weight.dtype {
                    $(GgmlType::$dtype => self.compute::<D, $format>(dot),)+
                    GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {
                        unreachable!("rows are not quantised for weights of floats")
                    }
                }
            };
        }
        each_integer_format!(of);
    }
}

impl<const BYTES: usize> StripProduct<'_, BYTES> {
    fn compute<D: ByteDot, F: IntegerFormat>(self, dot: D) {
        let bytes = self.weight.strip(self.strip);
        let mut done = 0;
        while done < self.sums.len() {
            let (rows, x) = self.x.tile(self.first + done);
            let sums = &mut self.sums[done..done + rows];
            done += rows;
            macro_rules! rows {
                ($($rows:literal)+) => {
                    match rows {
                        $($rows if $rows <= D::TILE_ROWS => {
                            let x = x.as_chunks::<$rows>().0;
                            let sums = &mut sums.as_chunks_mut::<$rows>().0[0];
                            let format = PhantomData::<F>;
                            if $rows <= D::PANEL_PAIR_ROWS {
                                dot.run_dot(TileProduct::<F, BYTES, $rows, 2> { bytes, panel: 0, x, sums, format });
                            } else {
                                dot.run_dot(TileProduct::<F, BYTES, $rows, 1> { bytes, panel: 0, x, sums, format });
                                dot.run_dot(TileProduct::<F, BYTES, $rows, 1> { bytes, panel: 1, x, sums, format });
                            }
                        })+
                        _ => unreachable!("a tile has at most `TILE_ROWS` rows, a power of two"),
                    }
                };
            }
            rows!(1 2 4 8);
        }
    }
}

/// The product of a tile with `N` panels.
struct TileProduct<'a, F, const BYTES: usize, const ROWS: usize, const N: usize> {
    bytes: &'a [u8],
    panel: usize,
    x: &'a [[QuantizedBlock<BYTES>; ROWS]],
    sums: &'a mut [StripRow; ROWS],
    format: PhantomData<F>,
}

impl<F: IntegerFormat, const BYTES: usize, const ROWS: usize, const N: usize> DotKernel
    for TileProduct<'_, F, BYTES, ROWS, N>
{
    #[inline(always)]
    fn call<D: ByteDot>(self, dot: D) {
        let Self { bytes, panel, x, sums: out, .. } = self;
        let s = dot.floats();
        let mut sums = [[s.zero(); N]; ROWS];
        let blocks = x.chunks_exact(F::INPUTS / GROUP).zip(bytes.chunks_exact(PANELS * F::BYTES));
        for (x, records) in blocks {
            let records = &records[panel * F::BYTES..][..N * F::BYTES];
            for (group, x) in x.iter().enumerate() {
                for n in 0..N {
                    let record = &records[n * F::BYTES..][..F::BYTES];
                    prefetch::<D::Floats, F>(s, record, group);
                    let (scale, second) = F::scales(s, record, group);
                    let weights = F::integers(s, record, group);
                    for row in 0..ROWS {
                        let x = &x[row];
                        let mut sum = sums[row][n];
                        if F::HAS_HALVES {
                            let weights = weights.as_chunks::<4>().0;
                            let half =
                                |i: usize| x.quants.each_ref().map(|quants| &quants.as_chunks::<4>().0[i]);
                            let first =
                                integers::<D, 6, 4, BYTES>(dot, x.corrections[0], &weights[0], half(0));
                            let last =
                                integers::<D, 6, 4, BYTES>(dot, x.corrections[1], &weights[1], half(1));
                            sum = s.fma(s.mul(scale, s.splat(x.scale)), s.convert(first), sum);
                            sum = s.fma(s.mul(second, s.splat(x.scale)), s.convert(last), sum);
                        } else {
                            let quants = x.quants.each_ref();
                            let product = match F::BITS {
                                4 => integers::<D, 4, 8, BYTES>(dot, x.corrections[0], &weights, quants),
                                5 => integers::<D, 5, 8, BYTES>(dot, x.corrections[0], &weights, quants),
                                _ => integers::<D, 8, 8, BYTES>(dot, x.corrections[0], &weights, quants),
                            };
                            sum = s.fma(s.mul(scale, s.splat(x.scale)), s.convert(product), sum);
                        }
                        if F::HAS_OFFSET {
                            sum = s.fma(second, s.splat(x.sum), sum);
                        }
                        sums[row][n] = sum;
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

/// The sums of the products of integers: [`ByteDot::dot`] of their bytes.
#[inline(always)]
fn integers<D: ByteDot, const BITS: u32, const N: usize, const BYTES: usize>(
    dot: D,
    correction: i32,
    weights: &[<D::Floats as Simd>::Words; N],
    quants: [&[[i8; 4]; N]; BYTES],
) -> <D::Floats as Simd>::Words {
    let s = dot.floats();
    let product = dot.dot::<BITS, N>(correction, weights, quants[BYTES - 1]);
    if BYTES == 1 {
        return product;
    }
    s.add_words(s.shift_left(dot.dot::<BITS, N>(0, weights, quants[0]), 7), product)
}

/// How many bytes ahead weights are prefetched; strips are contiguous.
const PREFETCH_DISTANCE: usize = 4096;

/// Prefetches the part of a record that is as far ahead as `group` is in this one.
#[inline(always)]
fn prefetch<S: Simd, F: IntegerFormat>(s: S, record: &[u8], group: usize) {
    let bytes = F::BYTES * GROUP / F::INPUTS;
    for line in 0..bytes.div_ceil(64) {
        s.prefetch(record, PREFETCH_DISTANCE + group * bytes + line * 64);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;
    use crate::cpu::simd::LANES;
    use crate::cpu::tests::blocks;
    use crate::types::MatrixSpec;

    /// The bits of the sums of all rows, by strip, with each instruction set.
    #[derive(Clone)]
    struct Products<'a, const BYTES: usize> {
        x: &'a [f32],
        weight: &'a PackedMatrix<'a>,
        bits: &'a RefCell<Vec<Vec<u32>>>,
    }

    impl<const BYTES: usize> WithByteDot for Products<'_, BYTES> {
        fn call<D: ByteDot>(self, dot: D) {
            let Self { x, weight, bits } = self;
            let x = QuantizedRows::<BYTES>::plain(x, weight.inputs, weight.dtype, D::TILE_ROWS).unwrap();
            let mut all = Vec::new();
            for strip in 0..weight.outputs.div_ceil(PANELS * LANES) {
                let mut sums = vec![[[0.0; LANES]; PANELS]; x.count];
                StripProduct { x: &x, weight, strip, first: 0, sums: &mut sums }.call(dot);
                all.extend(sums.as_flattened().as_flattened().iter().map(|sum| sum.to_bits()));
            }
            bits.borrow_mut().push(all);
        }
    }

    fn integer_type() -> impl Strategy<Value = GgmlType> {
        let is_integer = |dtype: &GgmlType| dtype.block_len() > 1;
        prop::sample::select(GgmlType::ALL.into_iter().filter(is_integer).collect::<Vec<_>>())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_instruction_set_computes_the_same_bits(
            dtype in integer_type(),
            rows in 1..40_usize,
            outputs in 1..70_usize,
            units in 1..4_usize,
            seed: u64,
        ) {
            let inputs = units * dtype.block_len();
            let spec = MatrixSpec { dtype, outputs, inputs };
            let mut packed = vec![0; crate::cpu::pack::packed_bytes(spec)];
            crate::cpu::pack::pack(spec, &blocks(dtype, outputs * units, seed), &mut packed);
            let weight = PackedMatrix::new(&packed, spec);
            let x: Vec<f32> = (0..rows * inputs).map(|i| ((i * 7919 + seed as usize % 997) as f32).sin()).collect();
            let (one, two) = (RefCell::default(), RefCell::default());
            simd::on_all_dots(&Products::<1> { x: &x, weight: &weight, bits: &one });
            simd::on_all_dots(&Products::<2> { x: &x, weight: &weight, bits: &two });
            for all in [one.into_inner(), two.into_inner()] {
                prop_assert!(all.iter().all(|bits| *bits == all[0]));
            }
        }
    }
}
