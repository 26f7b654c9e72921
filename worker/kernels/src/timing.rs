//! From the times of repeated copies to a bandwidth.

use std::time::{Duration, Instant};

/// How often a copy is timed; the fastest run counts.
pub(crate) const RUNS: usize = 8;

/// How long `work` takes.
pub(crate) fn elapsed(work: &mut dyn FnMut()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// The shortest of [`RUNS`] runs.
pub(crate) fn fastest(run: impl FnMut() -> Duration) -> Duration {
    std::iter::repeat_with(run).take(RUNS).min().unwrap_or_default()
}

/// Memory bandwidth of a copy of `copied` bytes in `took`, in bytes per second: each byte is read
/// once and written once.
pub(crate) fn bytes_per_second(copied: usize, took: Duration) -> f64 {
    2.0 * copied as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_byte_counts_as_read_and_as_written() {
        assert_eq!(bytes_per_second(1 << 30, Duration::from_millis(500)), f64::from(4 << 20) * 1024.0);
        assert_eq!(bytes_per_second(3, Duration::from_secs(2)), 3.0);
        assert_eq!(bytes_per_second(0, Duration::ZERO), 0.0);
    }

    #[test]
    fn the_fastest_of_all_runs_counts() {
        for best in 0..RUNS {
            let mut runs = 0;
            let fastest = fastest(|| {
                runs += 1;
                Duration::from_secs(if runs == best + 1 { 1 } else { 2 })
            });
            assert_eq!((fastest, runs), (Duration::from_secs(1), RUNS));
        }
    }
}
