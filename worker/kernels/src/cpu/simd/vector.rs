//! What an instruction set does, and what is computed with it.

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

/// `N` bytes of `bytes` from `at` on.
#[inline(always)]
pub(crate) fn part<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    &bytes[at..at + N].as_chunks().0[0]
}
