//! Tokens for a step's rows: by the device where their logits are all it takes, by the processor's
//! threads otherwise.
//!
//! Where an answer obeys a grammar, the tokens that it allows were computed meanwhile; they are waited
//! for when everything else is there.
//!
//! Which of the two picks depends on the sequence alone, for they may round differently, and a sequence's
//! tokens must not depend on its company.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::constraint::Progress;
use crate::network::{ComputeError, Logits};
use crate::sampling::{Alternatives, Sampler, Scores, score};

/// A token that is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The row of logits.
    pub(super) row: usize,
    pub(super) sampler: &'a Sampler,
    pub(super) progress: Option<&'a Progress>,
    /// Log-probabilities beside the token's own; `None` for not even that.
    pub(super) logprobs: Option<Alternatives<'a>>,
}

/// What was picked.
#[derive(Debug, Clone)]
pub(super) struct Picked {
    /// `None` if no token is allowed.
    pub(super) token: Option<u32>,
    pub(super) scores: Option<Scores>,
}

/// What masks took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MaskTimes {
    /// Masks that were used.
    pub(super) masks: u64,
    /// All computations together.
    pub(super) computed: Duration,
    /// How long the step waited for them.
    pub(super) waited: Duration,
}

/// Where tokens are picked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picker {
    /// Ids below are tokens; a network may have more.
    pub(super) vocabulary: usize,
    /// Whether the device may pick.
    pub(super) on_device: bool,
}

impl Picker {
    /// A token for each of `wanted`, in order.
    pub(super) fn pick(
        self,
        logits: Logits,
        wanted: &[Wanted<'_>],
    ) -> Result<(Vec<Picked>, MaskTimes), ComputeError> {
        // The device would pick what is no token.
        let device_may = self.on_device && logits.vocabulary() == self.vocabulary;
        let on_device = |wanted: &Wanted<'_>| match (wanted.logprobs, wanted.progress) {
            (None, None) if device_may => wanted.sampler.on_device(),
            _ => None,
        };
        let picks: Vec<_> = wanted.iter().map(on_device).collect();
        let rows = wanted.iter().zip(&picks).filter(|(_, pick)| pick.is_some());
        let rows: Vec<usize> = rows.map(|(wanted, _)| wanted.row).collect();
        let device_picks: Vec<_> = picks.iter().flatten().copied().collect();
        let mut from_device = match rows.is_empty() {
            true => Vec::new(),
            false => logits.select(&rows).pick(&device_picks)?,
        }
        .into_iter();

        let left = wanted.iter().zip(&picks).filter(|(_, pick)| pick.is_none());
        let left: Vec<Wanted<'_>> = left.map(|(wanted, _)| *wanted).collect();
        let (from_host, times) = self.pick_on_host(logits, &left)?;
        let mut from_host = from_host.into_iter();

        let merged = picks.iter().map_while(|pick| match pick {
            Some(_) => from_device.next().map(|token| Picked { token: Some(token), scores: None }),
            None => from_host.next(),
        });
        Ok((merged.collect(), times))
    }

    #[allow(clippy::needless_pass_by_value)] // the logits are used up
    fn pick_on_host(
        self,
        logits: Logits,
        wanted: &[Wanted<'_>],
    ) -> Result<(Vec<Picked>, MaskTimes), ComputeError> {
        if wanted.is_empty() {
            return Ok((Vec::new(), MaskTimes::default()));
        }
        // Choices that begin together share a row.
        let mut rows: Vec<usize> = wanted.iter().map(|wanted| wanted.row).collect();
        rows.dedup();
        let width = logits.vocabulary();
        let numbers = logits.select(&rows).into_host()?;
        let times = wait_for_masks(wanted);
        let one = |wanted: &Wanted<'_>| {
            let row = rows.binary_search(&wanted.row).unwrap_or(rows.len());
            let logits = numbers.get(row * width..(row + 1) * width).unwrap_or_default();
            let logits = logits.get(..self.vocabulary).unwrap_or(logits);
            let token = match wanted.progress.map(Progress::mask) {
                None => Some(wanted.sampler.pick(logits)),
                Some(Ok(mask)) => wanted.sampler.pick_allowed(logits, &mask.allowed),
                Some(Err(_)) => None,
            };
            Picked { token, scores: wanted.logprobs.and_then(|others| Some(score(logits, token?, others))) }
        };
        let picked = match wanted {
            [single] => vec![one(single)],
            many => many.par_iter().map(one).collect(),
        };
        Ok((picked, times))
    }
}

fn wait_for_masks(wanted: &[Wanted<'_>]) -> MaskTimes {
    let mut times = MaskTimes::default();
    let began = Instant::now();
    for progress in wanted.iter().filter_map(|wanted| wanted.progress) {
        times.masks += 1;
        times.computed += progress.mask().map_or(Duration::ZERO, |mask| mask.took);
        times.waited = began.elapsed();
    }
    times
}
