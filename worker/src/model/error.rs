//! Why a model can't be served.

use std::path::PathBuf;

use crate::device::DeviceError;
use crate::gguf::GgufError;
use crate::template::TemplateError;
use crate::tokenizer::TokenizerError;

/// A model that can't be loaded; the message names the file, what is wrong in it and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file can't be read as GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A network that is not implemented.
    #[error(
        "{}: general.architecture is '{found}', and only 'llama' is implemented; choose a model of the Llama \
         family",
        path.display()
    )]
    Architecture {
        /// The model file.
        path: PathBuf,
        /// Its architecture.
        found: String,
    },
    /// A dimension or option that is not possible or not implemented.
    #[error(
        "{}: the metadata's {key} is {found}, but must be {wanted}; the file is damaged or of a variant that \
         is not supported: use another conversion of the model",
        path.display()
    )]
    Metadata {
        /// The model file.
        path: PathBuf,
        /// The metadata key.
        key: String,
        /// Its value.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A tensor of another shape than the metadata says.
    #[error(
        "{}: the tensor {tensor} has the shape {found:?}, but the metadata says {expected:?}; the file is \
         damaged: pull the model again",
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
    /// A tensor that doesn't fit into one of the device's buffers.
    #[error(
        "{}: the tensor {tensor} needs a buffer of {bytes} bytes, and {device} allows {limit}; use the cpu \
         backend or a smaller model",
        path.display()
    )]
    TooLarge {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its size on the device.
        bytes: u64,
        /// The device.
        device: String,
        /// Its limit.
        limit: u64,
    },
    /// More tokens than the network has embeddings for.
    #[error(
        "{}: the tokenizer has {tokens} tokens, but token_embd.weight has only {rows} rows; the file is \
         damaged: pull the model again",
        path.display()
    )]
    Vocabulary {
        /// The model file.
        path: PathBuf,
        /// Tokens in the tokenizer.
        tokens: usize,
        /// Rows in the embedding.
        rows: usize,
    },
    /// The tokenizer can't be built.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        source: TokenizerError,
    },
    /// The chat template can't be used.
    #[error("{}: {source}", path.display())]
    Template {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        source: TemplateError,
    },
    /// No device to run it on.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The engine has no thread for its events.
    #[error("can't start a thread: {0}; check the limit of processes")]
    Thread(std::io::Error),
    /// The device failed at the first computation.
    #[error("the model is loaded, but the device can't run it: {0}; try the cpu backend")]
    Compute(#[from] ComputeError),
}

/// The device could not finish a computation.
#[derive(Debug, thiserror::Error)]
#[error("the computation failed: {0}")]
pub struct ComputeError(pub String);
