//! How the cache stores an element: f32, or f16 that becomes f32 in registers.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::backend::flex::FlexTensor;
use half::f16;

use super::rows::padded_vector;
use super::simd::{LANES, Simd};
use crate::types::F16_MAX;

static CLAMPED: AtomicU64 = AtomicU64::new(0);

/// Counts the keys and values of one head, in this process, that had elements beyond f16's range and
/// were clamped to its largest finite number.
///
/// llama.cpp, whose cache is f16 by default, stores infinity instead, and computes NaN from it.
pub fn clamped() -> u64 {
    CLAMPED.load(Ordering::Relaxed)
}

/// An element of the cache.
pub(crate) trait KvElement: Copy + Default + Send + Sync + 'static {
    /// All elements in a tensor's memory.
    fn storage(tensor: &FlexTensor) -> &[Self];
    /// The same, mutable; a copy if the memory is shared.
    fn storage_mut(tensor: &mut FlexTensor) -> &mut [Self];

    fn load<S: Simd>(s: S, lanes: &[Self; LANES]) -> S::Floats;
    /// `floats` within the range of this type. NaN stays NaN.
    fn clamp<S: Simd>(s: S, floats: S::Floats) -> S::Floats;
    fn store<S: Simd>(s: S, lanes: &mut [Self; LANES], floats: S::Floats);
    /// Counts, for [`clamped`], numbers of this magnitude if [`Self::clamp`] changes them.
    fn count_clamped(largest: f32);

    /// A thread's buffer for values whose width is not a whole number of vectors.
    fn padding_buffer(buffers: &mut PaddingBuffers) -> &mut Vec<Self>;
}

/// See [`KvElement::padding_buffer`].
#[derive(Default)]
pub(crate) struct PaddingBuffers {
    f32: Vec<f32>,
    f16: Vec<f16>,
}

impl KvElement for f32 {
    fn storage(tensor: &FlexTensor) -> &[Self] {
        tensor.storage()
    }

    fn storage_mut(tensor: &mut FlexTensor) -> &mut [Self] {
        tensor.storage_mut()
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, lanes: &[Self; LANES]) -> S::Floats {
        s.load(lanes)
    }

    #[inline(always)]
    fn clamp<S: Simd>(_: S, floats: S::Floats) -> S::Floats {
        floats
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, lanes: &mut [Self; LANES], floats: S::Floats) {
        s.store(lanes, floats);
    }

    #[inline(always)]
    fn count_clamped(_: f32) {}

    fn padding_buffer(buffers: &mut PaddingBuffers) -> &mut Vec<Self> {
        &mut buffers.f32
    }
}

impl KvElement for f16 {
    fn storage(tensor: &FlexTensor) -> &[Self] {
        tensor.storage()
    }

    fn storage_mut(tensor: &mut FlexTensor) -> &mut [Self] {
        tensor.storage_mut()
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, lanes: &[Self; LANES]) -> S::Floats {
        s.load_f16(lanes)
    }

    #[inline(always)]
    fn clamp<S: Simd>(s: S, floats: S::Floats) -> S::Floats {
        s.max(s.splat(-F16_MAX), s.min(s.splat(F16_MAX), floats))
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, lanes: &mut [Self; LANES], floats: S::Floats) {
        s.store_f16(lanes, floats);
    }

    #[inline(always)]
    fn count_clamped(largest: f32) {
        if largest > F16_MAX {
            CLAMPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn padding_buffer(buffers: &mut PaddingBuffers) -> &mut Vec<Self> {
        &mut buffers.f16
    }
}

/// Stores `numbers` in `out`, clamped to the range of `E`.
#[inline(always)]
pub(crate) fn store<S: Simd, E: KvElement>(s: S, numbers: &[f32], out: &mut [E]) {
    let mut largest = s.zero();
    let (whole, rest) = numbers.as_chunks::<LANES>();
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    for (numbers, out) in whole.iter().zip(outs) {
        largest = store_vector(s, numbers, out, largest);
    }
    if !rest.is_empty() {
        let mut last = [E::default(); LANES];
        largest = store_vector(s, &padded_vector(rest), &mut last, largest);
        out_rest.copy_from_slice(&last[..rest.len()]);
    }
    E::count_clamped(s.reduce_max(largest));
}

/// Stores one vector and returns the largest magnitudes so far.
#[inline(always)]
fn store_vector<S: Simd, E: KvElement>(
    s: S,
    numbers: &[f32; LANES],
    out: &mut [E; LANES],
    largest: S::Floats,
) -> S::Floats {
    let floats = s.load(numbers);
    E::store(s, out, E::clamp(s, floats));
    s.max(s.max(floats, s.sub(s.zero(), floats)), largest)
}
