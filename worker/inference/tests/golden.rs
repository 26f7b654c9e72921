//! The network is right: log-probabilities and greedy tokens agree with an independent float32
//! implementation over the same weights, on the CPU and on wgpu. With keys and values in 16 bits
//! they agree as far as llama.cpp's do, whose cache is f16, too. With activations of 15 bits that
//! is hardly different; with 8 bits, which llama.cpp has as well, it is.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

use emberline_inference::checkpoint::gguf::GgufFile;
#[cfg(feature = "gpu")]
use emberline_inference::device::Backend;
use emberline_inference::device::ComputeDevice;
use emberline_inference::network::{Network, StepSpan};
use emberline_kernels::{KvType, Precision};
use emberline_test_kit::golden::{self, Case};
use emberline_test_kit::paths::model_path;

/// How far a log-probability may be off: by other orders of summation, by what is lost when keys and
/// values are rounded, and by what is lost when activations are.
const TOLERANCE_F32: f64 = 5e-5;
const TOLERANCE_F16: f64 = 0.008;
const TOLERANCE_FAST: f64 = 0.05;
const TOLERANCE_FASTEST: f64 = 0.75;

/// Cache blocks: more than the longest case fills.
const BLOCKS: u32 = 24;

fn open(device: &ComputeDevice, stored: KvType) -> Network {
    let file = GgufFile::open(&model_path().unwrap()).unwrap();
    let mut network = Network::from_gguf(&file, device).unwrap();
    network.allocate_cache(BLOCKS as usize, stored).unwrap();
    network
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - max) - sum.ln()).collect()
}

fn most_probable(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    u32::try_from(best.0).unwrap()
}

/// Computes `tokens` as positions from `start` on; the logits after the last of them.
fn forward(network: &mut Network, blocks: &[u32], start: usize, tokens: &[u32]) -> Vec<f32> {
    let span = StepSpan { tokens, start, blocks, logit_rows: 1 };
    network.forward(&[span]).unwrap().unwrap().into_host().unwrap()
}

/// Feeds the golden tokens and compares each distribution on the way; returns the largest error.
fn compare(model: &mut Network, case: &Case, tokens: usize, tolerance: f64) -> f64 {
    let blocks: Vec<u32> = (0..BLOCKS).collect();
    let mut length = case.prompt_token_ids.len();
    let mut logits = forward(model, &blocks, 0, &case.prompt_token_ids);
    let mut worst = 0.0_f64;
    let mut check = |what: &str, got: f64, wanted: f64| {
        worst = worst.max((got - wanted).abs());
        assert!((got - wanted).abs() < tolerance, "{}: {what}: {got} instead of {wanted}", case.prompt);
    };
    let first = log_probabilities(&logits);
    for (id, wanted) in &case.first_top20 {
        check(&format!("token {id} after the prompt"), first[*id as usize], *wanted);
    }
    let greedy = case.greedy_token_ids.iter().zip(&case.greedy_logprobs).zip(&case.greedy_margins);
    for (position, ((id, wanted), margin)) in greedy.take(tokens).enumerate() {
        check(&format!("token {position}"), log_probabilities(&logits)[*id as usize], *wanted);
        // A tie closer than the tolerance may go the other way.
        if *margin > 2.0 * tolerance {
            assert_eq!(most_probable(&logits), *id, "{}: token {position}", case.prompt);
        }
        logits = forward(model, &blocks, length, &[*id]);
        length += 1;
    }
    worst
}

#[test]
fn the_cpu_computes_all_cases_right() {
    for (stored, tolerance) in [(KvType::F32, TOLERANCE_F32), (KvType::F16, TOLERANCE_F16)] {
        let mut model = open(&ComputeDevice::cpu(), stored);
        for case in golden::cases().unwrap() {
            let worst = compare(&mut model, &case, usize::MAX, tolerance);
            println!("{stored:?}: {} tokens, off by at most {worst:.6}", case.greedy_token_ids.len());
        }
    }
}

#[test]
fn the_cpu_computes_all_cases_nearly_right_with_rounded_activations() {
    for (precision, tolerance) in [(Precision::Fast, TOLERANCE_FAST), (Precision::Fastest, TOLERANCE_FASTEST)]
    {
        for stored in [KvType::F32, KvType::F16] {
            let mut model = open(&ComputeDevice::cpu(), stored);
            model.set_precision(precision);
            for case in golden::cases().unwrap() {
                let worst = compare(&mut model, &case, usize::MAX, tolerance);
                let tokens = case.greedy_token_ids.len();
                println!("{precision:?}, {stored:?}: {tokens} tokens, off by at most {worst:.6}");
            }
        }
    }
}

/// Runs on a software adapter where there is no GPU; `make test` installs one.
#[cfg(feature = "gpu")]
#[test]
fn wgpu_computes_a_case_right() {
    // Without a GPU, the software adapter, which has to be named.
    let software = |_| ComputeDevice::open(Backend::Wgpu, Some("llvmpipe"));
    let opened = ComputeDevice::open(Backend::Wgpu, None).or_else(software);
    let device = opened.unwrap_or_else(|error| panic!("{error}"));
    let case = &golden::cases().unwrap()[0];
    for (stored, tolerance) in [(KvType::F32, TOLERANCE_F32), (KvType::F16, TOLERANCE_F16)] {
        let worst = compare(&mut open(&device, stored), case, 8, tolerance);
        println!("{}, {stored:?}: off by at most {worst:.5}", device.description);
    }
}
