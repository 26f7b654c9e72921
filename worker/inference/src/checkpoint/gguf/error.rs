//! What can be wrong with a model file.

use std::io;
use std::path::PathBuf;

/// A model file that can't be used; the message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file can't be opened or read.
    #[error("{}: can't read the model file: {source}; check the path and its permissions", path.display())]
    Io {
        /// The model file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something else than GGUF.
    #[error(
        "{}: not a GGUF file (a GGUF file begins with the letters GGUF); give the path of a .gguf file \
         or pull the model again",
        path.display()
    )]
    NotGguf {
        /// The model file.
        path: PathBuf,
    },
    /// A big-endian file.
    #[error("{}: big-endian GGUF is not supported; use the model's little-endian file", path.display())]
    BigEndian {
        /// The model file.
        path: PathBuf,
    },
    /// A version of the format that is not read.
    #[error(
        "{}: GGUF version {version} is not supported (2 and 3 are); use a file converted with a current \
         llama.cpp",
        path.display()
    )]
    Version {
        /// The model file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file ends too early.
    #[error(
        "{}: the file is truncated: {what} ends at byte {needed}, the file at {length}; pull the model again",
        path.display()
    )]
    Truncated {
        /// The model file.
        path: PathBuf,
        /// The part that is cut off.
        what: String,
        /// Where it would end.
        needed: u64,
        /// Where the file ends.
        length: u64,
    },
    /// Contents that no GGUF file can have.
    #[error("{}: the file is damaged: {what}; pull the model again", path.display())]
    Malformed {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The metadata lacks a key.
    #[error(
        "{}: the metadata has no {key}; use a complete conversion of the model",
        path.display()
    )]
    MissingKey {
        /// The model file.
        path: PathBuf,
        /// The key that was looked for.
        key: String,
    },
    /// A metadata value of the wrong type or out of range.
    #[error(
        "{}: the metadata's {key} is {found} where {expected} belongs; use a file converted with a current \
         llama.cpp",
        path.display()
    )]
    WrongType {
        /// The model file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// The file lacks a tensor.
    #[error("{}: the tensor {tensor} is missing; use a complete conversion of the model", path.display())]
    MissingTensor {
        /// The model file.
        path: PathBuf,
        /// The tensor that was looked for.
        tensor: String,
    },
    /// A tensor type that is not read.
    #[error(
        "{}: the tensor {tensor} has type {dtype}, which is not supported; use a file quantised as one of \
         {}",
        path.display(),
        super::GgmlType::names()
    )]
    UnsupportedType {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type: ggml's name, or its number.
        dtype: String,
    },
}
