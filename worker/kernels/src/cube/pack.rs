//! Weights as the kernels read them: whole 32-bit words.
//!
//! ggml's blocks have odd sizes, so that most of their numbers straddle words. Here a matrix is two
//! runs of words, one behind the other. *Quants* are the low bits in their order, by *units* of
//! eight numbers, which are one to eight words; a thread reads one unit at a time and its neighbour
//! the next. *Scales* are what a row needs besides: scales, minima and high bits. Bits are moved,
//! never changed; the six-bit scales of Q4_K and Q5_K alone take a byte each (3% of the matrix).

use burn::backend::wgpu::CubeTensor;
use burn::cubecl::prelude::BufferArg;

use super::launch;
use crate::ggml::{GgmlType, k_scale_and_min};
use crate::types::MatrixSpec;

/// Numbers in a unit.
pub(crate) const UNIT: usize = 8;

/// Words to which scales are aligned: as far as any device wants a buffer's start aligned.
const ALIGNMENT: usize = 64;

#[derive(Debug)]
struct Packed {
    quants: Vec<u32>,
    scales: Vec<u32>,
}

/// Words of a unit in `quants`.
pub(crate) fn unit_words(dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::F32 => 8,
        GgmlType::F16 | GgmlType::BF16 => 4,
        GgmlType::Q8_0 => 2,
        GgmlType::Q4_0
        | GgmlType::Q4_1
        | GgmlType::Q5_0
        | GgmlType::Q5_1
        | GgmlType::Q4_K
        | GgmlType::Q5_K
        | GgmlType::Q6_K => 1,
    }
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

/// Units of a row; the last is filled up with zeros.
pub(crate) fn units(inputs: usize) -> usize {
    inputs.div_ceil(UNIT)
}

/// Words of all quants, with what aligns the scales behind them.
fn quant_words(spec: MatrixSpec) -> usize {
    (spec.outputs * units(spec.inputs) * unit_words(spec.dtype)).next_multiple_of(ALIGNMENT)
}

/// Words of all scales; there is always one, as there are no empty buffers.
fn all_scale_words(spec: MatrixSpec) -> usize {
    (spec.outputs * scale_words(spec.dtype, spec.inputs)).max(1)
}

/// Words of a matrix.
pub(crate) fn words(spec: MatrixSpec) -> usize {
    quant_words(spec) + all_scale_words(spec)
}

/// Rearranges `blocks`, whole rows in ggml's layout one after the other, to [`words`] words.
pub(crate) fn pack(spec: MatrixSpec, blocks: &[u8]) -> Vec<u32> {
    let mut packed =
        Packed { quants: Vec::with_capacity(words(spec)), scales: Vec::with_capacity(all_scale_words(spec)) };
    for row in blocks.chunks_exact(spec.row_bytes().max(1)) {
        packed.push_row(spec.dtype, row);
    }
    packed.quants.resize(quant_words(spec), 0);
    packed.scales.resize(all_scale_words(spec), 0);
    packed.quants.append(&mut packed.scales);
    packed.quants
}

/// Quants and scales of a matrix on the device.
pub(crate) fn parts(weight: &CubeTensor, spec: MatrixSpec) -> (BufferArg, BufferArg) {
    let scales = weight.handle.clone().offset_start(4 * quant_words(spec) as u64);
    (launch::part(weight.handle.clone(), quant_words(spec)), launch::part(scales, all_scale_words(spec)))
}

impl Packed {
    fn push_row(&mut self, dtype: GgmlType, row: &[u8]) {
        let blocks = row.chunks_exact(dtype.block_bytes());
        match dtype {
            GgmlType::F32 => self.push_numbers(row, 8 * 4),
            GgmlType::F16 | GgmlType::BF16 => self.push_numbers(row, 8 * 2),
            GgmlType::Q4_0 | GgmlType::Q8_0 => {
                self.scales.extend(halves(blocks.clone().map(|block| half(block, 0))));
                blocks.for_each(|block| self.quants.extend(le_words(&block[2..])));
            }
            GgmlType::Q4_1 => blocks.for_each(|block| {
                self.scales.extend(le_words(&block[..4]));
                self.quants.extend(le_words(&block[4..]));
            }),
            GgmlType::Q5_0 => {
                self.scales.extend(halves(blocks.clone().map(|block| half(block, 0))));
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
                self.scales.push(u32::from(half(block, 208)));
                self.quants.extend(le_words(&block[..128]));
            }),
        }
    }

    /// Numbers that are stored as they are, up to a multiple of `unit` bytes.
    fn push_numbers(&mut self, row: &[u8], unit: usize) {
        let mut row = row.to_vec();
        row.resize(row.len().next_multiple_of(unit), 0);
        self.quants.extend(le_words(&row));
    }

    /// Five words: one for each two of the eight groups (scale, minimum, scale, minimum, a byte
    /// each), then d and the minimum's d.
    fn push_k_scales(&mut self, block: &[u8]) {
        let group = |index: usize| k_scale_and_min(&block[4..16], index);
        for pair in 0..4 {
            let ((a, b), (c, d)) = (group(2 * pair), group(2 * pair + 1));
            self.scales.push(u32::from_le_bytes([a, b, c, d]));
        }
        self.scales.extend(le_words(&block[..4]));
    }
}

/// Little-endian words; `bytes` is a multiple of four.
fn le_words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}

fn half(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Two to a word, the first one low.
fn halves(numbers: impl Iterator<Item = u16>) -> Vec<u32> {
    let numbers: Vec<u16> = numbers.collect();
    let word = |pair: &[u16]| u32::from(pair[0]) | pair.get(1).map_or(0, |&high| u32::from(high) << 16);
    numbers.chunks(2).map(word).collect()
}
