//! The operations on GPUs, in cubecl: one source for every graphics API and for CUDA.
//!
//! Kernels need no more than WebGPU guarantees: cubes (workgroups) of up to 256 threads and 32 KiB of
//! shared memory. They use no plane (subgroup) operations, whose width and support vary with the
//! driver. The order of a sum does not depend on how the work is divided: see [`matmul`](mod@matmul)
//! and [`attention`](mod@attention).

mod attention;
mod bandwidth;
mod copy_blocks;
mod dequant;
mod embedding;
mod halves;
mod launch;
mod matmul;
mod pack;
mod rms_norm;
mod rotary;
mod sample;

use burn::backend::ops::IntTensorOps;
use burn::backend::wgpu::{CubeBackend, CubeTensor};
use burn::backend::{CubeDevice, DType, Shape};
use burn::tensor::{Device, Int, IntDType, Tensor, TensorData};

use self::matmul::Matmul;
use self::matmul::matrix_units::Layout;
use crate::types::{
    Activation, HeadShape, KernelOps, MatrixSpec, Pass, Precision, SamplingOps, SamplingStages,
};

pub(crate) use self::bandwidth::copy_bandwidth;

/// Packs `blocks`, rows in ggml's layout, for the kernels: a tensor of 32-bit words.
pub(crate) fn pack(spec: MatrixSpec, blocks: &[u8], cube: &CubeDevice, device: &Device) -> Tensor<1, Int> {
    let words = pack::pack(spec, blocks, layout(spec, cube));
    upload(words.into_iter().map(u32::cast_signed).collect(), device)
}

/// The size of these rows on a device, and of the padding of any number of rows, in bytes.
pub(crate) fn packed_size(rows: MatrixSpec, cube: &CubeDevice) -> (u64, u64) {
    pack::packed_size(rows, layout(rows, cube))
}

fn layout(spec: MatrixSpec, cube: &CubeDevice) -> Layout {
    Layout::of(cube.client().properties(), spec)
}

/// A tensor of 32-bit words.
fn upload(words: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = words.len();
    Tensor::from_data(TensorData::new(words, [count]), (device, DType::I32))
}

/// A buffer of 32-bit words, of which parts are tensors.
#[derive(Debug)]
pub(crate) struct WordBuffer(CubeTensor);

impl WordBuffer {
    #[allow(clippy::expect_used)] // callers pass a device of this backend
    pub(crate) fn new(words: Vec<i32>, device: &Device) -> Self {
        let tensor = upload(words, device).try_into_primitive::<CubeBackend>();
        Self(tensor.expect("a tensor of this backend"))
    }

    /// The words from `start` on, which is aligned as the device wants it.
    pub(crate) fn view<const D: usize>(&self, start: usize, shape: [usize; D]) -> Tensor<D, Int> {
        let CubeTensor { client, device, handle, dtype, .. } = self.0.clone();
        let handle = handle.offset_start((start * size_of::<i32>()) as u64);
        let part = CubeTensor::new_contiguous(client, device, Shape::from(shape.to_vec()), handle, dtype);
        Tensor::from_primitive::<CubeBackend>(part)
    }
}

/// A tensor of integers with 32 bits each, as the kernels read them.
fn words(tensor: CubeTensor) -> CubeTensor {
    match tensor.dtype {
        DType::I32 | DType::U32 => tensor,
        _ => CubeBackend::int_cast(tensor, IntDType::I32),
    }
}

impl KernelOps for CubeBackend {
    fn embedding(ids: CubeTensor, table: CubeTensor, spec: MatrixSpec) -> CubeTensor {
        embedding::embedding(words(ids), &table, spec)
    }

    fn linear(x: CubeTensor, weight: CubeTensor, spec: MatrixSpec, precision: Precision) -> CubeTensor {
        Matmul::new(&weight, spec, precision).launch(x)
    }

    fn linear_add(
        x: CubeTensor,
        weight: CubeTensor,
        residual: CubeTensor,
        spec: MatrixSpec,
        precision: Precision,
    ) -> CubeTensor {
        Matmul { residual: Some(&residual), ..Matmul::new(&weight, spec, precision) }.launch(x)
    }

    fn rms_norm(x: CubeTensor, gamma: CubeTensor, epsilon: f32) -> CubeTensor {
        rms_norm::rms_norm(x, gamma, epsilon)
    }

    fn norm_linear(
        x: CubeTensor,
        gamma: CubeTensor,
        weight: CubeTensor,
        spec: MatrixSpec,
        precision: Precision,
        epsilon: f32,
    ) -> CubeTensor {
        Matmul { norm: Some((&gamma, epsilon)), ..Matmul::new(&weight, spec, precision) }.launch(x)
    }

    fn norm_gated(
        x: CubeTensor,
        gamma: CubeTensor,
        gate_up: CubeTensor,
        spec: MatrixSpec,
        precision: Precision,
        epsilon: f32,
        activation: Activation,
    ) -> CubeTensor {
        let norm = Some((&gamma, epsilon));
        Matmul { norm, activation: Some(activation), ..Matmul::new(&gate_up, spec, precision) }.launch(x)
    }

    fn rotate_and_store(
        qkv: CubeTensor,
        bias: CubeTensor,
        norms: CubeTensor,
        rotary: CubeTensor,
        rows: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        shape: HeadShape,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let projections = rotary::Projections { qkv, bias, norms, rotary, rows: words(rows) };
        let queries = rotary::rotate_and_store(projections, &keys, &values, shape);
        (queries, keys, values)
    }

    fn attention(
        queries: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        _rows: CubeTensor,
        tables: CubeTensor,
        tiles: CubeTensor,
        singles: CubeTensor,
        parts: CubeTensor,
        passes: Vec<Pass>,
        shape: HeadShape,
    ) -> CubeTensor {
        let [tables, tiles, singles, parts] = [tables, tiles, singles, parts].map(words);
        let inputs = attention::AttentionInputs { keys, values, tables, tiles, singles, parts };
        attention::attention(queries, &inputs, &passes, shape)
    }

    fn copy_blocks(keys: CubeTensor, values: CubeTensor, pairs: Vec<(u32, u32)>) -> (CubeTensor, CubeTensor) {
        copy_blocks::copy_blocks(&keys, &values, &pairs);
        (keys, values)
    }
}

impl SamplingOps for CubeBackend {
    fn sample(logits: CubeTensor, samples: CubeTensor, stages: SamplingStages) -> CubeTensor {
        sample::sample(logits, words(samples), stages)
    }
}
