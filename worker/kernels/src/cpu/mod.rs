//! The operations on the CPU, for burn's Flex backend.
//!
//! Numbers are computed in f32 by vector instructions ([`simd`]); weights stay packed in memory
//! ([`format`], [`pack`]) and become f32 in registers or first-level cache ([`product`]).

mod embedding;
mod format;
mod math;
mod output;
mod pack;
mod product;
mod rows;
mod simd;
mod threads;

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{DType, Flex};
use burn::tensor::{Device, Int, Shape, Tensor, TensorData};

use self::pack::Strips;
use self::product::{Finish, product};
use self::rows::{Prepare, Rows, padded};
use crate::matrix::MatrixSpec;
use crate::native::KernelOps;
use crate::ops::{Activation, HeadShape, PickRow};
use crate::paged::{KvBlocks, StepRows};
use crate::twin;

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

fn floats<const D: usize>(tensor: Float) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(tensor)
}

fn ints<const D: usize>(tensor: Ints) -> Tensor<D, Int> {
    Tensor::from_primitive::<Flex>(tensor)
}

#[allow(clippy::expect_used)] // made by the functions above
fn plain<const D: usize>(tensor: Tensor<D>) -> Float {
    tensor.try_into_primitive::<Flex>().expect("a Flex tensor")
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
        let none = Tensor::zeros([1, 1], &Device::flex());
        let rows = StepRows { rows: ints(rows), tables: none.clone(), tiles: none };
        let cache = KvBlocks { keys: floats(keys), values: floats(values) };
        let (queries, cache) = twin::rotate_and_store(
            floats(qkv),
            &floats(bias),
            &floats(norms),
            &floats(rotary),
            &rows,
            cache,
            shape,
        );
        (plain(queries), plain(cache.keys), plain(cache.values))
    }

    fn attention(
        queries: Float,
        keys: Float,
        values: Float,
        rows: Ints,
        tables: Ints,
        tiles: Ints,
        shape: HeadShape,
    ) -> Float {
        let rows = StepRows { rows: ints(rows), tables: ints(tables), tiles: ints(tiles) };
        let cache = KvBlocks { keys: floats(keys), values: floats(values) };
        plain(twin::attention(floats(queries), &cache, &rows, shape))
    }

    fn copy_blocks(keys: Float, values: Float, pairs: Vec<(u32, u32)>) -> (Float, Float) {
        let cache = KvBlocks { keys: floats(keys), values: floats(values) };
        let cache = twin::copy_blocks(cache, &pairs);
        (plain(cache.keys), plain(cache.values))
    }

    #[allow(clippy::expect_used)]
    fn pick(logits: Float, rows: Vec<PickRow>) -> Ints {
        twin::pick(floats(logits), &rows).try_into_primitive::<Flex>().expect("a Flex tensor")
    }
}

#[cfg(test)]
mod tests;
