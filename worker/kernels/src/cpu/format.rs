//! The layout of packed weights on the CPU, and how they are dequantised in registers.
//!
//! A matrix is packed in panels of 16 outputs, so that a vector holds the weights of 16 outputs for
//! one input. Two panels, 32 outputs, make a strip, which is contiguous: for each block of
//! [`Format::INPUTS`] inputs, a record of the first panel, then one of the second. The last strip is
//! padded with outputs of zeros, and rows of plain floats are padded with zeros to whole blocks.
//!
//! A record holds the blocks of its 16 outputs by lane, in the same number of bytes (a few more for
//! the scales of the K formats). Scales are vectors of 16 f16 or bytes. Integers are in words, so that
//! a word's bytes belong to consecutive inputs, as products of bytes want it: a word of four inputs if
//! they have 8 bits, of eight if they have 4, of which the low halves of its bytes hold the first four
//! inputs and the high halves the others. Higher bits are in words of their own, of as many inputs as
//! fit: bit 8k + j belongs to input 4j + k, or, where there are two, bits 8k + 2j and 8k + 2j + 1.
//! Floats are one vector per input.
//!
//! A weight is computed by the operations of [`crate::ggml`] in the same order, or by others that are
//! exact where those are, so it is the same number. [`IntegerFormat`] reads its integer alone.

use super::simd::{Simd, array_at};

/// Largest number of inputs that share a scale.
pub(crate) const GROUP: usize = 32;
/// Number of inputs that are decoded at a time.
pub(crate) const CHUNK: usize = 8;
/// Words of four bytes in a group.
pub(crate) const WORDS: usize = GROUP / 4;

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

/// A format of integers, for products with bytes.
///
/// A weight is `(integer - ZERO) * scale`, plus the offset if there is one. The integers are not
/// negative.
pub(crate) trait IntegerFormat: Format {
    /// Bits of an integer.
    const BITS: u32;
    /// The integer that stands for zero.
    const ZERO: i32 = 0;
    /// Whether [`Format::scales`] returns scale and offset.
    const HAS_OFFSET: bool = false;
    /// Whether [`Format::scales`] returns the scales of a group's halves.
    const HAS_HALVES: bool = false;

    /// The integers of a group: word `i` of each output holds those of the inputs from `4i` on.
    fn integers<S: Simd>(s: S, record: &[u8], group: usize) -> [S::Words; WORDS];
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

/// The bit at which each of a word's eight integers is read; three of them fit into a mantissa only after
/// the word is shifted right by 12.
const PLACES: [u32; CHUNK] = [0, 8, 16, 24 - 12, 4, 12, 20 - 12, 28 - 12];

/// The bits at which integers of 8 bits are read; see Q8_0's `decode`.
const BYTE_PLACES: [u32; 2] = [4, 12];

/// What stands for zero in an integer of 8 bits, raised by the unit of its place.
const fn raised_zero(place: u32) -> f32 {
    f32::from_bits(unit_at(place)) + 128.0
}

/// The word that each integer is read from, of those with `low` bits.
#[inline(always)]
fn words_of_nibbles<S: Simd>(s: S, low: S::Words) -> [S::Words; CHUNK] {
    let shifted = s.shift_right(low, 12);
    [low, low, low, shifted, low, low, shifted, shifted]
}

/// Integers of 4 bits, as floats minus `zero`.
#[inline(always)]
fn nibbles<S: Simd>(s: S, low: &[u8; 64], zero: f32) -> [S::Floats; CHUNK] {
    unbiased::<S, 4>(s, words_of_nibbles(s, s.read_u32(low)), zero)
}

/// Integers of 4 low and `HIGH` high bits, as floats minus `zero`. They are chunk `chunk` of those whose
/// high bits are in `high`.
#[inline(always)]
fn with_high<S: Simd, const HIGH: u32, const WIDTH: u32>(
    s: S,
    low: &[u8; 64],
    high: &[u8; 64],
    chunk: usize,
    zero: f32,
) -> [S::Floats; CHUNK] {
    let mut words = words_of_nibbles(s, s.read_u32(low));
    let high = s.shift_right(s.read_u32(high), 2 * HIGH * chunk as u32);
    for i in 0..CHUNK {
        let bit = PLACES[i];
        let (from, to) = (8 * (i as u32 % 4) + HIGH * (i as u32 / 4), bit + 4);
        words[i] = s.select(0xF << bit, words[i], shifted_left(s, high, to as i32 - from as i32));
    }
    unbiased::<S, WIDTH>(s, words, zero)
}

/// `words` shifted left by `bits`, or right if that is negative.
#[inline(always)]
fn shifted_left<S: Simd>(s: S, words: S::Words, bits: i32) -> S::Words {
    if bits < 0 {
        s.shift_right(words, bits.unsigned_abs())
    } else {
        s.shift_left(words, bits.unsigned_abs())
    }
}

/// The integers of a group, of 4 bits: four vectors from `low` on.
#[inline(always)]
fn nibble_words<S: Simd>(s: S, record: &[u8], low: usize) -> [S::Words; WORDS] {
    let mut words = [s.read_u32(array_at(record, low)); WORDS];
    for chunk in 0..GROUP / CHUNK {
        let both = s.read_u32(array_at(record, low + chunk * 64));
        words[2 * chunk] = s.and(both, 0x0F0F_0F0F);
        words[2 * chunk + 1] = s.and(s.shift_right(both, 4), 0x0F0F_0F0F);
    }
    words
}

/// The integers of a group, of 4 low and `HIGH` high bits: four vectors from `low` on, and `HIGH` from
/// `high` on.
#[inline(always)]
fn words_with_high<S: Simd, const HIGH: u32>(
    s: S,
    record: &[u8],
    low: usize,
    high: usize,
) -> [S::Words; WORDS] {
    let mut words = nibble_words(s, record, low);
    let in_word = WORDS / HIGH as usize;
    for (i, word) in words.iter_mut().enumerate() {
        let bits = s.read_u32(array_at(record, high + i / in_word * 64));
        let moved = shifted_left(s, bits, 4 - (HIGH as usize * (i % in_word)) as i32);
        *word = s.select(((1 << HIGH) - 1) * 0x1010_1010, moved, *word);
    }
    words
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
    /// Scale 32, bytes 8 · 64, of which 128 stands for zero.
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

/// The same, of each format of integers.
macro_rules! each_integer_format {
    ($call:ident) => {{
        use format::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        $call! {
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

pub(crate) use each_integer_format;

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

impl IntegerFormat for Q4_0 {
    const BITS: u32 = 4;
    const ZERO: i32 = 8;

    #[inline(always)]
    fn integers<S: Simd>(s: S, record: &[u8], _group: usize) -> [S::Words; WORDS] {
        nibble_words(s, record, SECOND)
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

impl IntegerFormat for Q4_1 {
    const BITS: u32 = 4;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn integers<S: Simd>(s: S, record: &[u8], _group: usize) -> [S::Words; WORDS] {
        nibble_words(s, record, THIRD)
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
        scaled(s, with_high::<S, 1, 5>(s, low, high, chunk, 16.0), scales.0)
    }
}

impl IntegerFormat for Q5_0 {
    const BITS: u32 = 5;
    const ZERO: i32 = 16;

    #[inline(always)]
    fn integers<S: Simd>(s: S, record: &[u8], _group: usize) -> [S::Words; WORDS] {
        words_with_high::<S, 1>(s, record, SECOND + 64, SECOND)
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
        shifted(s, with_high::<S, 1, 5>(s, low, high, chunk, 0.0), scales)
    }
}

impl IntegerFormat for Q5_1 {
    const BITS: u32 = 5;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn integers<S: Simd>(s: S, record: &[u8], _group: usize) -> [S::Words; WORDS] {
        words_with_high::<S, 1>(s, record, THIRD + 64, THIRD)
    }
}

impl Format for Q8_0 {
    const BYTES: usize = SECOND + GROUP * 16;

    /// The scale, and what weights at the first of [`BYTE_PLACES`] are off by.
    #[inline(always)]
    fn scales<S: Simd>(s: S, record: &[u8], _: usize) -> (S::Floats, S::Floats) {
        let scale = s.read_f16(array_at(record, 0));
        (scale, s.mul(scale, s.splat(-raised_zero(BYTE_PLACES[0]))))
    }

    /// An integer that is raised by its place's unit becomes a weight by one fused multiply-add. That is
    /// exact, but for the sign of zeros with negative scales: products of the scale, which has 11 bits, with
    /// what zero is raised to, which has at most 13, have 24.
    #[inline(always)]
    fn decode<S: Simd>(
        s: S,
        record: &[u8],
        _: usize,
        chunk: usize,
        (scale, offset): (S::Floats, S::Floats),
    ) -> [S::Floats; CHUNK] {
        let offsets = [offset, s.mul(scale, s.splat(-raised_zero(BYTE_PLACES[1])))];
        let mut weights = [s.zero(); CHUNK];
        for (i, weight) in weights.iter_mut().enumerate() {
            let word = s.read_u32(array_at(record, SECOND + (chunk * 2 + i / 4) * 64));
            // Two bytes are at their places after either shift.
            let word = if i % 4 < 2 { s.shift_left(word, BYTE_PLACES[0]) } else { s.shift_right(word, 12) };
            let place = BYTE_PLACES[i % 2];
            let raised = s.and_or(word, 0xFF << place, unit_at(place));
            *weight = s.fma(raised, scale, offsets[i % 2]);
        }
        weights
    }
}

impl IntegerFormat for Q8_0 {
    const BITS: u32 = 8;
    const ZERO: i32 = 128;

    #[inline(always)]
    fn integers<S: Simd>(s: S, record: &[u8], _group: usize) -> [S::Words; WORDS] {
        let mut words = [s.read_u32(array_at(record, SECOND)); WORDS];
        for (i, word) in words.iter_mut().enumerate() {
            *word = s.read_u32(array_at(record, SECOND + i * 64));
        }
        words
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

impl IntegerFormat for Q4K {
    const BITS: u32 = 4;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn integers<S: Simd>(s: S, record: &[u8], group: usize) -> [S::Words; WORDS] {
        nibble_words(s, record, K_LOW + group * 256)
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
        shifted(s, with_high::<S, 1, 5>(s, low, high, chunk, 0.0), scales)
    }
}

impl IntegerFormat for Q5K {
    const BITS: u32 = 5;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn integers<S: Simd>(s: S, record: &[u8], group: usize) -> [S::Words; WORDS] {
        words_with_high::<S, 1>(s, record, K_LOW + group * 256, K_HIGH + group * 64)
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
        let numbers = with_high::<S, 2, 6>(s, low, high, chunk % 2, 32.0);
        scaled(s, numbers, if chunk < 2 { scales.0 } else { scales.1 })
    }
}

impl IntegerFormat for Q6K {
    const BITS: u32 = 6;
    const ZERO: i32 = 32;
    const HAS_HALVES: bool = true;

    #[inline(always)]
    fn integers<S: Simd>(s: S, record: &[u8], group: usize) -> [S::Words; WORDS] {
        words_with_high::<S, 2>(s, record, Q6_LOW + group * 256, Q6_HIGH + group * 128)
    }
}
