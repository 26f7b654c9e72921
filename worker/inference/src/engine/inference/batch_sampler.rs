//! Samples tokens for a step's rows: on the device where a row's logits are all it takes, on the host's
//! threads otherwise.
//!
//! Where an answer follows a grammar, its mask of allowed tokens is computed during the step, and waited
//! for when the logits are there.
//!
//! Device and host may round differently. Which of them samples depends on the sequence alone, so that
//! its tokens do not depend on what else is in the batch.

use std::time::{Duration, Instant};

use emberline_kernels::RowSample;
use rayon::prelude::*;

use crate::constraint::Progress;
use crate::network::{ComputeError, Logits};
use crate::sampling::{Alternatives, Sampler, Scores, score};

/// A token to sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct SampleRequest<'a> {
    /// The row of logits.
    pub(super) row: usize,
    pub(super) sampler: &'a Sampler,
    pub(super) progress: Option<&'a Progress>,
    /// Log-probabilities besides the token's own; `None` for none at all.
    pub(super) logprobs: Option<Alternatives<'a>>,
}

/// What was sampled.
#[derive(Debug, Clone)]
pub(super) struct SampledToken {
    /// `None` if no token is allowed.
    pub(super) token: Option<u32>,
    pub(super) scores: Option<Scores>,
}

/// What the masks of a step took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MaskTimes {
    /// Masks that were used.
    pub(super) masks: u64,
    /// Sum of the time that computing them took.
    pub(super) computed: Duration,
    /// How long the step waited for them.
    pub(super) waited: Duration,
}

/// Samples the tokens of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchSampler {
    /// The number of tokens; a network may have more logits.
    pub(super) vocabulary: usize,
    /// Whether the device may sample.
    pub(super) on_device: bool,
}

impl BatchSampler {
    /// What the device samples of `wanted`, with a network of so many logits in a row. It is told so with the step.
    pub(super) fn on_device(self, wanted: &[SampleRequest<'_>], logits: usize) -> Vec<RowSample> {
        wanted.iter().filter_map(|wanted| self.device_sample(wanted, logits)).collect()
    }

    fn device_sample(self, wanted: &SampleRequest<'_>, logits: usize) -> Option<RowSample> {
        // Otherwise the device could sample an id that is not a token.
        let device_can = self.on_device && logits == self.vocabulary;
        match (wanted.logprobs, wanted.progress) {
            (None, None) if device_can => {
                wanted.sampler.for_device().map(|params| RowSample { row: wanted.row, params })
            }
            _ => None,
        }
    }

    /// Samples a token for each of `wanted`, in order; `logits` are of a step that was told what
    /// [`BatchSampler::on_device`] says.
    pub(super) fn sample(
        self,
        logits: Logits,
        wanted: &[SampleRequest<'_>],
    ) -> Result<(Vec<SampledToken>, MaskTimes), ComputeError> {
        let width = logits.vocabulary();
        let is_on_device = |wanted: &SampleRequest<'_>| self.device_sample(wanted, width).is_some();
        let on_device: Vec<bool> = wanted.iter().map(is_on_device).collect();
        let mut from_device = logits.sampled()?.into_iter();

        let left = wanted.iter().zip(&on_device).filter(|(_, on_device)| !**on_device);
        let left: Vec<SampleRequest<'_>> = left.map(|(wanted, _)| *wanted).collect();
        let (from_host, times) = self.sample_on_host(logits, &left)?;
        let mut from_host = from_host.into_iter();

        let merged = on_device.iter().map_while(|on_device| match on_device {
            true => from_device.next().map(|token| SampledToken { token: Some(token), scores: None }),
            false => from_host.next(),
        });
        Ok((merged.collect(), times))
    }

    #[allow(clippy::needless_pass_by_value)] // the logits are used up
    fn sample_on_host(
        self,
        logits: Logits,
        wanted: &[SampleRequest<'_>],
    ) -> Result<(Vec<SampledToken>, MaskTimes), ComputeError> {
        if wanted.is_empty() {
            return Ok((Vec::new(), MaskTimes::default()));
        }
        // Choices that begin together share a row.
        let mut rows: Vec<usize> = wanted.iter().map(|wanted| wanted.row).collect();
        rows.dedup();
        let width = logits.vocabulary();
        let numbers = logits.select(&rows).into_host()?;
        let times = wait_for_masks(wanted);
        let one = |wanted: &SampleRequest<'_>| {
            let row = rows.binary_search(&wanted.row).unwrap_or(rows.len());
            let logits = numbers.get(row * width..(row + 1) * width).unwrap_or_default();
            let logits = logits.get(..self.vocabulary).unwrap_or(logits);
            let token = match wanted.progress.map(Progress::mask) {
                None => Some(wanted.sampler.sample(logits)),
                Some(Ok(mask)) => wanted.sampler.sample_allowed(logits, &mask.allowed),
                Some(Err(_)) => None,
            };
            SampledToken {
                token,
                scores: wanted.logprobs.and_then(|others| Some(score(logits, token?, others))),
            }
        };
        let sampled = match wanted {
            [single] => vec![one(single)],
            many => many.par_iter().map(one).collect(),
        };
        Ok((sampled, times))
    }
}

fn wait_for_masks(wanted: &[SampleRequest<'_>]) -> MaskTimes {
    let mut times = MaskTimes::default();
    let began = Instant::now();
    for progress in wanted.iter().filter_map(|wanted| wanted.progress) {
        times.masks += 1;
        times.computed += progress.mask().map_or(Duration::ZERO, |mask| mask.took);
        times.waited = began.elapsed();
    }
    times
}
