//! What the cache's numbers are stored as: f32, or f16 that become f32 in registers.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::backend::flex::FlexTensor;
use half::f16;

use super::rows::filled;
use super::simd::{LANES, Simd};
use crate::types::F16_MAX;

static CLAMPED: AtomicU64 = AtomicU64::new(0);

/// Grows whenever a step of this process has stored a key or a value beyond f16's range, as the
/// largest number that f16 has.
///
/// llama.cpp, whose cache is f16 by default, stores infinity there, and what is computed from it is
/// not a number.
pub fn clamped() -> u64 {
    CLAMPED.load(Ordering::Relaxed)
}

/// A number in the cache.
pub(crate) trait Stored: Copy + Default + Send + Sync + 'static {
    /// All numbers of a tensor's memory.
    fn of(tensor: &FlexTensor) -> &[Self];
    /// The same to write to; a copy, if something else refers to it.
    fn of_mut(tensor: &mut FlexTensor) -> &mut [Self];

    fn load<S: Simd>(s: S, lanes: &[Self; LANES]) -> S::Floats;
    /// Numbers that may be stored: NaN stays what it is.
    fn clamp<S: Simd>(s: S, floats: S::Floats) -> S::Floats;
    fn store<S: Simd>(s: S, lanes: &mut [Self; LANES], floats: S::Floats);
    /// Notes that [`Self::clamp`] has met numbers of this magnitude.
    fn note(largest: f32);

    /// A thread's memory for values that are no whole number of vectors wide.
    fn padded(buffers: &mut Padded) -> &mut Vec<Self>;
}

/// See [`Stored::padded`].
#[derive(Default)]
pub(crate) struct Padded {
    singles: Vec<f32>,
    halves: Vec<f16>,
}

impl Stored for f32 {
    fn of(tensor: &FlexTensor) -> &[Self] {
        tensor.storage()
    }

    fn of_mut(tensor: &mut FlexTensor) -> &mut [Self] {
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
    fn note(_: f32) {}

    fn padded(buffers: &mut Padded) -> &mut Vec<Self> {
        &mut buffers.singles
    }
}

impl Stored for f16 {
    fn of(tensor: &FlexTensor) -> &[Self] {
        tensor.storage()
    }

    fn of_mut(tensor: &mut FlexTensor) -> &mut [Self] {
        tensor.storage_mut()
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, lanes: &[Self; LANES]) -> S::Floats {
        s.load_halves(lanes)
    }

    #[inline(always)]
    fn clamp<S: Simd>(s: S, floats: S::Floats) -> S::Floats {
        s.max(s.splat(-F16_MAX), s.min(s.splat(F16_MAX), floats))
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, lanes: &mut [Self; LANES], floats: S::Floats) {
        s.store_halves(lanes, floats);
    }

    #[inline(always)]
    fn note(largest: f32) {
        if largest > F16_MAX {
            CLAMPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn padded(buffers: &mut Padded) -> &mut Vec<Self> {
        &mut buffers.halves
    }
}

/// Stores `numbers` in `out`.
#[inline(always)]
pub(crate) fn store<S: Simd, E: Stored>(s: S, numbers: &[f32], out: &mut [E]) {
    let mut largest = s.zero();
    let (whole, rest) = numbers.as_chunks::<LANES>();
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    for (numbers, out) in whole.iter().zip(outs) {
        largest = store_vector(s, numbers, out, largest);
    }
    if !rest.is_empty() {
        let mut last = [E::default(); LANES];
        largest = store_vector(s, &filled(rest), &mut last, largest);
        out_rest.copy_from_slice(&last[..rest.len()]);
    }
    E::note(s.largest(largest));
}

/// The largest magnitudes so far.
#[inline(always)]
fn store_vector<S: Simd, E: Stored>(
    s: S,
    numbers: &[f32; LANES],
    out: &mut [E; LANES],
    largest: S::Floats,
) -> S::Floats {
    let floats = s.load(numbers);
    E::store(s, out, E::clamp(s, floats));
    s.max(s.max(floats, s.sub(s.zero(), floats)), largest)
}
