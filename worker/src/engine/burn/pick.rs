//! Tokens for a step's rows: by the device where their logits are all it takes, by the processor's
//! threads otherwise.
//!
//! Which of the two depends on the sequence alone, for they may round differently, and a sequence's
//! tokens must not depend on its company.

use rayon::prelude::*;

use crate::model::{ComputeError, Logits};
use crate::sampling::{Sampler, Scores, score};

/// A token that is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The row of logits.
    pub(super) row: usize,
    pub(super) sampler: &'a Sampler,
    /// How many log-probabilities beside the token's own; `None` for not even that.
    pub(super) logprobs: Option<usize>,
}

/// What was picked.
#[derive(Debug, Clone)]
pub(super) struct Picked {
    pub(super) token: u32,
    pub(super) scores: Option<Scores>,
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
    pub(super) fn pick(self, logits: Logits, wanted: &[Wanted<'_>]) -> Result<Vec<Picked>, ComputeError> {
        // The device would pick what is no token.
        let device_may = self.on_device && logits.vocabulary() == self.vocabulary;
        let on_device = |wanted: &Wanted<'_>| match wanted.logprobs {
            None if device_may => wanted.sampler.on_device(),
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
        let mut from_host = self.pick_on_host(logits, &left)?.into_iter();

        let merged = picks.iter().map_while(|pick| match pick {
            Some(_) => from_device.next().map(|token| Picked { token, scores: None }),
            None => from_host.next(),
        });
        Ok(merged.collect())
    }

    #[allow(clippy::needless_pass_by_value)] // the logits are used up
    fn pick_on_host(self, logits: Logits, wanted: &[Wanted<'_>]) -> Result<Vec<Picked>, ComputeError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        // Choices that begin together share a row.
        let mut rows: Vec<usize> = wanted.iter().map(|wanted| wanted.row).collect();
        rows.dedup();
        let width = logits.vocabulary();
        let numbers = logits.select(&rows).into_host()?;
        let one = |wanted: &Wanted<'_>| {
            let row = rows.binary_search(&wanted.row).unwrap_or(rows.len());
            let logits = numbers.get(row * width..(row + 1) * width).unwrap_or_default();
            let logits = logits.get(..self.vocabulary).unwrap_or(logits);
            let token = wanted.sampler.pick(logits);
            Picked { token, scores: wanted.logprobs.map(|top| score(logits, token, top)) }
        };
        Ok(match wanted {
            [single] => vec![one(single)],
            many => many.par_iter().map(one).collect(),
        })
    }
}
