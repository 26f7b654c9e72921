//! A model's files: where they come from, and what is in them.
//!
//! A [`ModelSource`] is a path or a name on the Hugging Face hub (`hub`). What it leads to is a
//! [`Checkpoint`]: a GGUF file ([`gguf`]), or a folder with safetensors files (`safetensors`) and small
//! JSON files beside them ([`hf`]). Either way it is a [`TensorSource`] for the network.

mod error;
pub mod gguf;
pub mod hf;
mod hub;
mod parallel_read;
pub(crate) mod safetensors;
mod tensors;

use std::path::{Path, PathBuf};

pub use error::CheckpointError;
use gguf::GgufFile;
pub use hub::ModelSource;
pub use safetensors::SafetensorsFolder;
pub use tensors::TensorSource;

/// A model's files, opened: their headers are read and checked, no tensor is loaded yet.
#[derive(Debug)]
pub enum Checkpoint {
    /// A GGUF file, which has tokenizer and chat template in its metadata.
    Gguf(GgufFile),
    /// A folder as on the Hugging Face hub, which has them in files of their own.
    Folder(SafetensorsFolder),
}

impl Checkpoint {
    /// Opens a GGUF file, or a folder with safetensors files as on the Hugging Face hub, or one
    /// with a single GGUF file.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        if !path.is_dir() {
            return Ok(Self::Gguf(GgufFile::open(path)?));
        }
        if SafetensorsFolder::exists(path) {
            return Ok(Self::Folder(SafetensorsFolder::open(path)?));
        }
        match gguf_files(path)?.as_slice() {
            [only] => Ok(Self::Gguf(GgufFile::open(only)?)),
            found => Err(CheckpointError::NoModel { path: path.to_owned(), gguf_files: found.len() }),
        }
    }

    /// The GGUF file or the folder.
    pub fn path(&self) -> &Path {
        self.tensors().path()
    }

    /// The GGUF file, if it is one.
    pub fn gguf(&self) -> Option<&GgufFile> {
        match self {
            Self::Gguf(file) => Some(file),
            Self::Folder(_) => None,
        }
    }

    /// The weights.
    pub fn tensors(&self) -> &dyn TensorSource {
        match self {
            Self::Gguf(file) => file,
            Self::Folder(folder) => folder,
        }
    }
}

fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    Ok(found)
}
