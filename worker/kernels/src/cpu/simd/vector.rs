//! The vector operations that an instruction set provides.

use half::f16;

/// Number of lanes of a vector.
pub(crate) const LANES: usize = 16;

/// An instruction set. A value of the type proves that the processor has it.
///
/// The methods must be inlined into [`Simd::run`], where the compiler may use the instruction set.
/// Closures are not always inlined, so hot loops have none.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type Floats: Copy;
    /// Sixteen u32.
    type Words: Copy;

    /// Number of rows whose sums the registers hold: see `microkernel`.
    const TILE_ROWS: usize;
    /// Number of panels whose sums the registers hold.
    const TILE_PANELS: usize;
    /// Largest number of rows that are multiplied with weights in registers, as these are decoded.
    const DIRECT_ROWS: usize;

    /// Runs a kernel compiled for the instruction set.
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
    /// The larger number in each lane; that of `b` where one of them is NaN.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller number in each lane; that of `b` where one of them is NaN.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The largest lane.
    fn reduce_max(self, a: Self::Floats) -> f32;
    /// `a` in lanes `from..to`, `b` in the others.
    fn select_lanes(self, from: usize, to: usize, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// Converts from f16.
    fn load_f16(self, lanes: &[f16; LANES]) -> Self::Floats;
    /// Rounds to the nearest f16, ties to even.
    fn store_f16(self, lanes: &mut [f16; LANES], floats: Self::Floats);
    /// Reads little-endian f16.
    fn read_f16(self, bytes: &[u8; 32]) -> Self::Floats;
    /// Reads little-endian bf16.
    fn read_bf16(self, bytes: &[u8; 32]) -> Self::Floats;
    /// Reads little-endian f32.
    fn read_f32(self, bytes: &[u8; 64]) -> Self::Floats;
    /// Converts from i8.
    fn read_i8(self, bytes: &[u8; 16]) -> Self::Floats;
    /// Converts from u8.
    fn read_u8(self, bytes: &[u8; 16]) -> Self::Floats;

    /// Reads little-endian u32.
    fn read_u32(self, bytes: &[u8; 64]) -> Self::Words;
    /// Shifts each lane right by `bits`.
    fn shift_right(self, words: Self::Words, bits: u32) -> Self::Words;
    /// Shifts each lane left by `bits`.
    fn shift_left(self, words: Self::Words, bits: u32) -> Self::Words;
    /// `(a & mask) | (b & !mask)`.
    fn select(self, mask: u32, a: Self::Words, b: Self::Words) -> Self::Words;
    /// `words & mask`.
    fn and(self, words: Self::Words, mask: u32) -> Self::Words;
    /// Adds words, which wrap around.
    fn add_words(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Converts from i32, rounding to the nearest.
    fn convert(self, words: Self::Words) -> Self::Floats;
    /// `(words & mask) | ones`, reinterpreted as floats.
    fn and_or(self, words: Self::Words, mask: u32, ones: u32) -> Self::Floats;
    /// Reinterprets floats as words.
    fn to_bits(self, floats: Self::Floats) -> Self::Words;
    /// Adds `words` to the bits of `floats`, reinterpreted as floats.
    fn add_to_bits(self, floats: Self::Floats, words: Self::Words) -> Self::Floats;

    /// Prefetches the cache line `at` bytes after the start of `bytes`, which may be beyond its end.
    fn prefetch(self, bytes: &[u8], at: usize);

    /// All zeros.
    #[inline(always)]
    fn zero(self) -> Self::Floats {
        self.splat(0.0)
    }

    /// The sum of all lanes, always in the same order.
    #[inline(always)]
    fn reduce_sum(self, floats: Self::Floats) -> f32 {
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

/// A computation, compiled for each instruction set.
pub(crate) trait Kernel {
    /// The result.
    type Output;

    /// Computes it. Every implementation is `#[inline(always)]`.
    fn call<S: Simd>(self, simd: S) -> Self::Output;
}

/// The `N` bytes of `bytes` from `at` on.
#[inline(always)]
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    &bytes[at..at + N].as_chunks().0[0]
}
