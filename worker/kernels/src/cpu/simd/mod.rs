//! Sixteen f32 lanes, on whatever the processor has for them.
//!
//! Kernels are written once over [`Simd`] and compiled for each instruction set; [`run`] takes the
//! best that the processor has. Every operation here is one IEEE operation per lane (or a fixed
//! sequence of them), so a kernel gives the same bits on all of them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::array;

use half::f16;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// An instruction set that is known to be there: a value of the type is the proof.
///
/// The methods are to be inlined into [`Simd::run`], where the compiler may use the instruction
/// set. Closures are not always inlined: hot loops do without.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type Floats: Copy;
    /// Sixteen u32.
    type Words: Copy;

    /// Rows of a tile that the registers hold: see `product`.
    const ROWS: usize;
    /// Vectors of a tile's row.
    const PANELS: usize;
    /// Rows for which weights are not kept once they are decoded.
    const DIRECT: usize;

    /// Runs a kernel with the instruction set switched on.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, number: f32) -> Self::Floats;
    fn load(self, lanes: &[f32; LANES]) -> Self::Floats;
    fn store(self, lanes: &mut [f32; LANES], floats: Self::Floats);
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The larger of each two numbers; `b` where one of them is NaN.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller of each two numbers; `b` where one of them is NaN.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The largest lane.
    fn largest(self, a: Self::Floats) -> f32;
    /// `a` in lanes `from..to`, `b` in the others.
    fn within(self, from: usize, to: usize, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// Sixteen f16.
    fn load_halves(self, lanes: &[f16; LANES]) -> Self::Floats;
    /// The nearest f16 of each number, of two as near the even one.
    fn store_halves(self, lanes: &mut [f16; LANES], floats: Self::Floats);
    /// f16 in little-endian bytes.
    fn halves(self, bytes: &[u8; 32]) -> Self::Floats;
    /// bf16 in little-endian bytes.
    fn brain_halves(self, bytes: &[u8; 32]) -> Self::Floats;
    /// f32 in little-endian bytes.
    fn singles(self, bytes: &[u8; 64]) -> Self::Floats;
    /// Signed bytes.
    fn signed(self, bytes: &[u8; 16]) -> Self::Floats;
    /// Unsigned bytes.
    fn unsigned(self, bytes: &[u8; 16]) -> Self::Floats;

    /// u32 in little-endian bytes.
    fn words(self, bytes: &[u8; 64]) -> Self::Words;
    /// All lanes shifted to lower bits.
    fn right(self, words: Self::Words, bits: u32) -> Self::Words;
    /// All lanes shifted to higher bits.
    fn left(self, words: Self::Words, bits: u32) -> Self::Words;
    /// The bits of `a` where `mask` has ones, those of `b` elsewhere.
    fn select(self, mask: u32, a: Self::Words, b: Self::Words) -> Self::Words;
    /// The bits `(words & mask) | ones` as floats.
    fn with_bits(self, words: Self::Words, mask: u32, ones: u32) -> Self::Floats;
    /// The bits of floats.
    fn bits(self, floats: Self::Floats) -> Self::Words;
    /// The sum of the bits of `floats` and `words`, as floats.
    fn add_bits(self, floats: Self::Floats, words: Self::Words) -> Self::Floats;

    /// Fetches the cache line at `at` bytes behind `bytes`, which may be outside of it.
    fn prefetch(self, bytes: &[u8], at: usize);

    /// All zeros.
    #[inline(always)]
    fn zero(self) -> Self::Floats {
        self.splat(0.0)
    }

    /// The sum of all lanes, always in the same order.
    #[inline(always)]
    fn sum(self, floats: Self::Floats) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, floats);
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// Something to compute with an instruction set.
pub(crate) trait Kernel {
    /// The result.
    type Output;

    /// Computes it; `#[inline(always)]` in all implementations.
    fn call<S: Simd>(self, simd: S) -> Self::Output;
}

/// Something to do with the best instruction set of this processor.
///
/// Unlike a [`Kernel`] it is not compiled for the instruction set itself: it chooses among kernels
/// and runs them, each of which is then a function of its own.
pub(crate) trait With {
    fn call<S: Simd>(self, simd: S);
}

/// Calls `work` with the best instruction set of this processor.
#[inline]
pub(crate) fn with(work: impl With) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = avx512::Avx512::detect() {
            return work.call(simd);
        }
        if let Some(simd) = avx2::Avx2::detect() {
            return work.call(simd);
        }
    }
    work.call(portable::Portable);
}

/// Runs a kernel with the best instruction set of this processor.
pub(crate) fn run<K: Kernel<Output = ()>>(kernel: K) {
    struct Run<K>(K);

    impl<K: Kernel<Output = ()>> With for Run<K> {
        #[inline]
        fn call<S: Simd>(self, simd: S) {
            simd.run(self.0);
        }
    }

    with(Run(kernel));
}

/// `N` bytes of `bytes` from `at` on.
#[inline(always)]
pub(crate) fn part<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    &bytes[at..at + N].as_chunks().0[0]
}

/// e to the power of each lane, lanes outside of -87..88 taken as the nearer end.
///
/// Within 2 units in the last place: Cody and Waite's reduction to ±ln 2 / 2, then the polynomial
/// of Moshier's Cephes library.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::Floats) -> S::Floats {
    // Adding it leaves the integer part in the low bits of the sum.
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
    s.add_bits(one_and, s.left(s.bits(shifted), 23))
}

#[cfg(test)]
mod tests;
