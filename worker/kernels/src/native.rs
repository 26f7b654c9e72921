//! The operations as a backend extension: what a backend with kernels of its own implements.
//!
//! Arguments and results are those of [`crate::ops`], as the backend's own tensors: weights are
//! the packed data of a [`crate::Matrix`] and their [`MatrixSpec`], a step's rows are the tensors
//! of [`crate::StepRows`], a cache the two of [`crate::KvBlocks`]. Pools come by value, are written
//! in place and are given back.
//!
//! Fusion defers the calls and must know the results' shapes before; the order of the calls is
//! kept, as each takes what the one before gave.

#![allow(missing_docs)] // documented in `ops`; the macro also makes an implementation of each

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, DType, DispatchDevice, Shape, backend_extension};
use burn::tensor::Device;

use crate::matrix::MatrixSpec;
use crate::ops::{Activation, HeadShape, PickRow};

/// Whether the device has operations of its own; others run the twins.
pub(crate) fn runs_on(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Flex(_) | DispatchDevice::Cube(_))
}

/// As many rows as `like` has, of `width` numbers.
fn rows_of(like: &TensorSpec, width: usize) -> TensorSpec {
    TensorSpec::new(Shape::from(vec![like.shape[0], width]), DType::F32)
}

#[backend_extension(Flex, Cube, Fusion)]
pub(crate) trait KernelOps: Backend {
    #[fusion(meta = |ids, _table, spec| rows_of(ids, spec.inputs))]
    fn embedding(ids: IntTensor<Self>, table: IntTensor<Self>, spec: MatrixSpec) -> FloatTensor<Self>;

    #[fusion(meta = |x, _weight, spec| rows_of(x, spec.outputs))]
    fn linear(x: FloatTensor<Self>, weight: IntTensor<Self>, spec: MatrixSpec) -> FloatTensor<Self>;

    #[fusion(meta = |x, _weight, _residual, spec| rows_of(x, spec.outputs))]
    fn linear_add(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        residual: FloatTensor<Self>,
        spec: MatrixSpec,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |x, _gamma, _epsilon| x.clone())]
    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    #[fusion(meta = |x, _gamma, _weight, spec, _epsilon| rows_of(x, spec.outputs))]
    fn norm_linear(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        weight: IntTensor<Self>,
        spec: MatrixSpec,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |x, _gamma, _gate_up, spec, _epsilon, _activation| rows_of(x, spec.outputs / 2))]
    fn norm_gated(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        gate_up: IntTensor<Self>,
        spec: MatrixSpec,
        epsilon: f32,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// Queries, keys, values.
    #[fusion(meta = |qkv, _bias, _norms, _rotary, _rows, keys, values, shape| (
        rows_of(qkv, shape.query_width()),
        keys.clone(),
        values.clone()
    ))]
    #[allow(clippy::too_many_arguments)]
    fn rotate_and_store(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        rotary: FloatTensor<Self>,
        rows: IntTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        shape: HeadShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |queries, _keys, _values, _rows, _tables, _tiles, _shape| queries.clone())]
    fn attention(
        queries: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        rows: IntTensor<Self>,
        tables: IntTensor<Self>,
        tiles: IntTensor<Self>,
        shape: HeadShape,
    ) -> FloatTensor<Self>;

    /// Keys, values.
    #[fusion(meta = |keys, values, _pairs| (keys.clone(), values.clone()))]
    fn copy_blocks(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        pairs: Vec<(u32, u32)>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |logits, _rows| TensorSpec::new(Shape::from(vec![logits.shape[0]]), DType::I32))]
    fn pick(logits: FloatTensor<Self>, rows: Vec<PickRow>) -> IntTensor<Self>;
}
