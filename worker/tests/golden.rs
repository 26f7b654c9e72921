//! The network is right: log-probabilities and greedy tokens agree with an independent float32
//! implementation over the same weights, on the CPU and on wgpu.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

use emberline_tests::golden::{self, Case};
use emberline_tests::stack::model_path;
use emberline_worker::device::{Backend, ComputeDevice};
use emberline_worker::gguf::GgufFile;
use emberline_worker::model::{self, Llama};

/// How far a log-probability may be off.
const TOLERANCE: f64 = 0.02;

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - max) - sum.ln()).collect()
}

fn most_probable(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    u32::try_from(best.0).unwrap()
}

/// Feeds the golden tokens and compares each distribution on the way; returns the largest error.
fn compare(model: &Llama, case: &Case, tokens: usize) -> f64 {
    let mut cache = model.new_cache(0);
    let mut logits = model.forward(&case.prompt_token_ids, &mut cache).unwrap();
    let mut worst = 0.0_f64;
    let mut check = |what: &str, got: f64, wanted: f64| {
        worst = worst.max((got - wanted).abs());
        assert!((got - wanted).abs() < TOLERANCE, "{}: {what}: {got} instead of {wanted}", case.prompt);
    };
    let first = log_probabilities(&logits);
    for (id, wanted) in &case.first_top20 {
        check(&format!("token {id} after the prompt"), first[*id as usize], *wanted);
    }
    let greedy = case.greedy_token_ids.iter().zip(&case.greedy_logprobs).zip(&case.greedy_margins);
    for (position, ((id, wanted), margin)) in greedy.take(tokens).enumerate() {
        check(&format!("token {position}"), log_probabilities(&logits)[*id as usize], *wanted);
        // A tie closer than the tolerance may go the other way.
        if *margin > 2.0 * TOLERANCE {
            assert_eq!(most_probable(&logits), *id, "{}: token {position}", case.prompt);
        }
        logits = model.forward(&[*id], &mut cache).unwrap();
    }
    worst
}

#[test]
fn the_cpu_computes_all_cases_right() {
    let file = GgufFile::open(&model_path().unwrap()).unwrap();
    let model = model::load(&file, &ComputeDevice::cpu()).unwrap();
    for case in golden::cases().unwrap() {
        let worst = compare(&model, &case, usize::MAX);
        println!("{} tokens, off by at most {worst:.5}", case.greedy_token_ids.len());
    }
}

/// Runs on a software adapter where there is no GPU; `make test` installs one.
#[test]
fn wgpu_computes_a_case_right() {
    let device = ComputeDevice::open(Backend::Wgpu, None).unwrap_or_else(|error| panic!("{error}"));
    let file = GgufFile::open(&model_path().unwrap()).unwrap();
    let model = model::load(&file, &device).unwrap();
    let case = &golden::cases().unwrap()[0];
    let worst = compare(&model, case, 8);
    println!("{}: off by at most {worst:.5}", device.description);
}
