//! A sequence's logits do not depend on what else is computed: the same bits alone and in a
//! batch, in one chunk and in many, token by token, in any cache blocks. On the CPU, and on wgpu
//! with the feature `gpu`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

use emberline_inference::checkpoint::gguf::GgufFile;
#[cfg(feature = "gpu")]
use emberline_inference::device::Backend;
use emberline_inference::device::ComputeDevice;
use emberline_inference::network::{Network, NetworkStep, StepSpan};
use emberline_kernels::{KvType, Precision};
use emberline_test_kit::golden;
use emberline_test_kit::paths::model_path;

const BLOCKS: usize = 96;
const BLOCK_SIZE: usize = 16;

/// How keys and values are stored, and how products are computed.
type Arithmetic = (KvType, Precision);

/// What the CPU can do.
const ON_CPU: [Arithmetic; 4] = [
    (KvType::F32, Precision::Exact),
    (KvType::F16, Precision::Exact),
    (KvType::F16, Precision::Fast),
    (KvType::F16, Precision::Fastest),
];

fn open(device: &ComputeDevice, (stored, precision): Arithmetic) -> Network {
    let file = GgufFile::open(&model_path().unwrap()).unwrap();
    let mut network = Network::from_gguf(&file, device).unwrap();
    network.set_precision(precision);
    network.allocate_cache(BLOCKS, stored).unwrap();
    network
}

/// One sequence's tokens and blocks.
struct Sequence {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
}

impl Sequence {
    fn new(tokens: &[u32], blocks: impl Iterator<Item = u32>) -> Self {
        let needed = tokens.len().div_ceil(BLOCK_SIZE);
        Self { tokens: tokens.to_vec(), blocks: blocks.take(needed).collect() }
    }

    fn span(&self, start: usize, end: usize) -> StepSpan<'_> {
        StepSpan { tokens: &self.tokens[start..end], start, blocks: &self.blocks, logit_rows: 1 }
    }
}

/// The bits of each wanted row.
fn step(network: &mut Network, spans: &[StepSpan<'_>]) -> Vec<Vec<u32>> {
    let logits = network.forward(spans).unwrap().unwrap();
    let vocabulary = logits.vocabulary();
    let numbers = logits.into_host().unwrap();
    numbers.chunks(vocabulary).map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect()
}

/// Three prompts of different lengths, short enough for a software adapter.
fn prompts() -> Vec<Vec<u32>> {
    let mut prompts: Vec<_> =
        golden::cases().unwrap().into_iter().map(|case| case.prompt_token_ids).collect();
    prompts.sort_by_key(Vec::len);
    prompts.truncate(3);
    prompts
}

/// Sequences whose blocks are dealt out in turn, from the end: neighbours in a sequence lie apart.
fn interleaved(prompts: &[Vec<u32>]) -> Vec<Sequence> {
    let blocks = |at| (0..BLOCKS as u32).rev().skip(at).step_by(prompts.len());
    prompts.iter().enumerate().map(|(at, prompt)| Sequence::new(prompt, blocks(at))).collect()
}

/// The logits after each of the last `decoded` tokens of each prompt, each computed alone: all but
/// the last tokens in one chunk, then one by one.
fn alone(network: &mut Network, prompts: &[Vec<u32>], decoded: usize) -> Vec<Vec<Vec<u32>>> {
    let one = |prompt: &Vec<u32>| {
        let sequence = Sequence::new(prompt, 0..);
        let first = prompt.len() - decoded;
        let mut rows = step(network, &[sequence.span(0, first)]);
        for at in first..prompt.len() {
            rows.extend(step(network, &[sequence.span(at, at + 1)]));
        }
        rows
    };
    prompts.iter().map(one).collect()
}

fn a_batch_of_sequences_has_the_bits_of_each_alone(device: &ComputeDevice, arithmetic: Arithmetic) {
    let mut network = open(device, arithmetic);
    let (prompts, decoded) = (prompts(), 3);
    let wanted = alone(&mut network, &prompts, decoded);
    let sequences = interleaved(&prompts);
    let before: Vec<_> = sequences.iter().map(|s| s.span(0, s.tokens.len() - decoded)).collect();
    let mut rows = vec![step(&mut network, &before)];
    for left in (0..decoded).rev() {
        let spans: Vec<_> =
            sequences.iter().map(|s| s.span(s.tokens.len() - left - 1, s.tokens.len() - left)).collect();
        rows.push(step(&mut network, &spans));
    }
    for (number, wanted) in wanted.iter().enumerate() {
        for (at, wanted) in wanted.iter().enumerate() {
            assert!(rows[at][number] == *wanted, "sequence {number}, step {at}");
        }
    }
}

fn a_prompt_in_chunks_has_the_bits_of_one_chunk(device: &ComputeDevice, arithmetic: Arithmetic) {
    let mut network = open(device, arithmetic);
    let prompt = prompts().pop().unwrap();
    check_chunks(&mut network, arithmetic.0, &prompt, &[5, 16]);
}

/// Longer than any part of a sequence that kernels take at a time. Too much for a software adapter.
#[test]
fn a_long_prompt_in_chunks_has_the_bits_of_one_chunk() {
    let prompt: Vec<u32> = prompts().concat().into_iter().cycle().take(601).collect();
    for arithmetic in ON_CPU {
        let mut network = open(&ComputeDevice::cpu(), arithmetic);
        check_chunks(&mut network, arithmetic.0, &prompt, &[97, 256, 600]);
        check_chunks(&mut network, arithmetic.0, &prompt[..60], &[1, 7, 16, 33]);
    }
}

fn check_chunks(network: &mut Network, stored: KvType, prompt: &[u32], chunks: &[usize]) {
    let sequence = Sequence::new(prompt, 0..);
    let whole = step(network, &[sequence.span(0, prompt.len())]);
    for &chunk in chunks {
        network.allocate_cache(BLOCKS, stored).unwrap();
        let scattered = Sequence::new(prompt, (0..BLOCKS as u32).map(|at| at * 37 % BLOCKS as u32));
        let mut last = Vec::new();
        for start in (0..prompt.len()).step_by(chunk) {
            last = step(network, &[scattered.span(start, (start + chunk).min(prompt.len()))]);
        }
        assert!(last == whole, "chunks of {chunk}");
    }
}

/// While one sequence decodes, another's prompt comes in chunks.
fn a_sequence_does_not_notice_the_prefill_of_another(device: &ComputeDevice, arithmetic: Arithmetic) {
    let mut network = open(device, arithmetic);
    let prompts = prompts();
    let decoded = 4;
    let wanted = alone(&mut network, &prompts[..1], decoded);
    let first = Sequence::new(&prompts[0], 10..);
    let other = Sequence::new(&prompts[2], 40..);
    let start = first.tokens.len() - decoded;
    let mut rows = step(&mut network, &[first.span(0, start)]);
    for at in 0..decoded {
        let chunk = StepSpan { logit_rows: 0, ..other.span(at * 9, at * 9 + 9) };
        let logits = step(&mut network, &[chunk, first.span(start + at, start + at + 1)]);
        assert_eq!(logits.len(), 1);
        rows.extend(logits);
    }
    assert!(rows == wanted[0]);
}

/// Whatever is wanted of a chunk besides, its rows have the bits that they have as the last of a prompt.
fn the_rows_of_a_prompt_have_the_bits_of_last_ones(device: &ComputeDevice, arithmetic: Arithmetic) {
    let mut network = open(device, arithmetic);
    let prompt = prompts().remove(0);
    let sequence = Sequence::new(&prompt, 0..);
    let wanted: Vec<Vec<u32>> =
        (0..prompt.len()).flat_map(|at| step(&mut network, &[sequence.span(at, at + 1)])).collect();
    network.allocate_cache(BLOCKS, arithmetic.0).unwrap();
    let (other, chunk) = (Sequence::new(&prompts()[1][..9], 40..), 11);
    for start in (0..prompt.len()).step_by(chunk) {
        let end = (start + chunk).min(prompt.len());
        let quiet = StepSpan { logit_rows: 0, ..sequence.span(start, end) };
        // Another prompt's rows come before.
        let kept: Vec<usize> = (9..9 + end - start).collect();
        let (last, hidden) = {
            let spans = [other.span(0, 9), quiet];
            network.step(NetworkStep { spans: &spans, kept: &kept, samples: &[] }).unwrap()
        };
        assert_eq!((last.unwrap().rows(), hidden.as_ref().unwrap().rows()), (1, end - start));
        let hidden = hidden.unwrap();
        for first in (0..hidden.rows()).step_by(4) {
            let rows = first..(first + 4).min(hidden.rows());
            let logits = network.logits(&hidden, rows.clone()).unwrap();
            let vocabulary = logits.vocabulary();
            let numbers = logits.into_host().unwrap();
            for (row, numbers) in rows.zip(numbers.chunks(vocabulary)) {
                let bits: Vec<u32> = numbers.iter().map(|logit| logit.to_bits()).collect();
                assert!(bits == wanted[start + row], "row {}", start + row);
            }
        }
    }
    assert!(network.step(NetworkStep { spans: &[other.span(0, 9)], kept: &[9], samples: &[] }).is_err());
}

/// The GPU, or else the software adapter, which has to be named.
#[cfg(feature = "gpu")]
fn gpu() -> ComputeDevice {
    let software = |_| ComputeDevice::open(Backend::Wgpu, Some("llvmpipe"));
    let opened = ComputeDevice::open(Backend::Wgpu, None).or_else(software);
    opened.unwrap_or_else(|error| panic!("{error}"))
}

/// Several rows of each of several sequences, as with drafted tokens, have the bits that they have one by one;
/// so do the rows after them where the draft was wrong.
fn rows_of_a_draft_have_the_bits_of_single_ones(device: &ComputeDevice, arithmetic: Arithmetic) {
    let mut network = open(device, arithmetic);
    let (prompts, decoded) = (prompts(), 9);
    let wanted = alone(&mut network, &prompts, decoded);
    let sequences = interleaved(&prompts);
    let before: Vec<_> = sequences.iter().map(|s| s.span(0, s.tokens.len() - decoded)).collect();
    step(&mut network, &before);
    for (first, rows) in [(0, 3), (3, 1), (4, 5)] {
        // A wrong draft, which is written over.
        let wrong: Vec<Sequence> = sequences
            .iter()
            .map(|sequence| {
                let mut tokens = sequence.tokens.clone();
                let from = tokens.len() - decoded + first + 1;
                tokens[from..].fill(7);
                Sequence { tokens, blocks: sequence.blocks.clone() }
            })
            .collect();
        for (sequences, right) in [(&wrong, 1), (&sequences, rows)] {
            let spans: Vec<_> = sequences
                .iter()
                .map(|sequence| {
                    let start = sequence.tokens.len() - decoded + first;
                    StepSpan { logit_rows: rows, ..sequence.span(start, start + rows) }
                })
                .collect();
            let logits = step(&mut network, &spans);
            for (number, own) in logits.chunks(rows).enumerate() {
                for (at, row) in own.iter().take(right).enumerate() {
                    assert!(*row == wanted[number][1 + first + at], "sequence {number}, row {}", first + at);
                }
            }
        }
    }
}

/// Runs each on the CPU, and on a software adapter where there is no GPU; `make test` installs one.
macro_rules! on_all_devices {
    ($($name:ident),+) => {
        mod cpu {
            $(#[test]
            fn $name() {
                for arithmetic in super::ON_CPU {
                    super::$name(&super::ComputeDevice::cpu(), arithmetic);
                }
            })+
        }
        #[cfg(feature = "gpu")]
        mod wgpu {
            $(#[test]
            fn $name() {
                let arithmetic = (super::KvType::F16, super::Precision::Exact);
                super::$name(&super::gpu(), arithmetic);
            })+
        }
    };
}

on_all_devices!(
    a_batch_of_sequences_has_the_bits_of_each_alone,
    a_prompt_in_chunks_has_the_bits_of_one_chunk,
    a_sequence_does_not_notice_the_prefill_of_another,
    the_rows_of_a_prompt_have_the_bits_of_last_ones,
    rows_of_a_draft_have_the_bits_of_single_ones
);
