//! The reference implementation of the operations: plain burn over dequantised weights.
//!
//! Written to be obviously correct, on any backend. [`crate::ops`] documents each operation.

#![allow(clippy::needless_pass_by_value)] // the signatures are those of `ops`

use burn::backend::DType;
use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{FloatDType, Int, IntDType, Tensor, TensorData};

use crate::types::{Activation, BLOCK_SIZE, F16_MAX, HeadShape, KvBlocks, SamplingParams, StepRows};

/// See [`crate::ops::embedding`]; `table` is `[tokens, width]`.
pub fn embedding(ids: Tensor<1, Int>, table: &Tensor<2>) -> Tensor<2> {
    table.clone().select(0, ids)
}

/// See [`crate::ops::linear`]; `weight` is `[outputs, inputs]`.
pub fn linear(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.matmul(weight.clone().transpose())
}

/// See [`crate::ops::linear_add`].
pub fn linear_add(x: Tensor<2>, weight: &Tensor<2>, residual: Tensor<2>) -> Tensor<2> {
    linear(x, weight) + residual
}

/// See [`crate::ops::rms_norm`].
pub fn rms_norm(x: Tensor<2>, gamma: &Tensor<1>, epsilon: f32) -> Tensor<2> {
    let root = x.clone().powf_scalar(2.0).mean_dim(1).add_scalar(epsilon).sqrt();
    x / root * gamma.clone().unsqueeze()
}

/// See [`crate::ops::norm_linear`].
pub fn norm_linear(x: Tensor<2>, gamma: &Tensor<1>, epsilon: f32, weight: &Tensor<2>) -> Tensor<2> {
    linear(rms_norm(x, gamma, epsilon), weight)
}

/// See [`crate::ops::norm_gated`].
pub fn norm_gated(
    x: Tensor<2>,
    gamma: &Tensor<1>,
    epsilon: f32,
    gate_up: &Tensor<2>,
    activation: Activation,
) -> Tensor<2> {
    let both = norm_linear(x, gamma, epsilon, gate_up);
    let width = both.dims()[1] / 2;
    let (gate, up) = (both.clone().narrow(1, 0, width), both.narrow(1, width, width));
    let gate = match activation {
        Activation::Silu => gate.clone() * sigmoid(gate),
        Activation::GeluTanh => gelu_tanh(gate),
    };
    gate * up
}

/// Hendrycks and Gimpel, "Gaussian error linear units" (2016), section 2.
fn gelu_tanh(x: Tensor<2>) -> Tensor<2> {
    let cubic = x.clone() + x.clone().powf_scalar(3.0).mul_scalar(0.044715);
    // (1 + tanh u) / 2 is sigmoid(2u), which keeps its precision where u is negative.
    sigmoid(cubic.mul_scalar(2.0 * (2.0 / std::f64::consts::PI).sqrt())) * x
}

/// See [`crate::ops::rotate_and_store`].
pub fn rotate_and_store(
    qkv: Tensor<2>,
    bias: &Tensor<1>,
    norms: &Tensor<2>,
    rotary: &Tensor<3>,
    rows: &StepRows,
    cache: KvBlocks,
    shape: HeadShape,
) -> (Tensor<2>, KvBlocks) {
    let HeadShape { heads, kv_heads, head_dim, .. } = shape;
    let [count, _] = qkv.dims();
    let qkv = if shape.bias { qkv + bias.clone().unsqueeze() } else { qkv };
    let qkv = qkv.reshape([count, heads + 2 * kv_heads, head_dim]);
    let positions = rows.rows.clone().narrow(1, 0, 1).reshape([count]);
    let angles = rotary.clone().select(0, positions);
    let prepare = |x: Tensor<3>, norm: usize| {
        let x = match shape.head_norm {
            Some(epsilon) => {
                let [_, heads, _] = x.dims();
                let gamma = norms.clone().narrow(0, norm, 1).reshape([head_dim]);
                rms_norm(x.reshape([count * heads, head_dim]), &gamma, epsilon)
                    .reshape([count, heads, head_dim])
            }
            None => x,
        };
        rotate(x, &angles, shape.rotary_dim)
    };
    let queries = prepare(qkv.clone().narrow(1, 0, heads), 0);
    let keys = prepare(qkv.clone().narrow(1, heads, kv_heads), 1);
    let values = qkv.narrow(1, heads + kv_heads, kv_heads);
    let (keys, values) = (stored(keys, &cache.keys), stored(values, &cache.values));
    let mut cache = cache;
    for (row, slot) in slots(rows).into_iter().enumerate() {
        let (block, offset) = (slot / BLOCK_SIZE, slot % BLOCK_SIZE);
        let key = keys.clone().narrow(0, row, 1).reshape([1, kv_heads, head_dim, 1]);
        let place = [block..block + 1, 0..kv_heads, 0..head_dim, offset..offset + 1];
        cache.keys = cache.keys.slice_assign(place, key);
        let value = values.clone().narrow(0, row, 1).reshape([1, kv_heads, 1, head_dim]);
        let place = [block..block + 1, 0..kv_heads, offset..offset + 1, 0..head_dim];
        cache.values = cache.values.slice_assign(place, value);
    }
    (queries.reshape([count, heads * head_dim]), cache)
}

/// `numbers` as `pool` stores them; see [`crate::KvType`].
fn stored(numbers: Tensor<3>, pool: &Tensor<4>) -> Tensor<3> {
    match pool.dtype() {
        DType::F16 => numbers.clamp(-F16_MAX, F16_MAX).cast(FloatDType::F16),
        _ => numbers,
    }
}

/// Rotates the first `dim` components of each head of `x` `[rows, heads, head_dim]`.
fn rotate(x: Tensor<3>, angles: &Tensor<3>, dim: usize) -> Tensor<3> {
    if dim == 0 {
        return x;
    }
    let ([rows, heads, head_dim], half) = (x.dims(), dim / 2);
    let part = |index| angles.clone().narrow(1, index, 1).expand([rows, heads, half]);
    let (cos, sin) = (part(0), part(1));
    let (a, b) = (x.clone().narrow(2, 0, half), x.clone().narrow(2, half, half));
    let mut parts = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
    if head_dim > dim {
        parts.push(x.narrow(2, dim, head_dim - dim));
    }
    Tensor::cat(parts, 2)
}

/// See [`crate::ops::attention`].
pub fn attention(queries: Tensor<2>, cache: &KvBlocks, rows: &StepRows, shape: HeadShape) -> Tensor<2> {
    let HeadShape { heads, kv_heads, head_dim, .. } = shape;
    let device = queries.device();
    let [_, width] = rows.tables.dims();
    let mut outputs = Vec::new();
    for (row, [position, span, _]) in layout(rows).into_iter().enumerate() {
        let table = rows.tables.clone().narrow(0, span, 1).reshape([width]);
        let table = table.narrow(0, 0, position / BLOCK_SIZE + 1);
        let blocks = position / BLOCK_SIZE + 1;
        let visible = blocks * BLOCK_SIZE;
        // [kv_heads, head_dim, visible] and [kv_heads, visible, head_dim]
        let keys = cache.keys.clone().select(0, table.clone()).permute([1, 2, 0, 3]);
        let keys = keys.reshape([kv_heads, head_dim, visible]).cast(FloatDType::F32);
        let values = cache.values.clone().select(0, table).permute([1, 0, 2, 3]);
        let values = values.reshape([kv_heads, visible, head_dim]).cast(FloatDType::F32);
        let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let hidden = |at: usize| at < first || at > position;
        let mask: Vec<f32> =
            (0..visible).map(|at| if hidden(at) { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::<3>::from_data(TensorData::new(mask, [1, 1, visible]), &device);
        let query = queries.clone().narrow(0, row, 1).reshape([kv_heads, heads / kv_heads, head_dim]);
        let scores = query.matmul(keys).mul_scalar(shape.scale) + mask;
        outputs.push(softmax(scores, 2).matmul(values).reshape([1, heads * head_dim]));
    }
    Tensor::cat(outputs, 0)
}

/// See [`crate::ops::copy_blocks`].
pub fn copy_blocks(cache: KvBlocks, pairs: &[(u32, u32)]) -> KvBlocks {
    let copy = |pool: Tensor<4>, from: usize, to: usize| {
        let [_, a, b, c] = pool.dims();
        let block = pool.clone().narrow(0, from, 1);
        pool.slice_assign([to..to + 1, 0..a, 0..b, 0..c], block)
    };
    pairs.iter().fold(cache, |cache, &(from, to)| {
        let (from, to) = (from as usize, to as usize);
        KvBlocks { keys: copy(cache.keys, from, to), values: copy(cache.values, from, to) }
    })
}

/// See [`crate::ops::sample`].
pub fn sample(logits: Tensor<2>, params: &[SamplingParams]) -> Tensor<1, Int> {
    let ids: Vec<Tensor<1, Int>> = params
        .iter()
        .enumerate()
        .map(|(row, params)| sample_row(logits.clone().narrow(0, row, 1), *params).cast(IntDType::I32))
        .collect();
    Tensor::cat(ids, 0)
}

/// `logits` is `[1, vocabulary]`.
fn sample_row(logits: Tensor<2>, params: SamplingParams) -> Tensor<1, Int> {
    if params.temperature <= 0.0 {
        return logits.argmax(1).reshape([1]);
    }
    let [_, vocabulary] = logits.dims();
    let (sorted, ids) = softmax(logits.div_scalar(params.temperature), 1).sort_descending_with_indices(1);
    let highest = sorted.clone().narrow(1, 0, 1).expand([1, vocabulary]);
    let below_min_p = sorted.clone().lower(highest.mul_scalar(params.min_p));
    let mut weights = sorted.mask_fill(below_min_p, 0.0);
    if params.top_k > 0 && (params.top_k as usize) < vocabulary {
        let kept = params.top_k as usize;
        let zeros = Tensor::zeros([1, vocabulary - kept], &weights.device());
        weights = weights.slice_assign([0..1, kept..vocabulary], zeros);
    }
    let before = weights.clone().cumsum(1) - weights.clone();
    let wanted = weights.clone().sum_dim(1).mul_scalar(params.top_p).expand([1, vocabulary]);
    let weights = weights.mask_fill(before.greater_equal(wanted), 0.0);
    // The token is drawn in the order of ids, as the worker's own sampler does.
    let by_id = Tensor::zeros([1, vocabulary], &weights.device()).scatter(
        1,
        ids,
        weights,
        burn::tensor::IndexingUpdateOp::Add,
    );
    let target = by_id.clone().sum_dim(1).mul_scalar(params.random).expand([1, vocabulary]);
    // The first token whose cumulative weight exceeds the target.
    by_id.cumsum(1).greater(target).int().argmax(1).reshape([1])
}

/// The position, span and slot of each row.
fn layout(rows: &StepRows) -> Vec<[usize; 3]> {
    let numbers = rows.rows.clone().into_data().iter::<i64>().collect::<Vec<_>>();
    numbers.as_chunks::<3>().0.iter().map(|row| row.map(|number| number as usize)).collect()
}

/// The slot of each row.
fn slots(rows: &StepRows) -> Vec<usize> {
    layout(rows).into_iter().map(|[_, _, slot]| slot).collect()
}
