//! Why a network can't be built or computed.

use std::path::PathBuf;

use super::config::Family;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::gguf::GgufError;

/// A network that can't be built; the message names the file, what is wrong in it and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The files can't be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A network that is not implemented.
    #[error(
        "{}: the architecture is '{found}', which is not implemented ({} are); choose another model",
        path.display(),
        Family::NAMES
    )]
    Architecture {
        /// The model file.
        path: PathBuf,
        /// Its architecture.
        found: String,
    },
    /// A dimension or option that is not possible or not implemented.
    #[error(
        "{}: {key} is {found}, but must be {wanted}; the file is damaged or of a variant that is not \
         supported: use another conversion of the model",
        path.display()
    )]
    Setting {
        /// The file.
        path: PathBuf,
        /// The metadata key, the field, or what is computed from several.
        key: String,
        /// Its value.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A tensor of another shape than the metadata says.
    #[error(
        "{}: the tensor {tensor} has the shape {found:?}, but the settings say {expected:?}; the model is \
         damaged: pull it again",
        path.display()
    )]
    Shape {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape, outermost dimension first.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A number that is infinite or none at all.
    #[error(
        "{}: the tensor {tensor} contains values that are not finite; the file is damaged: pull the model \
         again",
        path.display()
    )]
    NotFinite {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the implementation would have to ignore.
    #[error(
        "{}: the tensor {tensor} belongs to a variant of the architecture that is not implemented; choose \
         another model",
        path.display()
    )]
    UnknownTensor {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that can't be multiplied with.
    #[error("{}: the tensor {tensor} can't be used: {source}; use another conversion of the model", path.display())]
    Matrix {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: emberline_kernels::MatrixError,
    },
}

impl From<GgufError> for NetworkError {
    fn from(error: GgufError) -> Self {
        Self::Checkpoint(error.into())
    }
}

/// The device could not finish a computation.
#[derive(Debug, thiserror::Error)]
#[error("the computation failed: {0}")]
pub struct ComputeError(pub String);
