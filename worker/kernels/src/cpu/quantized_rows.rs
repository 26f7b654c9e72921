//! The left side of a product of bytes: rows of activations, quantised to one byte or two.
//!
//! Each row is quantised by itself, in blocks of [`GROUP`] inputs with a scale each, as in ggml's Q8_0,
//! but with a scale of 32 bits and rounding ties to even. The second byte refines the first by 7 bits.

use super::disjoint::DisjointMut;
use super::format::{self, GROUP, IntegerFormat, WORDS, each_integer_format};
use super::rows::{Prologue, apply_prologue};
use super::simd::{self, ByteDot, Kernel, LANES, Simd, WithByteDot};
use super::threads;
use crate::ggml::GgmlType;

/// [`GROUP`] inputs of a row, in this number of bytes each.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub(crate) struct QuantizedBlock<const BYTES: usize> {
    /// An integer is the first of its bytes, or 128 times that plus the second.
    pub(crate) quants: [[[i8; 4]; WORDS]; BYTES],
    pub(crate) scale: f32,
    /// The sum of the inputs as they are quantised.
    pub(crate) sum: f32,
    /// For [`ByteDot::dot`]: minus the weights' zero times the sum of the integers, of all or of each half
    /// if the weights' format has halves.
    pub(crate) corrections: [i32; 2],
}

impl<const BYTES: usize> QuantizedBlock<BYTES> {
    const ZERO: Self = Self { quants: [[[0; 4]; WORDS]; BYTES], scale: 0.0, sum: 0.0, corrections: [0; 2] };
}

/// Rows in tiles of [`ByteDot::TILE_ROWS`], then in smaller ones, each of the largest power of two of
/// the rows that are left. A tile is `[blocks, rows]`.
pub(crate) struct QuantizedRows<const BYTES: usize> {
    blocks: Vec<QuantizedBlock<BYTES>>,
    blocks_of_row: usize,
    tile_rows: usize,
    /// Number of rows.
    pub(crate) count: usize,
}

/// What the rows need to know of the weights.
#[derive(Clone, Copy)]
struct Integers {
    zero: i32,
    has_halves: bool,
}

/// `None` if the weights are floats.
fn integers(dtype: GgmlType) -> Option<Integers> {
    fn of<F: IntegerFormat>() -> Integers {
        Integers { zero: F::ZERO, has_halves: F::HAS_HALVES }
    }
    macro_rules! of {
        ($($dtype:ident: $format:ty,)+) => {
            match dtype {
                $(GgmlType::$dtype => Some(of::<$format>()),)+
                GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => None,
            }
        };
    }
    each_integer_format!(of)
}

impl<const BYTES: usize> QuantizedRows<BYTES> {
    /// Quantises the rows `x`, `[rows, width]`, for weights of `dtype`; `None` if these are floats.
    pub(crate) fn new(x: &[f32], width: usize, dtype: GgmlType, prologue: Prologue<'_>) -> Option<Self> {
        let mut tile_rows = 1;
        simd::dispatch_dot(TileRows(&mut tile_rows));
        Some(Self::in_tiles(x, width, integers(dtype)?, prologue, tile_rows))
    }

    /// [`Self::new`] for an instruction set whose full tiles have `tile_rows` rows.
    fn in_tiles(
        x: &[f32],
        width: usize,
        integers: Integers,
        prologue: Prologue<'_>,
        tile_rows: usize,
    ) -> Self {
        let (count, blocks_of_row) = (x.len() / width, width / GROUP);
        let mut blocks = vec![QuantizedBlock::ZERO; count * blocks_of_row];
        let shared = DisjointMut::new(&mut blocks);
        threads::for_each_if_many(count.div_ceil(tile_rows), 4, |index| {
            let mut first = index * tile_rows;
            let end = count.min(first + tile_rows);
            while first < end {
                let rows = rows_of_tile(tile_rows, end - first);
                // SAFETY: each tile is quantised once, and tiles don't overlap.
                #[allow(unsafe_code)]
                let blocks = unsafe { shared.slice_mut(first * blocks_of_row, rows * blocks_of_row) };
                let x = &x[first * width..(first + rows) * width];
                simd::run(QuantizeTile { x, width, rows, prologue, integers, blocks });
                first += rows;
            }
        });
        Self { blocks, blocks_of_row, tile_rows, count }
    }

    /// Rows for one instruction set, as they are.
    #[cfg(test)]
    pub(crate) fn plain(x: &[f32], width: usize, dtype: GgmlType, tile_rows: usize) -> Option<Self> {
        Some(Self::in_tiles(x, width, integers(dtype)?, Prologue::Plain, tile_rows))
    }

    /// Rows of a full tile.
    pub(crate) fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// The number of rows of the tile that begins with row `first`, and its blocks, `[blocks, rows]`.
    pub(crate) fn tile(&self, first: usize) -> (usize, &[QuantizedBlock<BYTES>]) {
        let rows = rows_of_tile(self.tile_rows, self.count - first);
        (rows, &self.blocks[first * self.blocks_of_row..][..rows * self.blocks_of_row])
    }
}

/// Rows of the next tile, of those that are left.
fn rows_of_tile(full: usize, left: usize) -> usize {
    full.min(1 << left.max(1).ilog2())
}

/// Stores the instruction set's [`ByteDot::TILE_ROWS`].
struct TileRows<'a>(&'a mut usize);

impl WithByteDot for TileRows<'_> {
    fn call<D: ByteDot>(self, _: D) {
        *self.0 = D::TILE_ROWS;
    }
}

struct QuantizeTile<'a, const BYTES: usize> {
    x: &'a [f32],
    width: usize,
    rows: usize,
    prologue: Prologue<'a>,
    integers: Integers,
    blocks: &'a mut [QuantizedBlock<BYTES>],
}

impl<const BYTES: usize> Kernel for QuantizeTile<'_, BYTES> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { x, width, rows, prologue, integers, blocks } = self;
        let mut normed = vec![0.0; if matches!(prologue, Prologue::Norm(..)) { width } else { 0 }];
        for (row, x) in x.chunks_exact(width).enumerate() {
            let x = match prologue {
                Prologue::Plain => x,
                Prologue::Norm(..) => {
                    apply_prologue(s, x, prologue, &mut normed);
                    &normed
                }
            };
            let blocks = blocks[row..].iter_mut().step_by(rows);
            for (block, x) in blocks.zip(x.as_chunks::<GROUP>().0) {
                *block = quantize(s, x, integers);
            }
        }
    }
}

/// The number that is farthest from zero becomes the largest integer. If a number is not finite, nor is a
/// product with the block.
///
/// The loops are vectorised by the compiler, and have the same bits for every instruction set.
#[inline(always)]
fn quantize<S: Simd, const BYTES: usize>(
    s: S,
    x: &[f32; GROUP],
    Integers { zero, has_halves }: Integers,
) -> QuantizedBlock<BYTES> {
    /// What is added to this number is rounded to an integer, and stands in the lowest bits.
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2²³
    /// Smaller numbers count as zero, so that the inverse is finite.
    const SMALLEST: f32 = 1e-33;
    // The bits of magnitudes are in their order, and those of NaN are the largest.
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7FFF_FFFF);
    }
    let largest = f32::from_bits(largest);
    let steps = if BYTES == 1 { 127.0 } else { 127.0 * 128.0 };
    let (scale, inverse) = if largest < SMALLEST { (0.0, 0.0) } else { (largest / steps, steps / largest) };
    let mut quants = [[[0_i8; 4]; WORDS]; BYTES];
    if let [first, second] = quants.as_mut_slice() {
        let bytes = first.as_flattened_mut().iter_mut().zip(second.as_flattened_mut());
        for ((first, second), x) in bytes.zip(x) {
            let integer = (x * inverse + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()).cast_signed();
            *first = (integer.wrapping_add(64) >> 7) as i8;
            *second = ((integer.wrapping_add(64) & 127) - 64) as i8;
        }
    } else {
        for (quant, x) in quants.as_flattened_mut().as_flattened_mut().iter_mut().zip(x) {
            *quant = ((x * inverse + SHIFT).to_bits() as u8).cast_signed();
        }
    }
    let mut rounded = [s.zero(); 2];
    for (rounded, x) in rounded.iter_mut().zip(x.as_chunks::<LANES>().0) {
        let shifted = s.add(s.mul(s.load(x), s.splat(inverse)), s.splat(SHIFT));
        *rounded = s.sub(shifted, s.splat(SHIFT));
    }
    // Sums of integers as floats are exact.
    let [first, second] = rounded;
    let sum = s.reduce_sum(s.add(first, second));
    let sums = if has_halves { [s.reduce_sum(first), s.reduce_sum(second)] } else { [sum, 0.0] };
    QuantizedBlock { quants, scale, sum: scale * sum, corrections: sums.map(|sum| -zero * sum as i32) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: Integers = Integers { zero: 8, has_halves: false };
    const HALVES: Integers = Integers { zero: 8, has_halves: true };

    #[test]
    fn tiles_are_the_largest_powers_of_two_that_fit() {
        for (count, tiles) in [(1, &[1][..]), (16, &[16]), (31, &[16, 8, 4, 2, 1]), (35, &[16, 16, 2, 1])] {
            let mut left = count;
            for rows in tiles {
                assert_eq!(rows_of_tile(16, left), *rows);
                left -= rows;
            }
            assert_eq!(left, 0);
        }
    }

    #[test]
    fn a_number_that_is_not_finite_spoils_its_block_and_small_ones_are_zero() {
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; GROUP];
            x[17] = number;
            let (block, fine) = (quantize::<1>(&x, PLAIN), quantize::<2>(&x, PLAIN));
            assert!(!block.scale.is_finite() && !block.sum.is_finite(), "{block:?}");
            assert!(!fine.scale.is_finite() && !fine.sum.is_finite(), "{fine:?}");
        }
        assert_eq!(quantize::<1>(&[1e-37; GROUP], PLAIN), QuantizedBlock::ZERO);
        assert_eq!(quantize::<2>(&[1e-37; GROUP], PLAIN), QuantizedBlock::ZERO);
    }

    #[derive(Clone)]
    struct Quantize<const BYTES: usize>([f32; GROUP], Integers);

    impl<const BYTES: usize> Kernel for Quantize<BYTES> {
        type Output = QuantizedBlock<BYTES>;

        #[inline(always)]
        fn call<S: Simd>(self, s: S) -> QuantizedBlock<BYTES> {
            super::quantize(s, &self.0, self.1)
        }
    }

    /// A block, of which every instruction set makes the same.
    fn quantize<const BYTES: usize>(x: &[f32; GROUP], integers: Integers) -> QuantizedBlock<BYTES> {
        let blocks = simd::on_all(&Quantize::<BYTES>(*x, integers));
        let same = |block: &QuantizedBlock<BYTES>| format!("{block:?}") == format!("{:?}", blocks[0]);
        assert!(blocks.iter().all(same), "{blocks:?}");
        blocks[0]
    }

    fn check<const BYTES: usize>(
        x: &[f32; GROUP],
        block: &QuantizedBlock<BYTES>,
        of_halves: [i32; 2],
    ) -> Result<(), TestCaseError> {
        let mut sum = 0;
        for (i, x) in x.iter().enumerate() {
            let bytes = block.quants.map(|quants| i32::from(quants.as_flattened()[i]));
            let integer = bytes.into_iter().fold(0, |integer, byte| 128 * integer + byte);
            let error = (f64::from(integer) * f64::from(block.scale) - f64::from(*x)).abs();
            // The inverse scale is rounded, too.
            prop_assert!(error <= f64::from(block.scale) * 0.502, "{x}: {integer} * {}", block.scale);
            sum += integer;
        }
        prop_assert_eq!(block.corrections, [-8 * sum, 0]);
        prop_assert_eq!(of_halves.iter().sum::<i32>(), -8 * sum);
        Ok(())
    }

    proptest! {
        #[test]
        fn a_number_is_off_by_at_most_half_a_step(
            x in prop::array::uniform32(-1e3..1e3_f32),
            exponent in -60..60_i32,
        ) {
            let x = x.map(|x| x * (exponent as f32).exp2());
            check(&x, &quantize::<1>(&x, PLAIN), quantize::<1>(&x, HALVES).corrections)?;
            check(&x, &quantize::<2>(&x, PLAIN), quantize::<2>(&x, HALVES).corrections)?;
        }
    }
}
