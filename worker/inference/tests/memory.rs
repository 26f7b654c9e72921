//! The memory that a network says it takes is what it takes.
//!
//! Alone in its file: it measures the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

use emberline_inference::checkpoint::Checkpoint;
use emberline_inference::device::ComputeDevice;
use emberline_inference::network::Network;
use emberline_kernels::{KvType, MatrixSpec};
use emberline_test_kit::paths::model_path;

/// Bytes of this process by one of the lines of its status; `None` anywhere but on Linux.
fn process(line: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'))?;
    Some(found.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Within a share of `wanted` that is given in percent.
fn is_near(got: u64, wanted: u64, percent: u64) -> bool {
    got.abs_diff(wanted) * 100 < wanted * percent
}

#[test]
fn memory_is_what_the_arithmetic_says() {
    let checkpoint = Checkpoint::open(&model_path().unwrap()).unwrap();
    let tensors = || checkpoint.gguf().unwrap().tensors();
    let bytes = |tensor: &emberline_inference::checkpoint::gguf::TensorInfo| {
        let inputs = *tensor.shape.last().unwrap();
        let outputs = tensor.shape.iter().product::<usize>() / inputs;
        (outputs * MatrixSpec { dtype: tensor.dtype, outputs, inputs }.row_bytes()) as u64
    };
    let stored: u64 = tensors().map(bytes).sum();
    let largest = tensors().map(bytes).max().unwrap();

    let before = process("VmRSS");
    let mut network = Network::open(&checkpoint, &ComputeDevice::cpu(), None).unwrap();
    assert!(is_near(network.weight_bytes(), stored, 1), "{} of {stored}", network.weight_bytes());
    // The process has a few buffers and threads, too.
    let (Some(before), Some(after), Some(peak)) = (before, process("VmRSS"), process("VmHWM")) else {
        return;
    };
    println!("{stored} bytes of weights: {} resident, {} at most", after - before, peak - before);
    assert!(is_near(after - before, stored, 20), "{} resident for {stored}", after - before);
    // A tensor is read, then packed.
    assert!(peak - before < stored + stored / 5 + largest, "{} at most for {stored}", peak - before);

    let blocks = 256;
    network.allocate_cache(blocks, KvType::F16).unwrap();
    let memory = network.memory(64, 1);
    assert_eq!(memory.weights, network.weight_bytes());
    assert!(memory.cache > blocks as u64 * network.block_bytes(KvType::F16));
    println!("{memory}");
}
