//! AVX-512, with and without VNNI: a vector is one register.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::f16;

use super::byte_dot::{ByteDot, DotKernel, products_in_i16};
use super::vector::{Kernel, LANES, Simd};

/// AVX-512 F, BW, DQ and VL, with AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Returns `None` if the processor lacks it.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        present.then_some(Self(()))
    }
}

// SAFETY, of all blocks below: only `detect` makes an `Avx512`, so the processor has the instructions;
// pointers are to arrays of the vector's size, and accesses are unaligned.
impl Simd for Avx512 {
    type Floats = __m512;
    type Words = __m512i;

    const TILE_ROWS: usize = 12;
    const TILE_PANELS: usize = 2;
    const DIRECT_ROWS: usize = 4;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn inner<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.call(simd)
        }
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, number: f32) -> __m512 {
        unsafe { _mm512_set1_ps(number) }
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, lanes: &mut [f32; LANES], floats: __m512) {
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), floats) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    fn select_lanes(self, from: usize, to: usize, a: __m512, b: __m512) -> __m512 {
        let below = |lane: usize| ((1_u32 << lane) - 1) as u16;
        unsafe { _mm512_mask_blend_ps(below(to) & !below(from), b, a) }
    }

    #[inline(always)]
    fn load_f16(self, lanes: &[f16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(lanes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_f16(self, lanes: &mut [f16; LANES], floats: __m512) {
        unsafe {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(floats);
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn read_f16(self, bytes: &[u8; 32]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn read_bf16(self, bytes: &[u8; 32]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn read_f32(self, bytes: &[u8; 64]) -> __m512 {
        unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn read_i8(self, bytes: &[u8; 16]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn read_u8(self, bytes: &[u8; 16]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn read_u32(self, bytes: &[u8; 64]) -> __m512i {
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn shift_right(self, words: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_srlv_epi32(words, _mm512_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn shift_left(self, words: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_sllv_epi32(words, _mm512_set1_epi32(bits as i32)) }
    }

    #[inline(always)]
    fn select(self, mask: u32, a: __m512i, b: __m512i) -> __m512i {
        // The truth table of `mask ? a : b`.
        unsafe { _mm512_ternarylogic_epi32::<0xCA>(_mm512_set1_epi32(mask.cast_signed()), a, b) }
    }

    #[inline(always)]
    fn and(self, words: __m512i, mask: u32) -> __m512i {
        unsafe { _mm512_and_si512(words, _mm512_set1_epi32(mask.cast_signed())) }
    }

    #[inline(always)]
    fn add_words(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn convert(self, words: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(words) }
    }

    #[inline(always)]
    fn and_or(self, words: __m512i, mask: u32, ones: u32) -> __m512 {
        unsafe {
            let (mask, ones) = (_mm512_set1_epi32(mask.cast_signed()), _mm512_set1_epi32(ones.cast_signed()));
            // The truth table of `(words & mask) | ones`.
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xEA>(words, mask, ones))
        }
    }

    #[inline(always)]
    fn to_bits(self, floats: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(floats) }
    }

    #[inline(always)]
    fn add_to_bits(self, floats: __m512, words: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(floats), words)) }
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], at: usize) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at).cast()) }
    }
}

impl ByteDot for Avx512 {
    type Floats = Self;

    const TILE_ROWS: usize = 8;
    const PANEL_PAIR_ROWS: usize = 4;

    #[inline(always)]
    fn floats(self) -> Self {
        self
    }

    #[inline(always)]
    fn run_dot<K: DotKernel>(self, kernel: K) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn inner<K: DotKernel>(simd: Avx512, kernel: K) {
            kernel.call(simd);
        }
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn dot<const BITS: u32, const N: usize>(
        self,
        correction: i32,
        weights: &[__m512i; N],
        x: &[[i8; 4]; N],
    ) -> __m512i {
        // Products of 8 bits need signs, or two of them overflow 16 bits.
        let signed = BITS == 8;
        let mut sums = unsafe { _mm512_set1_epi32(if signed { 0 } else { correction }) };
        let mut pairs = unsafe { _mm512_setzero_si512() };
        for i in 0..N {
            let x = unsafe { _mm512_set1_epi32(i32::from_le_bytes(x[i].map(i8::cast_unsigned))) };
            let products = unsafe {
                if signed {
                    let weights = _mm512_xor_si512(weights[i], _mm512_set1_epi8(i8::MIN));
                    let negative = _mm512_movepi8_mask(weights);
                    let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
                    _mm512_maddubs_epi16(_mm512_abs_epi8(weights), x)
                } else {
                    _mm512_maddubs_epi16(weights[i], x)
                }
            };
            let many = products_in_i16(BITS);
            pairs = if i % many == 0 { products } else { unsafe { _mm512_add_epi16(pairs, products) } };
            if (i + 1) % many == 0 || i + 1 == N {
                sums = unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))) };
            }
        }
        sums
    }
}

/// [`Avx512`] with VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Vnni(Avx512);

impl Avx512Vnni {
    /// Returns `None` if the processor lacks it.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512vnni")).map(Self)
    }
}

impl ByteDot for Avx512Vnni {
    type Floats = Avx512;

    const TILE_ROWS: usize = 8;
    const PANEL_PAIR_ROWS: usize = 4;

    #[inline(always)]
    fn floats(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn run_dot<K: DotKernel>(self, kernel: K) {
        #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn inner<K: DotKernel>(simd: Avx512Vnni, kernel: K) {
            kernel.call(simd);
        }
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn dot<const BITS: u32, const N: usize>(
        self,
        correction: i32,
        weights: &[__m512i; N],
        x: &[[i8; 4]; N],
    ) -> __m512i {
        let mut sums = unsafe { _mm512_set1_epi32(correction) };
        for i in 0..N {
            let x = unsafe { _mm512_set1_epi32(i32::from_le_bytes(x[i].map(i8::cast_unsigned))) };
            sums = unsafe { _mm512_dpbusd_epi32(sums, weights[i], x) };
        }
        sums
    }
}
