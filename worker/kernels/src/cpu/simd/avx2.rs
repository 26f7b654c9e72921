//! AVX2, with and without VNNI: a vector is two registers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::f16;

use super::byte_dot::{ByteDot, DotKernel, products_in_i16};
use super::vector::{Kernel, LANES, Simd};

/// AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Returns `None` if the processor lacks it.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        present.then_some(Self(()))
    }
}

/// Applies an intrinsic to both halves of its arguments.
macro_rules! both {
    ($intrinsic:ident $(::<$n:literal>)?, $($argument:expr),+) => {
        // SAFETY: see the `impl` below.
        unsafe { [$intrinsic$(::<$n>)?($($argument[0]),+), $intrinsic$(::<$n>)?($($argument[1]),+)] }
    };
}

// SAFETY, of all blocks below: only `detect` makes an `Avx2`, so the processor has the instructions;
// pointers are to arrays of the vectors' size, and accesses are unaligned.
impl Simd for Avx2 {
    type Floats = [__m256; 2];
    type Words = [__m256i; 2];

    const TILE_ROWS: usize = 6;
    const TILE_PANELS: usize = 1;
    const DIRECT_ROWS: usize = 4;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.call(simd)
        }
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, number: f32) -> [__m256; 2] {
        unsafe { [_mm256_set1_ps(number); 2] }
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> [__m256; 2] {
        unsafe { [_mm256_loadu_ps(lanes.as_ptr()), _mm256_loadu_ps(lanes[8..].as_ptr())] }
    }

    #[inline(always)]
    fn store(self, lanes: &mut [f32; LANES], floats: [__m256; 2]) {
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), floats[0]);
            _mm256_storeu_ps(lanes[8..].as_mut_ptr(), floats[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        both!(_mm256_fmadd_ps, a, b, c)
    }

    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn reduce_max(self, a: [__m256; 2]) -> f32 {
        unsafe {
            let of_8 = _mm256_max_ps(a[0], a[1]);
            let of_4 = _mm_max_ps(_mm256_castps256_ps128(of_8), _mm256_extractf128_ps::<1>(of_8));
            let of_2 = _mm_max_ps(of_4, _mm_movehl_ps(of_4, of_4));
            _mm_cvtss_f32(_mm_max_ss(of_2, _mm_movehdup_ps(of_2)))
        }
    }

    #[inline(always)]
    fn select_lanes(self, from: usize, to: usize, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        let (lanes, before, end) = unsafe {
            let lanes =
                [_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)];
            (lanes, [_mm256_set1_epi32(from as i32 - 1); 2], [_mm256_set1_epi32(to as i32); 2])
        };
        let from_on = both!(_mm256_cmpgt_epi32, lanes, before);
        let before_to = both!(_mm256_cmpgt_epi32, end, lanes);
        let mask = both!(_mm256_and_si256, from_on, before_to);
        let mask = both!(_mm256_castsi256_ps, mask);
        both!(_mm256_blendv_ps, b, a, mask)
    }

    #[inline(always)]
    fn load_f16(self, lanes: &[f16; LANES]) -> [__m256; 2] {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(lanes.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(lanes[8..].as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn store_f16(self, lanes: &mut [f16; LANES], floats: [__m256; 2]) {
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(floats[0]);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(floats[1]);
            _mm_storeu_si128(lanes.as_mut_ptr().cast(), low);
            _mm_storeu_si128(lanes[8..].as_mut_ptr().cast(), high);
        }
    }

    #[inline(always)]
    fn read_f16(self, bytes: &[u8; 32]) -> [__m256; 2] {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(bytes[16..].as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn read_bf16(self, bytes: &[u8; 32]) -> [__m256; 2] {
        let low = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast())) };
        let high = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes[16..].as_ptr().cast())) };
        let wide = [low, high];
        let wide = both!(_mm256_slli_epi32::<16>, wide);
        both!(_mm256_castsi256_ps, wide)
    }

    #[inline(always)]
    fn read_f32(self, bytes: &[u8; 64]) -> [__m256; 2] {
        unsafe { [_mm256_loadu_ps(bytes.as_ptr().cast()), _mm256_loadu_ps(bytes[32..].as_ptr().cast())] }
    }

    #[inline(always)]
    fn read_i8(self, bytes: &[u8; 16]) -> [__m256; 2] {
        unsafe {
            let all = _mm_loadu_si128(bytes.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(all))),
            ]
        }
    }

    #[inline(always)]
    fn read_u8(self, bytes: &[u8; 16]) -> [__m256; 2] {
        unsafe {
            let all = _mm_loadu_si128(bytes.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(all)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(all))),
            ]
        }
    }

    #[inline(always)]
    fn read_u32(self, bytes: &[u8; 64]) -> [__m256i; 2] {
        unsafe {
            [_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes[32..].as_ptr().cast())]
        }
    }

    #[inline(always)]
    fn shift_right(self, words: [__m256i; 2], bits: u32) -> [__m256i; 2] {
        let bits = unsafe { [_mm256_set1_epi32(bits as i32); 2] };
        both!(_mm256_srlv_epi32, words, bits)
    }

    #[inline(always)]
    fn shift_left(self, words: [__m256i; 2], bits: u32) -> [__m256i; 2] {
        let bits = unsafe { [_mm256_set1_epi32(bits as i32); 2] };
        both!(_mm256_sllv_epi32, words, bits)
    }

    #[inline(always)]
    fn select(self, mask: u32, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        let mask = unsafe { [_mm256_set1_epi32(mask.cast_signed()); 2] };
        let (a, b) = (both!(_mm256_and_si256, mask, a), both!(_mm256_andnot_si256, mask, b));
        both!(_mm256_or_si256, a, b)
    }

    #[inline(always)]
    fn and(self, words: [__m256i; 2], mask: u32) -> [__m256i; 2] {
        let mask = unsafe { [_mm256_set1_epi32(mask.cast_signed()); 2] };
        both!(_mm256_and_si256, words, mask)
    }

    #[inline(always)]
    fn add_words(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        both!(_mm256_add_epi32, a, b)
    }

    #[inline(always)]
    fn convert(self, words: [__m256i; 2]) -> [__m256; 2] {
        both!(_mm256_cvtepi32_ps, words)
    }

    #[inline(always)]
    fn and_or(self, words: [__m256i; 2], mask: u32, ones: u32) -> [__m256; 2] {
        let (mask, ones) = unsafe {
            ([_mm256_set1_epi32(mask.cast_signed()); 2], [_mm256_set1_epi32(ones.cast_signed()); 2])
        };
        let words = both!(_mm256_and_si256, words, mask);
        let words = both!(_mm256_or_si256, words, ones);
        both!(_mm256_castsi256_ps, words)
    }

    #[inline(always)]
    fn to_bits(self, floats: [__m256; 2]) -> [__m256i; 2] {
        both!(_mm256_castps_si256, floats)
    }

    #[inline(always)]
    fn add_to_bits(self, floats: [__m256; 2], words: [__m256i; 2]) -> [__m256; 2] {
        let bits = both!(_mm256_castps_si256, floats);
        let sum = both!(_mm256_add_epi32, bits, words);
        both!(_mm256_castsi256_ps, sum)
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], at: usize) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at).cast()) }
    }
}

impl ByteDot for Avx2 {
    type Floats = Self;

    const TILE_ROWS: usize = 4;
    const PANEL_PAIR_ROWS: usize = 1;

    #[inline(always)]
    fn floats(self) -> Self {
        self
    }

    #[inline(always)]
    fn run_dot<K: DotKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<K: DotKernel>(simd: Avx2, kernel: K) {
            kernel.call(simd);
        }
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn dot<const BITS: u32, const N: usize>(
        self,
        correction: i32,
        weights: &[[__m256i; 2]; N],
        x: &[[i8; 4]; N],
    ) -> [__m256i; 2] {
        let (ones, sign) = unsafe { ([_mm256_set1_epi16(1); 2], [_mm256_set1_epi8(i8::MIN); 2]) };
        // Products of 8 bits need signs, or two of them overflow 16 bits.
        let signed = BITS == 8;
        let mut sums = unsafe { [_mm256_set1_epi32(if signed { 0 } else { correction }); 2] };
        let mut pairs = [unsafe { _mm256_setzero_si256() }; 2];
        for i in 0..N {
            let x = unsafe { [_mm256_set1_epi32(i32::from_le_bytes(x[i].map(i8::cast_unsigned))); 2] };
            let products = if signed {
                let weights = both!(_mm256_xor_si256, weights[i], sign);
                let (weights, x) = (both!(_mm256_abs_epi8, weights), both!(_mm256_sign_epi8, x, weights));
                both!(_mm256_maddubs_epi16, weights, x)
            } else {
                both!(_mm256_maddubs_epi16, weights[i], x)
            };
            let many = products_in_i16(BITS);
            pairs = if i % many == 0 { products } else { both!(_mm256_add_epi16, pairs, products) };
            if (i + 1) % many == 0 || i + 1 == N {
                let quads = both!(_mm256_madd_epi16, pairs, ones);
                sums = both!(_mm256_add_epi32, sums, quads);
            }
        }
        sums
    }
}

/// [`Avx2`] with VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AvxVnni(Avx2);

impl AvxVnni {
    /// Returns `None` if the processor lacks it.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        Avx2::detect().filter(|_| is_x86_feature_detected!("avxvnni")).map(Self)
    }
}

impl ByteDot for AvxVnni {
    type Floats = Avx2;

    const TILE_ROWS: usize = 4;
    const PANEL_PAIR_ROWS: usize = 1;

    #[inline(always)]
    fn floats(self) -> Avx2 {
        self.0
    }

    #[inline(always)]
    fn run_dot<K: DotKernel>(self, kernel: K) {
        #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
        fn inner<K: DotKernel>(simd: AvxVnni, kernel: K) {
            kernel.call(simd);
        }
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn dot<const BITS: u32, const N: usize>(
        self,
        correction: i32,
        weights: &[[__m256i; 2]; N],
        x: &[[i8; 4]; N],
    ) -> [__m256i; 2] {
        let mut sums = unsafe { [_mm256_set1_epi32(correction); 2] };
        for i in 0..N {
            let x = unsafe { [_mm256_set1_epi32(i32::from_le_bytes(x[i].map(i8::cast_unsigned))); 2] };
            sums = both!(_mm256_dpbusd_avx_epi32, sums, weights[i], x);
        }
        sums
    }
}
