//! A slice that several threads write to, each to a part of its own.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// A mutable slice that hands out disjoint subslices.
pub(crate) struct DisjointMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable borrow, and each subslice it hands out has one owner.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}
// SAFETY: as above; `slice_mut` is the only access.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// `len` elements from `at` on.
    ///
    /// # Safety
    /// No two subslices that are alive at the same time may overlap.
    #[inline]
    #[allow(clippy::mut_from_ref)] // the caller guarantees it
    pub(crate) unsafe fn slice_mut(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "the subslice is out of bounds");
        // SAFETY: in bounds by the assertion, and not shared by the caller's guarantee.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
