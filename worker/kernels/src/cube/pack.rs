//! The layout of packed weights on GPUs: whole 32-bit words.
//!
//! Most of ggml's blocks are not a whole number of words. Here a matrix is two arrays of words, one
//! after the other. *Quants* are the low bits in ggml's order, in *units* of 16 bytes; adjacent threads
//! read adjacent units. *Scales* are the rest of a row: scales, minima and high bits. Packing moves bits but does not
//! change them, except that the six-bit scales of Q4_K and Q5_K take a byte each (3% of the matrix).
//!
//! For matrix units, the words of quants lie in another order: see [`Layout`].

use burn::backend::wgpu::CubeTensor;
use burn::cubecl::prelude::BufferArg;
use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSlice;

use super::dequant::unit_vectors;
use super::launch;
use super::matmul::matrix_units::{Layout, in_tiles};
use crate::ggml::{GgmlType, k_scale_and_min};
use crate::types::{BUFFER_ALIGNMENT, MatrixSpec};

/// Words of a unit.
const UNIT_WORDS: usize = 4;

/// Rows that a thread packs at a time: whole tiles.
const ROWS_OF_A_TASK: usize = 256;

#[derive(Debug)]
struct Packed {
    quants: Vec<u32>,
    scales: Vec<u32>,
}

/// Words of a row in `scales`.
pub(crate) fn scale_words(dtype: GgmlType, inputs: usize) -> usize {
    let blocks = inputs / dtype.block_len();
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => 0,
        GgmlType::Q4_0 | GgmlType::Q8_0 => blocks.div_ceil(2),
        GgmlType::Q4_1 => blocks,
        GgmlType::Q5_0 => blocks.div_ceil(2) + blocks,
        GgmlType::Q5_1 => 2 * blocks,
        GgmlType::Q4_K => 5 * blocks,
        GgmlType::Q5_K => 13 * blocks,
        GgmlType::Q6_K => 21 * blocks,
    }
}

/// Units of a row; the last is padded with zeros.
pub(crate) fn units(dtype: GgmlType, inputs: usize) -> usize {
    inputs.div_ceil(4 * unit_vectors(dtype))
}

/// Words of all quants, with the padding that aligns the scales.
fn quant_words(spec: MatrixSpec, layout: Layout) -> usize {
    let units = layout.padded(units(spec.dtype, spec.inputs));
    (spec.outputs * units * UNIT_WORDS).next_multiple_of(BUFFER_ALIGNMENT)
}

/// Words of all scales; at least one, as a buffer can't be empty.
fn all_scale_words(spec: MatrixSpec) -> usize {
    (spec.outputs * scale_words(spec.dtype, spec.inputs)).max(1)
}

/// Words of a packed matrix.
pub(crate) fn words(spec: MatrixSpec, layout: Layout) -> usize {
    quant_words(spec, layout) + all_scale_words(spec)
}

/// The bytes of `rows` when they are packed, and the most that all padding of a matrix takes.
pub(crate) fn packed_size(rows: MatrixSpec, layout: Layout) -> (u64, u64) {
    let MatrixSpec { dtype, outputs, inputs } = rows;
    let words = outputs * (layout.padded(units(dtype, inputs)) * UNIT_WORDS + scale_words(dtype, inputs));
    (4 * words as u64, 4 * (BUFFER_ALIGNMENT + 1) as u64)
}

/// Packs `blocks`, consecutive rows in ggml's layout, into [`words`] words; on all threads.
pub(crate) fn pack(spec: MatrixSpec, blocks: &[u8], layout: Layout) -> Vec<u32> {
    let row = spec.row_bytes().max(1);
    let some_rows = |blocks: &[u8]| {
        let mut packed = Packed { quants: Vec::new(), scales: Vec::new() };
        blocks.chunks_exact(row).for_each(|row| packed.push_row(spec.dtype, row));
        if layout == Layout::Tiles {
            packed.quants = in_tiles(&packed.quants, units(spec.dtype, spec.inputs));
        }
        packed
    };
    let packed: Vec<Packed> = blocks.par_chunks(row * ROWS_OF_A_TASK).map(some_rows).collect();
    let mut all = Vec::with_capacity(words(spec, layout));
    packed.iter().for_each(|packed| all.extend_from_slice(&packed.quants));
    all.resize(quant_words(spec, layout), 0);
    packed.iter().for_each(|packed| all.extend_from_slice(&packed.scales));
    all.resize(words(spec, layout), 0);
    all
}

/// Quants and scales of a packed matrix as kernel arguments.
pub(crate) fn buffers(weight: &CubeTensor, spec: MatrixSpec, layout: Layout) -> (BufferArg, BufferArg) {
    let quants = quant_words(spec, layout);
    let scales = weight.handle.clone().offset_start(4 * quants as u64);
    (launch::slice(weight.handle.clone(), quants), launch::slice(scales, all_scale_words(spec)))
}

impl Packed {
    fn push_row(&mut self, dtype: GgmlType, row: &[u8]) {
        let blocks = row.chunks_exact(dtype.block_bytes());
        match dtype {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => self.push_floats(row),
            GgmlType::Q4_0 | GgmlType::Q8_0 => {
                self.scales.extend(pack_pairs(blocks.clone().map(|block| f16_bits(block, 0))));
                blocks.for_each(|block| self.quants.extend(le_words(&block[2..])));
            }
            GgmlType::Q4_1 => blocks.for_each(|block| {
                self.scales.extend(le_words(&block[..4]));
                self.quants.extend(le_words(&block[4..]));
            }),
            GgmlType::Q5_0 => {
                self.scales.extend(pack_pairs(blocks.clone().map(|block| f16_bits(block, 0))));
                blocks.for_each(|block| {
                    self.scales.extend(le_words(&block[2..6]));
                    self.quants.extend(le_words(&block[6..]));
                });
            }
            GgmlType::Q5_1 => blocks.for_each(|block| {
                self.scales.extend(le_words(&block[..8]));
                self.quants.extend(le_words(&block[8..]));
            }),
            GgmlType::Q4_K => blocks.for_each(|block| {
                self.push_k_scales(block);
                self.quants.extend(le_words(&block[16..]));
            }),
            GgmlType::Q5_K => blocks.for_each(|block| {
                self.push_k_scales(block);
                self.scales.extend(le_words(&block[16..48]));
                self.quants.extend(le_words(&block[48..]));
            }),
            GgmlType::Q6_K => blocks.for_each(|block| {
                self.scales.extend(le_words(&block[128..208]));
                self.scales.push(u32::from(f16_bits(block, 208)));
                self.quants.extend(le_words(&block[..128]));
            }),
        }
    }

    /// Pushes a row of plain floats, padded with zeros to whole units.
    fn push_floats(&mut self, row: &[u8]) {
        let mut row = row.to_vec();
        row.resize(row.len().next_multiple_of(4 * UNIT_WORDS), 0);
        self.quants.extend(le_words(&row));
    }

    /// Pushes five words: one for each pair of the eight groups (scale, minimum, scale, minimum, a
    /// byte each), then d and dmin.
    fn push_k_scales(&mut self, block: &[u8]) {
        let group = |index: usize| k_scale_and_min(&block[4..16], index);
        for pair in 0..4 {
            let ((a, b), (c, d)) = (group(2 * pair), group(2 * pair + 1));
            self.scales.push(u32::from_le_bytes([a, b, c, d]));
        }
        self.scales.extend(le_words(&block[..4]));
    }
}

/// Little-endian words; the length of `bytes` is a multiple of four.
fn le_words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}

/// The bits of the f16 at byte `at`.
fn f16_bits(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Packs two 16-bit numbers in a word, the first in the low bits.
fn pack_pairs(numbers: impl Iterator<Item = u16>) -> Vec<u32> {
    let numbers: Vec<u16> = numbers.collect();
    let word = |pair: &[u16]| u32::from(pair[0]) | pair.get(1).map_or(0, |&high| u32::from(high) << 16);
    numbers.chunks(2).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_matrix_is_as_large_as_its_rows_and_some_padding() {
        for dtype in GgmlType::ALL {
            for outputs in [1, 48, 3 * ROWS_OF_A_TASK + 5] {
                let spec = MatrixSpec { dtype, outputs, inputs: 512 };
                let blocks = vec![0; spec.outputs * spec.row_bytes()];
                let layouts =
                    if outputs == 48 { vec![Layout::Rows, Layout::Tiles] } else { vec![Layout::Rows] };
                for layout in layouts {
                    let bytes = 4 * pack(spec, &blocks, layout).len() as u64;
                    let (rows, padding) = packed_size(spec, layout);
                    assert!((rows..=rows + padding).contains(&bytes), "{dtype}: {bytes} for {rows}");
                }
            }
        }
    }
}
