//! Weight matrices, in the formats in which checkpoints store them.

use burn::tensor::{Int, Tensor};

use crate::ggml::GgmlType;

/// A weight matrix `[outputs, inputs]` in one of ggml's formats, on a device.
///
/// Where it is larger than a buffer of the device can be, it is stored in several parts.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// At least one.
    pub(crate) parts: Vec<MatrixPart>,
    pub(crate) spec: MatrixSpec,
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

/// Format and shape of a [`Matrix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixSpec {
    /// Storage format.
    pub dtype: GgmlType,
    /// Number of rows: the width of a product's result.
    pub outputs: usize,
    /// Number of columns: the width of a product's input.
    pub inputs: usize,
}

/// Why bytes could not become a [`Matrix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// A row is not a whole number of blocks.
    #[error("a row of {inputs} numbers is not a whole number of {dtype} blocks of {block} numbers")]
    PartialBlock {
        /// Numbers in a row.
        inputs: usize,
        /// Storage format.
        dtype: GgmlType,
        /// Numbers in a block.
        block: usize,
    },
    /// The number of bytes does not match shape and format.
    #[error("the matrix takes {expected} bytes, but {found} were given")]
    Size {
        /// Bytes given.
        found: usize,
        /// Bytes that shape and format require.
        expected: usize,
    },
    /// A single row exceeds the largest buffer of the device.
    #[error(
        "a row of the matrix takes {bytes} bytes, but a buffer of this device holds at most {limit}; use the cpu backend or a smaller format"
    )]
    TooLarge {
        /// Size of a row, or of two that belong together, in bytes.
        bytes: u64,
        /// Size of the device's largest buffer in bytes.
        limit: u64,
    },
}

impl MatrixSpec {
    /// Size of one row in ggml's layout, in bytes.
    pub fn row_bytes(&self) -> usize {
        self.inputs / self.dtype.block_len() * self.dtype.block_bytes()
    }
}

impl Matrix {
    /// Format and shape.
    pub fn spec(&self) -> MatrixSpec {
        self.spec
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
