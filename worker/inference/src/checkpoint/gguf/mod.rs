//! GGUF: the file that holds a model's weights, tokenizer and settings.
//!
//! Versions 2 and 3, little-endian. Only the header is kept in memory; a tensor is read when it is
//! asked for. Opening a file checks all of the header, so that a truncated or unsupported file is
//! refused before anything is loaded. The format is described in ggml's docs/gguf.md.

mod error;
mod header;
mod metadata;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind};
use std::path::Path;
use std::sync::Arc;

pub use emberline_kernels::ggml::GgmlType;

pub use error::GgufError;
pub use metadata::{Array, Metadata, Value};

use super::parallel_read::read_exact_at;

/// About as much as is read at a time while a tensor is expanded.
const CHUNK_BYTES: usize = 1 << 20;

/// An open model file.
#[derive(Debug)]
pub struct GgufFile {
    path: Arc<Path>,
    file: File,
    length: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

/// A tensor's entry in the header.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// As in the file.
    pub name: String,
    /// Outermost dimension first (the file has it the other way round); no dimension is zero.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub dtype: GgmlType,
    /// Where its data begin in the file.
    offset: u64,
    /// How many bytes its data take; all of them lie in the file.
    size: usize,
}

impl TensorInfo {
    /// Where its data end in the file.
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.size as u64)
    }
}

impl GgufFile {
    /// Opens a file and checks its header.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let path: Arc<Path> = path.into();
        let io = |source| GgufError::Io { path: path.to_path_buf(), source };
        let file = File::open(&path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let header = header::read(BufReader::with_capacity(CHUNK_BYTES, &file), length, &path)?;
        let mut index = HashMap::with_capacity(header.tensors.len());
        for (position, tensor) in header.tensors.iter().enumerate() {
            if index.insert(tensor.name.clone(), position).is_some() {
                let what = format!("it has the tensor {} twice", tensor.name);
                return Err(GgufError::Malformed { path: path.to_path_buf(), what });
            }
        }
        Ok(Self { path, file, length, metadata: header.metadata, tensors: header.tensors, index })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key-value metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// The tensor called `name`.
    pub fn tensor_info(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.index.get(name).and_then(|&position| self.tensors.get(position)).ok_or_else(|| {
            GgufError::MissingTensor { path: self.path.to_path_buf(), tensor: name.to_owned() }
        })
    }

    /// A tensor's shape, outermost dimension first, and its numbers.
    pub fn read_f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), GgufError> {
        let tensor = self.tensor_info(name)?;
        let mut numbers = Vec::with_capacity(tensor.shape.iter().product());
        let whole_blocks = CHUNK_BYTES - CHUNK_BYTES % tensor.dtype.block_bytes();
        let mut chunk = vec![0; whole_blocks.min(tensor.size)];
        let mut done = 0;
        while done < tensor.size {
            let length = chunk.len().min(tensor.size - done);
            self.read_at(tensor, done, &mut chunk[..length])?;
            emberline_kernels::ggml::extend_f32(tensor.dtype, &chunk[..length], &mut numbers);
            done += length;
        }
        Ok((tensor.shape.clone(), numbers))
    }

    /// A tensor's data as they are in the file: rows of blocks in ggml's layout.
    pub fn read_raw(&self, name: &str) -> Result<Vec<u8>, GgufError> {
        let tensor = self.tensor_info(name)?;
        let mut data = vec![0; tensor.size];
        self.read_at(tensor, 0, &mut data)?;
        Ok(data)
    }

    /// Fills `buffer` from a place in a tensor's data.
    fn read_at(&self, tensor: &TensorInfo, place: usize, buffer: &mut [u8]) -> Result<(), GgufError> {
        let place = tensor.offset.saturating_add(place as u64);
        read_exact_at(&self.file, buffer, place).map_err(|source| match source.kind() {
            // Someone has cut the file since it was opened.
            ErrorKind::UnexpectedEof => GgufError::Truncated {
                path: self.path.to_path_buf(),
                what: format!("the tensor {}", tensor.name),
                needed: tensor.end(),
                length: self.file.metadata().map_or(self.length, |metadata| metadata.len()),
            },
            _ => GgufError::Io { path: self.path.to_path_buf(), source },
        })
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
