//! Measures the network by itself: prefill in chunks, and decode steps of several sequences.

use std::time::Instant;

use emberline_kernels::{BLOCK_SIZE, KvType, RowSample, SamplingParams};
use emberline_protocol::measurement::{CacheThroughput, OpTime, Throughput};

use crate::network::{ComputeError, Network, NetworkStep, StepSpan};

/// Rows of a prefill step, as llama-bench has it.
const CHUNK: usize = 512;

const GREEDY: SamplingParams =
    SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, random: 0.0 };

/// How much to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Load {
    /// Lengths of prompts that are computed alone.
    pub(super) prompts: Vec<usize>,
    /// Sequences at once.
    pub(super) batches: Vec<usize>,
    /// Tokens of each of these sequences before it is decoded.
    pub(super) depth: usize,
    /// Decoding steps of a run.
    pub(super) steps: usize,
    /// Runs; the median counts.
    pub(super) repeat: usize,
    /// Prefill budgets for which the time of a chunk is measured.
    pub(super) budgets: Vec<usize>,
    /// Length of the prompt that these chunks end.
    pub(super) long_prompt: usize,
    /// Whether untimed runs come first: kernels are compiled for each shape.
    pub(super) warm_up: bool,
}

impl Load {
    pub(super) fn new(quick: bool, warm_up: bool) -> Self {
        if quick {
            return Self {
                prompts: vec![128, 1024],
                batches: vec![1, 8],
                depth: 128,
                steps: 16,
                repeat: 2,
                budgets: vec![256],
                long_prompt: 1024,
                warm_up,
            };
        }
        Self {
            prompts: vec![128, 512, 1024, 4096],
            batches: vec![1, 8, 32, 128],
            depth: 128,
            steps: 32,
            repeat: 5,
            budgets: vec![64, 128, 256, 512, 1024],
            long_prompt: 4096,
            warm_up,
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    pub(super) prefill: Vec<Throughput>,
    pub(super) decode: Vec<Throughput>,
    /// For each budget, the milliseconds of the last chunk of the long prompt.
    pub(super) chunks: Vec<(usize, f64)>,
    pub(super) dispatches_per_step: Option<f64>,
    pub(super) profile: Vec<OpTime>,
    pub(super) cache: Vec<CacheThroughput>,
}

/// Measures with a cache of type `stored`, and compares decoding with both types.
pub(super) fn measure(network: &mut Network, load: &Load, stored: KvType) -> Result<Measured, ComputeError> {
    let context = network.config().context_length;
    let mut measured = Measured::default();
    for &tokens in load.prompts.iter().filter(|tokens| **tokens <= context) {
        let mut bench = Bench::new(network, 1, tokens, stored)?;
        measured.prefill.push(bench.prefill(tokens, load)?);
    }
    for &batch in &load.batches {
        let length = load.depth + (load.repeat + 1) * load.steps + 1;
        let mut bench = Bench::new(network, batch, length, stored)?;
        if batch > 1 {
            measured.prefill.push(bench.prefill(load.depth, load)?);
        }
        measured.decode.push(bench.decode(load)?);
        if batch == 1 {
            measured.dispatches_per_step = bench.dispatches(load)?;
        }
    }
    let long = load.long_prompt.min(context);
    let mut bench = Bench::new(network, 1, long, stored)?;
    for &budget in load.budgets.iter().filter(|budget| **budget <= long) {
        measured.chunks.push((budget, bench.last_chunk(budget, long, load)? * 1e3));
    }
    for depth in [load.depth, long.saturating_sub((load.repeat + 1) * load.steps + 1)] {
        measured.cache.extend(cache_rates(network, load, depth)?);
    }
    Ok(measured)
}

/// Steps of one sequence with `depth` tokens in a cache of either kind, in turns: what else the
/// machine does comes to both.
fn cache_rates(
    network: &mut Network,
    load: &Load,
    depth: usize,
) -> Result<Vec<CacheThroughput>, ComputeError> {
    let mut kinds = [("f32", KvType::F32, Vec::new()), ("f16", KvType::F16, Vec::new())];
    for _ in 0..load.repeat.max(3) {
        for (_, stored, seconds) in &mut kinds {
            let load = Load { depth, repeat: 1, ..load.clone() };
            let mut bench = Bench::new(network, 1, depth + 2 * load.steps + 3, *stored)?;
            seconds.push(bench.decode(&load)?.seconds);
        }
    }
    let rate = |(dtype, _, seconds): &(&str, KvType, Vec<f64>)| CacheThroughput {
        dtype: (*dtype).to_owned(),
        rate: rate(1, seconds, 1, depth),
    };
    Ok(kinds.iter().map(rate).collect())
}

/// A network with cache for several sequences of the same tokens.
struct Bench<'a> {
    network: &'a mut Network,
    /// Block tables.
    tables: Vec<Vec<u32>>,
    /// The tokens of every sequence.
    tokens: Vec<u32>,
}

impl<'a> Bench<'a> {
    fn new(
        network: &'a mut Network,
        sequences: usize,
        length: usize,
        stored: KvType,
    ) -> Result<Self, ComputeError> {
        let each = length.div_ceil(BLOCK_SIZE);
        network.allocate_cache(sequences * each, stored)?;
        let tables = (0..sequences).map(|number| blocks(number * each, each)).collect();
        let vocabulary = network.vocabulary();
        let tokens = (0..length).map(|position| any_token(position, vocabulary)).collect();
        Ok(Self { network, tables, tokens })
    }

    /// Prompts of `tokens` tokens for all sequences, one after the other, in full chunks.
    fn prefill(&mut self, tokens: usize, load: &Load) -> Result<Throughput, ComputeError> {
        let total = self.tables.len() * tokens;
        if load.warm_up {
            self.prefill_once(tokens)?;
        }
        // A long run needs no repetition to be exact.
        let repeat = if total > 4 * CHUNK { load.repeat.min(2) } else { load.repeat };
        let seconds = (0..repeat).map(|_| timed(|| self.prefill_once(tokens)));
        let seconds = seconds.collect::<Result<Vec<_>, _>>()?;
        Ok(rate(total, &seconds, self.tables.len(), tokens))
    }

    fn prefill_once(&mut self, tokens: usize) -> Result<(), ComputeError> {
        let ends = (0..self.tables.len()).map(|_| tokens).collect::<Vec<_>>();
        for step in chunks(&ends, CHUNK) {
            let spans = step.iter().filter_map(|part| {
                Some(StepSpan {
                    tokens: self.tokens.get(part.start..part.end)?,
                    start: part.start,
                    blocks: self.tables.get(part.sequence)?,
                    logit_rows: usize::from(part.end == tokens),
                })
            });
            let spans: Vec<_> = spans.collect();
            if let Some(logits) = self.network.forward(&spans)? {
                logits.sample(&vec![GREEDY; logits.rows()])?;
            }
        }
        Ok(())
    }

    /// Steps of one token for every sequence.
    fn decode(&mut self, load: &Load) -> Result<Throughput, ComputeError> {
        self.fill(load.depth)?;
        let mut at = load.depth;
        self.steps(&mut at, if load.warm_up { load.steps } else { 2 })?;
        let mut seconds = Vec::with_capacity(load.repeat);
        for _ in 0..load.repeat {
            let took = timed(|| self.steps(&mut at, load.steps))?;
            seconds.push(took / load.steps as f64);
        }
        Ok(rate(self.tables.len(), &seconds, self.tables.len(), load.depth))
    }

    /// Computes the first tokens of one sequence and copies them to the others.
    fn fill(&mut self, tokens: usize) -> Result<(), ComputeError> {
        let blocks = tokens.div_ceil(BLOCK_SIZE);
        let Some((first, others)) = self.tables.split_first() else { return Ok(()) };
        let ids = self.tokens.get(..tokens).unwrap_or_default();
        let span = StepSpan { tokens: ids, start: 0, blocks: first, logit_rows: 0 };
        self.network.forward(&[span])?;
        let pairs =
            others.iter().flat_map(|table| first.iter().copied().zip(table.iter().copied()).take(blocks));
        self.network.copy_blocks(&pairs.collect::<Vec<_>>());
        Ok(())
    }

    /// Decodes from position `at` on, each step with the tokens sampled in the last one.
    fn steps(&mut self, at: &mut usize, steps: usize) -> Result<(), ComputeError> {
        let mut tokens: Vec<u32> =
            (0..self.tables.len()).map(|i| any_token(*at + i, self.network.vocabulary())).collect();
        let greedy = |row| RowSample { row, params: GREEDY };
        let samples: Vec<RowSample> = (0..self.tables.len()).map(greedy).collect();
        for _ in 0..steps {
            let spans = tokens.iter().zip(&self.tables).map(|(token, blocks)| StepSpan {
                tokens: std::slice::from_ref(token),
                start: *at,
                blocks,
                logit_rows: 1,
            });
            let spans: Vec<_> = spans.collect();
            let step = NetworkStep { spans: &spans, kept: &[], samples: &samples };
            let (Some(logits), _) = self.network.step(step)? else { continue };
            tokens = logits.sampled()?;
            *at += 1;
        }
        Ok(())
    }

    /// The seconds of the last `budget` tokens of a prompt of `length`.
    fn last_chunk(&mut self, budget: usize, length: usize, load: &Load) -> Result<f64, ComputeError> {
        let start = length - budget;
        let mut seconds = Vec::new();
        for run in 0..=load.repeat.min(3) {
            let took = timed(|| {
                let Some(blocks) = self.tables.first() else { return Ok(()) };
                let tokens = self.tokens.get(start..length).unwrap_or_default();
                let span = StepSpan { tokens, start, blocks, logit_rows: 1 };
                match self.network.forward(&[span])? {
                    Some(logits) => logits.sample(&[GREEDY]).map(|_| ()),
                    None => Ok(()),
                }
            })?;
            if run > 0 {
                seconds.push(took);
            }
        }
        Ok(median(&mut seconds))
    }

    /// Kernels launched in a step; `None` where the host computes.
    fn dispatches(&mut self, load: &Load) -> Result<Option<f64>, ComputeError> {
        let before = emberline_kernels::traffic();
        self.steps(&mut (load.depth + 1), load.steps)?;
        let launched = emberline_kernels::traffic().since(before).launches;
        Ok((launched > 0).then(|| launched as f64 / load.steps as f64))
    }
}

/// Consecutive tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PromptChunk {
    sequence: usize,
    start: usize,
    end: usize,
}

/// Cuts sequences of these lengths into steps of `budget` tokens, one sequence after the other.
fn chunks(lengths: &[usize], budget: usize) -> Vec<Vec<PromptChunk>> {
    let (mut steps, mut step, mut room) = (Vec::new(), Vec::new(), budget);
    for (sequence, &length) in lengths.iter().enumerate() {
        let mut start = 0;
        while start < length {
            let end = length.min(start + room);
            step.push(PromptChunk { sequence, start, end });
            room -= end - start;
            start = end;
            if room == 0 {
                steps.push(std::mem::take(&mut step));
                room = budget;
            }
        }
    }
    if !step.is_empty() {
        steps.push(step);
    }
    steps
}

fn blocks(first: usize, count: usize) -> Vec<u32> {
    (first..first + count).map(|block| u32::try_from(block).unwrap_or(u32::MAX)).collect()
}

/// Tokens scattered over the vocabulary, so that neighbours differ.
fn any_token(position: usize, vocabulary: usize) -> u32 {
    u32::try_from((position * 7919 + 17) % vocabulary.max(1)).unwrap_or(0)
}

fn timed(work: impl FnOnce() -> Result<(), ComputeError>) -> Result<f64, ComputeError> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64())
}

fn rate(tokens: usize, seconds: &[f64], batch: usize, prompt_tokens: usize) -> Throughput {
    let middle = median(&mut seconds.to_vec());
    Throughput {
        batch,
        prompt_tokens,
        tokens_per_s: tokens as f64 / middle,
        seconds: middle,
        fastest_s: seconds.iter().copied().fold(f64::INFINITY, f64::min),
        slowest_s: seconds.iter().copied().fold(0.0, f64::max),
    }
}

/// The median; of an even number of values the lower middle one, and 0 of none.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_full_and_cover_every_token_once() {
        let steps = chunks(&[5, 0, 7, 1], 4);
        let sizes: Vec<usize> =
            steps.iter().map(|step| step.iter().map(|part| part.end - part.start).sum()).collect();
        assert_eq!(sizes, [4, 4, 4, 1]);
        for (sequence, length) in [(0, 5), (1, 0), (2, 7), (3, 1)] {
            let parts = steps.iter().flatten().filter(|part| part.sequence == sequence);
            let end = parts.fold(0, |end, part| {
                assert_eq!(part.start, end);
                part.end
            });
            assert_eq!(end, length);
        }
    }

    #[test]
    fn a_median_is_one_of_the_values() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.0);
        assert_eq!(median(&mut []), 0.0);
    }
}
