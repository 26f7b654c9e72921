//! Products with packed weights.

use burn::tensor::{Device, Int, Tensor, TensorData};
use emberline_kernels::ggml::GgmlType;
use emberline_kernels::{Activation, MatrixError, MatrixRows, MatrixSpec, reference};
use emberline_kernels::{Matrix, embedding, linear, linear_add, norm_gated, norm_linear, rms_norm};
use half::f16;

use crate::support::{Random, assert_close, assert_same_bits, both, gpu, host, matrix};

const TOLERANCE: f32 = 1e-5;
const EPSILON: f32 = 1e-5;

fn rows_of(x: &Tensor<2>, first: usize, count: usize) -> Tensor<2> {
    x.clone().narrow(0, first, count)
}

/// A multiple of the format's block; unquantised numbers also come in odd widths.
fn width(random: &mut Random, dtype: GgmlType) -> usize {
    match dtype.block_len() {
        1 => 100 + random.below(200),
        256 => 256 * (1 + random.below(3)),
        block => block * (3 + random.below(20)),
    }
}

#[test]
fn every_format_matches_the_reference_and_each_row_is_independent() {
    let mut random = Random::new(1);
    for dtype in GgmlType::ALL {
        let (outputs, inputs) = (40 + random.below(60), width(&mut random, dtype));
        let (weight, dense) = matrix(&mut random, MatrixSpec { dtype, outputs, inputs });
        let (x, expected) = both(random.numbers(9 * inputs), [9, inputs]);
        let expected = host(reference::linear(expected, &dense));
        let all = host(linear(x.clone(), &weight));
        assert_close(&format!("{dtype}"), &all, &expected, TOLERANCE);
        let last = host(linear(rows_of(&x, 8, 1), &weight));
        assert_same_bits(&format!("{dtype}"), &last, &all[8 * outputs..]);
    }
}

#[test]
fn embedding_rows_of_every_format_match_the_reference() {
    let mut random = Random::new(2);
    for dtype in GgmlType::ALL {
        let (outputs, inputs) = (30 + random.below(30), width(&mut random, dtype));
        let (table, dense) = matrix(&mut random, MatrixSpec { dtype, outputs, inputs });
        let ids: Vec<i32> = (0..5).map(|_| random.below(outputs) as i32).collect();
        let ids = |device: &Device| Tensor::<1, Int>::from_data(TensorData::new(ids.clone(), [5]), device);
        let expected = host(reference::embedding(ids(&Device::flex()), &dense));
        let got = host(embedding(ids(&gpu()), &table));
        assert_close(&format!("{dtype}"), &got, &expected, 1e-6);
    }
}

#[test]
fn every_finite_half_is_expanded_exactly() {
    let bits: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7C00 != 0x7C00).collect();
    let spec = MatrixSpec { dtype: GgmlType::F16, outputs: bits.len() / 256, inputs: 256 };
    let blocks: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let table = Matrix::new(spec, &blocks, &gpu()).unwrap();
    let ids: Vec<i32> = (0..spec.outputs as i32).collect();
    let got = host(embedding(Tensor::from_data(TensorData::new(ids, [spec.outputs]), &gpu()), &table));
    let expected: Vec<f32> = bits.iter().map(|bits| f16::from_bits(*bits).to_f32()).collect();
    assert_eq!(got, expected);
}

#[test]
fn fused_operations_match_the_reference_and_each_row_is_independent() {
    let mut random = Random::new(3);
    for (dtype, activation) in [
        (GgmlType::Q4_1, Activation::Silu),
        (GgmlType::Q8_0, Activation::GeluTanh),
        (GgmlType::Q6_K, Activation::Silu),
    ] {
        let (outputs, inputs) = (2 * (20 + random.below(30)), width(&mut random, dtype));
        let (weight, dense) = matrix(&mut random, MatrixSpec { dtype, outputs, inputs });
        let (x, x_cpu) = both(random.numbers(17 * inputs), [17, inputs]);
        let (residual, residual_cpu) = both(random.numbers(17 * outputs), [17, outputs]);
        let (gamma, gamma_cpu) = both(random.numbers(inputs), [inputs]);

        let normed = |x| host(norm_linear(x, &gamma, EPSILON, &weight));
        let gated = |x| host(norm_gated(x, &gamma, EPSILON, &weight, activation));
        let norms = |x| host(rms_norm(x, &gamma, EPSILON));
        let (all_normed, all_gated, all_norms) = (normed(x.clone()), gated(x.clone()), norms(x.clone()));
        let all_added = host(linear_add(x.clone(), &weight, residual.clone()));

        let expected = host(reference::norm_linear(x_cpu.clone(), &gamma_cpu, EPSILON, &dense));
        assert_close(&format!("{dtype} normed"), &all_normed, &expected, TOLERANCE);
        let expected = host(reference::norm_gated(x_cpu.clone(), &gamma_cpu, EPSILON, &dense, activation));
        assert_close(&format!("{dtype} gated"), &all_gated, &expected, TOLERANCE);
        let expected = host(reference::rms_norm(x_cpu.clone(), &gamma_cpu, EPSILON));
        assert_close(&format!("{dtype} norm"), &all_norms, &expected, TOLERANCE);
        let expected = host(reference::linear_add(x_cpu, &dense, residual_cpu));
        assert_close(&format!("{dtype} added"), &all_added, &expected, TOLERANCE);

        for (first, count) in [(16, 1), (3, 2), (5, 4), (2, 8)] {
            let x = rows_of(&x, first, count);
            let part = |all: &[f32], width: usize| all[first * width..(first + count) * width].to_vec();
            let what = format!("{dtype}, rows {first} to {}", first + count);
            assert_same_bits(&what, &normed(x.clone()), &part(&all_normed, outputs));
            assert_same_bits(&what, &gated(x.clone()), &part(&all_gated, outputs / 2));
            assert_same_bits(&what, &norms(x.clone()), &part(&all_norms, inputs));
            let added = host(linear_add(x, &weight, rows_of(&residual, first, count)));
            assert_same_bits(&what, &added, &part(&all_added, outputs));
        }
    }
}

#[test]
fn many_outputs_take_another_tile_and_match_the_reference() {
    let mut random = Random::new(4);
    let spec = MatrixSpec { dtype: GgmlType::Q4_0, outputs: 4500, inputs: 96 };
    let (weight, dense) = matrix(&mut random, spec);
    let (x, x_cpu) = both(random.numbers(5 * 96), [5, 96]);
    let all = host(linear(x.clone(), &weight));
    assert_close("many outputs", &all, &host(reference::linear(x_cpu, &dense)), TOLERANCE);
    for row in 0..5 {
        let alone = host(linear(rows_of(&x, row, 1), &weight));
        assert_same_bits("many outputs", &alone, &all[row * 4500..(row + 1) * 4500]);
    }
}

#[test]
fn matrices_of_few_rows_match_the_reference() {
    let mut random = Random::new(6);
    let (x, x_cpu) = both(random.numbers(9 * 96), [9, 96]);
    let (gamma, gamma_cpu) = both(random.numbers(96), [96]);
    for outputs in 1..=9 {
        let (weight, dense) = matrix(&mut random, MatrixSpec { dtype: GgmlType::Q4_0, outputs, inputs: 96 });
        let expected = host(reference::linear(x_cpu.clone(), &dense));
        assert_close(&format!("{outputs}"), &host(linear(x.clone(), &weight)), &expected, TOLERANCE);
        if outputs % 2 == 0 {
            let activation = Activation::Silu;
            let expected = reference::norm_gated(x_cpu.clone(), &gamma_cpu, EPSILON, &dense, activation);
            let got = norm_gated(x.clone(), &gamma, EPSILON, &weight, activation);
            assert_close(&format!("{outputs} gated"), &host(got), &host(expected), TOLERANCE);
        }
    }
}

#[test]
fn a_packed_matrix_takes_the_memory_of_its_format() {
    let mut random = Random::new(5);
    for dtype in GgmlType::ALL {
        let spec = MatrixSpec { dtype, outputs: 64, inputs: 512 };
        let stored = spec.outputs * spec.row_bytes();
        let taken = matrix(&mut random, spec).0.bytes();
        assert!(
            taken >= stored && taken as f64 <= 1.03 * stored as f64 + 256.0,
            "{dtype}: {taken} for {stored}"
        );
    }
}

#[test]
fn a_matrix_in_parts_computes_the_same_bits() {
    let mut random = Random::new(6);
    for dtype in [GgmlType::F16, GgmlType::Q4_1, GgmlType::Q6_K] {
        let spec = MatrixSpec { dtype, outputs: 46, inputs: width(&mut random, dtype) };
        let blocks = random.blocks(spec);
        let parts = |rows, largest| Matrix::in_parts(spec, &blocks, &gpu(), rows, largest);
        let whole = parts(MatrixRows::Plain, u64::MAX).unwrap();
        // About ten rows.
        let largest = whole.bytes() as u64 / 5 + 260;
        let (plain, gated) =
            (parts(MatrixRows::Plain, largest).unwrap(), parts(MatrixRows::Gated, largest).unwrap());
        let (x, _) = both(random.numbers(3 * spec.inputs), [3, spec.inputs]);
        let (residual, _) = both(random.numbers(3 * 46), [3, 46]);
        let (gamma, _) = both(random.numbers(spec.inputs), [spec.inputs]);
        let results = |plain: &Matrix, gated: &Matrix| {
            let ids = Tensor::<1, Int>::from_data(TensorData::new(vec![45, 0, 9, 20, 11], [5]), &gpu());
            [
                host(linear(x.clone(), plain)),
                host(linear_add(x.clone(), plain, residual.clone())),
                host(norm_linear(x.clone(), &gamma, EPSILON, plain)),
                host(norm_gated(x.clone(), &gamma, EPSILON, gated, Activation::Silu)),
                host(embedding(ids, plain)),
            ]
        };
        for (got, wanted) in results(&plain, &gated).iter().zip(&results(&whole, &whole)) {
            assert_same_bits(&format!("{dtype}"), got, wanted);
        }
        let error = parts(MatrixRows::Plain, 16).unwrap_err();
        assert!(matches!(error, MatrixError::TooLarge { .. }), "{error}");
    }
}

#[test]
fn a_matrix_larger_than_a_buffer_is_split() {
    let limit = match gpu().as_dispatch() {
        burn::backend::DispatchDevice::Cube(cube) => cube.client().properties().memory.max_page_size,
        _ => unreachable!("gpu() returns a GPU"),
    };
    if limit > 1 << 28 {
        println!("buffers of {limit} bytes: too large to fill in a test");
        return;
    }
    let spec = MatrixSpec { dtype: GgmlType::F16, outputs: limit as usize / 512 + 1, inputs: 256 };
    let blocks = half::f16::from_f32(0.5).to_le_bytes().repeat(spec.outputs * spec.inputs);
    let weight = Matrix::new(spec, &blocks, &gpu()).unwrap();
    assert!(weight.bytes() as u64 > limit);
    let (x, _) = both(vec![1.0; 256], [1, 256]);
    assert!(host(linear(x, &weight)).iter().all(|number| *number == 128.0));
}
