//! Samples tokens for a step's rows: on the device where a row's logits are all it takes, on the host's
//! threads otherwise.
//!
//! Where tokens were drafted, a choice's rows are sampled from one after the other, as long as the draft is
//! right: each token by what the tokens before it make of penalties, grammar and random numbers.
//!
//! Where an answer follows a grammar, its mask of allowed tokens is computed during the step, and waited
//! for when the logits are there.
//!
//! Device and host may round differently. Which of them samples depends on the sequence alone, so that
//! its tokens do not depend on what else is in the batch.

use std::time::{Duration, Instant};

use emberline_kernels::{RowSample, SamplingParams};
use rayon::prelude::*;

use crate::constraint::Progress;
use crate::network::{ComputeError, Logits};
use crate::sampling::{Alternatives, Sampler, Scores, score};

/// A choice whose next token is sampled from a row of logits.
#[derive(Debug, Clone, Copy)]
pub(super) struct SampleRequest<'a> {
    pub(super) rows: SampleRows,
    pub(super) sampler: &'a Sampler,
    pub(super) progress: Option<&'a Progress>,
    /// Log-probabilities besides the token's own; `None` for none at all.
    pub(super) logprobs: Option<Alternatives<'a>>,
}

/// The rows of a step from which a choice's tokens are sampled, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SampleRows {
    /// Its place among those that the step samples for.
    pub(super) place: usize,
    /// The first row, for the next token.
    pub(super) first: usize,
    /// How many tokens were sampled from rows of this step before.
    pub(super) taken: usize,
    /// How many rows there are after the first one, for the tokens after drafted ones.
    pub(super) drafted: usize,
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

/// A step's logits, as far as they are on the host, and the tokens that the device has sampled.
#[derive(Debug)]
pub(super) struct StepLogits {
    /// By place: the tokens of its rows. Where one is `None`, the host samples.
    from_device: Vec<Vec<Option<u32>>>,
    /// The rows on the host, in ascending order, and their logits.
    rows: Vec<usize>,
    numbers: Vec<f32>,
    width: usize,
    vocabulary: usize,
}

impl BatchSampler {
    /// What the device samples for `requests`, with a network of so many logits in a row. It is told so with the step.
    ///
    /// What it samples depends on no earlier token but by the logits, so it samples for all drafted tokens at once, as if
    /// they were right.
    pub(super) fn on_device(self, requests: &[SampleRequest<'_>], width: usize) -> Vec<RowSample> {
        let rows = requests.iter().flat_map(|request| self.rows(request, width));
        rows.filter_map(|(row, params)| params.map(|params| RowSample { row, params })).collect()
    }

    /// The rows of a request, and how the device samples from each of them if it does.
    fn rows(
        self,
        request: &SampleRequest<'_>,
        width: usize,
    ) -> impl Iterator<Item = (usize, Option<SamplingParams>)> {
        // With more logits than tokens the device could sample an id that is not a token.
        let device_can = self.on_device && width == self.vocabulary;
        let is_plain = device_can && request.logprobs.is_none() && request.progress.is_none();
        let sampler = request.sampler;
        let rows = (request.rows.first..).zip(0..).take(1 + request.rows.drafted);
        rows.map(move |(row, ahead)| (row, if is_plain { sampler.for_device(ahead) } else { None }))
    }

    /// Reads what the device has sampled for `requests`, and the other rows; `logits` are of a step that was told what
    /// [`BatchSampler::on_device`] says.
    pub(super) fn read(
        self,
        logits: &Logits,
        requests: &[SampleRequest<'_>],
    ) -> Result<StepLogits, ComputeError> {
        let width = logits.vocabulary();
        let mut sampled = logits.sampled()?.into_iter();
        let (mut from_device, mut rows) = (Vec::new(), Vec::new());
        for request in requests {
            let mut tokens = Vec::with_capacity(1 + request.rows.drafted);
            for (row, params) in self.rows(request, width) {
                let token = params.and_then(|_| sampled.next());
                // Choices that begin together share a row.
                if token.is_none() && rows.last() != Some(&row) {
                    rows.push(row);
                }
                tokens.push(token);
            }
            from_device.push(tokens);
        }
        let numbers = if rows.is_empty() { Vec::new() } else { logits.select(&rows).into_host()? };
        Ok(StepLogits { from_device, rows, numbers, width, vocabulary: self.vocabulary })
    }
}

impl StepLogits {
    /// Samples one token for each of `requests`, in order.
    pub(super) fn sample(&self, requests: &[SampleRequest<'_>]) -> (Vec<SampledToken>, MaskTimes) {
        let times = wait_for_masks(requests);
        let one = |request: &SampleRequest<'_>| match self.device_token(request.rows) {
            Some(token) => SampledToken { token: Some(token), scores: None },
            None => self.sample_on_host(request),
        };
        // What the device has sampled is not worth waking threads for.
        let sampled = match requests {
            many if many.len() > 1 && !self.rows.is_empty() => many.par_iter().map(one).collect(),
            few => few.iter().map(one).collect(),
        };
        (sampled, times)
    }

    fn device_token(&self, rows: SampleRows) -> Option<u32> {
        *self.from_device.get(rows.place)?.get(rows.taken)?
    }

    fn sample_on_host(&self, request: &SampleRequest<'_>) -> SampledToken {
        let row = self.rows.binary_search(&(request.rows.first + request.rows.taken));
        let row = row.unwrap_or(self.rows.len());
        let logits = self.numbers.get(row * self.width..(row + 1) * self.width).unwrap_or_default();
        let logits = logits.get(..self.vocabulary).unwrap_or(logits);
        let token = match request.progress.map(Progress::mask) {
            None => Some(request.sampler.sample(logits)),
            Some(Ok(mask)) => request.sampler.sample_allowed(logits, &mask.allowed),
            Some(Err(_)) => None,
        };
        let scores = request.logprobs.and_then(|others| Some(score(logits, token?, others)));
        SampledToken { token, scores }
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
