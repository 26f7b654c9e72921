//! The operations on the CPU, for burn's Flex backend.
//!
//! Everything is computed in f32 with vector instructions ([`simd`]). Weights stay packed in memory
//! ([`mod@format`], [`pack`]) and are dequantised in registers or the first-level cache
//! ([`matmul`](self::matmul)). Products with less than [`Precision::Exact`] are of
//! integers ([`quantized_matmul`]).

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
mod quantized_matmul;
mod quantized_rows;
mod rotary;
mod rows;
mod simd;
mod threads;

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{DType, Flex, TensorMetadata};
use burn::tensor::{Int, Shape, Tensor, TensorData};
use half::f16;

use self::kv_element::KvElement;
use self::matmul::{Epilogue, matmul};
use self::pack::PackedMatrix;
use self::quantized_rows::QuantizedRows;
use self::rows::{PackedRows, Prologue, padded};
use crate::types::{Activation, HeadShape, KernelOps, MatrixSpec, Pass, Precision};

pub(crate) use bandwidth::copy_bandwidth;
pub use kv_element::clamped;
pub use simd::{InstructionSet, UnknownInstructionSet, limit_instruction_set};
pub use threads::run_step;

type Float = FloatTensor<Flex>;
type Ints = IntTensor<Flex>;

/// Alignment of packed weights, in bytes.
const CACHE_LINE: usize = 64;

/// Packs `blocks`, rows in ggml's layout, for the CPU: a tensor of bytes.
pub(crate) fn pack(spec: MatrixSpec, blocks: &[u8]) -> Tensor<1, Int> {
    let len = pack::packed_bytes(spec);
    let mut bytes = vec![0; len + CACHE_LINE];
    let start = bytes.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE);
    pack::pack(spec, blocks, &mut bytes[start..start + len]);
    let whole = FlexTensor::from_data(TensorData::new(bytes, [len + CACHE_LINE]));
    let layout = Layout::new(Shape::from([len]), vec![1], start);
    Tensor::from_primitive::<Flex>(whole.with_layout(layout))
}

/// The data of a matrix, which [`pack`](fn@pack) made.
#[allow(clippy::expect_used)] // `pack` makes bytes
fn packed_matrix(weight: &Ints, spec: MatrixSpec) -> PackedMatrix<'_> {
    PackedMatrix::new(weight.as_slice().expect("packed bytes"), spec)
}

/// A contiguous tensor of f32.
struct ContiguousF32(FlexTensor);

impl ContiguousF32 {
    fn new(tensor: &Float) -> Self {
        Self(tensor.to_contiguous())
    }

    #[allow(clippy::expect_used)] // activations are always f32
    fn slice(&self) -> &[f32] {
        self.0.as_slice().expect("contiguous f32")
    }
}

/// The elements of a tensor of indices, of any integer type; negative ones become 0.
fn indices(tensor: &Ints) -> Vec<usize> {
    let tensor = tensor.to_contiguous();
    match tensor.dtype() {
        DType::I64 => tensor.storage::<i64>().iter().map(|n| usize::try_from(*n).unwrap_or(0)).collect(),
        DType::U32 => tensor.storage::<u32>().iter().map(|n| *n as usize).collect(),
        _ => tensor.storage::<i32>().iter().map(|n| usize::try_from(*n).unwrap_or(0)).collect(),
    }
}

/// `values` as a tensor.
fn tensor(values: Vec<f32>, shape: [usize; 2]) -> Float {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The product of `x`, after the prologue, with a packed matrix.
fn multiply(
    x: &Float,
    prologue: Prologue<'_>,
    weight: &Ints,
    (spec, precision): (MatrixSpec, Precision),
    epilogue: Epilogue<'_>,
) -> Float {
    let x = ContiguousF32::new(x);
    let (x, weight) = (x.slice(), packed_matrix(weight, spec));
    let quantized = match precision {
        Precision::Exact => None,
        Precision::Fast => QuantizedRows::<2>::new(x, spec.inputs, spec.dtype, prologue)
            .map(|rows| matmul(&rows, &weight, epilogue)),
        Precision::Fastest => QuantizedRows::<1>::new(x, spec.inputs, spec.dtype, prologue)
            .map(|rows| matmul(&rows, &weight, epilogue)),
    };
    let out = quantized.unwrap_or_else(|| {
        let rows = PackedRows::new(x, spec.inputs, padded(spec.inputs), prologue);
        matmul(&rows, &weight, epilogue)
    });
    let width = if matches!(epilogue, Epilogue::Gate(_)) { spec.outputs / 2 } else { spec.outputs };
    tensor(out, [x.len() / spec.inputs, width])
}

/// The elements of a pool of the cache.
fn pool<E: KvElement>(tensor: &Float) -> &[E] {
    &E::storage(tensor)[pool_range(tensor)]
}

/// The same, mutable; the pool has no other owner.
fn pool_mut<E: KvElement>(tensor: &mut Float) -> &mut [E] {
    let range = pool_range(tensor);
    &mut E::storage_mut(tensor)[range]
}

/// The range of a tensor's memory that a pool occupies.
#[allow(clippy::expect_used)] // `KvBlocks::zeros` makes it contiguous, and it is never reshaped
fn pool_range(tensor: &Float) -> std::ops::Range<usize> {
    let (start, end) = tensor.layout().contiguous_offsets().expect("a contiguous pool");
    start..end
}

/// [`crate::attention`] over a cache of `E`.
fn attend<E: KvElement>(
    queries: &Float,
    [keys, values]: [&Float; 2],
    rows: &Ints,
    tables: &Ints,
    shape: HeadShape,
) -> Float {
    let queries = ContiguousF32::new(queries);
    let (rows, width) = (row_triples(rows), tables.shape()[1]);
    let inputs = attention::AttentionInputs {
        queries: queries.slice(),
        keys: pool::<E>(keys),
        values: pool::<E>(values),
        rows: &rows,
        tables: &indices(tables),
        width,
        shape,
    };
    tensor(inputs.compute(), [rows.len(), shape.query_width()])
}

/// Copies blocks `(from, to)` of one pool, in order.
fn copy_within<E: KvElement>(tensor: &mut Float, pairs: &[(u32, u32)]) {
    let block: usize = tensor.shape()[1..].iter().product();
    let pool = pool_mut::<E>(tensor);
    for (from, to) in pairs {
        let (from, to) = (*from as usize * block, *to as usize * block);
        pool.copy_within(from..from + block, to);
    }
}

/// The rows of [`crate::StepRows`]: position, span and slot of each.
fn row_triples(rows: &Ints) -> Vec<[usize; 3]> {
    indices(rows).as_chunks().0.to_vec()
}

impl KernelOps for Flex {
    fn embedding(ids: Ints, table: Ints, spec: MatrixSpec) -> Float {
        let ids = indices(&ids);
        tensor(embedding::embedding(&packed_matrix(&table, spec), &ids), [ids.len(), spec.inputs])
    }

    fn linear(x: Float, weight: Ints, spec: MatrixSpec, precision: Precision) -> Float {
        multiply(&x, Prologue::Plain, &weight, (spec, precision), Epilogue::Store)
    }

    fn linear_add(x: Float, weight: Ints, residual: Float, spec: MatrixSpec, precision: Precision) -> Float {
        let residual = ContiguousF32::new(&residual);
        multiply(&x, Prologue::Plain, &weight, (spec, precision), Epilogue::Add(residual.slice()))
    }

    fn rms_norm(x: Float, gamma: Float, epsilon: f32) -> Float {
        let (x, gamma) = (ContiguousF32::new(&x), ContiguousF32::new(&gamma));
        let width = gamma.slice().len();
        let out = rows::rms_norm_rows(x.slice(), gamma.slice(), epsilon);
        let count = out.len() / width;
        tensor(out, [count, width])
    }

    fn norm_linear(
        x: Float,
        gamma: Float,
        weight: Ints,
        spec: MatrixSpec,
        precision: Precision,
        epsilon: f32,
    ) -> Float {
        let gamma = ContiguousF32::new(&gamma);
        let prologue = Prologue::Norm(gamma.slice(), epsilon);
        multiply(&x, prologue, &weight, (spec, precision), Epilogue::Store)
    }

    fn norm_gated(
        x: Float,
        gamma: Float,
        gate_up: Ints,
        spec: MatrixSpec,
        precision: Precision,
        epsilon: f32,
        activation: Activation,
    ) -> Float {
        let gamma = ContiguousF32::new(&gamma);
        let prologue = Prologue::Norm(gamma.slice(), epsilon);
        multiply(&x, prologue, &gate_up, (spec, precision), Epilogue::Gate(activation))
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
        let (qkv, bias, norms) =
            (ContiguousF32::new(&qkv), ContiguousF32::new(&bias), ContiguousF32::new(&norms));
        let (rotary, rows) = (ContiguousF32::new(&rotary), row_triples(&rows));
        let (mut keys, mut values) = (keys, values);
        let projections = rotary::Projections {
            qkv: qkv.slice(),
            bias: bias.slice(),
            norms: norms.slice(),
            rotary: rotary.slice(),
            rows: &rows,
            shape,
        };
        let queries = match keys.dtype() {
            DType::F16 => projections
                .run::<f16>(rotary::Pools { keys: pool_mut(&mut keys), values: pool_mut(&mut values) }),
            _ => projections
                .run::<f32>(rotary::Pools { keys: pool_mut(&mut keys), values: pool_mut(&mut values) }),
        };
        (tensor(queries, [rows.len(), shape.query_width()]), keys, values)
    }

    fn attention(
        queries: Float,
        keys: Float,
        values: Float,
        rows: Ints,
        tables: Ints,
        _tiles: Ints, // this and what follows are for GPUs
        _singles: Ints,
        _parts: Ints,
        _passes: Vec<Pass>,
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
