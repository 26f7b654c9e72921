//! Every operation matches the reference, and a row's bits depend on nothing but the row.

use burn::tensor::{Device, Distribution, FloatDType};
use proptest::prelude::*;

use super::*;
use crate::ggml::{GgmlType, extend_f32};
use crate::reference;
use crate::types::{F16_MAX, KvBlocks, KvType, Matrix, Precision, RowSpan, StepRows};

/// `count` random blocks whose scales are of a realistic size.
pub(super) fn blocks(dtype: GgmlType, count: usize, seed: u64) -> Vec<u8> {
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

/// A random matrix, packed and dequantised.
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
    tensor.clone().cast(FloatDType::F32).into_data().try_into_vec().unwrap()
}

fn bits<const D: usize>(tensor: &Tensor<D>) -> Vec<u32> {
    numbers(tensor).into_iter().map(f32::to_bits).collect()
}

/// Asserts that the difference is at most `tolerance` times the largest expected number.
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

fn any_precision() -> impl Strategy<Value = Precision> {
    prop::sample::select(vec![Precision::Exact, Precision::Fast, Precision::Fastest])
}

/// A number of inputs that the type allows: a multiple of its block, or any for plain floats.
fn inputs_of(dtype: GgmlType, units: usize) -> usize {
    match dtype.block_len() {
        1 => units * 7 + 1,
        len => units * len,
    }
}

#[test]
fn embedding_rows_are_the_dequantised_blocks() {
    for dtype in GgmlType::ALL {
        for (rows, units) in [(1, 1), (37, 3), (64, 2)] {
            let (table, dense) = matrix(dtype, rows, inputs_of(dtype, units), 7);
            let ids: Vec<i32> = (0..rows as i32).rev().collect();
            let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [rows]), &Device::flex());
            let got = crate::embedding(ids.clone(), &table);
            // The sign of a zero does not count.
            assert_eq!(bits(&(got + 0.0)), bits(&(reference::embedding(ids, &dense) + 0.0)), "{dtype}");
        }
    }
}

#[test]
fn a_packed_matrix_takes_the_memory_of_its_format() {
    for dtype in GgmlType::ALL {
        let (table, _) = matrix(dtype, 64, 512, 7);
        let stored = table.spec().row_bytes() * 64;
        assert!((stored..=stored * 103 / 100).contains(&table.bytes()), "{dtype}: {}", table.bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_match_the_reference(
        dtype in any_type(),
        rows in 1..40_usize,
        outputs in 1..100_usize,
        units in 1..4_usize,
        seed: u64,
    ) {
        let inputs = inputs_of(dtype, units);
        let (weight, dense) = matrix(dtype, outputs, inputs, seed);
        let (x, residual, gamma) = (random([rows, inputs]), random([rows, outputs]), random([inputs]));
        assert_close(&crate::linear(x.clone(), &weight), &reference::linear(x.clone(), &dense), 1e-5);
        let got = crate::linear_add(x.clone(), &weight, residual.clone());
        assert_close(&got, &reference::linear_add(x.clone(), &dense, residual), 1e-5);
        let got = crate::norm_linear(x.clone(), &gamma, 1e-5, &weight);
        assert_close(&got, &reference::norm_linear(x.clone(), &gamma, 1e-5, &dense), 1e-5);
        let got = crate::rms_norm(x.clone(), &gamma, 1e-5);
        assert_close(&got, &reference::rms_norm(x, &gamma, 1e-5), 1e-5);
    }

    #[test]
    fn gated_products_match_the_reference(
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
        assert_close(&got, &reference::norm_gated(x, &gamma, 1e-5, &dense, activation), 2e-5);
    }

    #[test]
    fn fast_products_are_off_by_at_most_what_quantised_activations_are(
        dtype in any_type(),
        rows in 1..40_usize,
        outputs in 1..100_usize,
        units in 1..4_usize,
        one_byte: bool,
        seed: u64,
    ) {
        let inputs = inputs_of(dtype, units);
        let (mut weight, dense) = matrix(dtype, outputs, inputs, seed);
        let (precision, steps) =
            if one_byte { (Precision::Fastest, 127.0) } else { (Precision::Fast, 127.0 * 128.0) };
        weight.set_precision(precision);
        let (x, residual) = (random([rows, inputs]), random([rows, outputs]));
        let expected = numbers(&reference::linear_add(x.clone(), &dense, residual.clone()));
        let got = numbers(&crate::linear_add(x.clone(), &weight, residual));
        let (x, dense) = (numbers(&x), numbers(&dense));
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            let (x, weights) = (&x[i / outputs * inputs..][..inputs], &dense[i % outputs * inputs..][..inputs]);
            // Half a step of each block's activations, and what f32 loses.
            let error = |(x, weights): (&[f32], &[f32])| {
                let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                let sum: f32 = weights.iter().map(|weight| weight.abs()).sum();
                largest * sum * (0.5 / steps + 1e-5)
            };
            let most: f32 = x.chunks(32).zip(weights.chunks(32)).map(error).sum();
            prop_assert!((got - expected).abs() <= most + 1e-5, "{got} for {expected}, but at most {most} off");
        }
    }

    #[test]
    fn fast_gated_products_are_the_gate_of_fast_products(
        dtype in any_type(),
        rows in 1..20_usize,
        half in prop::sample::select(vec![1_usize, 5, 16, 32, 40, 64]),
        units in 1..3_usize,
        precision in any_precision(),
        seed: u64,
    ) {
        let inputs = inputs_of(dtype, units);
        let (mut weight, _) = matrix(dtype, 2 * half, inputs, seed);
        weight.set_precision(precision);
        let (x, gamma) = (random([rows, inputs]), random([inputs]));
        let both = crate::norm_linear(x.clone(), &gamma, 1e-5, &weight);
        let (gate, up) = (both.clone().narrow(1, 0, half), both.narrow(1, half, half));
        let got = crate::norm_gated(x, &gamma, 1e-5, &weight, Activation::Silu);
        assert_close(&got, &(burn::tensor::activation::silu(gate) * up), 1e-5);
    }

    #[test]
    fn a_row_of_a_product_is_the_same_in_any_batch(
        dtype in any_type(),
        precision in any_precision(),
        rows in 2..300_usize,
        first in 0..300_usize,
        some in 1..20_usize,
        outputs in 1..70_usize,
        units in 1..3_usize,
        seed: u64,
    ) {
        let inputs = inputs_of(dtype, units);
        let (mut weight, _) = matrix(dtype, outputs, inputs, seed);
        weight.set_precision(precision);
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

fn zeros(len: usize) -> Tensor<1> {
    Tensor::zeros([len], &Device::flex())
}

/// A head shape, and rows of sequences that share a cache.
#[derive(Debug, Clone)]
struct Scene {
    shape: HeadShape,
    /// Start and rows of each span.
    spans: Vec<(usize, usize)>,
    stored: KvType,
}

impl Scene {
    /// Block tables: the spans' blocks interleave, so that no span has two adjacent blocks.
    fn tables(&self) -> Vec<Vec<u32>> {
        let blocks = |(start, rows): &(usize, usize)| (start + rows).div_ceil(crate::BLOCK_SIZE);
        let mut tables: Vec<Vec<u32>> = vec![Vec::new(); self.spans.len()];
        let mut next = 1;
        for index in 0..self.spans.iter().map(blocks).max().unwrap_or(0) {
            for (span, table) in self.spans.iter().zip(&mut tables) {
                if index < blocks(span) {
                    table.push(next);
                    next += 1;
                }
            }
        }
        tables
    }

    fn cache(&self) -> KvBlocks {
        let blocks = 1 + self.tables().iter().map(Vec::len).sum::<usize>();
        let HeadShape { kv_heads, head_dim, .. } = self.shape;
        let cache = KvBlocks {
            keys: random([blocks, kv_heads, head_dim, crate::BLOCK_SIZE]),
            values: random([blocks, kv_heads, crate::BLOCK_SIZE, head_dim]),
        };
        cast(&cache, self.stored)
    }

    /// What another order of the arithmetic may change.
    fn tolerance(&self) -> f32 {
        match self.stored {
            KvType::F32 => 1e-5,
            // Two nearly equal numbers may round to adjacent f16.
            KvType::F16 => 1e-3,
        }
    }

    /// All rows of all spans.
    fn rows(&self) -> StepRows {
        let tables = self.tables();
        let spans = self.spans.iter().zip(&tables);
        let spans: Vec<RowSpan<'_>> =
            spans.map(|((start, rows), blocks)| RowSpan { start: *start, rows: *rows, blocks }).collect();
        StepRows::new(&spans, &Device::flex())
    }

    fn count(&self) -> usize {
        self.spans.iter().map(|(_, rows)| rows).sum()
    }
}

fn same_cache(cache: &KvBlocks) -> KvBlocks {
    // Adding 0 copies the tensors.
    KvBlocks { keys: cache.keys.clone() + 0.0, values: cache.values.clone() + 0.0 }
}

/// The same numbers in another storage format.
fn cast(cache: &KvBlocks, stored: KvType) -> KvBlocks {
    let dtype = match stored {
        KvType::F32 => FloatDType::F32,
        KvType::F16 => FloatDType::F16,
    };
    KvBlocks { keys: cache.keys.clone().cast(dtype), values: cache.values.clone().cast(dtype) }
}

prop_compose! {
    fn any_scene(longest: usize)(
        kv_heads in 1..4_usize,
        each in 1..8_usize,
        head_dim in prop::sample::select(vec![2_usize, 8, 24, 32, 64, 96, 128]),
        rotated in 0..3_usize,
        norm: bool,
        bias: bool,
        window in prop::option::of(1..200_usize),
        stored in prop::sample::select(vec![KvType::F32, KvType::F16]),
        spans in prop::collection::vec((0..longest, 1..20_usize), 1..4),
    ) -> Scene {
        let shape = HeadShape {
            heads: kv_heads * each,
            kv_heads,
            head_dim,
            rotary_dim: head_dim / 2 * rotated / 2 * 2,
            head_norm: norm.then_some(1e-5),
            bias,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window,
        };
        Scene { shape, spans, stored }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rotation_and_stores_match_the_reference(scene in any_scene(40)) {
        let shape = scene.shape;
        let width = shape.query_width() + 2 * shape.kv_width();
        let (qkv, bias) = (random([scene.count(), width]), random([width]));
        let (norms, rotary) = (random([2, shape.head_dim]), random([64, 2, shape.rotary_dim / 2]));
        let (rows, cache) = (scene.rows(), scene.cache());
        let (expected, expected_cache) =
            reference::rotate_and_store(qkv.clone(), &bias, &norms, &rotary, &rows, same_cache(&cache), shape);
        let (got, cache) = crate::rotate_and_store(qkv, &bias, &norms, &rotary, &rows, cache, shape);
        assert_close(&got, &expected, 1e-5);
        assert_close(&cache.keys, &expected_cache.keys, scene.tolerance());
        assert_close(&cache.values, &expected_cache.values, scene.tolerance());
    }

    #[test]
    fn an_f16_cache_stores_the_nearest_f16(scene in any_scene(40)) {
        let shape = scene.shape;
        let width = shape.query_width() + 2 * shape.kv_width();
        let (qkv, bias) = (random([scene.count(), width]), random([width]));
        let (norms, rotary) = (random([2, shape.head_dim]), random([64, 2, shape.rotary_dim / 2]));
        let rows = scene.rows();
        let store = |stored| {
            let cache = KvBlocks::zeros(scene.cache().keys.dims()[0], shape.kv_heads, shape.head_dim, stored, &Device::flex());
            crate::rotate_and_store(qkv.clone(), &bias, &norms, &rotary, &rows, cache, shape).1
        };
        let (f32s, f16s) = (store(KvType::F32), store(KvType::F16));
        for (f32s, f16s) in [(&f32s.keys, &f16s.keys), (&f32s.values, &f16s.values)] {
            let nearest: Vec<u32> =
                numbers(f32s).into_iter().map(|number| f16::from_f32(number).to_f32().to_bits()).collect();
            prop_assert_eq!(bits(f16s), nearest);
        }
    }

    #[test]
    fn attention_over_f16_has_the_bits_of_the_same_numbers_in_f32(scene in any_scene(300)) {
        let rows = scene.rows();
        let f16s = cast(&scene.cache(), KvType::F16);
        let f32s = cast(&f16s, KvType::F32);
        let queries = random([scene.count(), scene.shape.query_width()]);
        let got = crate::attention(queries.clone(), &f16s, &rows, scene.shape);
        prop_assert_eq!(bits(&got), bits(&crate::attention(queries, &f32s, &rows, scene.shape)));
    }

    #[test]
    fn attention_matches_the_reference(scene in any_scene(300)) {
        let (rows, cache) = (scene.rows(), scene.cache());
        let queries = random([scene.count(), scene.shape.query_width()]);
        let got = crate::attention(queries.clone(), &cache, &rows, scene.shape);
        assert_close(&got, &reference::attention(queries, &cache, &rows, scene.shape), 1e-5);
    }

    #[test]
    fn attention_of_a_row_is_the_same_in_any_chunk(scene in any_scene(1100), cut in 0..20_usize) {
        let (rows, cache) = (scene.rows(), scene.cache());
        let queries = random([scene.count(), scene.shape.query_width()]);
        let together = crate::attention(queries.clone(), &cache, &rows, scene.shape);
        let mut first = 0;
        for (span, blocks) in scene.tables().iter().enumerate() {
            let (start, count) = scene.spans[span];
            let cut = cut % count;
            for (from, to) in [(0, cut), (cut, count)] {
                if from == to {
                    continue;
                }
                let rows = RowSpan { start: start + from, rows: to - from, blocks };
                let rows = StepRows::new(&[rows], &Device::flex());
                let queries = queries.clone().narrow(0, first + from, to - from);
                let alone = crate::attention(queries, &cache, &rows, scene.shape);
                let expected = together.clone().narrow(0, first + from, to - from);
                prop_assert_eq!(bits(&alone), bits(&expected));
            }
            first += count;
        }
    }
}

/// The rest of a block, which may hold what another sequence left, is never read.
#[test]
fn attention_ignores_positions_beyond_the_sequence() {
    for stored in [KvType::F32, KvType::F16] {
        check_that_positions_beyond_the_sequence_are_ignored(stored);
    }
}

fn check_that_positions_beyond_the_sequence_are_ignored(stored: KvType) {
    let scene = Scene {
        shape: HeadShape {
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            rotary_dim: 0,
            head_norm: None,
            bias: false,
            scale: 0.3,
            window: None,
        },
        spans: vec![(18, 3)],
        stored,
    };
    let (rows, cache) = (scene.rows(), scene.cache());
    let queries = random([3, 128]);
    let expected = crate::attention(queries.clone(), &cache, &rows, scene.shape);
    // Position 21 is offset 5 of the sequence's second block.
    let nan = |pool: Tensor<4>, place: [std::ops::Range<usize>; 4]| {
        let shape = place.clone().map(|range| range.len());
        let nan = Tensor::full(shape, f32::NAN, (&Device::flex(), DType::from(stored)));
        pool.slice_assign(place, nan)
    };
    let spoilt = KvBlocks {
        keys: nan(cache.keys, [2..3, 0..2, 0..32, 5..16]),
        values: nan(cache.values, [2..3, 0..2, 5..16, 0..32]),
    };
    assert_eq!(bits(&crate::attention(queries, &spoilt, &rows, scene.shape)), bits(&expected));
}

fn address(tensor: &Tensor<4>) -> *const u8 {
    tensor.clone().try_into_primitive::<Flex>().unwrap().bytes().as_ptr()
}

#[test]
fn pools_are_written_in_place() {
    for stored in [KvType::F32, KvType::F16] {
        check_that_pools_are_written_in_place(stored);
    }
}

fn check_that_pools_are_written_in_place(stored: KvType) {
    let shape = HeadShape {
        heads: 2,
        kv_heads: 2,
        head_dim: 4,
        rotary_dim: 4,
        head_norm: None,
        bias: false,
        scale: 1.0,
        window: None,
    };
    let device = Device::flex();
    let cache = KvBlocks::zeros(4, 2, 4, stored, &device);
    let before = (address(&cache.keys), address(&cache.values));
    let rows = StepRows::new(&[RowSpan { start: 3, rows: 2, blocks: &[2] }], &device);
    let (norms, rotary) = (Tensor::zeros([0, 0], &device), random([16, 2, 2]));
    let (_, cache) =
        crate::rotate_and_store(random([2, 24]), &zeros(0), &norms, &rotary, &rows, cache, shape);
    let cache = crate::copy_blocks(cache, &[(2, 3), (0, 1)]);
    assert_eq!((address(&cache.keys), address(&cache.values)), before);
    let block = |index: usize| bits(&cache.keys.clone().narrow(0, index, 1));
    assert_eq!(block(3), block(2));
    assert!(block(2).iter().any(|bits| *bits != 0));
    assert!(block(1).iter().all(|bits| *bits == 0));
}

/// Infinite keys or values would make attention return NaN, so they are clamped.
#[test]
fn numbers_beyond_f16_are_clamped_and_counted() {
    let shape = HeadShape {
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        rotary_dim: 0,
        head_norm: None,
        bias: false,
        scale: 1.0,
        window: None,
    };
    let device = Device::flex();
    let given = [1.0, 65_504.0, 65_519.0, 65_600.0, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let qkv =
        Tensor::<1>::from_floats([[0.5; 8], given, given].concat().as_slice(), &device).reshape([1, 24]);
    let rows = StepRows::new(&[RowSpan { start: 0, rows: 1, blocks: &[0] }], &device);
    let (norms, rotary) = (Tensor::zeros([0, 0], &device), Tensor::zeros([1, 2, 0], &device));
    let before = clamped();
    let cache = KvBlocks::zeros(1, 1, 8, KvType::F16, &device);
    let (_, cache) = crate::rotate_and_store(qkv, &zeros(0), &norms, &rotary, &rows, cache, shape);
    assert_eq!(clamped() - before, 2, "the key and the value");
    let expected = [1.0, F16_MAX, F16_MAX, F16_MAX, -F16_MAX, F16_MAX, -F16_MAX];
    let keys: Vec<f32> = numbers(&cache.keys).into_iter().step_by(crate::BLOCK_SIZE).collect();
    for stored in [&keys, &numbers(&cache.values)[..8]] {
        assert_eq!(stored[..7], expected);
        assert!(stored[7].is_nan(), "NaN stays NaN");
    }
}
