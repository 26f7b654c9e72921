//! Reads parts of files on all threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// Bytes that a thread reads in one go.
const THREAD_BYTES: usize = 8 << 20;

/// Fills `buffer` with the file's bytes from `offset` on.
pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let chunks = buffer.par_chunks_mut(THREAD_BYTES).enumerate();
    chunks.try_for_each(|(number, chunk)| {
        file.read_exact_at(chunk, offset.saturating_add((number * THREAD_BYTES) as u64))
    })
}
