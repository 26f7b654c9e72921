//! Pairs of f16 in 32-bit words, for a cache that stores them: integer operations do, so that no device
//! needs to know the type.
//!
//! Numbers i and i + n of a head lie in word i of its n words: rotation makes them together, and the
//! words that a thread reads at once hold two vectors of adjacent numbers.

use burn::cubecl;
use burn::cubecl::prelude::*;

use crate::types::F16_MAX;

/// What numbers have to be multiplied with that [`low_halves`] and [`high_halves`] leave scaled: 2^112, the
/// difference of what exponents of f32 and f16 are biased by.
pub(crate) const RESCALE: f32 = f32::from_bits((127 + 112) << 23);
/// What those of infinities and NaN are at least: 2^16, scaled.
pub(crate) const BEYOND: f32 = f32::from_bits((127 + 16 - 112) << 23);

/// `low` and `high` as f16, rounded to the nearest, ties to even. What is larger than f16 can hold becomes
/// its largest number; NaN stays NaN.
#[cube]
pub(crate) fn pack_halves(low: f32, high: f32) -> u32 {
    half_of(low) | (half_of(high) << 16)
}

#[cube]
fn half_of(number: f32) -> u32 {
    let bits = u32::reinterpret(number);
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7FFF_FFFF;
    let clamped = min(magnitude, comptime!(F16_MAX.to_bits()));
    // The mantissa loses 13 bits, which may carry into the exponent.
    let normal = (clamped + 0x0FFF + ((clamped >> 13) & 1) - 0x3800_0000) >> 13;
    // Below 2^-14: one half has 2^-24 as its unit in the last place, and the sum is rounded to that.
    let subnormal = u32::reinterpret(f32::reinterpret(clamped) + 0.5) - 0x3F00_0000;
    let rounded = select(clamped < 0x3880_0000, subnormal, normal);
    sign | select(magnitude > 0x7F80_0000, 0x7E00, rounded)
}

/// The lower f16 of each word, as f32 divided by [`RESCALE`]: it takes shifts and a mask. GPUs that flush
/// subnormal f32 make zeros of those of f16.
#[cube]
pub(crate) fn low_halves<N: Size>(words: Vector<u32, N>, #[comptime] count: usize) -> Vector<f32, N> {
    let mut out = Vector::<f32, N>::empty();
    #[unroll]
    for i in 0..count {
        out.insert(i, scaled(words.extract(i) << 16));
    }
    out
}

/// The same of the upper f16.
#[cube]
pub(crate) fn high_halves<N: Size>(words: Vector<u32, N>, #[comptime] count: usize) -> Vector<f32, N> {
    let mut out = Vector::<f32, N>::empty();
    #[unroll]
    for i in 0..count {
        out.insert(i, scaled(words.extract(i)));
    }
    out
}

#[cube]
fn scaled(word: u32) -> f32 {
    // The shift leaves the sign in its place and moves exponent and mantissa to those of an f32.
    f32::reinterpret(u32::reinterpret(i32::reinterpret(word) >> 3) & 0x8FFF_E000)
}

/// The words themselves, as f32.
#[cube]
pub(crate) fn singles<N: Size>(words: Vector<u32, N>, #[comptime] count: usize) -> Vector<f32, N> {
    let mut out = Vector::<f32, N>::empty();
    #[unroll]
    for i in 0..count {
        out.insert(i, f32::reinterpret(words.extract(i)));
    }
    out
}
