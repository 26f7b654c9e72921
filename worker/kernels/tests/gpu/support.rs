//! A device, random numbers, random weights, and comparisons.

#[path = "random.rs"]
mod random;

use std::sync::OnceLock;

use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use emberline_kernels::ggml::{GgmlType, extend_f32};
use emberline_kernels::{Matrix, MatrixSpec};

pub(crate) use random::Random;

/// The GPU, or else a software adapter. Either can be opened only once in a process.
pub(crate) fn gpu() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || {
        let real = [DeviceKind::DiscreteGpu(0), DeviceKind::IntegratedGpu(0), DeviceKind::VirtualGpu(0)];
        let try_kind = |kind: DeviceKind| Device::wgpu_options().device_kind(kind).init().ok();
        if let Some(device) = real.into_iter().find_map(try_kind) {
            println!("on {device:?}");
            return device;
        }
        let device = Device::wgpu_options().device_kind(DeviceKind::Cpu).init().unwrap_or_else(|error| {
            panic!("no wgpu adapter ({error}); `deploy/setup.sh vulkan` installs a software one")
        });
        println!("on a software adapter: its results count, its speed does not");
        device
    };
    DEVICE.get_or_init(open).clone()
}

/// A random matrix on the GPU, and dequantised on the CPU.
pub(crate) fn matrix(random: &mut Random, spec: MatrixSpec) -> (Matrix, Tensor<2>) {
    let blocks = random.blocks(spec);
    let mut numbers = Vec::new();
    extend_f32(spec.dtype, &blocks, &mut numbers);
    let dense = Tensor::from_data(TensorData::new(numbers, [spec.outputs, spec.inputs]), &Device::flex());
    (Matrix::new(spec, &blocks, &gpu()).unwrap(), dense)
}

/// The same numbers on the GPU and on the CPU.
pub(crate) fn both<const D: usize>(numbers: Vec<f32>, shape: [usize; D]) -> (Tensor<D>, Tensor<D>) {
    let data = TensorData::new(numbers, shape);
    (Tensor::from_data(data.clone(), &gpu()), Tensor::from_data(data, &Device::flex()))
}

pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Asserts that the difference is at most `tolerance` times the largest expected number.
pub(crate) fn assert_close(what: &str, got: &[f32], wanted: &[f32], tolerance: f32) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let largest = wanted.iter().fold(1e-6_f32, |largest, number| largest.max(number.abs()));
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let off = (got - wanted).abs();
        assert!(off <= tolerance * largest, "{what}: number {i} is {got} instead of {wanted}");
    }
}

pub(crate) fn assert_same_bits(what: &str, got: &[f32], wanted: &[f32]) {
    let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(got), bits(wanted), "{what}: {got:?} and {wanted:?}");
}
