//! A device, random numbers, random weights, and comparisons.

use std::sync::OnceLock;

use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use emberline_kernels::ggml::{GgmlType, extend_f32};
use emberline_kernels::{Matrix, MatrixSpec};
use half::f16;

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

/// A pseudorandom generator: Marsaglia, "Xorshift RNGs" (2003).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    /// In [-1, 1).
    pub(crate) fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    fn half(&mut self) -> [u8; 2] {
        f16::from_f32(self.number() / 16.0).to_le_bytes()
    }

    /// Rows in ggml's layout, with random bits and scales of a realistic size.
    pub(crate) fn blocks(&mut self, spec: MatrixSpec) -> Vec<u8> {
        let bytes = spec.outputs * spec.row_bytes();
        let mut blocks: Vec<u8> = (0..bytes).map(|_| self.next() as u8).collect();
        for block in blocks.chunks_exact_mut(spec.dtype.block_bytes()) {
            match spec.dtype {
                GgmlType::F32 => block.copy_from_slice(&self.number().to_le_bytes()),
                GgmlType::F16 => block.copy_from_slice(&self.half()),
                GgmlType::BF16 => block.copy_from_slice(&half::bf16::from_f32(self.number()).to_le_bytes()),
                GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => block[..2].copy_from_slice(&self.half()),
                GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => {
                    block[..2].copy_from_slice(&self.half());
                    block[2..4].copy_from_slice(&self.half());
                }
                GgmlType::Q6_K => block[208..].copy_from_slice(&self.half()),
            }
        }
        blocks
    }
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
