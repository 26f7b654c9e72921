//! Rates of repeated runs.

use std::time::Duration;

/// How often the copy is repeated; the fastest counts.
const REPEATS: usize = 8;

/// The shortest of a few times.
pub(crate) fn fastest(run: impl FnMut() -> Duration) -> Duration {
    std::iter::repeat_with(run).take(REPEATS).min().unwrap_or_default()
}

/// Bytes read and written in a second.
pub(crate) fn rate(copied: usize, took: Duration) -> f64 {
    2.0 * copied as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE)
}
