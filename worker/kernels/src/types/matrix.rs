//! Weights as they are stored.

use burn::tensor::{Int, Tensor};

use crate::ggml::GgmlType;

/// Rows of numbers in one of ggml's formats, `[outputs, inputs]`, on a device.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub(crate) data: MatrixData,
    pub(crate) spec: MatrixSpec,
}

/// What a device keeps of a [`Matrix`].
#[derive(Debug, Clone)]
pub(crate) enum MatrixData {
    /// As the device's own operations want it.
    Packed(Tensor<1, Int>),
    /// Expanded to `[outputs, inputs]`, for a device without operations of its own.
    Dense(Tensor<2>),
}

/// What a kernel must know of a [`Matrix`] besides its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixSpec {
    /// How numbers are stored.
    pub dtype: GgmlType,
    /// Rows: the width of what a product gives.
    pub outputs: usize,
    /// Columns: the width of what a product takes.
    pub inputs: usize,
}

/// Data that are no matrix of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// A row is not a whole number of blocks.
    #[error("rows of {inputs} numbers are not whole blocks of {dtype} ({block} numbers)")]
    PartialBlock {
        /// Columns.
        inputs: usize,
        /// The format.
        dtype: GgmlType,
        /// Numbers in a block.
        block: usize,
    },
    /// Too few or too many bytes.
    #[error("{found} bytes for a matrix of {expected} bytes")]
    Size {
        /// Bytes given.
        found: usize,
        /// Bytes that shape and format need.
        expected: usize,
    },
    /// More than a buffer of the device can hold.
    #[error(
        "the device holds at most {limit} bytes in a buffer, the matrix takes {bytes}; use the cpu backend or a smaller format"
    )]
    TooLarge {
        /// Bytes that the matrix takes.
        bytes: u64,
        /// Bytes of the largest buffer.
        limit: u64,
    },
}

impl MatrixSpec {
    /// Bytes of one row in ggml's layout.
    pub fn row_bytes(&self) -> usize {
        self.inputs / self.dtype.block_len() * self.dtype.block_bytes()
    }
}

impl Matrix {
    /// Its shape and format.
    pub fn spec(&self) -> MatrixSpec {
        self.spec
    }

    /// Bytes that it takes on the device.
    pub fn bytes(&self) -> usize {
        match &self.data {
            MatrixData::Packed(data) => data.dims()[0] * data.dtype().size(),
            MatrixData::Dense(data) => data.dims().iter().product::<usize>() * size_of::<f32>(),
        }
    }
}
