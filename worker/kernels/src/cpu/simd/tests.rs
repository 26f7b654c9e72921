//! Every instruction set that this processor has returns the bits of the portable one.

use std::array;

use half::f16;
use proptest::prelude::*;

use super::*;

/// Runs a kernel with each instruction set that this processor has.
pub(crate) fn on_all<K: Kernel + Clone>(kernel: &K) -> Vec<K::Output> {
    let mut outputs = vec![portable::Portable.run(kernel.clone())];
    #[cfg(target_arch = "x86_64")]
    {
        outputs.extend(avx2::Avx2::detect().map(|simd| simd.run(kernel.clone())));
        outputs.extend(avx512::Avx512::detect().map(|simd| simd.run(kernel.clone())));
    }
    outputs
}

/// Calls `work` with each instruction set for bytes that this processor has.
pub(crate) fn on_all_dots(work: &(impl WithByteDot + Clone)) {
    work.clone().call(portable::Portable);
    #[cfg(target_arch = "x86_64")]
    {
        avx2::Avx2::detect().into_iter().for_each(|dot| work.clone().call(dot));
        avx2::AvxVnni::detect().into_iter().for_each(|dot| work.clone().call(dot));
        avx512::Avx512::detect().into_iter().for_each(|dot| work.clone().call(dot));
        avx512::Avx512Vnni::detect().into_iter().for_each(|dot| work.clone().call(dot));
    }
}

/// Checks [`ByteDot::dot`] of integers of `bits` bits.
#[derive(Clone)]
struct CheckDot<'a> {
    bits: u32,
    weights: &'a [[u8; 64]; 8],
    x: [[i8; 4]; 8],
}

impl WithByteDot for CheckDot<'_> {
    fn call<D: ByteDot>(self, dot: D) {
        let Self { bits, weights, x } = &self;
        let zero = if *bits == 8 { 128 } else { 1 << bits >> 1 };
        let mut got = [0.0; LANES];
        let sums: i32 = x.as_flattened().iter().map(|x| i32::from(*x)).sum();
        dot.run_dot(Dot { bits: *bits, weights, x, correction: -zero * sums, out: &mut got });
        for (lane, got) in got.into_iter().enumerate() {
            let products = weights.iter().zip(x).flat_map(|(weights, x)| {
                let weights = &weights[4 * lane..][..4];
                weights.iter().zip(x).map(|(weight, x)| (i32::from(*weight) - zero) * i32::from(*x))
            });
            assert_eq!(got, products.sum::<i32>() as f32, "lane {lane}, {bits} bits");
        }
    }
}

struct Dot<'a> {
    bits: u32,
    weights: &'a [[u8; 64]; 8],
    x: &'a [[i8; 4]; 8],
    correction: i32,
    out: &'a mut [f32; LANES],
}

impl DotKernel for Dot<'_> {
    #[inline(always)]
    fn call<D: ByteDot>(self, dot: D) {
        let s = dot.floats();
        let weights = self.weights.map(|weights| s.read_u32(&weights));
        let sums = match self.bits {
            4 => dot.dot::<4, 8>(self.correction, &weights, self.x),
            5 => dot.dot::<5, 8>(self.correction, &weights, self.x),
            6 => dot.dot::<6, 8>(self.correction, &weights, self.x),
            _ => dot.dot::<8, 8>(self.correction, &weights, self.x),
        };
        s.store(self.out, s.convert(sums));
    }
}

#[test]
fn products_of_extreme_bytes_do_not_overflow() {
    for bits in [4, 5, 6, 8] {
        let largest = ((1_u32 << bits) - 1) as u8;
        for weight in [0, largest] {
            for x in [-127, 127] {
                on_all_dots(&CheckDot { bits, weights: &[[weight; 64]; 8], x: [[x; 4]; 8] });
            }
        }
    }
}

#[derive(Clone)]
struct Everything {
    a: [f32; LANES],
    b: [f32; LANES],
    c: [f32; LANES],
    bytes: [u8; 64],
    bits: u32,
    mask: u32,
    range: (usize, usize),
}

impl Kernel for Everything {
    type Output = Vec<u32>;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> Vec<u32> {
        let (a, b, c) = (s.load(&self.a), s.load(&self.b), s.load(&self.c));
        let words = s.read_u32(&self.bytes);
        let other = s.to_bits(c);
        let vectors = [
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.fma(a, b, c),
            s.max(a, b),
            s.min(a, b),
            s.splat(self.a[0]),
            s.select_lanes(self.range.0, self.range.1, a, b),
            s.read_f16(array_at(&self.bytes, 0)),
            s.read_bf16(array_at(&self.bytes, 32)),
            s.read_f32(&self.bytes),
            s.read_i8(array_at(&self.bytes, 16)),
            s.read_u8(array_at(&self.bytes, 16)),
            s.and_or(s.shift_right(words, self.bits), self.mask, 0x3F80_0000),
            s.and_or(s.shift_left(words, self.bits), self.mask, 0x3F80_0000),
            s.and_or(s.select(self.mask, words, other), u32::MAX, 0),
            s.and_or(s.and(words, self.mask), u32::MAX, 0),
            s.convert(words),
            s.convert(s.add_words(words, other)),
            s.add_to_bits(a, words),
            exp(s, a),
        ];
        let mut out = vec![s.reduce_max(a).to_bits(), s.reduce_sum(a).to_bits()];
        for vector in vectors {
            let mut lanes = [0.0; LANES];
            s.store(&mut lanes, vector);
            // The payload of a NaN may differ.
            out.extend(lanes.map(|lane| if lane.is_nan() { f32::NAN.to_bits() } else { lane.to_bits() }));
        }
        out
    }
}

#[derive(Clone)]
struct Narrow([f32; LANES]);

impl Kernel for Narrow {
    type Output = [f16; LANES];

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> [f16; LANES] {
        let mut halves = [f16::ZERO; LANES];
        s.store_f16(&mut halves, s.load(&self.0));
        halves
    }
}

#[derive(Clone)]
struct Widen([f16; LANES]);

impl Kernel for Widen {
    type Output = [f32; LANES];

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> [f32; LANES] {
        let mut numbers = [0.0; LANES];
        s.store(&mut numbers, s.load_f16(&self.0));
        numbers
    }
}

#[test]
fn every_f16_is_converted_exactly() {
    for first in (0..=u16::MAX).step_by(LANES) {
        let halves = array::from_fn(|lane| f16::from_bits(first + lane as u16));
        for got in on_all(&Widen(halves)) {
            for (half, got) in halves.into_iter().zip(got) {
                let expected = half.to_f32();
                let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
                assert!(same, "{:#06x}: {got} for {expected}", half.to_bits());
            }
        }
    }
}

/// Ties round to even, and what rounds up beyond the range becomes infinity.
#[test]
fn f16_rounds_to_even() {
    let mut numbers = [0.0; LANES];
    let expected =
        [(2049.0, 2048.0), (2051.0, 2052.0), (65519.0, 65504.0), (65520.0, f32::INFINITY), (2e-8, 0.0)];
    for (number, (given, _)) in numbers.iter_mut().zip(expected) {
        *number = given;
    }
    for got in on_all(&Narrow(numbers)) {
        for (got, (given, wanted)) in got.into_iter().zip(expected) {
            assert_eq!(got.to_f32(), wanted, "{given}");
        }
    }
}

proptest! {
    #[test]
    fn instruction_sets_agree(
        a: [i16; LANES],
        b: [i16; LANES],
        c: [i16; LANES],
        bytes in prop::collection::vec(any::<u8>(), 64),
        bits in 0..32_u32,
        mask: u32,
        from in 0..=LANES,
        to in 0..=LANES,
    ) {
        let number = |n: i16| f32::from(n) / 97.0 + 0.001;
        let bytes = bytes.try_into().unwrap();
        let range = (from.min(to), from.max(to));
        let (a, b, c) = (a.map(number), b.map(number), c.map(number));
        let outputs = on_all(&Everything { a, b, c, bytes, bits, mask, range });
        for output in &outputs[1..] {
            prop_assert_eq!(output, &outputs[0]);
        }
    }

    #[test]
    fn f16_is_the_nearest(bits: [u32; LANES]) {
        let numbers = bits.map(f32::from_bits);
        let expected = numbers.map(f16::from_f32);
        for got in on_all(&Narrow(numbers)) {
            for (got, expected) in got.into_iter().zip(expected) {
                prop_assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan());
            }
        }
    }

    #[test]
    fn exp_is_accurate(x in -87.0..88.0_f32) {
        #[derive(Clone)]
        struct Exp(f32);
        impl Kernel for Exp {
            type Output = f32;

            #[inline(always)]
            fn call<S: Simd>(self, s: S) -> f32 {
                s.reduce_max(exp(s, s.splat(self.0)))
            }
        }
        let expected = f64::from(x).exp();
        for got in on_all(&Exp(x)) {
            let error = (f64::from(got) - expected).abs() / expected;
            prop_assert!(error < 1.5e-7, "exp({x}) = {got}, {error}");
        }
    }

    #[test]
    fn products_of_bytes_are_exact(
        bits in prop::sample::select(vec![4_u32, 5, 6, 8]),
        weights: [[[u8; 32]; 2]; 8],
        x in prop::array::uniform8(prop::array::uniform4(-127..=127_i8)),
    ) {
        let mask = ((1_u32 << bits) - 1) as u8;
        let weights = weights.map(|halves| array::from_fn(|i| halves[i / 32][i % 32] & mask));
        on_all_dots(&CheckDot { bits, weights: &weights, x });
    }
}
