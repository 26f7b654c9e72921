//! Memory that several threads fill, each its own part.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// A slice of which disjoint parts are handed out.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable borrow whose parts are handed out to one owner each.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above; `part` is the only access.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// `len` elements from `at` on.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap.
    #[inline]
    #[allow(clippy::mut_from_ref)] // the caller's promise
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "a part outside of the slice");
        // SAFETY: within the slice, by the assertion; not shared, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
