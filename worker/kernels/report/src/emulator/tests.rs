//! Products on matrix units, as CUDA runs them.

#[allow(dead_code)] // not all of it is used here
#[path = "../../../tests/gpu/random.rs"]
mod random;

use burn::backend::wgpu::CubeTensor;
use burn::backend::{CubeDevice, DType, Shape};
use burn::cubecl::client::Client;

use self::random::Random;
use super::Emulator;
use crate::cube::matmul::Matmul;
use crate::cube::matmul::matrix_units::Layout;
use crate::cube::{embedding, pack};
use crate::device::{self, Gpu};
use crate::ggml::{GgmlType, extend_f32};
use crate::types::{Activation, MatrixSpec, Precision};

const EPSILON: f32 = 1e-5;
/// Enough for a cube with two planes of outputs.
const ROWS: usize = 70;

/// A device and random numbers.
struct Bench {
    client: Client,
    random: Random,
}

/// A matrix on the device, and its numbers.
struct Weights {
    packed: CubeTensor,
    spec: MatrixSpec,
    numbers: Vec<f32>,
}

/// What is computed with a product.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Around {
    Nothing,
    Norm,
    Gate(Activation),
    Residual,
}

impl Bench {
    fn tensor(&self, bytes: &[u8], shape: &[usize], dtype: DType) -> CubeTensor {
        let handle = self.client.create_from_slice(bytes);
        let shape = Shape::from(shape.to_vec());
        CubeTensor::new_contiguous(
            self.client.clone(),
            CubeDevice::Cuda(Gpu::MatrixUnits.device()),
            shape,
            handle,
            dtype,
        )
    }

    fn floats(&self, numbers: &[f32], shape: &[usize]) -> CubeTensor {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.tensor(&bytes, shape, DType::F32)
    }

    fn host(&self, tensor: CubeTensor) -> Vec<f32> {
        let bytes = self.client.read_one(tensor.handle).expect("the memory of a result");
        let numbers =
            bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        numbers.take(tensor.meta.num_elements()).collect()
    }

    /// A matrix of random bits, with scales of a realistic size.
    fn weights(&mut self, spec: MatrixSpec) -> Weights {
        let blocks = self.random.blocks(spec);
        let mut numbers = Vec::new();
        extend_f32(spec.dtype, &blocks, &mut numbers);
        let layout = Layout::of(self.client.properties(), spec);
        assert_eq!(layout, Layout::Tiles, "{spec:?}");
        let words: Vec<u8> =
            pack::pack(spec, &blocks, layout).iter().flat_map(|word| word.to_le_bytes()).collect();
        Weights { packed: self.tensor(&words, &[words.len() / 4], DType::I32), spec, numbers }
    }

    fn product(
        &self,
        weights: &Weights,
        x: &[f32],
        gamma: &[f32],
        residual: &[f32],
        around: Around,
        precision: Precision,
    ) -> Vec<f32> {
        let rows = x.len() / weights.spec.inputs;
        let x = self.floats(x, &[rows, weights.spec.inputs]);
        let gamma = self.floats(gamma, &[weights.spec.inputs]);
        let residual = self.floats(&residual[..rows * weights.spec.outputs], &[rows, weights.spec.outputs]);
        let plain = Matmul::new(&weights.packed, weights.spec, precision);
        let norm = Some((&gamma, EPSILON));
        let product = match around {
            Around::Nothing => plain,
            Around::Norm => Matmul { norm, ..plain },
            Around::Gate(activation) => Matmul { norm, activation: Some(activation), ..plain },
            Around::Residual => Matmul { residual: Some(&residual), ..plain },
        };
        self.host(product.launch(x))
    }
}

impl Weights {
    /// The same in f64.
    fn reference(&self, x: &[f32], gamma: &[f32], residual: &[f32], around: Around) -> Vec<f64> {
        let MatrixSpec { outputs, inputs, .. } = self.spec;
        let mut out = Vec::new();
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            let mut x: Vec<f64> = x.iter().map(|number| f64::from(*number)).collect();
            if matches!(around, Around::Norm | Around::Gate(_)) {
                let squares = x.iter().map(|number| number * number).sum::<f64>();
                let scale = 1.0 / (squares / inputs as f64 + f64::from(EPSILON)).sqrt();
                x.iter_mut().zip(gamma).for_each(|(number, gamma)| *number *= scale * f64::from(*gamma));
            }
            let sum = |weights: &[f32]| weights.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
            let sums: Vec<f64> = self.numbers.chunks_exact(inputs).map(sum).collect();
            match around {
                Around::Gate(activation) => {
                    let (gate, up) = sums.split_at(outputs / 2);
                    out.extend(gate.iter().zip(up).map(|(gate, up)| activated(*gate, activation) * up));
                }
                Around::Residual => {
                    let residual = &residual[row * outputs..];
                    out.extend(sums.iter().zip(residual).map(|(sum, residual)| sum + f64::from(*residual)));
                }
                Around::Nothing | Around::Norm => out.extend(sums),
            }
        }
        out
    }
}

fn activated(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh()),
    }
}

/// The largest difference, relative to the largest number.
fn difference(got: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(1e-6_f64, |largest, number| largest.max(number.abs()));
    let off = |(got, wanted): (&f32, &f64)| {
        let off = (f64::from(*got) - wanted).abs();
        if off.is_nan() { f64::INFINITY } else { off }
    };
    got.iter().zip(wanted).map(off).fold(0.0, f64::max) / largest
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// One test, for a process has one device.
#[test]
fn matrix_units_compute_every_format_and_each_row_for_itself() {
    let mut bench =
        Bench { client: device::client(Gpu::MatrixUnits, Emulator::default()), random: Random::new(1) };
    for (dtype, inputs) in [
        (GgmlType::Q4_0, 576),
        (GgmlType::Q4_1, 96),
        (GgmlType::Q5_0, 160),
        (GgmlType::Q5_1, 288),
        (GgmlType::Q8_0, 544),
        (GgmlType::Q4_K, 1280),
        (GgmlType::Q5_K, 512),
        (GgmlType::Q6_K, 768),
        (GgmlType::F16, 328),
    ] {
        let weights = bench.weights(MatrixSpec { dtype, outputs: 64, inputs });
        // Both far larger and far smaller than f16 can be.
        let mut x = bench.random.numbers(ROWS * inputs);
        for (row, x) in x.chunks_exact_mut(inputs).enumerate() {
            x.iter_mut().for_each(|number| *number *= 10f32.powi([0, 9, -9][row % 3]));
        }
        let (gamma, residual) = (bench.random.numbers(inputs), bench.random.numbers(ROWS * 64));
        let around = match dtype {
            GgmlType::Q4_0 | GgmlType::F16 => Around::Norm,
            GgmlType::Q4_K | GgmlType::Q8_0 => Around::Gate(Activation::Silu),
            GgmlType::Q6_K => Around::Gate(Activation::GeluTanh),
            GgmlType::Q5_0 => Around::Residual,
            _ => Around::Nothing,
        };
        let product = |first: usize, count: usize, precision| {
            let x = &x[first * inputs..(first + count) * inputs];
            bench.product(&weights, x, &gamma, &residual[first * 64..], around, precision)
        };
        let all = product(0, ROWS, Precision::Exact);
        let width = all.len() / ROWS;
        let wanted = weights.reference(&x, &gamma, &residual, around);
        for (row, wanted) in wanted.chunks_exact(width).enumerate() {
            let off = difference(&all[row * width..(row + 1) * width], wanted);
            assert!(off < 2e-6, "{dtype}, row {row}: off by {off}");
        }
        // How the work is divided is the same for all formats: few of them need all ways.
        let parts: &[(usize, usize)] = match dtype {
            GgmlType::Q4_0 | GgmlType::Q4_K => &[(0, 1), (69, 1), (3, 2), (5, 4), (20, 7), (1, 16), (11, 33)],
            _ => &[(2, 3)],
        };
        for &(first, count) in parts {
            let part = product(first, count, Precision::Exact);
            let expected = &all[first * width..(first + count) * width];
            assert!(bits(&part) == bits(expected), "{dtype}: rows {first} to {}", first + count);
        }
        if dtype == GgmlType::Q4_0 {
            let (fast, alone) = (product(0, ROWS, Precision::Fast), product(7, 1, Precision::Fast));
            for (row, wanted) in wanted.chunks_exact(width).enumerate() {
                let off = difference(&fast[row * width..(row + 1) * width], wanted);
                assert!(off < 2e-3, "{dtype}, fast, row {row}: off by {off}");
            }
            assert!(bits(&alone) == bits(&fast[7 * width..8 * width]), "{dtype}, fast");
        }
        let ids = [0u32, 17, 63, 40];
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let rows = bench.host(embedding::embedding(
            bench.tensor(&bytes, &[4], DType::I32),
            &weights.packed,
            weights.spec,
        ));
        for (row, id) in rows.chunks_exact(inputs).zip(ids) {
            let expected: Vec<f64> = weights.numbers[id as usize * inputs..][..inputs]
                .iter()
                .map(|number| f64::from(*number))
                .collect();
            let off = difference(row, &expected);
            assert!(off < 1e-6, "{dtype}, embedding {id}: off by {off}");
        }
    }
    // More rows than planes divide among themselves.
    let weights = bench.weights(MatrixSpec { dtype: GgmlType::Q4_0, outputs: 64, inputs: 576 });
    let (x, gamma) = (bench.random.numbers(260 * 576), bench.random.numbers(576));
    let product =
        |x: &[f32]| bench.product(&weights, x, &gamma, &vec![0.0; x.len()], Around::Norm, Precision::Exact);
    let (all, last) = (product(&x), product(&x[259 * 576..]));
    assert!(difference(&all, &weights.reference(&x, &gamma, &[], Around::Norm)) < 2e-6);
    assert!(bits(&last) == bits(&all[259 * 64..]));
}
