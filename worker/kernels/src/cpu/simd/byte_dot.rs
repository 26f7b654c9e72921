//! Products of bytes, for activations of 8 bits.

use super::vector::Simd;

/// An instruction set's products of bytes. A value of the type proves that the processor has it.
///
/// Sums of integers are exact, so they are the same with every instruction set.
pub(crate) trait ByteDot: Copy + Send + Sync + 'static {
    /// The vectors of f32 that go with it.
    type Floats: Simd;

    /// Rows of a full tile, a power of two: they share each decoding of weights.
    const TILE_ROWS: usize;
    /// Largest number of rows with which both panels of a strip are multiplied at a time.
    const PANEL_PAIR_ROWS: usize;

    fn floats(self) -> Self::Floats;

    /// Runs a kernel compiled for the instruction set.
    fn run_dot<K: DotKernel>(self, kernel: K);

    /// For each lane, the sum of the products of its bytes in `weights`, less the integer that stands for
    /// zero, with those of `x`.
    ///
    /// `weights` are integers of `BITS` bits, of which 2⁷ stands for zero if they are 8. `correction` is
    /// minus that integer times the sum of `x`; `x` is at least -127.
    fn dot<const BITS: u32, const N: usize>(
        self,
        correction: i32,
        weights: &[<Self::Floats as Simd>::Words; N],
        x: &[[i8; 4]; N],
    ) -> <Self::Floats as Simd>::Words;
}

/// A computation with bytes, compiled for each instruction set.
pub(crate) trait DotKernel {
    /// Computes it. Every implementation is `#[inline(always)]`.
    fn call<D: ByteDot>(self, dot: D);
}

/// How many sums of two products of an integer of `bits` bits with a byte fit into an i16 together.
#[cfg(target_arch = "x86_64")]
pub(super) const fn products_in_i16(bits: u32) -> usize {
    match bits {
        8 => 1, // signed
        _ => i16::MAX as usize / (2 * ((1 << bits) - 1) * 127),
    }
}

/// Work for [`dispatch_dot`].
pub(crate) trait WithByteDot {
    fn call<D: ByteDot>(self, dot: D);
}
