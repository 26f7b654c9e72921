//! Every instruction set that this processor has returns the bits of the portable one.

use std::array;

use half::f16;
use proptest::prelude::*;

use super::*;

/// Runs a kernel with each instruction set that this processor has.
fn on_all<K: Kernel + Clone>(kernel: &K) -> Vec<K::Output> {
    let mut outputs = vec![portable::Portable.run(kernel.clone())];
    #[cfg(target_arch = "x86_64")]
    {
        outputs.extend(avx2::Avx2::detect().map(|simd| simd.run(kernel.clone())));
        outputs.extend(avx512::Avx512::detect().map(|simd| simd.run(kernel.clone())));
    }
    outputs
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
}
