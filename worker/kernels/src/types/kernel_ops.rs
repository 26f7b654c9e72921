//! The operations as a backend extension: what a backend with kernels of its own implements.
//!
//! Arguments and results are those of [`crate::ops`], as the backend's own tensors: weights are
//! the packed data of a [`crate::Matrix`] and their [`MatrixSpec`], a step's rows are the tensors
//! of [`crate::StepRows`], a cache the two of [`crate::KvBlocks`]. Pools come by value, are written
//! in place and are given back.

#![allow(missing_docs)] // documented in `ops`; the macro also makes an implementation of each

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

use super::heads::{Activation, HeadShape};
use super::matrix::MatrixSpec;
use super::sampling::PickRow;

#[cfg_attr(feature = "gpu", backend_extension(Flex, Cube))]
#[cfg_attr(not(feature = "gpu"), backend_extension(Flex))]
pub(crate) trait KernelOps: Backend {
    fn embedding(ids: IntTensor<Self>, table: IntTensor<Self>, spec: MatrixSpec) -> FloatTensor<Self>;

    fn linear(x: FloatTensor<Self>, weight: IntTensor<Self>, spec: MatrixSpec) -> FloatTensor<Self>;

    fn linear_add(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        residual: FloatTensor<Self>,
        spec: MatrixSpec,
    ) -> FloatTensor<Self>;

    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    fn norm_linear(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        weight: IntTensor<Self>,
        spec: MatrixSpec,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    fn norm_gated(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        gate_up: IntTensor<Self>,
        spec: MatrixSpec,
        epsilon: f32,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// Queries, keys, values.
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
    fn copy_blocks(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        pairs: Vec<(u32, u32)>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    fn pick(logits: FloatTensor<Self>, rows: Vec<PickRow>) -> IntTensor<Self>;
}
