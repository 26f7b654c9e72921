//! Weight matrices, in the formats in which checkpoints store them.

use burn::tensor::{Int, Tensor};

use super::matrix_spec::MatrixSpec;
use super::precision::Precision;

/// A weight matrix `[outputs, inputs]` in one of ggml's formats, on a device.
///
/// Where it is larger than a buffer of the device can be, it is stored in several parts.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// At least one.
    pub(crate) parts: Vec<MatrixPart>,
    pub(crate) spec: MatrixSpec,
    pub(crate) precision: Precision,
}

/// Rows of a [`Matrix`] that lie in one buffer.
#[derive(Debug, Clone)]
pub(crate) struct MatrixPart {
    pub(crate) data: MatrixData,
    pub(crate) spec: MatrixSpec,
}

/// What the rows of a [`Matrix`] are, which says how they may be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixRows {
    /// All alike.
    Plain,
    /// Those of a gate, then as many that the gate is multiplied with: see [`crate::norm_gated`]. Rows that belong
    /// together stay in one part.
    Gated,
}

/// How a device stores a [`MatrixPart`].
#[derive(Debug, Clone)]
pub(crate) enum MatrixData {
    /// Packed for the kernels of the device's backend.
    Packed(Tensor<1, Int>),
    /// Dequantised to `[outputs, inputs]`, for a backend without kernels.
    Dense(Tensor<2>),
}

impl Matrix {
    /// Format and shape.
    pub fn spec(&self) -> MatrixSpec {
        self.spec
    }

    /// Has products computed with this precision; [`Precision::Exact`] unless it is set.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Size on the device in bytes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(MatrixPart::bytes).sum()
    }
}

impl MatrixPart {
    fn bytes(&self) -> usize {
        match &self.data {
            MatrixData::Packed(data) => data.dims()[0] * data.dtype().size(),
            MatrixData::Dense(data) => data.dims().iter().product::<usize>() * size_of::<f32>(),
        }
    }
}
