//! The operations on the CPU, for burn's Flex backend.

use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::ggml::extend_f32;
use crate::matrix::MatrixSpec;
use crate::native::KernelOps;
use crate::ops::{Activation, HeadShape, PickRow};
use crate::paged::{KvBlocks, StepRows};
use crate::twin;

type Float = FloatTensor<Flex>;
type Ints = IntTensor<Flex>;

/// Rows in ggml's layout as the CPU wants them.
pub(crate) fn pack(blocks: &[u8], device: &Device) -> Tensor<1, Int> {
    let data = TensorData::new(blocks.to_vec(), [blocks.len()]);
    Tensor::from_data(data, (device, burn::tensor::DType::U8))
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

fn dense(weight: Ints, spec: MatrixSpec) -> Tensor<2> {
    let mut numbers = Vec::new();
    extend_f32(spec.dtype, weight.bytes(), &mut numbers);
    Tensor::from_data(TensorData::new(numbers, [spec.outputs, spec.inputs]), &Device::flex())
}

impl KernelOps for Flex {
    fn embedding(ids: Ints, table: Ints, spec: MatrixSpec) -> Float {
        plain(twin::embedding(ints(ids), &dense(table, spec)))
    }

    fn linear(x: Float, weight: Ints, spec: MatrixSpec) -> Float {
        plain(twin::linear(floats(x), &dense(weight, spec)))
    }

    fn linear_add(x: Float, weight: Ints, residual: Float, spec: MatrixSpec) -> Float {
        plain(twin::linear_add(floats(x), &dense(weight, spec), floats(residual)))
    }

    fn rms_norm(x: Float, gamma: Float, epsilon: f32) -> Float {
        plain(twin::rms_norm(floats(x), &floats(gamma), epsilon))
    }

    fn norm_linear(x: Float, gamma: Float, weight: Ints, spec: MatrixSpec, epsilon: f32) -> Float {
        plain(twin::norm_linear(floats(x), &floats(gamma), epsilon, &dense(weight, spec)))
    }

    fn norm_gated(
        x: Float,
        gamma: Float,
        gate_up: Ints,
        spec: MatrixSpec,
        epsilon: f32,
        activation: Activation,
    ) -> Float {
        plain(twin::norm_gated(floats(x), &floats(gamma), epsilon, &dense(gate_up, spec), activation))
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
        let rows = StepRows { rows: ints(rows), tables: Tensor::zeros([1, 1], &Device::flex()) };
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
        shape: HeadShape,
    ) -> Float {
        let rows = StepRows { rows: ints(rows), tables: ints(tables) };
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
