//! The layout of packed weights on the CPU, and how they are dequantised in registers.
//!
//! A matrix is packed in panels of 16 outputs, so that a vector holds the weights of 16 outputs for
//! one input. Two panels, 32 outputs, make a strip, which is contiguous: for each block of
//! [`Format::INPUTS`] inputs, a record of the first panel, then one of the second. The last strip is
//! padded with outputs of zeros, and rows of plain floats are padded with zeros to whole blocks.
//!
//! A record holds the blocks of its 16 outputs by lane, in the same number of bytes (a few more for
//! the scales of the K formats). Scales are vectors of 16 f16 or bytes. Numbers of 4 bits are packed
//! in words of eight consecutive inputs, the first in the lowest bits; higher bits are in words of
//! their own, of as many inputs as fit. Bytes and floats are one vector per input.
//!
//! A weight is computed by the operations of [`crate::ggml`] in the same order, or by others that are
//! exact where those are, so it has the same bits.

use super::simd::{Simd, array_at};

/// Largest number of inputs that share a scale.
pub(crate) const GROUP: usize = 32;
/// Number of inputs that are decoded at a time.
pub(crate) const CHUNK: usize = 8;

/// The layout of a storage format.
pub(crate) trait Format: 'static {
    /// Number of inputs in a record.
    const INPUTS: usize = GROUP;
    /// Size of a record in bytes.
    const BYTES: usize;

    /// Scale and offset of a group; for Q6_K the two scales of its halves.
    fn scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats);

    /// The weights of [`CHUNK`] inputs, number `chunk` of the group.
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        group: usize,
        chunk: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK];
}

/// The bits of 2²³⁻ᵇⁱᵗ: an integer stored at `bit` of this float's mantissa adds its own value.
const fn unit_at(bit: u32) -> u32 {
    (127 + 23 - bit) << 23
}

/// The integers of `WIDTH` bits at their [`PLACES`] in eight words, as floats minus `zero`.
///
/// No conversion is needed: the exponent is chosen so that the integer's lowest bit counts 1, and the
/// subtraction of the exponent's own value is exact.
#[inline(always)]
fn unbiased<S: Simd, const WIDTH: u32>(s: S, words: [S::Words; CHUNK], zero: f32) -> [S::Floats; CHUNK] {
    let mut numbers = [s.zero(); CHUNK];
    for i in 0..CHUNK {
        let (bit, mask) = (PLACES[i], (1 << WIDTH) - 1);
        let raised = s.and_or(words[i], mask << bit, unit_at(bit));
        numbers[i] = s.sub(raised, s.splat(f32::from_bits(unit_at(bit)) + zero));
    }
    numbers
}

/// The bit at which each of a word's eight integers is read; the last three fit into a mantissa only
/// after the word is shifted right by 12.
const PLACES: [u32; CHUNK] = [0, 4, 8, 12, 16, 8, 12, 16];

/// Integers of 4 bits, as floats minus `zero`.
#[inline(always)]
fn nibbles<S: Simd>(s: S, low: &[u8; 64], zero: f32) -> [S::Floats; CHUNK] {
    let low = s.read_u32(low);
    let shifted = s.shift_right(low, 12);
    let words = [low, low, low, low, low, shifted, shifted, shifted];
    unbiased::<S, 4>(s, words, zero)
}

/// Integers of 4 low and `HIGH` high bits, as floats minus `zero`. The high bits are in `high` from bit
/// `HIGH * first` on.
#[inline(always)]
fn with_high<S: Simd, const HIGH: u32, const WIDTH: u32>(
    s: S,
    low: &[u8; 64],
    high: &[u8; 64],
    first: u32,
    zero: f32,
) -> [S::Floats; CHUNK] {
    let (low, high) = (s.read_u32(low), s.shift_right(s.read_u32(high), HIGH * first));
    let shifted = s.shift_right(low, 12);
    let mut words = [low, low, low, low, low, shifted, shifted, shifted];
    for i in 0..CHUNK {
        let bit = PLACES[i];
        let (from, to) = (HIGH * i as u32, bit + 4);
        let moved = if from > to { s.shift_right(high, from - to) } else { s.shift_left(high, to - from) };
        words[i] = s.select(0xF << bit, words[i], moved);
    }
    unbiased::<S, WIDTH>(s, words, zero)
}

/// Each number times the scale.
#[inline(always)]
fn scaled<S: Simd>(s: S, numbers: [S::Floats; CHUNK], scale: S::Floats) -> [S::Floats; CHUNK] {
    let mut weights = numbers;
    for i in 0..CHUNK {
        weights[i] = s.mul(numbers[i], scale);
    }
    weights
}

/// Each number times the scale, plus the offset. The product is exact, as a number has at most 5 bits
/// and a scale 17, so fusing it with the sum does not change the result.
#[inline(always)]
fn shifted<S: Simd>(
    s: S,
    numbers: [S::Floats; CHUNK],
    (scale, offset): (S::Floats, S::Floats),
) -> [S::Floats; CHUNK] {
    let mut weights = numbers;
    for i in 0..CHUNK {
        weights[i] = s.fma(numbers[i], scale, offset);
    }
    weights
}

/// Declares a type for each format. The docs list the fields of its record with their sizes in bytes.
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident;)+) => {
        $($(#[$doc])* #[derive(Debug)] pub(crate) struct $name;)+
    };
}

formats! {
    /// 32 vectors of f32: 64 each.
    F32;
    /// 32 vectors of f16: 32 each.
    F16;
    /// 32 vectors of bf16: 32 each.
    BF16;
    /// Scale 32, low bits 4 · 64.
    Q4_0;
    /// Scale 32, offset 32, low bits 4 · 64.
    Q4_1;
    /// Scale 32, fifth bits 64, low bits 4 · 64.
    Q5_0;
    /// Scale 32, offset 32, fifth bits 64, low bits 4 · 64.
    Q5_1;
    /// Scale 32, bytes 32 · 16.
    Q8_0;
    /// Scale 32, dmin 32, scales 8 · 16, minima 8 · 16, low bits 32 · 64.
    Q4K;
    /// The fields of Q4_K, then fifth bits 8 · 64.
    Q5K;
    /// Scale 32, scales 16 · 16, low bits 32 · 64, high bits 16 · 64.
    Q6K;
}

/// Offsets of the fields of records, in bytes.
pub(crate) mod offset {
    /// Q4_0 and Q8_0: numbers; Q5_0: fifth bits, Q4_1 and all K formats: the second scale.
    pub(crate) const SECOND: usize = 32;
    /// Q4_1: numbers; Q5_1: fifth bits; Q4_K and Q5_K: scales.
    pub(crate) const THIRD: usize = 64;
    /// Q4_K and Q5_K: minima.
    pub(crate) const MINIMA: usize = THIRD + 128;
    /// Q4_K and Q5_K: low bits.
    pub(crate) const K_LOW: usize = MINIMA + 128;
    /// Q5_K: fifth bits.
    pub(crate) const K_HIGH: usize = K_LOW + 32 * 64;
    /// Q6_K: low bits.
    pub(crate) const Q6_LOW: usize = SECOND + 256;
    /// Q6_K: high bits.
    pub(crate) const Q6_HIGH: usize = Q6_LOW + 32 * 64;
}

use offset::{K_HIGH, K_LOW, MINIMA, Q6_HIGH, Q6_LOW, SECOND, THIRD};

/// Calls a macro with ggml's name and the type of each format.
macro_rules! each_format {
    ($call:ident) => {{
        use format::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        $call! {
            F32: F32,
            F16: F16,
            BF16: BF16,
            Q4_0: Q4_0,
            Q4_1: Q4_1,
            Q5_0: Q5_0,
            Q5_1: Q5_1,
            Q8_0: Q8_0,
            Q4_K: Q4K,
            Q5_K: Q5K,
            Q6_K: Q6K,
        }
    }};
}

pub(crate) use each_format;

/// Formats of plain floats.
macro_rules! floats {
    ($name:ident, $bytes:literal, $read:ident) => {
        impl Format for $name {
            const BYTES: usize = GROUP * $bytes;

            #[inline(always)]
            fn scales<S: Simd>(s: S, _: &[u8], _: usize) -> (S::Floats, S::Floats) {
                (s.zero(), s.zero())
            }

            #[inline(always)]
            fn decode<S: Simd>(
                s: S,
                record: &[u8],
                _: usize,
                chunk: usize,
                _: (S::Floats, S::Floats),
            ) -> [S::Floats; CHUNK] {
                let mut weights = [s.zero(); CHUNK];
                for i in 0..CHUNK {
                    weights[i] = s.$read(array_at(record, (chunk * CHUNK + i) * $bytes));
                }
                weights
            }
        }
    };
}

floats!(F32, 64, read_f32);
floats!(F16, 32, read_f16);
floats!(BF16, 32, read_bf16);

impl Format for Q4_0 {
    const BYTES: usize = SECOND + 256;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.read_f16(array_at(record, 0)), s.zero())
    }

    #[inline(always)]
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        chunk: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK] {
        scaled(s, nibbles(s, array_at(record, SECOND + chunk * 64), 8.0), scales.0)
    }
}

impl Format for Q4_1 {
    const BYTES: usize = THIRD + 256;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.read_f16(array_at(record, 0)), s.read_f16(array_at(record, SECOND)))
    }

    #[inline(always)]
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        chunk: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK] {
        shifted(s, nibbles(s, array_at(record, THIRD + chunk * 64), 0.0), scales)
    }
}

impl Format for Q5_0 {
    const BYTES: usize = SECOND + 64 + 256;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.read_f16(array_at(record, 0)), s.zero())
    }

    #[inline(always)]
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        chunk: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK] {
        let (high, low) = (array_at(record, SECOND), array_at(record, SECOND + 64 + chunk * 64));
        scaled(s, with_high::<S, 1, 5>(s, low, high, (chunk * CHUNK) as u32, 16.0), scales.0)
    }
}

impl Format for Q5_1 {
    const BYTES: usize = THIRD + 64 + 256;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.read_f16(array_at(record, 0)), s.read_f16(array_at(record, SECOND)))
    }

    #[inline(always)]
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        chunk: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK] {
        let (high, low) = (array_at(record, THIRD), array_at(record, THIRD + 64 + chunk * 64));
        shifted(s, with_high::<S, 1, 5>(s, low, high, (chunk * CHUNK) as u32, 0.0), scales)
    }
}

impl Format for Q8_0 {
    const BYTES: usize = SECOND + GROUP * 16;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.read_f16(array_at(record, 0)), s.zero())
    }

    #[inline(always)]
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        chunk: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK] {
        let mut numbers = [s.zero(); CHUNK];
        for (i, number) in numbers.iter_mut().enumerate() {
            *number = s.read_i8(array_at(record, SECOND + (chunk * CHUNK + i) * 16));
        }
        scaled(s, numbers, scales.0)
    }
}

/// Scale and offset of a group of Q4_K or Q5_K.
#[inline(always)]
fn k_scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats) {
    let scale = s.read_u8(array_at(record, THIRD + group * 16));
    let minimum = s.read_u8(array_at(record, MINIMA + group * 16));
    let minimum = s.mul(s.read_f16(array_at(record, SECOND)), minimum);
    (s.mul(s.read_f16(array_at(record, 0)), scale), s.mul(minimum, s.splat(-1.0)))
}

impl Format for Q4K {
    const INPUTS: usize = 256;
    const BYTES: usize = K_HIGH;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats) {
        k_scales(s, record, group)
    }

    #[inline(always)]
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        group: usize,
        chunk: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK] {
        shifted(s, nibbles(s, array_at(record, K_LOW + (group * 4 + chunk) * 64), 0.0), scales)
    }
}

impl Format for Q5K {
    const INPUTS: usize = 256;
    const BYTES: usize = K_HIGH + 8 * 64;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats) {
        k_scales(s, record, group)
    }

    #[inline(always)]
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        group: usize,
        chunk: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK] {
        let low = array_at(record, K_LOW + (group * 4 + chunk) * 64);
        let high = array_at(record, K_HIGH + group * 64);
        shifted(s, with_high::<S, 1, 5>(s, low, high, (chunk * CHUNK) as u32, 0.0), scales)
    }
}

impl Format for Q6K {
    const INPUTS: usize = 256;
    const BYTES: usize = Q6_HIGH + 16 * 64;

    /// The scales of the first and of the second 16 inputs.
    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats) {
        let scale = s.read_f16(array_at(record, 0));
        let first = s.read_i8(array_at(record, SECOND + group * 32));
        let second = s.read_i8(array_at(record, SECOND + group * 32 + 16));
        (s.mul(scale, first), s.mul(scale, second))
    }

    #[inline(always)]
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        group: usize,
        chunk: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK] {
        let low = array_at(record, Q6_LOW + (group * 4 + chunk) * 64);
        let high = array_at(record, Q6_HIGH + (group * 2 + chunk / 2) * 64);
        let numbers = with_high::<S, 2, 6>(s, low, high, (chunk % 2 * CHUNK) as u32, 32.0);
        scaled(s, numbers, if chunk < 2 { scales.0 } else { scales.1 })
    }
}
