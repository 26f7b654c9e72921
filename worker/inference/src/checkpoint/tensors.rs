//! Named tensors, wherever they are stored.

use std::path::Path;

use emberline_kernels::ggml::GgmlType;

use super::CheckpointError;
use super::gguf::GgufFile;

/// A file, or several, with named tensors. Several threads may read at once.
pub trait TensorSource: Sync {
    /// The path for error messages.
    fn path(&self) -> &Path;

    /// The names of all tensors.
    fn names(&self) -> Vec<&str>;

    /// A tensor's shape, outermost dimension first, and how its numbers are stored.
    fn describe(&self, name: &str) -> Result<(&[usize], GgmlType), CheckpointError>;

    /// A tensor's data: rows in ggml's layout.
    fn read(&self, name: &str) -> Result<Vec<u8>, CheckpointError>;
}

impl TensorSource for GgufFile {
    fn path(&self) -> &Path {
        self.path()
    }

    fn names(&self) -> Vec<&str> {
        self.tensors().map(|tensor| tensor.name.as_str()).collect()
    }

    fn describe(&self, name: &str) -> Result<(&[usize], GgmlType), CheckpointError> {
        let info = self.tensor_info(name)?;
        Ok((&info.shape, info.dtype))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        Ok(self.read_raw(name)?)
    }
}
