//! Weights as the CPU keeps them, and how they become numbers in registers.
//!
//! A matrix is packed in panels of 16 outputs, so that a vector holds the same input's weights of
//! 16 outputs. Two panels that are 32 outputs make a strip, which is one run of memory: for each
//! stretch of inputs ([`Format::LEN`], the file format's block), a record of the first panel, then
//! one of the second. The last strip is filled up with outputs of zeros, and rows of plain floats
//! with zeros to whole stretches.
//!
//! A record holds what the blocks of its 16 outputs hold, in as many bytes (a few more for the
//! K formats' scales), by lane: scales are vectors of 16 f16 or bytes; numbers of 4 bits are words
//! of eight successive inputs, the first in the lowest bits; further bits are words, of as many
//! inputs as they hold; bytes and floats are one vector for each input.
//!
//! A weight is computed by the operations of [`crate::ggml`] in their order, or by others that
//! are exact where those are, so it is the same number.

use super::simd::{Simd, part};

/// Inputs that share scales, at most: the unit of decoding.
pub(crate) const GROUP: usize = 32;
/// Inputs that are decoded at a time.
pub(crate) const OCTET: usize = 8;

/// A number format.
pub(crate) trait Format: 'static {
    /// Inputs of a record.
    const LEN: usize = GROUP;
    /// Bytes of a record.
    const RECORD: usize;

    /// What all numbers of a group need: for the formats with one scale, that and an offset.
    fn scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats);

    /// Eight inputs' weights.
    fn octet<S: Simd>(
        s: S,
        record: &[u8],
        group: usize,
        octet: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; OCTET];
}

/// Bits of 2²³⁻ⁿ: a number of few bits at bit n of its mantissa counts in units.
const fn unit_at(bit: u32) -> u32 {
    (127 + 23 - bit) << 23
}

/// Numbers of `WIDTH` bits at their [`PLACES`] of eight words, less `zero`.
///
/// With the exponent that makes the lowest bit of the number one unit, the number needs no
/// conversion: subtracting what the exponent alone stands for is exact.
#[inline(always)]
fn unbiased<S: Simd, const WIDTH: u32>(s: S, words: [S::Words; OCTET], zero: f32) -> [S::Floats; OCTET] {
    let mut numbers = [s.zero(); OCTET];
    for i in 0..OCTET {
        let (bit, mask) = (PLACES[i], (1 << WIDTH) - 1);
        let raised = s.with_bits(words[i], mask << bit, unit_at(bit));
        numbers[i] = s.sub(raised, s.splat(f32::from_bits(unit_at(bit)) + zero));
    }
    numbers
}

/// Where each of a word's eight numbers is made a float; the last three only fit into a mantissa
/// after the word is shifted by 12.
const PLACES: [u32; OCTET] = [0, 4, 8, 12, 16, 8, 12, 16];

/// Numbers of 4 bits, less `zero`.
#[inline(always)]
fn nibbles<S: Simd>(s: S, low: &[u8; 64], zero: f32) -> [S::Floats; OCTET] {
    let low = s.words(low);
    let shifted = s.right(low, 12);
    let words = [low, low, low, low, low, shifted, shifted, shifted];
    unbiased::<S, 4>(s, words, zero)
}

/// Numbers of 4 low and `HIGH` high bits, less `zero`; the high bits are in `high` from `HIGH *
/// first` on.
#[inline(always)]
fn with_high<S: Simd, const HIGH: u32, const WIDTH: u32>(
    s: S,
    low: &[u8; 64],
    high: &[u8; 64],
    first: u32,
    zero: f32,
) -> [S::Floats; OCTET] {
    let (low, high) = (s.words(low), s.right(s.words(high), HIGH * first));
    let shifted = s.right(low, 12);
    let mut words = [low, low, low, low, low, shifted, shifted, shifted];
    for i in 0..OCTET {
        let bit = PLACES[i];
        let (from, to) = (HIGH * i as u32, bit + 4);
        let moved = if from > to { s.right(high, from - to) } else { s.left(high, to - from) };
        words[i] = s.select(0xF << bit, words[i], moved);
    }
    unbiased::<S, WIDTH>(s, words, zero)
}

/// Each number times the scale.
#[inline(always)]
fn scaled<S: Simd>(s: S, numbers: [S::Floats; OCTET], scale: S::Floats) -> [S::Floats; OCTET] {
    let mut weights = numbers;
    for i in 0..OCTET {
        weights[i] = s.mul(numbers[i], scale);
    }
    weights
}

/// Each number times the scale, plus the offset. The product is exact, as numbers have 5 bits and
/// scales 17 at most: so it does not matter that it is not rounded by itself.
#[inline(always)]
fn shifted<S: Simd>(
    s: S,
    numbers: [S::Floats; OCTET],
    (scale, offset): (S::Floats, S::Floats),
) -> [S::Floats; OCTET] {
    let mut weights = numbers;
    for i in 0..OCTET {
        weights[i] = s.fma(numbers[i], scale, offset);
    }
    weights
}

/// A type for each format, with its record: parts and their sizes in bytes.
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident;)+) => {
        $($(#[$doc])* #[derive(Debug)] pub(crate) struct $name;)+
    };
}

formats! {
    /// 32 singles of 64.
    F32;
    /// 32 halves of 32.
    F16;
    /// 32 brain halves of 32.
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
    /// Scale 32, minimum's scale 32, scales 8 · 16, minima 8 · 16, low bits 32 · 64.
    Q4K;
    /// As Q4_K, and fifth bits 8 · 64.
    Q5K;
    /// Scale 32, scales 16 · 16, low bits 32 · 64, high bits 16 · 64.
    Q6K;
}

/// Where the parts of records begin.
pub(crate) mod place {
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

use place::{K_HIGH, K_LOW, MINIMA, Q6_HIGH, Q6_LOW, SECOND, THIRD};

/// Calls a macro with all formats and what the file format is called.
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
            const RECORD: usize = GROUP * $bytes;

            #[inline(always)]
            fn scales<S: Simd>(s: S, _: &[u8], _: usize) -> (S::Floats, S::Floats) {
                (s.zero(), s.zero())
            }

            #[inline(always)]
            fn octet<S: Simd>(
                s: S,
                record: &[u8],
                _: usize,
                octet: usize,
                _: (S::Floats, S::Floats),
            ) -> [S::Floats; OCTET] {
                let mut weights = [s.zero(); OCTET];
                for i in 0..OCTET {
                    weights[i] = s.$read(part(record, (octet * OCTET + i) * $bytes));
                }
                weights
            }
        }
    };
}

floats!(F32, 64, singles);
floats!(F16, 32, halves);
floats!(BF16, 32, brain_halves);

impl Format for Q4_0 {
    const RECORD: usize = SECOND + 256;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.halves(part(record, 0)), s.zero())
    }

    #[inline(always)]
    fn octet<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        octet: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; OCTET] {
        scaled(s, nibbles(s, part(record, SECOND + octet * 64), 8.0), scales.0)
    }
}

impl Format for Q4_1 {
    const RECORD: usize = THIRD + 256;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.halves(part(record, 0)), s.halves(part(record, SECOND)))
    }

    #[inline(always)]
    fn octet<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        octet: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; OCTET] {
        shifted(s, nibbles(s, part(record, THIRD + octet * 64), 0.0), scales)
    }
}

impl Format for Q5_0 {
    const RECORD: usize = SECOND + 64 + 256;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.halves(part(record, 0)), s.zero())
    }

    #[inline(always)]
    fn octet<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        octet: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; OCTET] {
        let (high, low) = (part(record, SECOND), part(record, SECOND + 64 + octet * 64));
        scaled(s, with_high::<S, 1, 5>(s, low, high, (octet * OCTET) as u32, 16.0), scales.0)
    }
}

impl Format for Q5_1 {
    const RECORD: usize = THIRD + 64 + 256;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.halves(part(record, 0)), s.halves(part(record, SECOND)))
    }

    #[inline(always)]
    fn octet<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        octet: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; OCTET] {
        let (high, low) = (part(record, THIRD), part(record, THIRD + 64 + octet * 64));
        shifted(s, with_high::<S, 1, 5>(s, low, high, (octet * OCTET) as u32, 0.0), scales)
    }
}

impl Format for Q8_0 {
    const RECORD: usize = SECOND + GROUP * 16;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        (s.halves(part(record, 0)), s.zero())
    }

    #[inline(always)]
    fn octet<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        octet: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; OCTET] {
        let mut numbers = [s.zero(); OCTET];
        for (i, number) in numbers.iter_mut().enumerate() {
            *number = s.signed(part(record, SECOND + (octet * OCTET + i) * 16));
        }
        scaled(s, numbers, scales.0)
    }
}

/// A group's scale and offset of Q4_K and Q5_K.
#[inline(always)]
fn k_scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats) {
    let scale = s.unsigned(part(record, THIRD + group * 16));
    let minimum = s.unsigned(part(record, MINIMA + group * 16));
    let minimum = s.mul(s.halves(part(record, SECOND)), minimum);
    (s.mul(s.halves(part(record, 0)), scale), s.mul(minimum, s.splat(-1.0)))
}

impl Format for Q4K {
    const LEN: usize = 256;
    const RECORD: usize = K_HIGH;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats) {
        k_scales(s, record, group)
    }

    #[inline(always)]
    fn octet<S: Simd>(
        s: S,
        record: &[u8],
        group: usize,
        octet: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; OCTET] {
        shifted(s, nibbles(s, part(record, K_LOW + (group * 4 + octet) * 64), 0.0), scales)
    }
}

impl Format for Q5K {
    const LEN: usize = 256;
    const RECORD: usize = K_HIGH + 8 * 64;

    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats) {
        k_scales(s, record, group)
    }

    #[inline(always)]
    fn octet<S: Simd>(
        s: S,
        record: &[u8],
        group: usize,
        octet: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; OCTET] {
        let low = part(record, K_LOW + (group * 4 + octet) * 64);
        let high = part(record, K_HIGH + group * 64);
        shifted(s, with_high::<S, 1, 5>(s, low, high, (octet * OCTET) as u32, 0.0), scales)
    }
}

impl Format for Q6K {
    const LEN: usize = 256;
    const RECORD: usize = Q6_HIGH + 16 * 64;

    /// Of the first and of the second 16 inputs.
    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], group: usize) -> (S::Floats, S::Floats) {
        let scale = s.halves(part(record, 0));
        let first = s.signed(part(record, SECOND + group * 32));
        let second = s.signed(part(record, SECOND + group * 32 + 16));
        (s.mul(scale, first), s.mul(scale, second))
    }

    #[inline(always)]
    fn octet<S: Simd>(
        s: S,
        record: &[u8],
        group: usize,
        octet: usize,
        scales: (S::Floats, S::Floats),
    ) -> [S::Floats; OCTET] {
        let low = part(record, Q6_LOW + (group * 4 + octet) * 64);
        let high = part(record, Q6_HIGH + (group * 2 + octet / 2) * 64);
        let numbers = with_high::<S, 2, 6>(s, low, high, (octet % 2 * OCTET) as u32, 32.0);
        scaled(s, numbers, if octet < 2 { scales.0 } else { scales.1 })
    }
}
