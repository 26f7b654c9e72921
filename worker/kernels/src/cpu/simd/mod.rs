//! Sixteen f32 lanes, on whatever the processor has for them.
//!
//! Kernels are written once over [`Simd`] and compiled for each instruction set; [`run`] takes the
//! best that the processor has. Every operation here is one IEEE operation per lane (or a fixed
//! sequence of them), so a kernel gives the same bits on all of them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod exp;
mod portable;
mod vector;

pub(crate) use self::exp::exp;
pub(crate) use self::vector::{Kernel, LANES, Simd, part};

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

#[cfg(test)]
mod tests;
