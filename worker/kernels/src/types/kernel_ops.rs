//! The backend extensions: what a backend with kernels implements.
//!
//! Arguments and results are those of [`crate::ops`], as tensors of the backend. A weight is the
//! packed data of a [`crate::Matrix`] with its [`MatrixSpec`] and, where products are computed, their
//! [`Precision`]; `rows`, `tables`, `tiles`, `singles` and
//! `parts` are the tensors of [`crate::StepRows`]; `keys` and `values` those of [`crate::KvBlocks`]. The pools are
//! passed by value, written in place and returned.

#![allow(missing_docs)] // documented in `ops`; the macro implements each for `Dispatch`

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

use super::heads::{Activation, HeadShape};
use super::matrix_spec::MatrixSpec;
use super::precision::Precision;
#[cfg(feature = "gpu")]
use super::sampling::SamplingStages;
use super::work::Pass;

/// The operations of a layer, on the CPU and on GPUs.
#[cfg_attr(feature = "gpu", backend_extension(Flex, Cube))]
#[cfg_attr(not(feature = "gpu"), backend_extension(Flex))]
pub(crate) trait KernelOps: Backend {
    fn embedding(ids: IntTensor<Self>, table: IntTensor<Self>, spec: MatrixSpec) -> FloatTensor<Self>;

    fn linear(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        spec: MatrixSpec,
        precision: Precision,
    ) -> FloatTensor<Self>;

    fn linear_add(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        residual: FloatTensor<Self>,
        spec: MatrixSpec,
        precision: Precision,
    ) -> FloatTensor<Self>;

    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    fn norm_linear(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        weight: IntTensor<Self>,
        spec: MatrixSpec,
        precision: Precision,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    fn norm_gated(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        gate_up: IntTensor<Self>,
        spec: MatrixSpec,
        precision: Precision,
        epsilon: f32,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// Returns queries, keys and values.
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

    #[allow(clippy::too_many_arguments)]
    fn attention(
        queries: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        rows: IntTensor<Self>,
        tables: IntTensor<Self>,
        tiles: IntTensor<Self>,
        singles: IntTensor<Self>,
        parts: IntTensor<Self>,
        passes: Vec<Pass>,
        shape: HeadShape,
    ) -> FloatTensor<Self>;

    /// Returns keys and values.
    fn copy_blocks(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        pairs: Vec<(u32, u32)>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Sampling, on GPUs only: elsewhere [`crate::ops::sample_rows`] takes the reference.
#[cfg(feature = "gpu")]
#[backend_extension(Cube)]
pub(crate) trait SamplingOps: Backend {
    /// `samples` is the table of [`crate::StepSamples`], which needs no stages but these.
    fn sample(logits: FloatTensor<Self>, samples: IntTensor<Self>, stages: SamplingStages)
    -> IntTensor<Self>;
}
