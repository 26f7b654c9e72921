//! Dequantisation in registers: a unit of a packed matrix (see [`super::pack`]) becomes eight numbers.

use burn::cubecl;
use burn::cubecl::prelude::*;

use crate::ggml::GgmlType;

/// A vector of four f32.
pub(crate) type F4 = Vector<f32, Const<4>>;
type U4 = Vector<u32, Const<4>>;

/// Eight weights of a row.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Unit {
    pub(crate) first: F4,
    pub(crate) second: F4,
}

/// The weights of `unit` in `row`. A row has `units` units and `stride` words of `scales`.
#[cube]
pub(crate) fn unit_numbers<N: Size>(
    quants: &[Vector<u32, N>],
    scales: &[u32],
    row: usize,
    unit: usize,
    units: usize,
    stride: usize,
    #[comptime] dtype: GgmlType,
) -> Unit {
    let at = row * units + unit;
    let base = row * stride;
    match dtype {
        GgmlType::F32 => f32_numbers::<N>(quants, at),
        GgmlType::F16 => {
            let words = quants[at];
            Unit { first: f16_numbers::<N>(words, 0usize), second: f16_numbers::<N>(words, 2usize) }
        }
        GgmlType::BF16 => {
            let words = quants[at];
            Unit { first: bf16_numbers::<N>(words, 0usize), second: bf16_numbers::<N>(words, 2usize) }
        }
        GgmlType::Q8_0 => {
            let words = quants[at];
            let d = F4::new(packed_half(scales, base, unit / 4));
            Unit {
                first: signed_bytes(words.extract(0usize)) * d,
                second: signed_bytes(words.extract(1usize)) * d,
            }
        }
        GgmlType::Q4_0 => {
            let word = quants[at].extract(0usize);
            let d = F4::new(packed_half(scales, base, unit / 4));
            Unit {
                first: (F4::cast_from(fields(word, 0u32, 0x0Fu32)) - F4::new(8.0)) * d,
                second: (F4::cast_from(fields(word, 4u32, 0x0Fu32)) - F4::new(8.0)) * d,
            }
        }
        GgmlType::Q4_1 => {
            let word = quants[at].extract(0usize);
            let pair = scales[base + unit / 4];
            let d = F4::new(half_to_f32(pair & 0xFFFF));
            let m = F4::new(half_to_f32(pair >> 16));
            Unit {
                first: fma(F4::cast_from(fields(word, 0u32, 0x0Fu32)), d, m),
                second: fma(F4::cast_from(fields(word, 4u32, 0x0Fu32)), d, m),
            }
        }
        GgmlType::Q5_0 => {
            let blocks = units / 4;
            let d = F4::new(packed_half(scales, base, unit / 4));
            let high = scales[base + blocks.div_ceil(2) + unit / 4];
            let both = five_bit_numbers(quants[at].extract(0usize), high, unit % 4);
            Unit { first: (both.first - F4::new(16.0)) * d, second: (both.second - F4::new(16.0)) * d }
        }
        GgmlType::Q5_1 => {
            let block = base + unit / 4 * 2;
            let pair = scales[block];
            let d = F4::new(half_to_f32(pair & 0xFFFF));
            let m = F4::new(half_to_f32(pair >> 16));
            let both = five_bit_numbers(quants[at].extract(0usize), scales[block + 1], unit % 4);
            Unit { first: fma(both.first, d, m), second: fma(both.second, d, m) }
        }
        GgmlType::Q4_K => {
            let word = quants[at].extract(0usize);
            let block = base + unit / 32 * 5;
            let groups = k_groups(scales[block + unit % 32 / 8], scales[block + 4]);
            Unit {
                first: k_numbers(fields(word, 0u32, 0x0Fu32), groups.scale_0, groups.min_0),
                second: k_numbers(fields(word, 4u32, 0x0Fu32), groups.scale_1, groups.min_1),
            }
        }
        GgmlType::Q5_K => {
            let word = quants[at].extract(0usize);
            let block = base + unit / 32 * 13;
            let pair = unit % 32 / 8;
            let groups = k_groups(scales[block + pair], scales[block + 4]);
            let high = scales[block + 5 + unit % 8] >> (2 * pair as u32);
            let first = fields(word, 0u32, 0x0Fu32) | (fields(high, 0u32, 1u32) << U4::new(4));
            let second = fields(word, 4u32, 0x0Fu32) | (fields(high, 1u32, 1u32) << U4::new(4));
            Unit {
                first: k_numbers(first, groups.scale_0, groups.min_0),
                second: k_numbers(second, groups.scale_1, groups.min_1),
            }
        }
        GgmlType::Q6_K => q6_k_numbers(quants[at].extract(0usize), scales, base + unit / 32 * 21, unit % 32),
    }
}

/// Where the weights of a unit are in their row: the index of its first vector of four. The second
/// vector is [`second_place`] vectors further on.
#[cube]
pub(crate) fn unit_place(unit: usize, #[comptime] dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0 => 2 * unit,
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => unit / 4 * 8 + unit % 4,
        GgmlType::Q4_K | GgmlType::Q5_K => unit / 8 * 16 + unit % 8,
        GgmlType::Q6_K => unit / 16 * 32 + unit % 16,
    }
}

/// Distance of a unit's second vector from its first; see [`unit_place`].
pub(crate) fn second_place(dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0 => 1,
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => 4,
        GgmlType::Q4_K | GgmlType::Q5_K => 8,
        GgmlType::Q6_K => 16,
    }
}

/// Converts the bits of an f16 exactly. Infinities and NaN are not supported.
#[cube]
pub(crate) fn half_to_f32(bits: u32) -> f32 {
    let magnitude = bits & 0x7FFF;
    let normal = f32::reinterpret((magnitude << 13) + 0x3800_0000);
    // Multiples of 2^-24. A subnormal f32 would be flushed to zero on many GPUs.
    let subnormal = f32::cast_from(magnitude) * 5.960_464_5e-8;
    let number = select(magnitude < 0x0400, subnormal, normal);
    f32::reinterpret(u32::reinterpret(number) | ((bits & 0x8000) << 16))
}

/// The f16 with this `index`, of those packed two to a word from word `base` on.
#[cube]
fn packed_half(scales: &[u32], base: usize, index: usize) -> f32 {
    let word = scales[base + index / 2];
    half_to_f32((word >> (16 * (index % 2) as u32)) & 0xFFFF)
}

/// For each byte of `word`: the bits of `mask`, from bit `first` of the byte on.
#[cube]
fn fields(word: u32, #[comptime] first: u32, #[comptime] mask: u32) -> U4 {
    let mut out = U4::empty();
    #[unroll]
    for i in 0..4usize {
        out.insert(i, (word >> (first + 8 * i as u32)) & mask);
    }
    out
}

/// The four bytes of `word`, as signed integers.
#[cube]
fn signed_bytes(word: u32) -> F4 {
    let mut out = F4::empty();
    #[unroll]
    for i in 0..4usize {
        let left = i32::reinterpret(word << (24 - 8 * i as u32));
        out.insert(i, f32::cast_from(left >> 24));
    }
    out
}

#[cube]
fn f32_numbers<N: Size>(quants: &[Vector<u32, N>], at: usize) -> Unit {
    Unit { first: as_numbers::<N>(quants[2 * at]), second: as_numbers::<N>(quants[2 * at + 1]) }
}

#[cube]
fn as_numbers<N: Size>(words: Vector<u32, N>) -> F4 {
    let mut out = F4::empty();
    #[unroll]
    for i in 0..4usize {
        out.insert(i, f32::reinterpret(words.extract(i)));
    }
    out
}

#[cube]
fn f16_numbers<N: Size>(words: Vector<u32, N>, #[comptime] first: usize) -> F4 {
    let mut out = F4::empty();
    #[unroll]
    for i in 0..2usize {
        let word = words.extract(first + i);
        out.insert(2 * i, half_to_f32(word & 0xFFFF));
        out.insert(2 * i + 1, half_to_f32(word >> 16));
    }
    out
}

#[cube]
fn bf16_numbers<N: Size>(words: Vector<u32, N>, #[comptime] first: usize) -> F4 {
    let mut out = F4::empty();
    #[unroll]
    for i in 0..2usize {
        let word = words.extract(first + i);
        out.insert(2 * i, f32::reinterpret(word << 16));
        out.insert(2 * i + 1, f32::reinterpret(word & 0xFFFF_0000));
    }
    out
}

/// Integers of 5 bits: word `place` of a block of 32, with the fifth bits from `high`.
#[cube]
fn five_bit_numbers(word: u32, high: u32, place: usize) -> Unit {
    let shift = 4 * place as u32;
    Unit {
        first: F4::cast_from(fields(word, 0u32, 0x0Fu32) | fifth_bits(high >> shift)),
        second: F4::cast_from(fields(word, 4u32, 0x0Fu32) | fifth_bits(high >> (shift + 16))),
    }
}

/// The lowest four bits, each moved to bit 4 of its number.
#[cube]
fn fifth_bits(bits: u32) -> U4 {
    let mut out = U4::empty();
    #[unroll]
    for i in 0..4usize {
        out.insert(i, ((bits >> i as u32) & 1) << 4);
    }
    out
}

/// Scales and minima of two adjacent groups of 32.
#[derive(CubeType, Clone, Copy)]
struct KGroups {
    scale_0: f32,
    min_0: f32,
    scale_1: f32,
    min_1: f32,
}

#[cube]
fn k_groups(packed: u32, pair: u32) -> KGroups {
    let d = half_to_f32(pair & 0xFFFF);
    let dmin = half_to_f32(pair >> 16);
    KGroups {
        scale_0: d * f32::cast_from(packed & 0xFF),
        min_0: dmin * f32::cast_from((packed >> 8) & 0xFF),
        scale_1: d * f32::cast_from((packed >> 16) & 0xFF),
        min_1: dmin * f32::cast_from(packed >> 24),
    }
}

#[cube]
fn k_numbers(bits: U4, scale: f32, min: f32) -> F4 {
    fma(F4::cast_from(bits), F4::new(scale), F4::new(-min))
}

/// Four weights of each of two groups: groups 0 and 2 of half a block, or 1 and 3.
#[cube]
fn q6_k_numbers(word: u32, scales: &[u32], block: usize, unit: usize) -> Unit {
    let half = unit / 16;
    let odd = unit % 16 / 8;
    let high = scales[block + 8 * half + unit % 8] >> (2 * odd as u32);
    let d = half_to_f32(scales[block + 20]);
    // A scale belongs to 16 numbers: there are two in a group and eight in half a block.
    let first_scale = 8 * half + 2 * odd + unit % 8 / 4;
    let first = fields(word, 0u32, 0x0Fu32) | (fields(high, 0u32, 3u32) << U4::new(4));
    let second = fields(word, 4u32, 0x0Fu32) | (fields(high, 4u32, 3u32) << U4::new(4));
    Unit {
        first: (F4::cast_from(first) - F4::new(32.0))
            * F4::new(d * signed_byte(scales, block + 16, first_scale)),
        second: (F4::cast_from(second) - F4::new(32.0))
            * F4::new(d * signed_byte(scales, block + 16, first_scale + 4)),
    }
}

/// Byte `index` from word `base` on, as a signed integer.
#[cube]
fn signed_byte(words: &[u32], base: usize, index: usize) -> f32 {
    let word = words[base + index / 4];
    let left = i32::reinterpret(word << (24 - 8 * (index % 4) as u32));
    f32::cast_from(left >> 24)
}
