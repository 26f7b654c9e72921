//! Compiles and tunes the device's kernels before a client waits for them.
//!
//! Kernels differ by the number of rows, by whether these are of prompts, by how far back attention
//! reaches, and by how tokens are sampled. Each kind of step is computed once, in a cache that holds
//! nothing yet.

use std::io::IsTerminal;

use emberline_kernels::{BLOCK_SIZE, SamplingParams};
use indicatif::{ProgressBar, ProgressStyle};

use crate::network::{ComputeError, Network, StepSpan};
use crate::scheduler::SchedulerLimits;

const GREEDY: SamplingParams =
    SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, random: 0.5 };
const DRAWN: SamplingParams = SamplingParams { temperature: 1.0, ..GREEDY };
const FILTERED: SamplingParams = SamplingParams { top_k: 40, top_p: 0.9, min_p: 0.05, ..DRAWN };

/// A kind of step to compute.
#[derive(Debug, Clone, Copy)]
struct Kind {
    /// Sequences that decode a token at this position.
    decoding: usize,
    position: usize,
    /// Prompt tokens.
    prompt: usize,
}

/// Computes a step of each kind that `limits` and the model's context allow.
pub(super) fn run(network: &mut Network, limits: &SchedulerLimits) -> Result<(), ComputeError> {
    let longest = network.config().context_length.min(limits.blocks * BLOCK_SIZE);
    let kinds = kinds(limits, longest);
    let progress = if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("warming up {bar:30} {pos}/{len}");
        ProgressBar::new(kinds.len() as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    } else {
        ProgressBar::hidden()
    };
    for kind in kinds {
        step(network, kind, limits)?;
        progress.inc(1);
    }
    if limits.blocks > 1 {
        network.copy_blocks(&[(0, 1)]);
    }
    progress.finish_and_clear();
    Ok(())
}

fn kinds(limits: &SchedulerLimits, longest: usize) -> Vec<Kind> {
    let last = longest.saturating_sub(1);
    let prompt = limits.prefill_budget.min(longest);
    let batches = [1, 2, 4, 8, limits.sequences].map(|sequences| sequences.min(limits.sequences));
    let mut kinds = Vec::new();
    for position in [0, last] {
        kinds.extend(batches.map(|decoding| Kind { decoding, position, prompt: 0 }));
    }
    kinds.push(Kind { decoding: 0, position: 0, prompt });
    kinds.extend([0, last].map(|position| Kind { decoding: limits.sequences, position, prompt }));
    kinds
}

/// Many sequences share blocks here: the results are meaningless.
fn step(network: &mut Network, kind: Kind, limits: &SchedulerLimits) -> Result<(), ComputeError> {
    let Kind { decoding, position, prompt } = kind;
    let table = |positions: usize| -> Vec<u32> {
        let blocks = (0..positions.div_ceil(BLOCK_SIZE)).map(|block| block % limits.blocks.max(1));
        blocks.map(|block| u32::try_from(block).unwrap_or(0)).collect()
    };
    let (zeros, long, short) = (vec![0; prompt], table(position + 1), table(prompt));
    let mut spans = vec![StepSpan { tokens: &[0], start: position, blocks: &long, logit_rows: 1 }; decoding];
    if prompt > 0 {
        spans.push(StepSpan { tokens: &zeros, start: 0, blocks: &short, logit_rows: 1 });
    }
    let Some(logits) = network.forward(&spans)? else { return Ok(()) };
    for kinds in [[GREEDY; 3], [DRAWN; 3], [GREEDY, DRAWN, FILTERED]] {
        let rows: Vec<SamplingParams> = kinds.into_iter().cycle().take(logits.rows()).collect();
        logits.sample(&rows)?;
    }
    if decoding > 1 {
        logits.select(&[0]).sample(&[DRAWN])?;
        logits.select(&[0]).into_host()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use emberline_kernels::KvType;

    use super::*;
    use crate::device::ComputeDevice;
    use crate::network::testing;

    #[test]
    fn every_kind_of_step_can_be_computed_in_any_cache() {
        let (_folder, file) = testing::builder(&testing::tensors()).open();
        let mut network = Network::from_gguf(&file, &ComputeDevice::cpu()).unwrap();
        for (sequences, prefill_budget, blocks) in [(1, 1, 1), (3, 40, 2), (9, 500, 100)] {
            network.allocate_cache(blocks, KvType::F32).unwrap();
            run(&mut network, &SchedulerLimits { sequences, prefill_budget, blocks }).unwrap();
        }
    }

    #[test]
    fn kinds_keep_to_the_limits() {
        let limits = SchedulerLimits { sequences: 3, prefill_budget: 100, blocks: 4 };
        for kind in kinds(&limits, 64) {
            assert!(kind.decoding <= 3 && kind.prompt <= 64 && kind.position < 64, "{kind:?}");
            assert!(kind.decoding + kind.prompt > 0);
        }
    }
}
