//! Why there is no tokenizer, or none of its results.

use std::path::{Path, PathBuf};

use crate::checkpoint::gguf::GgufError;
use crate::checkpoint::hf::HfFileError;

/// Why a tokenizer could not be built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The metadata lack something.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A file of the model's folder is missing or damaged.
    #[error(transparent)]
    File(#[from] HfFileError),
    /// A kind of tokenizer, or of splitting, that is not implemented.
    #[error(
        "{}: {key} is {value}, which is not supported ({supported} is); choose another model",
        path.display()
    )]
    Unsupported {
        /// The model file.
        path: PathBuf,
        /// The key in it.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it could be.
        supported: String,
    },
    /// A tokenizer that contradicts itself.
    #[error("{}: the tokenizer is damaged: {what}; fetch the model again", path.display())]
    Malformed {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The text could not be encoded.
    #[error("can't tokenize the prompt: {0}")]
    Encode(#[source] tokenizers::Error),
}

pub(super) fn malformed(path: &Path, what: impl Into<String>) -> TokenizerError {
    TokenizerError::Malformed { path: path.to_path_buf(), what: what.into() }
}
