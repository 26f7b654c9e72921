//! The operations on the CPU, for burn's Flex backend.
//!
//! Numbers are computed in f32 by vector instructions ([`simd`]); weights stay packed in memory
//! ([`format`], [`pack`]) and become f32 in registers or first-level cache ([`product`]).

mod activation;
mod attention;
mod bandwidth;
mod disjoint;
mod embedding;
mod format;
mod kv_element;
mod matmul;
mod microkernel;
mod pack;
mod rotary;
mod rows;
mod simd;
mod threads;

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{DType, Flex, TensorMetadata};
use burn::tensor::{Int, Shape, Tensor, TensorData};
use half::f16;

use self::kv_element::Stored;
use self::matmul::{Finish, product};
use self::pack::Strips;
use self::rows::{Prepare, Rows, padded};
use crate::types::{Activation, HeadShape, KernelOps, MatrixSpec};

pub(crate) use bandwidth::copy_bandwidth;
pub use kv_element::clamped;
pub use threads::run_step;

type Float = FloatTensor<Flex>;
type Ints = IntTensor<Flex>;

/// What packed weights begin at a multiple of.
const CACHE_LINE: usize = 64;

/// Rows in ggml's layout as the CPU wants them.
pub(crate) fn pack(spec: MatrixSpec, blocks: &[u8]) -> Tensor<1, Int> {
    let len = pack::packed_bytes(spec);
    let mut bytes = vec![0; len + CACHE_LINE];
    let start = bytes.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE);
    pack::pack(spec, blocks, &mut bytes[start..start + len]);
    let whole = FlexTensor::from_data(TensorData::new(bytes, [len + CACHE_LINE]));
    let layout = Layout::new(Shape::from([len]), vec![1], start);
    Tensor::from_primitive::<Flex>(whole.with_layout(layout))
}

/// A matrix as it was packed.
#[allow(clippy::expect_used)] // made by `pack`
fn strips(weight: &Ints, spec: MatrixSpec) -> Strips<'_> {
    Strips::new(weight.as_slice().expect("packed bytes"), spec)
}

/// A tensor of f32 in one run of memory.
struct Floats(FlexTensor);

impl Floats {
    fn new(tensor: &Float) -> Self {
        Self(tensor.to_contiguous())
    }

    #[allow(clippy::expect_used)] // a network's numbers are f32
    fn slice(&self) -> &[f32] {
        self.0.as_slice().expect("contiguous f32")
    }
}

/// Non-negative integers of whatever type; others become 0.
fn indices(tensor: &Ints) -> Vec<usize> {
    let tensor = tensor.to_contiguous();
    match tensor.dtype() {
        DType::I64 => tensor.storage::<i64>().iter().map(|n| usize::try_from(*n).unwrap_or(0)).collect(),
        DType::U32 => tensor.storage::<u32>().iter().map(|n| *n as usize).collect(),
        _ => tensor.storage::<i32>().iter().map(|n| usize::try_from(*n).unwrap_or(0)).collect(),
    }
}

fn tensor(numbers: Vec<f32>, shape: [usize; 2]) -> Float {
    FlexTensor::from_data(TensorData::new(numbers, shape))
}

/// The product of `x`, prepared, and a packed matrix.
fn multiplied(x: &Float, prepare: Prepare<'_>, weight: &Ints, spec: MatrixSpec, finish: Finish<'_>) -> Float {
    let x = Floats::new(x);
    let rows = Rows::new(x.slice(), spec.inputs, padded(spec.inputs), prepare);
    let out = product(&rows, &strips(weight, spec), finish);
    let width = if matches!(finish, Finish::Gate(_)) { spec.outputs / 2 } else { spec.outputs };
    tensor(out, [rows.count, width])
}

/// A pool of the cache.
fn pool<E: Stored>(tensor: &Float) -> &[E] {
    &E::of(tensor)[run(tensor)]
}

/// The same to write to; nothing else refers to it.
fn pool_mut<E: Stored>(tensor: &mut Float) -> &mut [E] {
    let run = run(tensor);
    &mut E::of_mut(tensor)[run]
}

/// Where in its memory a pool is.
#[allow(clippy::expect_used)] // made by `KvBlocks::zeros`, and never given another shape
fn run(tensor: &Float) -> std::ops::Range<usize> {
    let (start, end) = tensor.layout().contiguous_offsets().expect("a pool in one run of memory");
    start..end
}

fn attend<E: Stored>(
    queries: &Float,
    [keys, values]: [&Float; 2],
    rows: &Ints,
    tables: &Ints,
    shape: HeadShape,
) -> Float {
    let queries = Floats::new(queries);
    let (rows, width) = (row_triples(rows), tables.shape()[1]);
    let attention = attention::Attention {
        queries: queries.slice(),
        keys: pool::<E>(keys),
        values: pool::<E>(values),
        rows: &rows,
        tables: &indices(tables),
        width,
        shape,
    };
    tensor(attention.compute(), [rows.len(), shape.query_width()])
}

fn copy_within<E: Stored>(tensor: &mut Float, pairs: &[(u32, u32)]) {
    let block: usize = tensor.shape()[1..].iter().product();
    let pool = pool_mut::<E>(tensor);
    for (from, to) in pairs {
        let (from, to) = (*from as usize * block, *to as usize * block);
        pool.copy_within(from..from + block, to);
    }
}

/// [`StepRows`]' rows: position, span and slot of each.
fn row_triples(rows: &Ints) -> Vec<[usize; 3]> {
    indices(rows).as_chunks().0.to_vec()
}

impl KernelOps for Flex {
    fn embedding(ids: Ints, table: Ints, spec: MatrixSpec) -> Float {
        let ids = indices(&ids);
        tensor(embedding::embedding(&strips(&table, spec), &ids), [ids.len(), spec.inputs])
    }

    fn linear(x: Float, weight: Ints, spec: MatrixSpec) -> Float {
        multiplied(&x, Prepare::Plain, &weight, spec, Finish::Store)
    }

    fn linear_add(x: Float, weight: Ints, residual: Float, spec: MatrixSpec) -> Float {
        let residual = Floats::new(&residual);
        multiplied(&x, Prepare::Plain, &weight, spec, Finish::Add(residual.slice()))
    }

    fn rms_norm(x: Float, gamma: Float, epsilon: f32) -> Float {
        let (x, gamma) = (Floats::new(&x), Floats::new(&gamma));
        let width = gamma.slice().len();
        let out = rows::rms_norm_rows(x.slice(), gamma.slice(), epsilon);
        let count = out.len() / width;
        tensor(out, [count, width])
    }

    fn norm_linear(x: Float, gamma: Float, weight: Ints, spec: MatrixSpec, epsilon: f32) -> Float {
        let gamma = Floats::new(&gamma);
        multiplied(&x, Prepare::Norm(gamma.slice(), epsilon), &weight, spec, Finish::Store)
    }

    fn norm_gated(
        x: Float,
        gamma: Float,
        gate_up: Ints,
        spec: MatrixSpec,
        epsilon: f32,
        activation: Activation,
    ) -> Float {
        let gamma = Floats::new(&gamma);
        let prepare = Prepare::Norm(gamma.slice(), epsilon);
        multiplied(&x, prepare, &gate_up, spec, Finish::Gate(activation))
    }

    fn rotate_and_store(
        qkv: Float,
        bias: Float,
        norms: Float,
        rotary: Float,
        rows: Ints,
        keys: Float,
        values: Float,
        shape: HeadShape,
    ) -> (Float, Float, Float) {
        let (qkv, bias, norms) = (Floats::new(&qkv), Floats::new(&bias), Floats::new(&norms));
        let (rotary, rows) = (Floats::new(&rotary), row_triples(&rows));
        let (mut keys, mut values) = (keys, values);
        let step = rotary::Step {
            qkv: qkv.slice(),
            bias: bias.slice(),
            norms: norms.slice(),
            rotary: rotary.slice(),
            rows: &rows,
            shape,
        };
        let queries = match keys.dtype() {
            DType::F16 => {
                step.run::<f16>(rotary::Pools { keys: pool_mut(&mut keys), values: pool_mut(&mut values) })
            }
            _ => step.run::<f32>(rotary::Pools { keys: pool_mut(&mut keys), values: pool_mut(&mut values) }),
        };
        (tensor(queries, [rows.len(), shape.query_width()]), keys, values)
    }

    fn attention(
        queries: Float,
        keys: Float,
        values: Float,
        rows: Ints,
        tables: Ints,
        _tiles: Ints, // how a GPU deals out rows
        shape: HeadShape,
    ) -> Float {
        match keys.dtype() {
            DType::F16 => attend::<f16>(&queries, [&keys, &values], &rows, &tables, shape),
            _ => attend::<f32>(&queries, [&keys, &values], &rows, &tables, shape),
        }
    }

    fn copy_blocks(keys: Float, values: Float, pairs: Vec<(u32, u32)>) -> (Float, Float) {
        let (mut keys, mut values) = (keys, values);
        for pool in [&mut keys, &mut values] {
            match pool.dtype() {
                DType::F16 => copy_within::<f16>(pool, &pairs),
                _ => copy_within::<f32>(pool, &pairs),
            }
        }
        (keys, values)
    }
}

#[cfg(test)]
mod tests;
