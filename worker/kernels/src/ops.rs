//! The operations of a network.
//!
//! Shapes: `rows` are the tokens of a step, of one sequence or of many; a [`Matrix`] is
//! `[outputs, inputs]` and multiplies from the right, transposed.

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

use crate::matrix::MatrixData;
use crate::native::{self, KernelOps};
use crate::paged::{KvBlocks, StepRows};
use crate::{Matrix, twin};

/// The gate's activation in a gated feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// How one row of queries, keys and values is laid out, and what is done to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads, which lie side by side.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Leading components of a head that are rotated, as pairs (i, i + rotary_dim / 2); 0 for none.
    pub rotary_dim: usize,
    /// RMS normalisation of each head's query and key before rotation: the epsilon.
    pub head_norm: Option<f32>,
    /// Whether a bias is added to queries, keys and values first.
    pub bias: bool,
    /// What scores are multiplied with before the softmax.
    pub scale: f32,
    /// How many positions back a token sees, itself included; `None` for all.
    pub window: Option<usize>,
}

impl HeadShape {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// How a row's token is picked on the device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PickRow {
    /// 0 picks the largest logit, the lowest id of several.
    pub temperature: f32,
    /// Only so many most probable tokens count; 0 for all.
    pub top_k: u32,
    /// The share of probability that the most probable tokens must reach together; 1 for all.
    pub top_p: f32,
    /// Tokens less probable than this share of the most probable one don't count.
    pub min_p: f32,
    /// A uniform random number in [0, 1).
    pub random: f32,
}

/// Rows of `table` for `ids` `[rows]`: `[rows, inputs]`.
pub fn embedding(ids: Tensor<1, Int>, table: &Matrix) -> Tensor<2> {
    match &table.data {
        MatrixData::Dense(dense) => twin::embedding(ids, dense),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::embedding(
            ids.into_dispatch(),
            data.clone().into_dispatch(),
            table.spec,
        )),
    }
}

/// `x` `[rows, inputs]` times `weight`: `[rows, outputs]`.
pub fn linear(x: Tensor<2>, weight: &Matrix) -> Tensor<2> {
    match &weight.data {
        MatrixData::Dense(dense) => twin::linear(x, dense),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::linear(
            x.into_dispatch(),
            data.clone().into_dispatch(),
            weight.spec,
        )),
    }
}

/// [`linear`] added to `residual` `[rows, outputs]`.
pub fn linear_add(x: Tensor<2>, weight: &Matrix, residual: Tensor<2>) -> Tensor<2> {
    match &weight.data {
        MatrixData::Dense(dense) => twin::linear_add(x, dense, residual),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::linear_add(
            x.into_dispatch(),
            data.clone().into_dispatch(),
            residual.into_dispatch(),
            weight.spec,
        )),
    }
}

/// `x / sqrt(mean(x²) + epsilon) * gamma` for each row of `x` `[rows, width]`; `gamma` `[width]`.
///
/// Zhang and Sennrich, "Root mean square layer normalization" (2019).
pub fn rms_norm(x: Tensor<2>, gamma: &Tensor<1>, epsilon: f32) -> Tensor<2> {
    if !native::runs_on(&x.device()) {
        return twin::rms_norm(x, gamma, epsilon);
    }
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), gamma.clone().into_dispatch(), epsilon))
}

/// [`linear`] of [`rms_norm`].
pub fn norm_linear(x: Tensor<2>, gamma: &Tensor<1>, epsilon: f32, weight: &Matrix) -> Tensor<2> {
    match &weight.data {
        MatrixData::Dense(dense) => twin::norm_linear(x, gamma, epsilon, dense),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::norm_linear(
            x.into_dispatch(),
            gamma.clone().into_dispatch(),
            data.clone().into_dispatch(),
            weight.spec,
            epsilon,
        )),
    }
}

/// The gated half of a feed-forward layer: `activation(n·gateᵀ) * (n·upᵀ)` with `n` the
/// [`rms_norm`] of `x`; `gate_up` holds the gate's rows, then as many of up: `[rows, outputs / 2]`.
///
/// Shazeer, "GLU variants improve Transformer" (2020).
pub fn norm_gated(
    x: Tensor<2>,
    gamma: &Tensor<1>,
    epsilon: f32,
    gate_up: &Matrix,
    activation: Activation,
) -> Tensor<2> {
    match &gate_up.data {
        MatrixData::Dense(dense) => twin::norm_gated(x, gamma, epsilon, dense, activation),
        MatrixData::Packed(data) => Tensor::from_dispatch(Dispatch::norm_gated(
            x.into_dispatch(),
            gamma.clone().into_dispatch(),
            data.clone().into_dispatch(),
            gate_up.spec,
            epsilon,
            activation,
        )),
    }
}

/// Prepares queries, keys and values of a step: bias, head norm, rotation; stores keys and values
/// in the cache and returns the queries `[rows, heads * head_dim]`.
///
/// `qkv` is `[rows, (heads + 2 kv_heads) * head_dim]`: all queries, all keys, all values.
/// `rotary` is `[positions, 2, rotary_dim / 2]`: cosines, then sines. `bias` is as wide as `qkv`,
/// `norms` is `[2, head_dim]`: the weights of the norms of queries and keys; either may be empty
/// where `shape` does not ask for it. Rotation: Su et al., "RoFormer" (2021).
pub fn rotate_and_store(
    qkv: Tensor<2>,
    bias: &Tensor<1>,
    norms: &Tensor<2>,
    rotary: &Tensor<3>,
    rows: &StepRows,
    cache: KvBlocks,
    shape: HeadShape,
) -> (Tensor<2>, KvBlocks) {
    if !native::runs_on(&qkv.device()) {
        return twin::rotate_and_store(qkv, bias, norms, rotary, rows, cache, shape);
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

/// Causal attention of each row over its own sequence's positions, up to and with itself:
/// `[rows, heads * head_dim]`, for queries of the same shape.
///
/// Kwon et al., "Efficient memory management for large language model serving with
/// PagedAttention" (2023).
pub fn attention(queries: Tensor<2>, cache: &KvBlocks, rows: &StepRows, shape: HeadShape) -> Tensor<2> {
    if !native::runs_on(&queries.device()) {
        return twin::attention(queries, cache, rows, shape);
    }
    Tensor::from_dispatch(<Dispatch as KernelOps>::attention(
        queries.into_dispatch(),
        cache.keys.clone().into_dispatch(),
        cache.values.clone().into_dispatch(),
        rows.rows.clone().into_dispatch(),
        rows.tables.clone().into_dispatch(),
        rows.tiles.clone().into_dispatch(),
        shape,
    ))
}

/// Copies whole blocks, `(from, to)` each.
pub fn copy_blocks(cache: KvBlocks, pairs: &[(u32, u32)]) -> KvBlocks {
    if !native::runs_on(&cache.keys.device()) {
        return twin::copy_blocks(cache, pairs);
    }
    let (keys, values) =
        Dispatch::copy_blocks(cache.keys.into_dispatch(), cache.values.into_dispatch(), pairs.to_vec());
    KvBlocks { keys: Tensor::from_dispatch(keys), values: Tensor::from_dispatch(values) }
}

/// A token for each row of `logits` `[rows, vocabulary]`, picked on the device: `[rows]`.
///
/// Filters apply in the order min_p, top_k, top_p, as in the worker's `sampling`.
pub fn pick(logits: Tensor<2>, rows: &[PickRow]) -> Tensor<1, Int> {
    if !native::runs_on(&logits.device()) {
        return twin::pick(logits, rows);
    }
    Tensor::from_dispatch(Dispatch::pick(logits.into_dispatch(), rows.to_vec()))
}
