//! Plain Rust, for processors without an implementation of their own.

use std::array;

use half::{bf16, f16};

use super::byte_dot::{ByteDot, DotKernel};
use super::vector::{Kernel, LANES, Simd};

/// Available everywhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

type Lanes = [f32; LANES];

#[inline(always)]
fn pairs(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    array::from_fn(|lane| f(a[lane], b[lane]))
}

#[inline(always)]
fn parts<const BYTES: usize, const N: usize>(bytes: &[u8; BYTES]) -> [[u8; N]; LANES] {
    array::from_fn(|lane| array::from_fn(|byte| bytes[lane * N + byte]))
}

/// Converts an f16 to f32 exactly.
///
/// It has no branches or calls, unlike [`f16::to_f32`], so that the compiler can vectorise it. As in
/// Maratyszcza's FP16 library: exponent and mantissa are shifted to their places in an f32, and a
/// product corrects the exponent's bias. A subnormal is computed as the difference of two normal
/// numbers.
#[inline(always)]
fn widened(half: f16) -> f32 {
    const BIAS: u32 = 0xE0 << 23;
    const SCALE: f32 = f32::from_bits((127 - 112) << 23); // 2⁻¹¹²
    const MAGIC: u32 = 126 << 23; // 0.5
    const SMALLEST: u32 = 1 << 27;
    let word = u32::from(half.to_bits()) << 16;
    let magnitude = word << 1;
    let normal = f32::from_bits((magnitude >> 4).wrapping_add(BIAS)) * SCALE;
    let small = f32::from_bits((magnitude >> 17) | MAGIC) - 0.5;
    let number = if magnitude < SMALLEST { small } else { normal };
    f32::from_bits((word & 0x8000_0000) | number.to_bits())
}

impl Simd for Portable {
    type Floats = Lanes;
    type Words = [u32; LANES];

    const TILE_ROWS: usize = 4;
    const TILE_PANELS: usize = 1;
    const DIRECT_ROWS: usize = 1;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.call(self)
    }

    #[inline(always)]
    fn splat(self, number: f32) -> Lanes {
        [number; LANES]
    }

    #[inline(always)]
    fn load(self, lanes: &Lanes) -> Lanes {
        *lanes
    }

    #[inline(always)]
    fn store(self, lanes: &mut Lanes, floats: Lanes) {
        *lanes = floats;
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        pairs(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        pairs(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        pairs(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        pairs(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        pairs(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        pairs(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn reduce_max(self, a: Lanes) -> f32 {
        a.iter().copied().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn select_lanes(self, from: usize, to: usize, a: Lanes, b: Lanes) -> Lanes {
        array::from_fn(|lane| if (from..to).contains(&lane) { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn load_f16(self, lanes: &[f16; LANES]) -> Lanes {
        lanes.map(widened)
    }

    #[inline(always)]
    fn store_f16(self, lanes: &mut [f16; LANES], floats: Lanes) {
        *lanes = floats.map(f16::from_f32);
    }

    #[inline(always)]
    fn read_f16(self, bytes: &[u8; 32]) -> Lanes {
        parts(bytes).map(|half| widened(f16::from_le_bytes(half)))
    }

    #[inline(always)]
    fn read_bf16(self, bytes: &[u8; 32]) -> Lanes {
        parts(bytes).map(|half| bf16::from_le_bytes(half).to_f32())
    }

    #[inline(always)]
    fn read_f32(self, bytes: &[u8; 64]) -> Lanes {
        parts(bytes).map(f32::from_le_bytes)
    }

    #[inline(always)]
    fn read_i8(self, bytes: &[u8; 16]) -> Lanes {
        bytes.map(|byte| f32::from(byte.cast_signed()))
    }

    #[inline(always)]
    fn read_u8(self, bytes: &[u8; 16]) -> Lanes {
        bytes.map(f32::from)
    }

    #[inline(always)]
    fn read_u32(self, bytes: &[u8; 64]) -> [u32; LANES] {
        parts(bytes).map(u32::from_le_bytes)
    }

    #[inline(always)]
    fn shift_right(self, words: [u32; LANES], bits: u32) -> [u32; LANES] {
        words.map(|word| word >> bits)
    }

    #[inline(always)]
    fn shift_left(self, words: [u32; LANES], bits: u32) -> [u32; LANES] {
        words.map(|word| word << bits)
    }

    #[inline(always)]
    fn select(self, mask: u32, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        array::from_fn(|lane| (a[lane] & mask) | (b[lane] & !mask))
    }

    #[inline(always)]
    fn and(self, words: [u32; LANES], mask: u32) -> [u32; LANES] {
        words.map(|word| word & mask)
    }

    #[inline(always)]
    fn add_words(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        array::from_fn(|lane| a[lane].wrapping_add(b[lane]))
    }

    #[inline(always)]
    fn convert(self, words: [u32; LANES]) -> Lanes {
        words.map(|word| word.cast_signed() as f32)
    }

    #[inline(always)]
    fn and_or(self, words: [u32; LANES], mask: u32, ones: u32) -> Lanes {
        words.map(|word| f32::from_bits((word & mask) | ones))
    }

    #[inline(always)]
    fn to_bits(self, floats: Lanes) -> [u32; LANES] {
        floats.map(f32::to_bits)
    }

    #[inline(always)]
    fn add_to_bits(self, floats: Lanes, words: [u32; LANES]) -> Lanes {
        array::from_fn(|lane| f32::from_bits(floats[lane].to_bits().wrapping_add(words[lane])))
    }

    #[inline(always)]
    fn prefetch(self, _bytes: &[u8], _at: usize) {}
}

impl ByteDot for Portable {
    type Floats = Self;

    const TILE_ROWS: usize = 2;
    const PANEL_PAIR_ROWS: usize = 0;

    #[inline(always)]
    fn floats(self) -> Self {
        self
    }

    #[inline(always)]
    fn run_dot<K: DotKernel>(self, kernel: K) {
        kernel.call(self);
    }

    #[inline(always)]
    fn dot<const BITS: u32, const N: usize>(
        self,
        correction: i32,
        weights: &[[u32; LANES]; N],
        x: &[[i8; 4]; N],
    ) -> [u32; LANES] {
        let mut sums = [correction; LANES];
        for (weights, x) in weights.iter().zip(x) {
            for (k, x) in x.iter().enumerate() {
                for (sum, word) in sums.iter_mut().zip(weights) {
                    *sum += (word >> (8 * k) & 0xFF).cast_signed() * i32::from(*x);
                }
            }
        }
        sums.map(i32::cast_unsigned)
    }
}
