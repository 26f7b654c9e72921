//! Why a model can't be served.

use std::path::PathBuf;

use super::config::Family;
use crate::constraint::GrammarsError;
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
    /// A file that can't be read.
    #[error("{}: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Settings that are no valid JSON.
    #[error("{}: not valid: {source}; fetch the model again", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A safetensors file, or its index, that can't be used.
    #[error("{}: {what}; fetch the model again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A model of the Hugging Face hub that can't be fetched.
    #[error(
        "hf:{repository}: {reason}; check the name and the network, and HF_TOKEN for a model that asks for one"
    )]
    Hub {
        /// Its `organisation/name`.
        repository: String,
        /// What went wrong.
        reason: String,
    },
    /// A folder without weights, or with too many.
    #[error(
        "{}: the folder has {gguf_files} GGUF files and no model.safetensors; give the path of a GGUF file or \
         of a folder as on the Hugging Face hub",
        path.display()
    )]
    NoModel {
        /// The folder.
        path: PathBuf,
        /// How many GGUF files it has; with one it would do.
        gguf_files: usize,
    },
    /// A tensor that is in none of a folder's files.
    #[error("{}: the tensor {tensor} is missing; fetch the whole model", path.display())]
    MissingTensor {
        /// The folder.
        path: PathBuf,
        /// The tensor that was looked for.
        tensor: String,
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
    /// A cache that the device's kernels don't know.
    #[error(
        "{device} stores keys and values with 32 bits only; leave --cache-dtype (cache_dtype) at auto, or use \
         the cpu backend"
    )]
    CacheDtype {
        /// The device.
        device: String,
    },
    /// More tokens than the network has embeddings for.
    #[error(
        "{}: the tokenizer has {tokens} tokens, but the embedding has only {rows} rows; the model is \
         damaged: pull it again",
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
    /// Answers can't be constrained.
    #[error("{}: {source}; the tokenizer is damaged: pull the model again", path.display())]
    Grammars {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        source: GrammarsError,
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
