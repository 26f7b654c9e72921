//! A large copy, to see what the processor's memory can do.

use std::time::Instant;

use rayon::prelude::*;

use crate::timing::{fastest, rate};

/// Bytes that a thread copies at a time.
const CHUNK: usize = 1 << 20;

/// See [`crate::copy_bandwidth`].
pub(crate) fn copy_bandwidth(bytes: usize) -> f64 {
    let from = vec![1_u8; bytes.max(1)];
    let mut to = vec![0_u8; from.len()];
    let copy = || {
        let start = Instant::now();
        let chunks = to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK));
        chunks.for_each(|(to, from)| to.copy_from_slice(from));
        std::hint::black_box(&mut to);
        start.elapsed()
    };
    rate(from.len(), fastest(copy))
}
