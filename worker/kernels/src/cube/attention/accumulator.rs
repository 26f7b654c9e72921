//! The online softmax.
//!
//! Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).

use burn::cubecl;
use burn::cubecl::prelude::*;

use super::config::MASKED;

/// What a row has of the partitions before the next, in terms of what it has with that.
#[derive(CubeType)]
pub(super) struct Shares {
    /// Factor of what the row has so far.
    pub(super) before: f32,
    /// Factor of the next partition.
    pub(super) next: f32,
    /// Whether the row sees any position of the next partition. One without must change nothing, not
    /// even the sign of a zero.
    pub(super) seen: bool,
}

/// The shares of partitions whose largest scores are these.
#[cube]
pub(super) fn shares(before: f32, next: f32) -> Shares {
    let largest = max(before, next);
    Shares { before: (before - largest).exp(), next: (next - largest).exp(), seen: next > MASKED }
}

/// The sum of a row's exponentials with those of the next partition.
#[cube]
pub(super) fn merged(before: f32, next: f32, shares: &Shares) -> f32 {
    select(shares.seen, fma(next, shares.next, before * shares.before), before)
}

/// The same for a vector of values.
#[cube]
pub(super) fn merged_values<N: Size>(
    before: Vector<f32, N>,
    next: Vector<f32, N>,
    shares: &Shares,
) -> Vector<f32, N> {
    let both = fma(next, Vector::new(shares.next), before * Vector::new(shares.before));
    select(shares.seen, both, before)
}

/// The first position that a row attends to.
#[cube]
pub(super) fn first_visible(position: usize, window: usize) -> usize {
    select(position + 1 > window, position + 1 - min(window, position + 1), 0)
}
