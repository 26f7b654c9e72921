//! The operations on the GPU, in cubecl: one source for every graphics API and for CUDA.
//!
//! No kernel asks for more than WebGPU guarantees: cubes of up to 256 threads, 32 KiB of shared
//! memory, no operations across the threads of a plane (their width and what they may do differ from
//! driver to driver). Sums have one order, whatever the shape of the work: see [`matmul`] and
//! [`attention`].

mod attention;
mod bandwidth;
mod copy_blocks;
mod dequant;
mod embedding;
mod launch;
mod matmul;
mod pack;
mod rms_norm;
mod rotary;
mod sample;

use burn::backend::ops::IntTensorOps;
use burn::backend::wgpu::{CubeBackend, CubeTensor};
use burn::backend::{CubeDevice, DType};
use burn::tensor::{Device, Int, IntDType, Tensor, TensorData};

use self::matmul::Product;
use crate::types::{Activation, HeadShape, KernelOps, MatrixError, MatrixSpec, SamplingOps, SamplingParams};

pub(crate) use self::bandwidth::copy_bandwidth;

/// Rows in ggml's layout as the kernels want them.
pub(crate) fn pack(
    spec: MatrixSpec,
    blocks: &[u8],
    cube: &CubeDevice,
    device: &Device,
) -> Result<Tensor<1, Int>, MatrixError> {
    let bytes = 4 * pack::words(spec) as u64;
    let limit = cube.client().properties().memory.max_page_size;
    if bytes > limit {
        return Err(MatrixError::TooLarge { bytes, limit });
    }
    let words: Vec<i32> = pack::pack(spec, blocks).into_iter().map(u32::cast_signed).collect();
    let count = words.len();
    Ok(Tensor::from_data(TensorData::new(words, [count]), (device, DType::I32)))
}

/// Integers as the kernels read them, 32 bits each.
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

    fn linear(x: CubeTensor, weight: CubeTensor, spec: MatrixSpec) -> CubeTensor {
        Product::new(&weight, spec).launch(x)
    }

    fn linear_add(x: CubeTensor, weight: CubeTensor, residual: CubeTensor, spec: MatrixSpec) -> CubeTensor {
        Product { residual: Some(&residual), ..Product::new(&weight, spec) }.launch(x)
    }

    fn rms_norm(x: CubeTensor, gamma: CubeTensor, epsilon: f32) -> CubeTensor {
        rms_norm::rms_norm(x, gamma, epsilon)
    }

    fn norm_linear(
        x: CubeTensor,
        gamma: CubeTensor,
        weight: CubeTensor,
        spec: MatrixSpec,
        epsilon: f32,
    ) -> CubeTensor {
        Product { norm: Some((&gamma, epsilon)), ..Product::new(&weight, spec) }.launch(x)
    }

    fn norm_gated(
        x: CubeTensor,
        gamma: CubeTensor,
        gate_up: CubeTensor,
        spec: MatrixSpec,
        epsilon: f32,
        activation: Activation,
    ) -> CubeTensor {
        let norm = Some((&gamma, epsilon));
        Product { norm, activation: Some(activation), ..Product::new(&gate_up, spec) }.launch(x)
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
        let step = rotary::Projections { qkv, bias, norms, rotary, rows: words(rows) };
        let queries = rotary::rotate_and_store(step, &keys, &values, shape);
        (queries, keys, values)
    }

    fn attention(
        queries: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        rows: CubeTensor,
        tables: CubeTensor,
        tiles: CubeTensor,
        shape: HeadShape,
    ) -> CubeTensor {
        let (rows, tables, tiles) = (words(rows), words(tables), words(tiles));
        attention::attention(queries, attention::Paged { keys, values, rows, tables, tiles }, shape)
    }

    fn copy_blocks(keys: CubeTensor, values: CubeTensor, pairs: Vec<(u32, u32)>) -> (CubeTensor, CubeTensor) {
        copy_blocks::copy_blocks(&keys, &values, &pairs);
        (keys, values)
    }
}

impl SamplingOps for CubeBackend {
    fn sample(logits: CubeTensor, params: Vec<SamplingParams>) -> CubeTensor {
        sample::sample(logits, &params)
    }
}
