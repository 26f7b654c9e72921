//! The cache: rotary embedding and stores, attention, block copies.

use burn::tensor::{Device, FloatDType, Tensor};
use emberline_kernels::{BLOCK_SIZE, HeadShape, KvBlocks, KvType, RowSpan, StepRows, reference};
use emberline_kernels::{attention, copy_blocks, rotate_and_store};
use half::f16;

use crate::support::{Random, assert_close, assert_same_bits, both, gpu, host};

const TOLERANCE: f32 = 1e-5;
/// Of results from a cache of f16: two numbers that differ in their last bit may be rounded to different f16.
const HALF_TOLERANCE: f32 = 1e-3;

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> HeadShape {
    HeadShape {
        heads,
        kv_heads,
        head_dim,
        rotary_dim: head_dim,
        head_norm: None,
        bias: false,
        scale: (head_dim as f32).sqrt().recip(),
        window: None,
    }
}

/// A layer's shape and tensors except its cache, on the GPU and on the CPU.
struct Layer {
    shape: HeadShape,
    stored: KvType,
    bias: (Tensor<1>, Tensor<1>),
    norms: (Tensor<2>, Tensor<2>),
    rotary: (Tensor<3>, Tensor<3>),
}

impl Layer {
    fn new(random: &mut Random, shape: HeadShape, stored: KvType, positions: usize) -> Self {
        let HeadShape { head_dim, rotary_dim, .. } = shape;
        let wide = shape.query_width() + 2 * shape.kv_width();
        let angles = random.numbers(positions * rotary_dim.max(2));
        Self {
            shape,
            stored,
            bias: both(random.numbers(wide), [wide]),
            norms: both(random.numbers(2 * head_dim), [2, head_dim]),
            rotary: both(angles, [positions, 2, rotary_dim.max(2) / 2]),
        }
    }

    /// Random rows of queries, keys and values.
    fn projections(&self, random: &mut Random, rows: usize) -> Vec<f32> {
        random.numbers(rows * (self.shape.query_width() + 2 * self.shape.kv_width()))
    }

    fn step(&self, qkv: &[f32], spans: &[RowSpan<'_>], cache: KvBlocks) -> (Tensor<2>, KvBlocks) {
        let rows = StepRows::new(spans, &gpu());
        let count: usize = spans.iter().map(|span| span.rows).sum();
        let (qkv, _) = both(qkv.to_vec(), [count, qkv.len() / count]);
        let (queries, cache) =
            rotate_and_store(qkv, &self.bias.0, &self.norms.0, &self.rotary.0, &rows, cache, self.shape);
        (attention(queries, &cache, &rows, self.shape), cache)
    }

    fn reference(&self, qkv: &[f32], spans: &[RowSpan<'_>], cache: KvBlocks) -> (Tensor<2>, KvBlocks) {
        let rows = StepRows::new(spans, &Device::flex());
        let count: usize = spans.iter().map(|span| span.rows).sum();
        let (_, qkv) = both(qkv.to_vec(), [count, qkv.len() / count]);
        let (queries, cache) = reference::rotate_and_store(
            qkv,
            &self.bias.1,
            &self.norms.1,
            &self.rotary.1,
            &rows,
            cache,
            self.shape,
        );
        (reference::attention(queries, &cache, &rows, self.shape), cache)
    }

    fn pool(&self, blocks: usize, device: &Device) -> KvBlocks {
        KvBlocks::zeros(blocks, self.shape.kv_heads, self.shape.head_dim, self.stored, device)
    }
}

/// The numbers of a pool, of which each block has `adjacent` in a row for each number of a key or value.
fn numbers(pool: Tensor<4>, layer: &Layer, adjacent: usize) -> Vec<f32> {
    if layer.stored == KvType::F32 || pool.device() != gpu() {
        return host(pool.cast(FloatDType::F32));
    }
    let head_dim = layer.shape.head_dim;
    let words = head_dim.div_ceil(2);
    let unpack = |part: &[f32]| -> Vec<f32> {
        let half = |i: usize| {
            let word = part[i / adjacent % words * adjacent + i % adjacent].to_bits();
            f16::from_bits((word >> (16 * (i / adjacent / words))) as u16).to_f32()
        };
        (0..head_dim * adjacent).map(half).collect()
    };
    host(pool).chunks_exact(words * adjacent).flat_map(unpack).collect()
}

/// Block tables of `sequences` sequences with `blocks` blocks each, scattered over a pool.
fn tables(random: &mut Random, sequences: usize, blocks: usize) -> Vec<Vec<u32>> {
    let mut free: Vec<u32> = (0..(sequences * blocks) as u32).collect();
    let table = |_| (0..blocks).map(|_| free.swap_remove(random.below(free.len()))).collect();
    (0..sequences).map(table).collect()
}

#[test]
fn a_few_steps_of_two_sequences_match_the_reference() {
    let mut random = Random::new(11);
    let windowed = HeadShape { window: Some(20), ..shape(4, 2, 16) };
    let normed = HeadShape { head_norm: Some(1e-6), bias: true, rotary_dim: 8, ..shape(6, 2, 24) };
    let odd = HeadShape { rotary_dim: 0, ..shape(5, 1, 10) };
    for (shape, stored, tolerance) in [
        (shape(3, 1, 64), KvType::F32, TOLERANCE),
        (windowed, KvType::F32, TOLERANCE),
        (windowed, KvType::F16, HALF_TOLERANCE),
        (normed, KvType::F32, TOLERANCE),
        (normed, KvType::F16, HALF_TOLERANCE),
        (odd, KvType::F32, TOLERANCE),
        (odd, KvType::F16, HALF_TOLERANCE),
        (shape(2, 2, 256), KvType::F32, TOLERANCE),
        (shape(4, 1, 128), KvType::F16, HALF_TOLERANCE),
        (shape(7, 1, 80), KvType::F16, HALF_TOLERANCE),
    ] {
        let layer = Layer::new(&mut random, shape, stored, 80);
        let tables = tables(&mut random, 2, 5);
        let (mut cache, mut expected_cache) = (layer.pool(10, &gpu()), layer.pool(10, &Device::flex()));
        // (start, rows) of both sequences: a prompt in two chunks beside one in one chunk, then decoding.
        for step in [[(0, 19), (0, 3)], [(19, 14), (3, 1)], [(33, 1), (4, 1)], [(34, 1), (5, 30)]] {
            let spans: Vec<RowSpan<'_>> = step
                .iter()
                .zip(&tables)
                .map(|(&(start, rows), blocks)| RowSpan { start, rows, blocks })
                .collect();
            let rows = spans.iter().map(|span| span.rows).sum();
            let qkv = layer.projections(&mut random, rows);
            let (got, new_cache) = layer.step(&qkv, &spans, cache);
            let (expected, new_expected) = layer.reference(&qkv, &spans, expected_cache);
            assert_close(&format!("{shape:?}, {stored:?}"), &host(got), &host(expected), tolerance);
            (cache, expected_cache) = (new_cache, new_expected);
        }
        let keys = |cache: &KvBlocks| numbers(cache.keys.clone(), &layer, BLOCK_SIZE);
        assert_close("keys", &keys(&cache), &keys(&expected_cache), tolerance);
        let values = |cache: &KvBlocks| numbers(cache.values.clone(), &layer, 1);
        assert_close("values", &values(&cache), &values(&expected_cache), tolerance);
    }
}

/// Runs `steps` of several sequences, each a list of `(sequence, start, rows)`, and returns each
/// sequence's outputs.
fn run(
    layer: &Layer,
    sequences: &[Vec<f32>],
    tables: &[Vec<u32>],
    steps: &[Vec<(usize, usize, usize)>],
) -> Vec<Vec<f32>> {
    let wide = layer.shape.query_width() + 2 * layer.shape.kv_width();
    let width = layer.shape.query_width();
    let blocks = tables.iter().flatten().max().map_or(0, |last| *last as usize + 1);
    let mut cache = layer.pool(blocks, &gpu());
    let mut outputs = vec![Vec::new(); sequences.len()];
    for step in steps {
        let spans: Vec<RowSpan<'_>> = step
            .iter()
            .map(|&(sequence, start, rows)| RowSpan { start, rows, blocks: &tables[sequence] })
            .collect();
        let qkv: Vec<f32> = step
            .iter()
            .flat_map(|&(sequence, start, rows)| &sequences[sequence][start * wide..(start + rows) * wide])
            .copied()
            .collect();
        let (got, new_cache) = layer.step(&qkv, &spans, cache);
        cache = new_cache;
        let mut got = &host(got)[..];
        for &(sequence, _, rows) in step {
            let (own, rest) = got.split_at(rows * width);
            outputs[sequence].extend_from_slice(own);
            got = rest;
        }
    }
    outputs
}

#[test]
fn a_row_attends_to_the_same_bits_alone_or_batched_in_any_chunks() {
    let mut random = Random::new(12);
    let windowed = HeadShape { window: Some(150), ..shape(4, 4, 32) };
    for (shape, stored) in [
        (shape(3, 1, 64), KvType::F32),
        (windowed, KvType::F32),
        (windowed, KvType::F16),
        (shape(8, 1, 128), KvType::F16),
    ] {
        let layer = Layer::new(&mut random, shape, stored, 400);
        let sequences = [layer.projections(&mut random, 400), layer.projections(&mut random, 30)];
        let tables = tables(&mut random, 2, 25);
        // Each prompt in one chunk, alone in its step.
        let alone = run(&layer, &sequences, &tables, &[vec![(0, 0, 400)], vec![(1, 0, 30)]]);
        // Chunks of odd lengths, batched with another sequence's rows.
        let mut steps = vec![vec![(0, 0, 7)], vec![(1, 0, 9), (0, 7, 130)], vec![(0, 137, 250), (1, 9, 1)]];
        steps.extend((0..13).map(|i| vec![(0, 387 + i, 1), (1, 10 + i, 1)]));
        steps.push(vec![(1, 23, 7)]);
        let batched = run(&layer, &sequences, &tables, &steps);
        for (batched, alone) in batched.iter().zip(&alone) {
            assert_same_bits("batched", batched, alone);
        }
    }
}

#[test]
fn a_long_context_is_split_and_comes_out_the_same() {
    let mut random = Random::new(13);
    let windowed = HeadShape { window: Some(300), ..shape(2, 1, 16) };
    for (shape, stored, tolerance) in [
        (shape(4, 2, 32), KvType::F32, TOLERANCE),
        (shape(4, 2, 32), KvType::F16, HALF_TOLERANCE),
        (windowed, KvType::F32, TOLERANCE),
    ] {
        let layer = Layer::new(&mut random, shape, stored, 1000);
        let sequences = [layer.projections(&mut random, 1000), layer.projections(&mut random, 40)];
        let tables = tables(&mut random, 2, 1000_usize.div_ceil(BLOCK_SIZE));
        let whole = run(&layer, &sequences, &tables, &[vec![(0, 0, 1000)], vec![(1, 0, 40)]]);
        let mut steps = vec![vec![(0, 0, 998), (1, 0, 38)]];
        steps.extend((0..2).map(|i| vec![(0, 998 + i, 1), (1, 38 + i, 1)]));
        let split = run(&layer, &sequences, &tables, &steps);
        for (split, whole) in split.iter().zip(&whole) {
            assert_same_bits("split", split, whole);
        }
        let mut cache = layer.pool(tables.len() * tables[0].len(), &Device::flex());
        let width = shape.query_width();
        let spans = [RowSpan { start: 0, rows: 1000, blocks: &tables[0] }];
        let rows = StepRows::new(&spans, &Device::flex());
        let (_, qkv) = both(sequences[0].clone(), [1000, sequences[0].len() / 1000]);
        let queries;
        (queries, cache) = reference::rotate_and_store(
            qkv,
            &layer.bias.1,
            &layer.norms.1,
            &layer.rotary.1,
            &rows,
            cache,
            shape,
        );
        let last = StepRows::new(&[RowSpan { start: 999, rows: 1, blocks: &tables[0] }], &Device::flex());
        let expected = host(reference::attention(queries.narrow(0, 999, 1), &cache, &last, shape));
        assert_close("long", &whole[0][999 * width..], &expected, tolerance);
    }
}

/// How many heads a cube has depends on how many cubes a step has.
#[test]
fn a_row_has_the_same_bits_beside_many_others_and_beside_prompts() {
    let mut random = Random::new(16);
    for stored in [KvType::F32, KvType::F16] {
        let layer = Layer::new(&mut random, shape(8, 2, 64), stored, 512);
        let mut sequences: Vec<Vec<f32>> = (0..26).map(|_| layer.projections(&mut random, 130)).collect();
        sequences[0] = layer.projections(&mut random, 512);
        let tables = tables(&mut random, sequences.len(), 32);
        // Alone, its heads are divided; beside 24 rows with three partitions each, they aren't; then there is
        // a prompt beside them.
        let mut alone = vec![vec![(0, 0, 500)]];
        alone.extend((500..512).map(|at| vec![(0, at, 1)]));
        let mut batched =
            vec![(1..26).map(|other| (other, 0, 128)).collect(), vec![(0, 0, 300)], vec![(0, 300, 200)]];
        for at in 500..502 {
            let others = (1..25).map(|other| (other, at - 372, 1));
            batched.push(others.chain([(0, at, 1)]).collect());
        }
        batched.extend((502..504).map(|at| vec![(0, at, 1), (25, at - 374, 1)]));
        batched.push(vec![(0, 504, 8)]);
        let alone = run(&layer, &sequences, &tables, &alone);
        let batched = run(&layer, &sequences, &tables, &batched);
        assert_same_bits("alone", &alone[0], &batched[0]);
        let whole = run(&layer, &sequences, &tables, &[vec![(1, 0, 130)], vec![(25, 0, 130)]]);
        assert_same_bits("another", &whole[1], &batched[1]);
        assert_same_bits("the last", &whole[25], &batched[25]);
    }
}

/// Logits that are no numbers are noticed; an answer from wrong numbers would not be.
#[test]
fn what_is_not_a_number_stays_so_for_all_that_attend_to_it() {
    let mut random = Random::new(18);
    for stored in [KvType::F32, KvType::F16] {
        let layer = Layer::new(&mut random, shape(2, 1, 64), stored, 32);
        let wide = 4 * 64;
        let mut sequence = layer.projections(&mut random, 24);
        sequence[20 * wide..21 * wide].fill(f32::NAN);
        for steps in [vec![vec![(0, 0, 24)]], (0..24).map(|at| vec![(0, at, 1)]).collect::<Vec<_>>()] {
            let got = &run(&layer, &[sequence.clone()], &[vec![1, 0]], &steps)[0];
            // Rows of its tile multiply its value with a weight of zero.
            assert!(got[..16 * 128].iter().all(|number| number.is_finite()), "{stored:?}");
            assert!(got[20 * 128..].iter().all(|number| number.is_nan()), "{stored:?}");
        }
    }
}

#[test]
fn halves_are_rounded_and_clamped_as_on_the_cpu() {
    let mut random = Random::new(17);
    let mut wanted =
        vec![0.0, -0.0, 65504.0, 65519.9, 65520.0, -1e30, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE];
    // Ties, numbers beside them, and those that are subnormal as f16.
    wanted.extend([1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 2047.5, 2048.5, 2f32.powi(-24), 2f32.powi(-25)]);
    wanted.extend([3.0 * 2f32.powi(-25), 2f32.powi(-14) - 2f32.powi(-25), 2f32.powi(-14) - 2f32.powi(-26)]);
    while wanted.len() < 2048 {
        let number = f32::from_bits(random.next() as u32);
        // Most of f32 is far from f16's range.
        let near = random.number() * 2f32.powi(random.below(44) as i32 - 27);
        wanted.push(if random.below(8) == 0 { number } else { near });
    }
    let shape = HeadShape { rotary_dim: 0, ..shape(1, 1, 64) };
    let layer = Layer::new(&mut random, shape, KvType::F16, 32);
    let rows = wanted.len() / 64;
    let qkv: Vec<f32> = wanted.chunks_exact(64).flat_map(|row| [row, row, row].concat()).collect();
    let (_, cache) = layer.step(&qkv, &[RowSpan { start: 0, rows, blocks: &[1, 0] }], layer.pool(2, &gpu()));
    let stored = numbers(cache.values, &layer, 1);
    let stored = [&stored[1024..], &stored[..1024]].concat();
    let keys = numbers(cache.keys, &layer, BLOCK_SIZE);
    for (at, (number, stored)) in wanted.iter().zip(&stored).enumerate() {
        let (position, d) = (at / 64, at % 64);
        let key = keys[(1 - position / 16) * 1024 + d * 16 + position % 16];
        let half = f16::from_f32(number.clamp(-65504.0, 65504.0)).to_f32();
        let same = |got: f32| got.to_bits() == half.to_bits() || (got.is_nan() && number.is_nan());
        assert!(same(*stored) && same(key), "{number:e}: {stored:e} and {key:e} instead of {half:e}");
    }
}

#[test]
fn copied_blocks_match_the_reference() {
    let mut random = Random::new(14);
    for pairs in [vec![(0, 5), (3, 1), (7, 2)], vec![(0, 1), (1, 2), (4, 1)]] {
        let pool =
            |random: &mut Random, shape: [usize; 4]| both(random.numbers(shape.iter().product()), shape);
        let (keys, keys_cpu) = pool(&mut random, [8, 2, 12, BLOCK_SIZE]);
        let (values, values_cpu) = pool(&mut random, [8, 2, BLOCK_SIZE, 12]);
        let got = copy_blocks(KvBlocks { keys, values }, &pairs);
        let expected = reference::copy_blocks(KvBlocks { keys: keys_cpu, values: values_cpu }, &pairs);
        assert_same_bits("keys", &host(got.keys), &host(expected.keys));
        assert_same_bits("values", &host(got.values), &host(expected.values));
    }
}

/// A second handle to the pool, which only this test holds, sees the writes: nothing was copied.
#[test]
fn the_pool_is_written_in_place() {
    let mut random = Random::new(15);
    let layer = Layer::new(&mut random, shape(2, 1, 64), KvType::F32, 64);
    let cache = layer.pool(4, &gpu());
    let (keys, values) = (cache.keys.clone(), cache.values.clone());
    let qkv = layer.projections(&mut random, 20);
    let (_, cache) = layer.step(&qkv, &[RowSpan { start: 0, rows: 20, blocks: &[2, 1] }], cache);
    let cache = copy_blocks(cache, &[(2, 3)]);
    let written = host(keys);
    assert!(written[3 * 64 * BLOCK_SIZE..].iter().any(|number| *number != 0.0));
    assert_same_bits("keys", &written, &host(cache.keys));
    assert_same_bits("values", &host(values), &host(cache.values));
}
