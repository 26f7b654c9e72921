//! Memory bandwidth of the processor, measured by a large copy.

use std::time::Duration;

use rayon::prelude::*;

use crate::timing::{bytes_per_second, elapsed, fastest};

/// Bytes that a thread copies at a time.
const CHUNK: usize = 1 << 20;

/// See [`crate::copy_bandwidth`].
pub(crate) fn copy_bandwidth(bytes: usize) -> f64 {
    measure(bytes, elapsed)
}

/// The bandwidth of a copy of `bytes` bytes, at least one, that `time` times.
fn measure(bytes: usize, time: impl Fn(&mut dyn FnMut()) -> Duration) -> f64 {
    let from = vec![1_u8; bytes.max(1)];
    let mut to = vec![0_u8; from.len()];
    let took = fastest(|| {
        time(&mut || {
            copy(&from, &mut to);
            std::hint::black_box(&mut to);
        })
    });
    bytes_per_second(from.len(), took)
}

/// Copies `from` to `to`, which is as long, on all threads.
fn copy(from: &[u8], to: &mut [u8]) {
    let chunks = to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK));
    chunks.for_each(|(to, from)| to.copy_from_slice(from));
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::timing::RUNS;

    #[test]
    fn every_byte_is_copied() {
        for len in [1, CHUNK - 1, CHUNK, 3 * CHUNK + 17] {
            let from: Vec<u8> = (0..len).map(|i| (i % 251) as u8 + 1).collect();
            let mut to = vec![0; len];
            copy(&from, &mut to);
            assert!(from == to, "{len} bytes");
        }
    }

    #[test]
    fn the_figure_is_that_of_the_bytes_and_the_time_of_the_fastest_copy() {
        let runs = Cell::new(0);
        let time = |work: &mut dyn FnMut()| {
            work();
            runs.set(runs.get() + 1);
            Duration::from_secs(10 - runs.get() % 4)
        };
        // The fastest run takes 7 s.
        assert_eq!(measure(7 << 20, time), f64::from(2 << 20));
        assert_eq!(runs.get(), RUNS as u64);
    }
}
