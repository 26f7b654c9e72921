//! The exponential function.

use super::vector::Simd;

/// e to the power of each lane; lanes are clamped to [-87, 88] first.
///
/// Accurate to 2 units in the last place: Cody and Waite's reduction to ±ln 2 / 2, then the polynomial
/// of Moshier's Cephes library.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::Floats) -> S::Floats {
    // Adding SHIFT leaves the integer part in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2²³
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
    let x = s.max(s.min(x, s.splat(88.0)), s.splat(-87.0));
    let shifted = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(SHIFT));
    let whole = s.sub(shifted, s.splat(SHIFT));
    let rest = s.fma(whole, s.splat(-LN2_HIGH), x);
    let rest = s.fma(whole, s.splat(-LN2_LOW), rest);
    let mut sum = s.splat(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        sum = s.fma(sum, rest, s.splat(*coefficient));
    }
    let square = s.mul(rest, rest);
    let one_and = s.add(s.fma(sum, square, rest), s.splat(1.0));
    s.add_to_bits(one_and, s.shift_left(s.to_bits(shifted), 23))
}
