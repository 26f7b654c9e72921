//! Vectors of sixteen f32, in the best instruction set that the processor has.
//!
//! Kernels are written once over [`Simd`] and compiled for each instruction set; [`run`] chooses one
//! at run time. Every operation is one IEEE operation per lane, or a fixed sequence of them, so a
//! kernel returns the same bits with every instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod byte_dot;
mod exp;
mod instruction_set;
mod portable;
mod vector;

pub(crate) use self::byte_dot::{ByteDot, DotKernel, WithByteDot};
pub(crate) use self::exp::exp;
pub use self::instruction_set::{InstructionSet, UnknownInstructionSet, limit_instruction_set};
pub(crate) use self::vector::{Kernel, LANES, Simd, array_at};

/// Work for [`dispatch`].
///
/// Unlike a [`Kernel`] it is not compiled for the instruction set itself: it chooses kernels and runs
/// them, and each of them is a function of its own.
pub(crate) trait WithSimd {
    fn call<S: Simd>(self, simd: S);
}

/// Calls `work` with the best instruction set that this processor has.
#[inline]
pub(crate) fn dispatch(work: impl WithSimd) {
    #[cfg(target_arch = "x86_64")]
    {
        if InstructionSet::Avx512.is_allowed()
            && let Some(simd) = avx512::Avx512::detect()
        {
            return work.call(simd);
        }
        if InstructionSet::Avx2.is_allowed()
            && let Some(simd) = avx2::Avx2::detect()
        {
            return work.call(simd);
        }
    }
    work.call(portable::Portable);
}

/// Calls `work` with the best instruction set for bytes that this processor has.
#[inline]
pub(crate) fn dispatch_dot(work: impl WithByteDot) {
    #[cfg(target_arch = "x86_64")]
    {
        if InstructionSet::Avx512Vnni.is_allowed()
            && let Some(dot) = avx512::Avx512Vnni::detect()
        {
            return work.call(dot);
        }
        if InstructionSet::Avx512.is_allowed()
            && let Some(dot) = avx512::Avx512::detect()
        {
            return work.call(dot);
        }
        if InstructionSet::AvxVnni.is_allowed()
            && let Some(dot) = avx2::AvxVnni::detect()
        {
            return work.call(dot);
        }
        if InstructionSet::Avx2.is_allowed()
            && let Some(dot) = avx2::Avx2::detect()
        {
            return work.call(dot);
        }
    }
    work.call(portable::Portable);
}

/// Runs a kernel with the best instruction set that this processor has.
pub(crate) fn run<K: Kernel<Output = ()>>(kernel: K) {
    struct Run<K>(K);

    impl<K: Kernel<Output = ()>> WithSimd for Run<K> {
        #[inline]
        fn call<S: Simd>(self, simd: S) {
            simd.run(self.0);
        }
    }

    dispatch(Run(kernel));
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use self::tests::{on_all, on_all_dots};
