//! Format and shape of weight matrices.

use crate::ggml::GgmlType;

/// Format and shape of a [`Matrix`](crate::Matrix).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixSpec {
    /// Storage format.
    pub dtype: GgmlType,
    /// Number of rows: the width of a product's result.
    pub outputs: usize,
    /// Number of columns: the width of a product's input.
    pub inputs: usize,
}

/// Why bytes could not become a [`Matrix`](crate::Matrix).
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
