//! Dequantisation: blocks to f32.
//!
//! The layouts are ggml's (`block_q4_0` … `block_q6_K` in ggml-common.h), and so is the order of the
//! arithmetic (`dequantize_row_*` in ggml-quants.c). In all of them d and m are a block's scale and
//! offset in f16. A byte of low bits holds two numbers: in a block of 32, number i is in the low half
//! and number i + 16 in the high half. The docs of a function list the fields of its block in order,
//! then the formula.

use half::{bf16, f16};

use super::GgmlType;

/// Appends the weights of `bytes`, which are whole blocks of `dtype`, to `out`.
pub fn extend_f32(dtype: GgmlType, bytes: &[u8], out: &mut Vec<f32>) {
    match dtype {
        GgmlType::F32 => each_block(bytes, out, |block| [f32::from_le_bytes(*block)]),
        GgmlType::F16 => each_block(bytes, out, |block| [f16::from_le_bytes(*block).to_f32()]),
        GgmlType::BF16 => each_block(bytes, out, |block| [bf16::from_le_bytes(*block).to_f32()]),
        GgmlType::Q4_0 => each_block(bytes, out, q4_0),
        GgmlType::Q4_1 => each_block(bytes, out, q4_1),
        GgmlType::Q5_0 => each_block(bytes, out, q5_0),
        GgmlType::Q5_1 => each_block(bytes, out, q5_1),
        GgmlType::Q8_0 => each_block(bytes, out, q8_0),
        GgmlType::Q4_K => each_block(bytes, out, q4_k),
        GgmlType::Q5_K => each_block(bytes, out, q5_k),
        GgmlType::Q6_K => each_block(bytes, out, q6_k),
    }
}

fn each_block<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut Vec<f32>,
    numbers: impl Fn(&[u8; BYTES]) -> [f32; LEN],
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    for block in blocks {
        out.extend_from_slice(&numbers(block));
    }
}

/// The f16 at `at`.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 numbers of 4 bits.
fn nibbles(low: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { low[i] & 0x0F } else { low[i - 16] >> 4 })
}

/// 32 numbers of 5 bits: the fifth bit of number i is bit i of `high`.
fn quintets(high: &[u8], low: &[u8]) -> [u8; 32] {
    let mut numbers = nibbles(low);
    for (i, number) in numbers.iter_mut().enumerate() {
        *number |= (high[i / 8] >> (i % 8) & 1) << 4;
    }
    numbers
}

/// d, 4 bits each; (q - 8) d.
fn q4_0(block: &[u8; 18]) -> [f32; 32] {
    let d = half_at(block, 0);
    nibbles(&block[2..]).map(|q| (f32::from(q) - 8.0) * d)
}

/// d, m, 4 bits each; q d + m.
fn q4_1(block: &[u8; 20]) -> [f32; 32] {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..]).map(|q| f32::from(q) * d + m)
}

/// d, fifth bits, 4 bits each; (q - 16) d.
fn q5_0(block: &[u8; 22]) -> [f32; 32] {
    let d = half_at(block, 0);
    quintets(&block[2..6], &block[6..]).map(|q| (f32::from(q) - 16.0) * d)
}

/// d, m, fifth bits, 4 bits each; q d + m.
fn q5_1(block: &[u8; 24]) -> [f32; 32] {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    quintets(&block[4..8], &block[8..]).map(|q| f32::from(q) * d + m)
}

/// d, signed bytes; q d.
fn q8_0(block: &[u8; 34]) -> [f32; 32] {
    let d = half_at(block, 0);
    std::array::from_fn(|i| f32::from(block[2 + i].cast_signed()) * d)
}

/// Scale and minimum, 6 bits each, of one of the eight groups in a K block of 256 numbers.
///
/// Those of groups 0 to 3 are the low six bits of bytes 0 to 3 (scales) and 4 to 7 (minima). Of groups
/// 4 to 7, the low four bits are in bytes 8 to 11, and the high two bits in the two bits of bytes 0 to 7
/// that the other groups leave unused.
pub(crate) fn k_scale_and_min(scales: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (scales[group] & 0x3F, scales[group + 4] & 0x3F)
    } else {
        let low = scales[group + 4];
        ((low & 0x0F) | (scales[group - 4] >> 6) << 4, low >> 4 | (scales[group] >> 6) << 4)
    }
}

/// d, dmin, 12 bytes of scales, 4 bits each; q (d scale) - (dmin min).
fn q4_k(block: &[u8; 144]) -> [f32; 256] {
    k_numbers(block, &block[16..], |_, _| 0)
}

/// d, dmin, 12 bytes of scales, 32 bytes of fifth bits, 4 bits each; as [`q4_k`]. Bit g of byte i of the
/// fifth bits belongs to number i of group g.
fn q5_k(block: &[u8; 176]) -> [f32; 256] {
    k_numbers(block, &block[48..], |group, i| (block[16 + i] >> group & 1) << 4)
}

/// The numbers of a Q4_K or Q5_K block. Each 32 bytes of `low` hold two groups: one in the low halves,
/// the next in the high halves.
fn k_numbers(block: &[u8], low: &[u8], high_bit: impl Fn(usize, usize) -> u8) -> [f32; 256] {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let groups: [(f32, f32); 8] = std::array::from_fn(|group| {
        let (scale, min) = k_scale_and_min(&block[4..16], group);
        (d * f32::from(scale), dmin * f32::from(min))
    });
    std::array::from_fn(|number| {
        let (group, i) = (number / 32, number % 32);
        let byte = low[group / 2 * 32 + i];
        let q = if group % 2 == 0 { byte & 0x0F } else { byte >> 4 };
        let (scale, min) = groups[group];
        scale * f32::from(q | high_bit(group, i)) - min
    })
}

/// Low four bits (128 bytes), high two bits (64 bytes), 16 signed scales, d; (q - 32) (d scale).
///
/// Each half of 128 numbers is four groups of 32. The first two groups have their low bits in the low
/// halves of 64 bytes, the other two in the high halves. A byte of high bits holds those of one number
/// of each group. A scale belongs to 16 numbers.
fn q6_k(block: &[u8; 210]) -> [f32; 256] {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    std::array::from_fn(|number| {
        let (half, group, i) = (number / 128, number % 128 / 32, number % 32);
        let byte = low[half * 64 + group % 2 * 32 + i];
        let low_bits = if group < 2 { byte & 0x0F } else { byte >> 4 };
        let high_bits = high[half * 32 + i] >> (2 * group) & 3;
        let q = f32::from(low_bits | high_bits << 4) - 32.0;
        d * f32::from(scales[number / 16].cast_signed()) * q
    })
}

#[cfg(test)]
#[path = "dequant_tests.rs"]
mod tests;
