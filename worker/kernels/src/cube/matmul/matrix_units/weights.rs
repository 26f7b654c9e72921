//! Weights as the instruction takes them: pairs of f16 in a word.
//!
//! An integer of up to eight bits is exact in f16. Bits are OR-ed into the mantissa of 1024, whose unit in the last
//! place is 1, and a subtraction leaves the integer (see [`dequant`](crate::cube::dequant)). Scales are applied to the
//! sums over a *set*, the weights of a group that share one.

use burn::cubecl;
use burn::cubecl::prelude::*;
use half::f16;

use super::layout::GROUP;
use crate::cube::dequant::{U4, fifth_bits, low_bits, unit_place, unit_vectors, vector_place};
use crate::ggml::GgmlType;

/// A pair of f16 in a register.
pub(super) type Pair = Vector<f16, Const<2>>;

/// 1024 in both halves of a word.
const POWER: u32 = 0x6400_6400;

/// Instructions that multiply a group: each takes four weights of a thread.
pub(super) fn steps(dtype: GgmlType) -> usize {
    GROUP * unit_vectors(dtype) / 4
}

/// Steps whose weights share a scale.
pub(super) fn set_steps(dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::Q6_K => 1,
        _ => 2,
    }
}

/// Words with the scales of a group.
fn scale_words(dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => 0,
        GgmlType::Q8_0 => 1,
        GgmlType::Q4_0 | GgmlType::Q5_0 => 2,
        GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => 3,
        GgmlType::Q4_1 | GgmlType::Q5_1 => 4,
    }
}

/// Words with the high bits of a thread's weights of a group.
fn high_words(dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::Q5_0 | GgmlType::Q5_1 => 4,
        GgmlType::Q5_K | GgmlType::Q6_K => 2,
        _ => 0,
    }
}

/// Words that [`load_side`] writes: scales, then high bits.
pub(super) fn side_words(dtype: GgmlType) -> usize {
    scale_words(dtype) + high_words(dtype)
}

/// The unit of a group that a step takes.
#[cube]
pub(super) fn step_unit(step: usize, #[comptime] dtype: GgmlType) -> usize {
    match dtype {
        // A scale belongs to the same half of two units.
        GgmlType::Q4_K | GgmlType::Q5_K => step / 4 * 2 + step % 2,
        GgmlType::F16 => 2 * step,
        GgmlType::Q8_0 => step,
        _ => step / 2,
    }
}

/// The half of its unit that a step takes.
#[cube]
pub(super) fn step_half(step: usize, #[comptime] dtype: GgmlType) -> usize {
    match dtype {
        GgmlType::Q4_K | GgmlType::Q5_K => step % 4 / 2,
        _ => step % comptime!((unit_vectors(dtype) / 4).max(1)),
    }
}

/// Where the four inputs of a thread in a step are in their row, in vectors; not for floats.
#[cube]
pub(super) fn step_place(group: usize, step: usize, thread: usize, #[comptime] dtype: GgmlType) -> usize {
    let unit = group * GROUP + step_unit(step, dtype);
    unit_place(unit, dtype) + thread + step_half(step, dtype) * comptime!(vector_place(dtype, 4))
}

/// Reads what a group needs of a row's scales, which begin at `base` and are `stride` words long.
#[allow(clippy::too_many_arguments)]
#[cube]
pub(super) fn load_side(
    side: &mut Array<u32>,
    #[comptime] at: usize,
    scales: &[u32],
    base: usize,
    stride: usize,
    group: usize,
    units: usize,
    thread: usize,
    #[comptime] dtype: GgmlType,
) {
    let high = comptime!(at + scale_words(dtype));
    // Of the units beyond the last, any words are read: their scale is 0.
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {}
        GgmlType::Q8_0 => {
            side[at] = scales[base + min(group, stride - 1)];
        }
        GgmlType::Q4_0 =>
        {
            #[unroll]
            for i in 0..2usize {
                side[at + i] = scales[base + min(2 * group + i, stride - 1)];
            }
        }
        GgmlType::Q4_1 =>
        {
            #[unroll]
            for i in 0..4usize {
                side[at + i] = scales[base + min(4 * group + i, stride - 1)];
            }
        }
        GgmlType::Q5_0 => {
            #[unroll]
            for i in 0..2usize {
                side[at + i] = scales[base + min(2 * group + i, stride - 1)];
            }
            #[unroll]
            for i in 0..4usize {
                side[high + i] = scales[base + min(units.div_ceil(2) + 4 * group + i, stride - 1)];
            }
        }
        GgmlType::Q5_1 =>
        {
            #[unroll]
            for i in 0..4usize {
                let unit = min(4 * group + i, units - 1);
                side[at + i] = scales[base + 2 * unit];
                side[high + i] = scales[base + 2 * unit + 1];
            }
        }
        GgmlType::Q4_K => {
            let block = base + group / 2 * 5;
            #[unroll]
            for i in 0..2usize {
                side[at + i] = scales[block + group % 2 * 2 + i];
            }
            side[at + 2] = scales[block + 4];
        }
        GgmlType::Q5_K => {
            let block = base + group / 2 * 13;
            #[unroll]
            for i in 0..2usize {
                side[at + i] = scales[block + group % 2 * 2 + i];
                side[high + i] = scales[block + 5 + 4 * i + thread];
            }
            side[at + 2] = scales[block + 4];
        }
        GgmlType::Q6_K => {
            let block = base + group / 2 * 21;
            let half = group % 2;
            #[unroll]
            for i in 0..2usize {
                side[at + i] = scales[block + 16 + 2 * half + i];
                side[high + i] = scales[block + 8 * half + 4 * i + thread];
            }
            side[at + 2] = scales[block + 20];
        }
    }
}

/// What the sum over a set is multiplied with, and the sum of its inputs.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Factors {
    pub(super) scale: f32,
    pub(super) offset: f32,
}

/// The factors of set `set` of a group.
#[cube]
pub(super) fn set_factors(
    side: &Array<u32>,
    #[comptime] at: usize,
    group: usize,
    units: usize,
    #[comptime] set: usize,
    #[comptime] dtype: GgmlType,
) -> Factors {
    match dtype {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => Factors { scale: 1.0, offset: 0.0 },
        GgmlType::Q8_0 => {
            let inside = group * GROUP + comptime!(2 * set) < units;
            Factors { scale: select(inside, half_of(side[at], comptime!(set % 2)), 0.0), offset: 0.0 }
        }
        GgmlType::Q4_0 | GgmlType::Q5_0 => {
            let inside = group * GROUP + set < units;
            let scale = half_of(side[comptime!(at + set / 2)], comptime!(set % 2));
            Factors { scale: select(inside, scale, 0.0), offset: 0.0 }
        }
        GgmlType::Q4_1 | GgmlType::Q5_1 => {
            let inside = group * GROUP + set < units;
            let word = side[comptime!(at + set)];
            Factors {
                scale: select(inside, half_of(word, 0usize), 0.0),
                offset: select(inside, half_of(word, 1usize), 0.0),
            }
        }
        GgmlType::Q4_K | GgmlType::Q5_K => {
            let word = side[comptime!(at + set / 2)];
            let both = side[comptime!(at + 2)];
            let scale = f32::cast_from((word >> comptime!(16 * (set % 2) as u32)) & 0xFF);
            let minimum = f32::cast_from((word >> comptime!(16 * (set % 2) as u32 + 8)) & 0xFF);
            Factors { scale: half_of(both, 0usize) * scale, offset: -half_of(both, 1usize) * minimum }
        }
        GgmlType::Q6_K => {
            let word = side[comptime!(at + set % 2)];
            let byte = i32::reinterpret(word << comptime!(24 - 8 * (set / 2) as u32)) >> 24;
            Factors { scale: half_of(side[comptime!(at + 2)], 0usize) * f32::cast_from(byte), offset: 0.0 }
        }
    }
}

/// One of the two f16 in a word.
#[cube]
fn half_of(word: u32, #[comptime] index: usize) -> f32 {
    f32::cast_from(Pair::reinterpret(word).extract(index))
}

/// The thread's four weights of a row in a step, before scale and offset: first and third, then second and fourth.
#[cube]
pub(super) fn step_weights(
    words: U4,
    side: &Array<u32>,
    #[comptime] at: usize,
    group: usize,
    #[comptime] step: usize,
    #[comptime] dtype: GgmlType,
) -> Pairs {
    let high = comptime!(at + scale_words(dtype));
    let unit = comptime!(step_unit(step, dtype));
    let second = comptime!(step_half(step, dtype) == 1);
    let word = words.extract(unit);
    match dtype {
        GgmlType::F16 => Pairs {
            first: Pair::reinterpret(word),
            second: Pair::reinterpret(words.extract(comptime!(unit + 1))),
        },
        GgmlType::Q8_0 => bytes(word ^ 0x8080_8080, 128u32),
        GgmlType::Q4_0 => nibbles(word, second, 8u32),
        GgmlType::Q4_1 | GgmlType::Q4_K => nibbles(word, second, 0u32),
        GgmlType::Q5_0 | GgmlType::Q5_1 => {
            // The unit's bits lie in the order of its weights.
            let all = side[comptime!(high + unit)] >> comptime!(if second { 16u32 } else { 0u32 });
            bytes(
                low_bits(word, second) | fifth_bits(all >> (4 * (UNIT_POS % 4))),
                comptime!(if dtype == GgmlType::Q5_0 { 16u32 } else { 0u32 }),
            )
        }
        GgmlType::Q5_K => {
            let shift = (group % 2 * 4) as u32 + comptime!((unit / 2 * 2) as u32 + u32::from(second));
            let high = ((side[comptime!(high + unit % 2)] >> shift) & 0x0101_0101) << 4;
            bytes(low_bits(word, second) | high, 0u32)
        }
        GgmlType::Q6_K => {
            let shift = comptime!((unit / 2 * 2) as u32 + if second { 4 } else { 0 });
            let high = ((side[comptime!(high + unit % 2)] >> shift) & 0x0303_0303) << 4;
            bytes(low_bits(word, second) | high, 32u32)
        }
        // They have no such layout.
        GgmlType::F32 | GgmlType::BF16 => {
            Pairs { first: Pair::reinterpret(word), second: Pair::reinterpret(word) }
        }
    }
}

/// Four numbers.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Pairs {
    pub(super) first: Pair,
    pub(super) second: Pair,
}

/// The low or the high four bits of each byte of `word`, less `bias`.
#[cube]
fn nibbles(word: u32, #[comptime] high: bool, #[comptime] bias: u32) -> Pairs {
    let odd = word >> 8;
    if comptime!(high) {
        // They are 16 times as large, and so is 1/16 of the power.
        Pairs {
            first: sixteenth((word & 0x00F0_00F0) | POWER, bias),
            second: sixteenth((odd & 0x00F0_00F0) | POWER, bias),
        }
    } else {
        Pairs {
            first: less_power((word & 0x000F_000F) | POWER, bias),
            second: less_power((odd & 0x000F_000F) | POWER, bias),
        }
    }
}

/// The bytes of `word`, less `bias`.
#[cube]
fn bytes(word: u32, #[comptime] bias: u32) -> Pairs {
    Pairs {
        first: less_power((word & 0x00FF_00FF) | POWER, bias),
        second: less_power(((word >> 8) & 0x00FF_00FF) | POWER, bias),
    }
}

/// Both f16 of `word` less 1024 and `bias`.
#[cube]
fn less_power(word: u32, #[comptime] bias: u32) -> Pair {
    let power = comptime!(both(1024.0 + bias as f32));
    let out: u32;
    gpu_asm!("sub.rn.f16x2 {d}, {a}, {b};", a = in(_) word, b = in(_) power.runtime(), d = out(_) out, options(nomem, pure));
    Pair::reinterpret(out)
}

/// A sixteenth of both f16 of `word`, less 64 and `bias`.
#[cube]
fn sixteenth(word: u32, #[comptime] bias: u32) -> Pair {
    let scale = comptime!(both(0.0625));
    let power = comptime!(both(-(64.0 + bias as f32)));
    let out: u32;
    gpu_asm!("fma.rn.f16x2 {d}, {a}, {b}, {c};", a = in(_) word, b = in(_) scale.runtime(), c = in(_) power.runtime(), d = out(_) out, options(nomem, pure));
    Pair::reinterpret(out)
}

/// An f16 in both halves of a word.
fn both(number: f32) -> u32 {
    u32::from(f16::from_f32(number).to_bits()) * 0x0001_0001
}
