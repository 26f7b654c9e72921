//! The operations of a network. Each runs the kernels of the device that its arguments are on.
//!
//! `rows` are the tokens of a step, of one sequence or of many. A [`Matrix`] is `[outputs, inputs]`;
//! a product multiplies rows with its transpose.

mod bandwidth;
mod matrix;

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::reference;
use crate::types::{
    Activation, HeadShape, KernelOps, KvBlocks, Matrix, MatrixData, MatrixPart, RowSample, SamplingParams,
    StepRows, StepSamples,
};
#[cfg(feature = "gpu")]
use crate::types::{SamplingOps, SamplingStages};

pub use bandwidth::copy_bandwidth;

/// The rows of `table` with the ids `[rows]`: `[rows, inputs]`.
pub fn embedding(ids: Tensor<1, Int>, table: &Matrix) -> Tensor<2> {
    let Some((whole, parts)) = table.parts.split_first() else {
        return Tensor::zeros([ids.dims()[0], 0], &ids.device());
    };
    if parts.is_empty() {
        return embedding_of_part(ids, whole);
    }
    let mut found = embedding_of_part(ids.clone(), whole);
    let mut first = whole.spec.outputs;
    for part in parts {
        // Ids of other parts are computed like the nearest of this one, and left out.
        let own = ids.clone().sub_scalar(first as i64).clamp(0, part.spec.outputs as i64 - 1);
        let rows = embedding_of_part(own, part);
        let is_behind = ids.clone().greater_equal_scalar(first as i64).unsqueeze_dim::<2>(1);
        found = found.mask_where(is_behind.expand(rows.dims()), rows);
        first += part.spec.outputs;
    }
    found
}

fn embedding_of_part(ids: Tensor<1, Int>, table: &MatrixPart) -> Tensor<2> {
    match &table.data {
        MatrixData::Dense(dense) => reference::embedding(ids, dense),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::embedding(
            ids.into_dispatch(),
            data.clone().into_dispatch(),
            table.spec,
        )),
    }
}

/// `x` `[rows, inputs]` times `weight`: `[rows, outputs]`.
pub fn linear(x: Tensor<2>, weight: &Matrix) -> Tensor<2> {
    each_part(x, weight, |x, part| match &part.data {
        MatrixData::Dense(dense) => reference::linear(x, dense),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::linear(
            x.into_dispatch(),
            data.clone().into_dispatch(),
            part.spec,
            weight.precision,
        )),
    })
}

/// The products of `x` with each part of `weight`, side by side.
fn each_part(
    x: Tensor<2>,
    weight: &Matrix,
    product: impl Fn(Tensor<2>, &MatrixPart) -> Tensor<2>,
) -> Tensor<2> {
    match weight.parts.as_slice() {
        [whole] => product(x, whole),
        parts => Tensor::cat(parts.iter().map(|part| product(x.clone(), part)).collect(), 1),
    }
}

/// [`linear`] plus `residual` `[rows, outputs]`.
pub fn linear_add(x: Tensor<2>, weight: &Matrix, residual: Tensor<2>) -> Tensor<2> {
    let [whole] = weight.parts.as_slice() else { return linear(x, weight) + residual };
    match &whole.data {
        MatrixData::Dense(dense) => reference::linear_add(x, dense, residual),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::linear_add(
            x.into_dispatch(),
            data.clone().into_dispatch(),
            residual.into_dispatch(),
            whole.spec,
            weight.precision,
        )),
    }
}

/// `x / sqrt(mean(x²) + epsilon) * gamma` for each row of `x` `[rows, width]`; `gamma` is `[width]`.
///
/// Zhang and Sennrich, "Root mean square layer normalization" (2019).
pub fn rms_norm(x: Tensor<2>, gamma: &Tensor<1>, epsilon: f32) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return reference::rms_norm(x, gamma, epsilon);
    }
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), gamma.clone().into_dispatch(), epsilon))
}

/// [`linear`] of [`rms_norm`].
pub fn norm_linear(x: Tensor<2>, gamma: &Tensor<1>, epsilon: f32, weight: &Matrix) -> Tensor<2> {
    each_part(x, weight, |x, part| match &part.data {
        MatrixData::Dense(dense) => reference::norm_linear(x, gamma, epsilon, dense),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::norm_linear(
            x.into_dispatch(),
            gamma.clone().into_dispatch(),
            data.clone().into_dispatch(),
            part.spec,
            weight.precision,
            epsilon,
        )),
    })
}

/// The gated half of a feed-forward layer: `activation(n·gateᵀ) * (n·upᵀ)`, where `n` is the
/// [`rms_norm`] of `x`. `gate_up` holds the rows of gate, then those of up
/// ([`MatrixRows::Gated`](crate::MatrixRows::Gated)). The result is `[rows, outputs / 2]`.
///
/// Shazeer, "GLU variants improve Transformer" (2020).
pub fn norm_gated(
    x: Tensor<2>,
    gamma: &Tensor<1>,
    epsilon: f32,
    gate_up: &Matrix,
    activation: Activation,
) -> Tensor<2> {
    each_part(x, gate_up, |x, part| match &part.data {
        MatrixData::Dense(dense) => reference::norm_gated(x, gamma, epsilon, dense, activation),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::norm_gated(
            x.into_dispatch(),
            gamma.clone().into_dispatch(),
            data.clone().into_dispatch(),
            part.spec,
            gate_up.precision,
            epsilon,
            activation,
        )),
    })
}

/// Applies bias, head norm and rotary embedding to the queries, keys and values of a step, stores
/// keys and values in the cache, and returns the queries `[rows, heads * head_dim]` and the cache.
///
/// `qkv` is `[rows, (heads + 2 kv_heads) * head_dim]`: all queries, all keys, all values.
/// `rotary` is `[positions, 2, rotary_dim / 2]`: cosines, then sines. `bias` is as wide as `qkv`.
/// `norms` is `[2, head_dim]`: the weights of the norms of queries and keys. `bias` and `norms` may
/// be empty if `shape` has none.
///
/// Su et al., "RoFormer: Enhanced transformer with rotary position embedding" (2021).
pub fn rotate_and_store(
    qkv: Tensor<2>,
    bias: &Tensor<1>,
    norms: &Tensor<2>,
    rotary: &Tensor<3>,
    rows: &StepRows,
    cache: KvBlocks,
    shape: HeadShape,
) -> (Tensor<2>, KvBlocks) {
    if !has_kernels(&qkv.device()) {
        return reference::rotate_and_store(qkv, bias, norms, rotary, rows, cache, shape);
    }
    let (queries, keys, values) = Dispatch::rotate_and_store(
        qkv.into_dispatch(),
        bias.clone().into_dispatch(),
        norms.clone().into_dispatch(),
        rotary.clone().into_dispatch(),
        rows.rows.clone().into_dispatch(),
        cache.keys.into_dispatch(),
        cache.values.into_dispatch(),
        shape,
    );
    let cache = KvBlocks { keys: Tensor::from_dispatch(keys), values: Tensor::from_dispatch(values) };
    (Tensor::from_dispatch(queries), cache)
}

/// Causal attention of each row over the positions of its own sequence up to and including its own.
/// Queries and result are `[rows, heads * head_dim]`.
///
/// Kwon et al., "Efficient memory management for large language model serving with
/// PagedAttention" (2023).
pub fn attention(queries: Tensor<2>, cache: &KvBlocks, rows: &StepRows, shape: HeadShape) -> Tensor<2> {
    if !has_kernels(&queries.device()) {
        return reference::attention(queries, cache, rows, shape);
    }
    Tensor::from_dispatch(<Dispatch as KernelOps>::attention(
        queries.into_dispatch(),
        cache.keys.clone().into_dispatch(),
        cache.values.clone().into_dispatch(),
        rows.rows.clone().into_dispatch(),
        rows.tables.clone().into_dispatch(),
        rows.work.tiles.clone().into_dispatch(),
        rows.work.singles.clone().into_dispatch(),
        rows.work.parts.clone().into_dispatch(),
        rows.work.passes.clone(),
        shape,
    ))
}

/// Copies whole blocks of keys and values: for each pair `(from, to)`, in order.
pub fn copy_blocks(cache: KvBlocks, pairs: &[(u32, u32)]) -> KvBlocks {
    if !has_kernels(&cache.keys.device()) {
        return reference::copy_blocks(cache, pairs);
    }
    let (keys, values) =
        Dispatch::copy_blocks(cache.keys.into_dispatch(), cache.values.into_dispatch(), pairs.to_vec());
    KvBlocks { keys: Tensor::from_dispatch(keys), values: Tensor::from_dispatch(values) }
}

/// A token for each row of `logits` `[rows, vocabulary]`, sampled on the device: ids `[rows]`.
///
/// `params` has one entry for each row. Filters apply in the order min_p, top_k, top_p, as in the
/// worker's own sampler.
pub fn sample(logits: Tensor<2>, params: &[SamplingParams]) -> Tensor<1, Int> {
    let samples = params.iter().enumerate().map(|(row, params)| RowSample { row, params: *params });
    let samples: Vec<RowSample> = samples.take(logits.dims()[0]).collect();
    let samples = StepSamples::new(&samples, &logits.device());
    sample_rows(logits, &samples)
}

/// A token for each of `samples`, as [`sample`].
pub fn sample_rows(logits: Tensor<2>, samples: &StepSamples) -> Tensor<1, Int> {
    #[cfg(feature = "gpu")]
    if let DispatchDevice::Cube(_) = logits.device().as_dispatch() {
        let params = samples.samples.iter().map(|sample| &sample.params);
        let stages = SamplingStages::of(params, logits.dims()[1]);
        let table = samples.table.clone().into_dispatch();
        return Tensor::from_dispatch(Dispatch::sample(logits.into_dispatch(), table, stages));
    }
    let rows: Vec<i32> = samples.samples.iter().map(|sample| sample.row as i32).collect();
    let params: Vec<SamplingParams> = samples.samples.iter().map(|sample| sample.params).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [params.len()]), &logits.device());
    reference::sample(logits.select(0, rows), &params)
}

/// Whether the device's backend has kernels; others compute the reference.
fn has_kernels(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns)] // which others exist depends on burn's features
        _ => false,
    }
}
