//! Dequantisation in registers.
//!
//! A *unit* is 16 bytes of a packed row (see [`super::pack`]): 4 to 32 weights, in vectors of four. A
//! weight is a small integer times the scale of its half of the unit, plus an offset in some formats;
//! the integers become f32 here, and [`unit_factors`] has scales and offsets. Weights that are stored
//! as floats have neither.
//!
//! Bits become a number without a conversion, which GPUs do slowly: OR-ed into the mantissa of a power
//! of two whose unit in the last place gives the lowest of the bits the value 1, they add an integer
//! to it, and a subtraction leaves that integer, exactly.

use burn::cubecl;
use burn::cubecl::prelude::*;

use crate::ggml::GgmlType;

/// A vector of four f32.
pub(crate) type F4 = Vector<f32, Const<4>>;
/// A unit: four 32-bit words.
pub(crate) type U4 = Vector<u32, Const<4>>;

/// The bits of 2^23, whose unit in the last place is 1. Kernels get it as an argument: NVIDIA's
/// compiler keeps what it derives from an argument in registers, and loads a constant before each use.
pub(crate) const MAGIC: u32 = 0x4B00_0000;

/// Vectors of four weights in a unit.
pub(crate) fn unit_vectors(dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::F32 => 1,
        GgmlType::F16 | GgmlType::BF16 => 2,
        GgmlType::Q8_0 => 4,
        GgmlType::Q4_0
        | GgmlType::Q4_1
        | GgmlType::Q5_0
        | GgmlType::Q5_1
        | GgmlType::Q4_K
        | GgmlType::Q5_K
        | GgmlType::Q6_K => 8,
    }
}

/// Where vector `index` of a unit is in its row, as a distance from [`unit_place`] in vectors.
pub(crate) fn vector_place(dtype: GgmlType, index: usize) -> usize {
    let half = index / 4;
    match dtype {
        GgmlType::Q4_K | GgmlType::Q5_K => index + 4 * half,
        GgmlType::Q6_K => index + 12 * half,
        _ => index,
    }
}

/// Where the first vector of a unit is in its row, in vectors.
#[cube]
pub(crate) fn unit_place(unit: usize, #[comptime] dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::Q4_K | GgmlType::Q5_K => unit / 2 * 16 + unit % 2 * 4,
        GgmlType::Q6_K => unit / 4 * 32 + unit % 4 * 4,
        _ => unit * comptime!(unit_vectors(dtype)),
    }
}

/// Number of sets of factors in a unit: 2 if its halves have their own, 0 for plain floats.
pub(crate) fn factor_sets(dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => 0,
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q8_0 => 1,
        GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => 2,
    }
}

/// Whether weights have an offset beside their scale.
pub(crate) fn has_offset(dtype: GgmlType) -> bool {
    matches!(dtype, GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K)
}

/// Number of words of `scales` that a unit needs: see [`load_side`].
pub(crate) fn side_words(dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => 0,
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q8_0 => 1,
        GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q4_K => 2,
        GgmlType::Q5_K => 6,
        GgmlType::Q6_K => 7,
    }
}

/// Writes what a unit needs of `scales` to `side`, from `at` on: the words with its scales, then those
/// with its high bits. The row has `units` units, and its scales begin at `base`.
#[cube]
pub(crate) fn load_side(
    side: &mut Array<u32>,
    #[comptime] at: usize,
    scales: &[u32],
    base: usize,
    unit: usize,
    units: usize,
    #[comptime] dtype: GgmlType,
) {
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {}
        GgmlType::Q8_0 => {
            side[at] = scales[base + unit / 4];
        }
        GgmlType::Q4_0 => {
            side[at] = scales[base + unit / 2];
        }
        GgmlType::Q4_1 => {
            side[at] = scales[base + unit];
        }
        GgmlType::Q5_0 => {
            side[at] = scales[base + unit / 2];
            side[at + 1] = scales[base + units.div_ceil(2) + unit];
        }
        GgmlType::Q5_1 => {
            side[at] = scales[base + 2 * unit];
            side[at + 1] = scales[base + 2 * unit + 1];
        }
        GgmlType::Q4_K => {
            let block = base + unit / 8 * 5;
            side[at] = scales[block + unit % 8 / 2];
            side[at + 1] = scales[block + 4];
        }
        GgmlType::Q5_K => {
            let block = base + unit / 8 * 13;
            side[at] = scales[block + unit % 8 / 2];
            side[at + 1] = scales[block + 4];
            #[unroll]
            for i in 0..4usize {
                side[at + 2 + i] = scales[block + 5 + unit % 2 * 4 + i];
            }
        }
        GgmlType::Q6_K => {
            let block = base + unit / 8 * 21;
            let half = unit % 8 / 4;
            side[at] = scales[block + 16 + 2 * half];
            side[at + 1] = scales[block + 17 + 2 * half];
            side[at + 2] = scales[block + 20];
            #[unroll]
            for i in 0..4usize {
                side[at + 3 + i] = scales[block + 8 * half + unit % 2 * 4 + i];
            }
        }
    }
}

/// What the integers of a unit are multiplied with, and what is added then, for each of its halves.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) scale_0: f32,
    pub(crate) offset_0: f32,
    pub(crate) scale_1: f32,
    pub(crate) offset_1: f32,
}

/// The factors of `unit`, whose words of [`load_side`] begin at `at`.
#[cube]
pub(crate) fn unit_factors(
    side: &Array<u32>,
    #[comptime] at: usize,
    unit: usize,
    magic: u32,
    #[comptime] dtype: GgmlType,
) -> Factors {
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => one_scale(1.0f32.runtime()),
        GgmlType::Q8_0 => one_scale(half_to_f32(side[at] << (16 - 16 * (unit / 2 % 2) as u32))),
        GgmlType::Q4_0 | GgmlType::Q5_0 => one_scale(half_to_f32(side[at] << (16 - 16 * (unit % 2) as u32))),
        GgmlType::Q4_1 | GgmlType::Q5_1 => {
            let d = half_to_f32(side[at] << 16);
            let m = half_to_f32(side[at]);
            Factors { scale_0: d, offset_0: m, scale_1: d, offset_1: m }
        }
        GgmlType::Q4_K | GgmlType::Q5_K => {
            let numbers = bytes(side[at], magic, 0u32);
            let d = half_to_f32(side[at + 1] << 16);
            let dmin = -half_to_f32(side[at + 1]);
            Factors {
                scale_0: d * numbers.extract(0usize),
                offset_0: dmin * numbers.extract(1usize),
                scale_1: d * numbers.extract(2usize),
                offset_1: dmin * numbers.extract(3usize),
            }
        }
        GgmlType::Q6_K => {
            let shift = 24 - 8 * (unit % 4) as u32;
            let d = half_to_f32(side[at + 2] << 16);
            Factors {
                scale_0: d * signed_top_byte(side[at] << shift),
                offset_0: 0.0,
                scale_1: d * signed_top_byte(side[at + 1] << shift),
                offset_1: 0.0,
            }
        }
    }
}

#[cube]
fn one_scale(scale: f32) -> Factors {
    Factors { scale_0: scale, offset_0: 0.0, scale_1: scale, offset_1: 0.0 }
}

/// Vector `index` of `unit`, before scale and offset.
#[allow(clippy::too_many_arguments)]
#[cube]
pub(crate) fn unit_vector(
    words: U4,
    side: &Array<u32>,
    #[comptime] at: usize,
    unit: usize,
    #[comptime] index: usize,
    magic: u32,
    #[comptime] dtype: GgmlType,
) -> F4 {
    let word = comptime!(index % 4);
    let second = comptime!(index >= 4);
    match dtype {
        GgmlType::F32 => f32_numbers(words),
        GgmlType::F16 => {
            f16_numbers(words.extract(comptime!(2 * index)), words.extract(comptime!(2 * index + 1)))
        }
        GgmlType::BF16 => {
            bf16_numbers(words.extract(comptime!(2 * index)), words.extract(comptime!(2 * index + 1)))
        }
        GgmlType::Q8_0 => signed_bytes(words.extract(index), magic),
        GgmlType::Q4_0 => nibbles(words.extract(word), magic, second, 8u32),
        GgmlType::Q4_1 | GgmlType::Q4_K => nibbles(words.extract(word), magic, second, 0u32),
        GgmlType::Q5_0 => {
            let high = fifth_bits(side[at + 1] >> comptime!(4 * index as u32));
            bytes(low_bits(words.extract(word), second) | high, magic, 16u32)
        }
        GgmlType::Q5_1 => {
            let high = fifth_bits(side[at + 1] >> comptime!(4 * index as u32));
            bytes(low_bits(words.extract(word), second) | high, magic, 0u32)
        }
        GgmlType::Q5_K => {
            let shift = (unit % 8 / 2 * 2) as u32 + comptime!(u32::from(second));
            let high = ((side[at + 2 + word] >> shift) & 0x0101_0101) << 4;
            bytes(low_bits(words.extract(word), second) | high, magic, 0u32)
        }
        GgmlType::Q6_K => {
            let shift = (unit % 4 / 2 * 2) as u32 + comptime!(if second { 4u32 } else { 0u32 });
            let high = ((side[at + 3 + word] >> shift) & 0x0303_0303) << 4;
            bytes(low_bits(words.extract(word), second) | high, magic, 32u32)
        }
    }
}

/// The low or the high four bits of each byte.
#[cube]
pub(crate) fn low_bits(word: u32, #[comptime] high: bool) -> u32 {
    if comptime!(high) { (word >> 4) & 0x0F0F_0F0F } else { word & 0x0F0F_0F0F }
}

/// The lowest four bits, each as bit 4 of a byte.
#[cube]
pub(crate) fn fifth_bits(bits: u32) -> u32 {
    // The products put bit i at 8 i, and others elsewhere.
    (((bits & 0x0F) * 0x0020_4081) & 0x0101_0101) << 4
}

/// The low or the high four bits of each byte of `word`, less `bias`.
#[cube]
fn nibbles(word: u32, magic: u32, #[comptime] high: bool, #[comptime] bias: u32) -> F4 {
    // Bits from 20 on would reach the exponent.
    let top = word >> 12;
    let mut out = F4::empty();
    if comptime!(high) {
        out.insert(0usize, field(word, magic, 4u32, 0x0Fu32, bias));
        out.insert(1usize, field(word, magic, 12u32, 0x0Fu32, bias));
        out.insert(2usize, field(top, magic, 8u32, 0x0Fu32, bias));
        out.insert(3usize, field(top, magic, 16u32, 0x0Fu32, bias));
    } else {
        out.insert(0usize, field(word, magic, 0u32, 0x0Fu32, bias));
        out.insert(1usize, field(word, magic, 8u32, 0x0Fu32, bias));
        out.insert(2usize, field(word, magic, 16u32, 0x0Fu32, bias));
        out.insert(3usize, field(top, magic, 12u32, 0x0Fu32, bias));
    }
    out
}

/// The bytes of `word`, less `bias`.
#[cube]
fn bytes(word: u32, magic: u32, #[comptime] bias: u32) -> F4 {
    let top = word >> 16;
    let mut out = F4::empty();
    out.insert(0usize, field(word, magic, 0u32, 0xFFu32, bias));
    out.insert(1usize, field(word, magic, 8u32, 0xFFu32, bias));
    out.insert(2usize, field(top, magic, 0u32, 0xFFu32, bias));
    out.insert(3usize, field(top, magic, 8u32, 0xFFu32, bias));
    out
}

/// The bytes of `word`, as signed integers.
#[cube]
fn signed_bytes(word: u32, magic: u32) -> F4 {
    let top = word >> 16;
    let mut out = F4::empty();
    out.insert(0usize, signed_field(word, magic, 0u32));
    out.insert(1usize, signed_field(word, magic, 8u32));
    out.insert(2usize, signed_field(top, magic, 0u32));
    out.insert(3usize, signed_field(top, magic, 8u32));
    out
}

/// The bits of `mask` from bit `first` of `word` on, less `bias`.
#[cube]
fn field(word: u32, magic: u32, #[comptime] first: u32, #[comptime] mask: u32, #[comptime] bias: u32) -> f32 {
    let bits = (word & comptime!(mask << first)) | (magic - comptime!(first << 23));
    f32::reinterpret(bits) - comptime!(((1u32 << (23 - first)) + bias) as f32)
}

/// The byte from bit `first` of `word` on, as a signed integer.
#[cube]
fn signed_field(word: u32, magic: u32, #[comptime] first: u32) -> f32 {
    // The sign bit is flipped, which adds 128.
    let power = magic + comptime!((0x80u32 << first).wrapping_sub(first << 23));
    let bits = (word & comptime!(0xFFu32 << first)) ^ power;
    f32::reinterpret(bits) - comptime!(((1u32 << (23 - first)) + 128) as f32)
}

/// The highest byte, as a signed integer.
#[cube]
fn signed_top_byte(word: u32) -> f32 {
    f32::cast_from(i32::reinterpret(word) >> 24)
}

/// Converts the f16 in the upper half of `word` exactly. Infinities and NaN are not supported.
#[cube]
fn half_to_f32(word: u32) -> f32 {
    // The shift leaves the sign in its place and moves exponent and mantissa to those of an f32.
    let bits = u32::reinterpret(i32::reinterpret(word) >> 3) & 0x8FFF_E000;
    let normal = f32::reinterpret(bits + 0x3800_0000);
    // Multiples of 2^-24, as the difference from 2^-14: many GPUs flush a subnormal f32 to zero.
    let smallest = f32::reinterpret((bits & 0x8000_0000) | 0x3880_0000);
    let subnormal = f32::reinterpret(bits + 0x3880_0000) - smallest;
    select(bits & 0x0F80_0000 == 0, subnormal, normal)
}

#[cube]
fn f32_numbers(words: U4) -> F4 {
    let mut out = F4::empty();
    #[unroll]
    for i in 0..4usize {
        out.insert(i, f32::reinterpret(words.extract(i)));
    }
    out
}

#[cube]
fn f16_numbers(first: u32, second: u32) -> F4 {
    let mut out = F4::empty();
    out.insert(0usize, half_to_f32(first << 16));
    out.insert(1usize, half_to_f32(first));
    out.insert(2usize, half_to_f32(second << 16));
    out.insert(3usize, half_to_f32(second));
    out
}

#[cube]
fn bf16_numbers(first: u32, second: u32) -> F4 {
    let mut out = F4::empty();
    out.insert(0usize, f32::reinterpret(first << 16));
    out.insert(1usize, f32::reinterpret(first & 0xFFFF_0000));
    out.insert(2usize, f32::reinterpret(second << 16));
    out.insert(3usize, f32::reinterpret(second & 0xFFFF_0000));
    out
}
