//! Every operation against its twin, and that a row's bits depend on nothing but the row.

use burn::tensor::Distribution;
use proptest::prelude::*;

use super::*;
use crate::Matrix;
use crate::ggml::{GgmlType, extend_f32};

/// Bytes of whole blocks whose scales are sane.
fn blocks(dtype: GgmlType, count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut bytes = Vec::new();
    for _ in 0..count {
        let start = bytes.len();
        bytes.extend((0..dtype.block_bytes()).map(|_| random() as u8));
        let block = &mut bytes[start..];
        let number = (random() % 2001) as f32 / 1000.0 - 1.0;
        let mut half = |at: usize, number: f32| {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(number).to_le_bytes());
        };
        match dtype {
            GgmlType::F32 => block.copy_from_slice(&number.to_le_bytes()),
            GgmlType::F16 => half(0, number),
            GgmlType::BF16 => block.copy_from_slice(&half::bf16::from_f32(number).to_le_bytes()),
            GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => half(0, number / 16.0),
            GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => {
                half(0, number / 16.0);
                half(2, -number / 3.0);
            }
            GgmlType::Q6_K => half(208, number / 512.0),
        }
    }
    bytes
}

/// A random matrix, packed and expanded.
fn matrix(dtype: GgmlType, outputs: usize, inputs: usize, seed: u64) -> (Matrix, Tensor<2>) {
    let bytes = blocks(dtype, outputs * inputs / dtype.block_len(), seed);
    let device = Device::flex();
    let matrix = Matrix::new(MatrixSpec { dtype, outputs, inputs }, &bytes, &device).unwrap();
    let mut numbers = Vec::new();
    extend_f32(dtype, &bytes, &mut numbers);
    (matrix, Tensor::from_data(TensorData::new(numbers, [outputs, inputs]), &device))
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn numbers<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().try_into_vec().unwrap()
}

fn bits<const D: usize>(tensor: &Tensor<D>) -> Vec<u32> {
    numbers(tensor).into_iter().map(f32::to_bits).collect()
}

/// Within `tolerance` of the largest number that is expected.
fn assert_close<const D: usize>(got: &Tensor<D>, expected: &Tensor<D>, tolerance: f32) {
    assert_eq!(got.dims(), expected.dims());
    let (got, expected) = (numbers(got), numbers(expected));
    let largest = expected.iter().fold(1e-3_f32, |a, b| a.max(b.abs()));
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let error = (got - expected).abs() / largest;
        assert!(error <= tolerance, "number {i}: {got} for {expected}, largest {largest}");
    }
}

fn any_type() -> impl Strategy<Value = GgmlType> {
    prop::sample::select(GgmlType::ALL.to_vec())
}

/// Inputs that the type allows: for plain floats, any.
fn inputs_of(dtype: GgmlType, units: usize) -> usize {
    match dtype.block_len() {
        1 => units * 7 + 1,
        len => units * len,
    }
}

#[test]
fn rows_of_a_table_are_the_numbers_of_its_blocks() {
    for dtype in GgmlType::ALL {
        for (rows, units) in [(1, 1), (37, 3), (64, 2)] {
            let (table, dense) = matrix(dtype, rows, inputs_of(dtype, units), 7);
            let ids: Vec<i32> = (0..rows as i32).rev().collect();
            let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [rows]), &Device::flex());
            let got = crate::embedding(ids.clone(), &table);
            assert_eq!(bits(&got), bits(&twin::embedding(ids, &dense)), "{dtype}");
        }
    }
}

#[test]
fn memory_is_that_of_the_format() {
    for dtype in GgmlType::ALL {
        let (table, _) = matrix(dtype, 64, 512, 7);
        let stored = table.spec().row_bytes() * 64;
        assert!((stored..=stored * 103 / 100).contains(&table.bytes()), "{dtype}: {}", table.bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_are_those_of_expanded_weights(
        dtype in any_type(),
        rows in 1..40_usize,
        outputs in 1..100_usize,
        units in 1..4_usize,
        seed: u64,
    ) {
        let inputs = inputs_of(dtype, units);
        let (weight, dense) = matrix(dtype, outputs, inputs, seed);
        let (x, residual, gamma) = (random([rows, inputs]), random([rows, outputs]), random([inputs]));
        assert_close(&crate::linear(x.clone(), &weight), &twin::linear(x.clone(), &dense), 1e-5);
        let got = crate::linear_add(x.clone(), &weight, residual.clone());
        assert_close(&got, &twin::linear_add(x.clone(), &dense, residual), 1e-5);
        let got = crate::norm_linear(x.clone(), &gamma, 1e-5, &weight);
        assert_close(&got, &twin::norm_linear(x.clone(), &gamma, 1e-5, &dense), 1e-5);
        let got = crate::rms_norm(x.clone(), &gamma, 1e-5);
        assert_close(&got, &twin::rms_norm(x, &gamma, 1e-5), 1e-5);
    }

    #[test]
    fn gated_products_are_those_of_expanded_weights(
        dtype in any_type(),
        rows in 1..20_usize,
        half in prop::sample::select(vec![1_usize, 5, 16, 32, 40, 64]),
        units in 1..3_usize,
        gelu: bool,
        seed: u64,
    ) {
        let activation = if gelu { Activation::GeluTanh } else { Activation::Silu };
        let inputs = inputs_of(dtype, units);
        let (weight, dense) = matrix(dtype, 2 * half, inputs, seed);
        let (x, gamma) = (random([rows, inputs]), random([inputs]));
        let got = crate::norm_gated(x.clone(), &gamma, 1e-5, &weight, activation);
        assert_close(&got, &twin::norm_gated(x, &gamma, 1e-5, &dense, activation), 2e-5);
    }

    #[test]
    fn a_row_of_a_product_is_the_same_in_any_batch(
        dtype in any_type(),
        rows in 2..300_usize,
        first in 0..300_usize,
        some in 1..20_usize,
        outputs in 1..70_usize,
        units in 1..3_usize,
        seed: u64,
    ) {
        let inputs = inputs_of(dtype, units);
        let (weight, _) = matrix(dtype, outputs, inputs, seed);
        let (x, gamma) = (random([rows, inputs]), random([inputs]));
        let first = first % rows;
        let some = some.min(rows - first);
        let all = crate::norm_linear(x.clone(), &gamma, 1e-5, &weight).narrow(0, first, some);
        let few = crate::norm_linear(x.clone().narrow(0, first, some), &gamma, 1e-5, &weight);
        prop_assert_eq!(bits(&all), bits(&few));
        if outputs % 2 == 0 {
            let gated = |x: Tensor<2>| crate::norm_gated(x, &gamma, 1e-5, &weight, Activation::Silu);
            let (all, few) = (gated(x.clone()).narrow(0, first, some), gated(x.narrow(0, first, some)));
            prop_assert_eq!(bits(&all), bits(&few));
        }
    }
}
