//! Sampling, in stages.
//!
//! A vocabulary is divided into chunks, and a row of logits is read by a cube for each chunk. What a cube
//! finds goes to the record of its sample, and a later launch combines what all cubes found: no cube waits
//! for another.
//!
//! Probabilities are summed as integer multiples of 2^-31. Such a sum does not depend on its order, so
//! atomic additions of many cubes have one result. The weights that probabilities are made of are summed as
//! floats, in a fixed order within chunks and over chunks. A token depends on its row alone.
//!
//! The k-th most probable token and the end of the nucleus are found by radix select, in three digits of 11,
//! 11 and 10 bits: from the highest to the lowest, a histogram of the logits that share the digits found so
//! far has the next digit. Of equal logits those with the lowest ids are kept.
//!
//! A row is read once for greedy decoding, three times to draw from it (largest logit, sum of weights, sum of
//! probabilities), and four times more for each of top-k and top-p (three digits, equal logits). Beyond that
//! one chunk is read again where an id is searched. A step launches only the stages that its samples need.

mod kernel;

use burn::backend::DType;
use burn::backend::wgpu::CubeTensor;
use burn::cubecl::prelude::*;

use self::kernel::{CHUNK, DIGITS, Stage, THREADS};
use super::launch;
use crate::types::SamplingStages;

/// See [`crate::sample_rows`].
pub(crate) fn sample(logits: CubeTensor, samples: CubeTensor, stages: SamplingStages) -> CubeTensor {
    let (logits, samples) = (launch::contiguous(logits), launch::contiguous(samples));
    let (rows, vocabulary) = (logits.meta.shape()[0], logits.meta.shape()[1]);
    let count = samples.meta.shape()[0];
    let out = launch::empty(&logits, &[count], DType::I32);
    if count == 0 || rows == 0 || vocabulary == 0 {
        return out;
    }
    let chunks = vocabulary.div_ceil(CHUNK);
    let records = launch::empty(&logits, &[count, kernel::record_words(chunks)], DType::I32);
    let launcher = Launcher { logits, samples, records, rows, vocabulary, count, chunks };
    launcher.largest();
    if stages.draw {
        let bins = launch::empty(&launcher.logits, &[count, kernel::BINS], DType::I32);
        launcher.weigh(&bins);
        for (stage, is_needed) in [(Stage::TopK, stages.top_k), (Stage::TopP, stages.top_p)] {
            if is_needed {
                for digit in 0..DIGITS.len() {
                    launcher.histogram(&bins, stage, digit);
                    launcher.pick(&bins, stage, digit);
                }
                launcher.sum(stage);
                launcher.search(&out, stage);
            }
        }
        launcher.sum(Stage::Draw);
    }
    launcher.search(&out, Stage::Draw);
    out
}

/// Reads that a thread makes one after another to find the largest logit, several of them at a time.
#[cfg(feature = "report")]
pub(crate) const ROUNDS: usize = kernel::EACH.div_ceil(4);

/// Launches the kernels for a step's samples.
struct Launcher {
    logits: CubeTensor,
    samples: CubeTensor,
    /// `[count, record_words]`: see [`kernel`].
    records: CubeTensor,
    rows: usize,
    vocabulary: usize,
    count: usize,
    chunks: usize,
}

// SAFETY of all launches: there is one cube for each sample, and for each of its `chunks` where a kernel reads
// chunks. It stays within the `vocabulary` logits of one of the `rows`, the record of its sample and, where
// there are, the bins of its sample.
#[allow(unsafe_code)]
impl Launcher {
    fn cubes(&self) -> CubeCount {
        launch::count();
        CubeCount::Static(self.count as u32, 1, 1)
    }

    fn cubes_of_chunks(&self) -> CubeCount {
        launch::count();
        CubeCount::Static(self.chunks as u32, self.count as u32, 1)
    }

    fn largest(&self) {
        // SAFETY: see above.
        unsafe {
            kernel::largest_kernel::launch_unchecked(
                &self.logits.client,
                self.cubes_of_chunks(),
                CubeDim::new_1d(THREADS as u32),
                launch::buffer(&self.logits),
                launch::buffer(&self.samples),
                launch::buffer(&self.records),
                self.rows,
                self.vocabulary,
            );
        }
    }

    fn weigh(&self, bins: &CubeTensor) {
        // SAFETY: see above.
        unsafe {
            kernel::weigh_kernel::launch_unchecked(
                &self.logits.client,
                self.cubes_of_chunks(),
                CubeDim::new_1d(THREADS as u32),
                launch::buffer(&self.logits),
                launch::buffer(&self.samples),
                launch::buffer(&self.records),
                launch::buffer(bins),
                self.rows,
                self.vocabulary,
            );
        }
    }

    fn histogram(&self, bins: &CubeTensor, stage: Stage, digit: usize) {
        // SAFETY: see above.
        unsafe {
            kernel::histogram_kernel::launch_unchecked(
                &self.logits.client,
                self.cubes_of_chunks(),
                CubeDim::new_1d(THREADS as u32),
                launch::buffer(&self.logits),
                launch::buffer(&self.samples),
                launch::buffer(&self.records),
                launch::buffer(bins),
                self.rows,
                self.vocabulary,
                stage,
                digit,
            );
        }
    }

    fn pick(&self, bins: &CubeTensor, stage: Stage, digit: usize) {
        // SAFETY: see above.
        unsafe {
            kernel::pick_kernel::launch_unchecked(
                &self.logits.client,
                self.cubes(),
                CubeDim::new_1d(THREADS as u32),
                launch::buffer(&self.samples),
                launch::buffer(&self.records),
                launch::buffer(bins),
                self.rows,
                self.vocabulary,
                stage,
                digit,
            );
        }
    }

    fn sum(&self, stage: Stage) {
        // SAFETY: see above.
        unsafe {
            kernel::sum_kernel::launch_unchecked(
                &self.logits.client,
                self.cubes_of_chunks(),
                CubeDim::new_1d(THREADS as u32),
                launch::buffer(&self.logits),
                launch::buffer(&self.samples),
                launch::buffer(&self.records),
                self.rows,
                self.vocabulary,
                stage,
            );
        }
    }

    fn search(&self, out: &CubeTensor, stage: Stage) {
        // SAFETY: see above; `out` has a word for each sample.
        unsafe {
            kernel::search_kernel::launch_unchecked(
                &self.logits.client,
                self.cubes(),
                CubeDim::new_1d(THREADS as u32),
                launch::buffer(&self.logits),
                launch::buffer(&self.samples),
                launch::buffer(&self.records),
                launch::buffer(out),
                self.rows,
                self.vocabulary,
                stage,
            );
        }
    }
}
