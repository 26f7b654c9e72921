//! Each family of models computes what transformers computes, from a folder as on the Hugging
//! Face hub and from a GGUF file: tiny checkpoints with random weights, see families/make.py.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

use std::path::{Path, PathBuf};

use emberline_inference::checkpoint::Checkpoint;
#[cfg(feature = "gpu")]
use emberline_inference::device::Backend;
use emberline_inference::device::ComputeDevice;
use emberline_inference::network::{Network, Quantize, StepSpan};
use emberline_kernels::KvType;
use serde::Deserialize;

/// How far a logit may be off.
const TOLERANCE: f64 = 2e-3;
const BLOCKS: [u32; 8] = [5, 0, 7, 2, 1, 6, 3, 4];

/// What transformers computes in float32.
#[derive(Deserialize)]
struct Expected {
    prompt: Vec<u32>,
    /// After the prompt.
    logits_last: Vec<f64>,
    greedy: Vec<u32>,
    greedy_logprobs: Vec<f64>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families").join(name)
}

/// The folder, or the GGUF file in it.
fn open(name: &str, device: &ComputeDevice, quantize: Option<Quantize>) -> Network {
    let checkpoint = Checkpoint::open(&folder(name)).unwrap_or_else(|error| panic!("{error}"));
    let mut network = Network::open(&checkpoint, device, quantize).unwrap_or_else(|error| panic!("{error}"));
    network.allocate_cache(BLOCKS.len(), KvType::F32).unwrap();
    network
}

fn forward(network: &mut Network, start: usize, tokens: &[u32]) -> Vec<f64> {
    let span = StepSpan { tokens, start, blocks: &BLOCKS, logit_rows: 1 };
    let logits = network.forward(&[span]).unwrap().unwrap().into_host().unwrap();
    logits.into_iter().map(f64::from).collect()
}

fn log_probability(logits: &[f64], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    logits[token as usize] - max - sum.ln()
}

/// Prompt in chunks, then the greedy tokens; returns the largest error.
fn compare(name: &str, device: &ComputeDevice) -> f64 {
    let text = std::fs::read(folder(name).join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_slice(&text).unwrap();
    let mut network = open(name, device, None);
    let (first, second) = expected.prompt.split_at(expected.prompt.len() / 2 + 3);
    forward(&mut network, 0, first);
    let mut logits = forward(&mut network, first.len(), second);
    assert_eq!(logits.len(), expected.logits_last.len());
    let errors = logits.iter().zip(&expected.logits_last).map(|(got, wanted)| (got - wanted).abs());
    let mut worst = errors.fold(0.0, f64::max);
    for (number, (token, wanted)) in expected.greedy.iter().zip(&expected.greedy_logprobs).enumerate() {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(best, *token as usize, "token {number}");
        worst = worst.max((log_probability(&logits, *token) - wanted).abs());
        logits = forward(&mut network, expected.prompt.len() + number, &[*token]);
    }
    assert!(worst < TOLERANCE, "off by {worst}");
    worst
}

macro_rules! families {
    ($($name:ident: $folder:literal,)+) => {
        const FOLDERS: &[&str] = &[$($folder),+];
        mod cpu {
            $(#[test]
            fn $name() {
                println!("off by at most {:.6}", super::compare($folder, &super::ComputeDevice::cpu()));
            })+
        }
    };
}

families! {
    gemma3: "gemma3",
    gemma3_gguf: "gemma3-gguf",
    llama2: "llama2",
    llama2_gguf: "llama2-gguf",
    llama3: "llama3",
    llama3_gguf: "llama3-gguf",
    llama_linear: "llama-linear",
    llama_yarn: "llama-yarn",
    mistral: "mistral",
    phi3: "phi3",
    phi3_gguf: "phi3-gguf",
    phi3_longrope: "phi3-longrope",
    phi3_longrope_gguf: "phi3-longrope-gguf",
    qwen2: "qwen2",
    qwen2_gguf: "qwen2-gguf",
    qwen3: "qwen3",
    qwen3_gguf: "qwen3-gguf",
    smollm3: "smollm3",
}

#[test]
fn every_folder_is_tested() {
    let mut found: Vec<String> = std::fs::read_dir(folder("."))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().join("expected.json").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut listed = FOLDERS.to_vec();
    listed.sort_unstable();
    assert_eq!(found, listed);
}

/// Runs on a software adapter where there is no GPU; `make test` installs one.
#[cfg(feature = "gpu")]
#[test]
fn wgpu_computes_all_families_right() {
    // Without a GPU, the software adapter, which has to be named.
    let software = |_| ComputeDevice::open(Backend::Wgpu, Some("llvmpipe"));
    let opened = ComputeDevice::open(Backend::Wgpu, None).or_else(software);
    let device = opened.unwrap_or_else(|error| panic!("{error}"));
    for name in FOLDERS {
        println!("{name}: off by at most {:.6}", compare(name, &device));
    }
}

/// Quantised weights move the logits, but not far.
#[test]
fn weights_are_quantised_on_load() {
    let device = ComputeDevice::cpu();
    let text = std::fs::read(folder("llama2").join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_slice(&text).unwrap();
    for (quantize, least) in [(Quantize::Q8, 0.995), (Quantize::Q4, 0.8)] {
        let logits = forward(&mut open("llama2", &device, Some(quantize)), 0, &expected.prompt);
        let likeness = cosine(&logits, &expected.logits_last);
        println!("{quantize:?}: {likeness}");
        assert!(likeness > least && likeness < 0.999_999, "{quantize:?}: {likeness}");
    }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
