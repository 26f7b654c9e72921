//! Why a model's files can't be read.

use std::path::PathBuf;

use super::gguf::GgufError;

/// A checkpoint that can't be read; the message names the file, what is wrong in it and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file can't be read as GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
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
}
