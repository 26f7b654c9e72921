//! Compiles the device's kernels before a client waits for them.
//!
//! Kernels differ by how many rows a thread computes (1, 2, 4 or 8), by whether rows come in tiles, as those of a prompt
//! and of a draft do, and by how far back attention reaches. Each kind of step that can be served is computed once, as
//! small as it can be, in a cache that holds nothing yet.

use std::io::IsTerminal;

use emberline_kernels::{BLOCK_SIZE, SamplingParams};
use indicatif::{ProgressBar, ProgressStyle};

use crate::network::{ComputeError, Network, StepSpan};
use crate::scheduler::SchedulerLimits;

/// There is one kernel for all parameters.
const SAMPLED: SamplingParams =
    SamplingParams { temperature: 1.0, top_k: 40, top_p: 0.9, min_p: 0.05, random: 0.5 };

/// Tokens of a prompt: as many as a tile has.
const PROMPT: usize = 16;

/// The second position that begins a part of a context which attention on GPUs computes by itself.
const DIVIDED: usize = 64;

/// A kind of step to compute.
#[derive(Debug, Clone, Copy)]
struct Kind {
    /// Sequences that decode a token at this position.
    decoding: usize,
    position: usize,
    /// Drafted tokens of each of them, the last of which is at the position.
    drafted: usize,
    /// Prompt tokens.
    prompt: usize,
}

/// Computes a step of each kind that `limits` and the model's context allow; `report` is told the part that is done.
pub(super) fn run(
    network: &mut Network,
    limits: &SchedulerLimits,
    report: &dyn Fn(f32),
) -> Result<(), ComputeError> {
    let longest = network.config().context_length.min(limits.blocks * BLOCK_SIZE);
    let kinds = kinds(limits, longest);
    let progress = if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("warming up {bar:30} {pos}/{len}");
        ProgressBar::new(kinds.len() as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    } else {
        ProgressBar::hidden()
    };
    let count = kinds.len();
    for (number, kind) in kinds.into_iter().enumerate() {
        step(network, kind, limits)?;
        progress.inc(1);
        report((number + 1) as f32 / count as f32);
    }
    if limits.blocks > 1 {
        network.copy_blocks(&[(0, 1)]);
    }
    progress.finish_and_clear();
    Ok(())
}

fn kinds(limits: &SchedulerLimits, longest: usize) -> Vec<Kind> {
    let last = longest.saturating_sub(1);
    let batches = [1, 2, 4, 8].into_iter().filter(|decoding| *decoding <= limits.sequences);
    let mut kinds: Vec<Kind> =
        batches.map(|decoding| Kind { decoding, position: 0, drafted: 0, prompt: 0 }).collect();
    // How attention is divided among cubes depends on how far a step's sequences reach.
    let positions = std::iter::successors(Some(DIVIDED), |position| position.checked_mul(2));
    let positions = positions.take_while(|position| *position < last).chain([last]);
    kinds.extend(positions.map(|position| Kind { decoding: 1, position, drafted: 0, prompt: 0 }));
    let prompt = PROMPT.min(limits.prefill_budget).min(longest);
    kinds.push(Kind { decoding: 0, position: 0, drafted: 0, prompt });
    for drafted in [1, 3, 7].into_iter().filter(|drafted| *drafted <= limits.draft_budget.min(last)) {
        kinds.push(Kind { decoding: 1, position: last, drafted, prompt: 0 });
    }
    kinds
}

/// Many sequences share blocks here: the results are meaningless.
fn step(network: &mut Network, kind: Kind, limits: &SchedulerLimits) -> Result<(), ComputeError> {
    let Kind { decoding, position, drafted, prompt } = kind;
    let table = |positions: usize| -> Vec<u32> {
        let blocks = (0..positions.div_ceil(BLOCK_SIZE)).map(|block| block % limits.blocks.max(1));
        blocks.map(|block| u32::try_from(block).unwrap_or(0)).collect()
    };
    let (zeros, long, short) = (vec![0; prompt], table(position + 1), table(prompt));
    let tokens = vec![0; 1 + drafted];
    let start = position.saturating_sub(drafted);
    let of_answer = StepSpan { tokens: &tokens, start, blocks: &long, logit_rows: tokens.len() };
    let mut spans = vec![of_answer; decoding];
    if prompt > 0 {
        spans.push(StepSpan { tokens: &zeros, start: 0, blocks: &short, logit_rows: 1 });
    }
    let Some(logits) = network.forward(&spans)? else { return Ok(()) };
    logits.sample(&vec![SAMPLED; logits.rows()])?;
    if decoding > 1 {
        logits.select(&[0]).into_host()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use emberline_kernels::KvType;

    use super::*;
    use crate::device::ComputeDevice;
    use crate::network::testing;

    #[test]
    fn every_kind_of_step_can_be_computed_in_any_cache() {
        let (_folder, file) = testing::builder(&testing::tensors()).open();
        let mut network = Network::from_gguf(&file, &ComputeDevice::cpu()).unwrap();
        for (sequences, prefill_budget, draft_budget, blocks) in
            [(1, 1, 0, 1), (3, 40, 3, 2), (9, 500, 32, 100), (1, 1, 32, 1)]
        {
            network.allocate_cache(blocks, KvType::F32).unwrap();
            let done = Cell::new(0.0);
            let limits = SchedulerLimits { sequences, prefill_budget, draft_budget, blocks };
            run(&mut network, &limits, &|part| done.set(part)).unwrap();
            assert_eq!(done.get(), 1.0);
        }
    }

    #[test]
    fn kinds_keep_to_the_limits() {
        let limits = SchedulerLimits { sequences: 3, prefill_budget: 100, draft_budget: 5, blocks: 4 };
        for kind in kinds(&limits, 64) {
            assert!(kind.decoding <= 3 && kind.prompt <= 64 && kind.position < 64, "{kind:?}");
            assert!(kind.drafted <= 5.min(kind.position), "{kind:?}");
            assert!(kind.decoding + kind.prompt > 0);
        }
    }
}
