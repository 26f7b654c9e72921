//! Weights of a folder as on the Hugging Face hub: one safetensors file, or several with an index.
//!
//! Only headers are kept in memory; a tensor is read when it is asked for.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use emberline_kernels::ggml::GgmlType;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use super::CheckpointError;
use super::TensorSource;
use super::parallel_read::read_exact_at;

/// The file of a checkpoint that is not split.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Which file has which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Larger headers are refused, as the format wants it.
const MAX_HEADER: u64 = 100_000_000;

/// The weights in a folder.
#[derive(Debug)]
pub struct SafetensorsFolder {
    path: PathBuf,
    files: Vec<Shard>,
    /// Which of the files has a tensor.
    index: HashMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where tensors' data begin.
    data: u64,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Whether `folder` has weights in this format.
    pub fn exists(folder: &Path) -> bool {
        [SINGLE, INDEX].iter().any(|name| folder.join(name).is_file())
    }

    /// Opens the files in `folder` and checks their headers.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let names = Self::files(folder)?;
        let mut opened = Self { path: folder.to_owned(), files: Vec::new(), index: HashMap::new() };
        for name in names {
            let shard = Shard::open(folder.join(name))?;
            for tensor in shard.header.offset_keys() {
                if let Some(first) = opened.index.insert(tensor.clone(), opened.files.len()) {
                    let first = opened.files.get(first).map_or(&shard.path, |shard| &shard.path);
                    let what = format!("the tensor {tensor} is in {} too", first.display());
                    return Err(CheckpointError::Safetensors { path: shard.path, what });
                }
            }
            opened.files.push(shard);
        }
        Ok(opened)
    }

    /// The names of the files that hold `folder`'s weights.
    pub(crate) fn files(folder: &Path) -> Result<Vec<String>, CheckpointError> {
        let path = folder.join(INDEX);
        if !path.is_file() {
            return Ok(vec![SINGLE.to_owned()]);
        }
        let text =
            std::fs::read(&path).map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|source| CheckpointError::Config { path: path.clone(), source })?;
        let mut names: Vec<String> = index.weight_map.into_values().collect();
        names.sort();
        names.dedup();
        // A name is a file of this folder, and nothing else.
        match names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
            Some(name) => {
                Err(CheckpointError::Safetensors { path, what: format!("{name:?} is no file's name") })
            }
            None => Ok(names),
        }
    }

    fn find(&self, name: &str) -> Result<(&Shard, &TensorInfo), CheckpointError> {
        let shard = self.index.get(name).and_then(|&number| self.files.get(number));
        shard.and_then(|shard| Some((shard, shard.header.info(name)?))).ok_or_else(|| {
            CheckpointError::MissingTensor { path: self.path.clone(), tensor: name.to_owned() }
        })
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, CheckpointError> {
        let damaged = |what: String| CheckpointError::Safetensors { path: path.clone(), what };
        let read = |source: std::io::Error| match source.kind() {
            ErrorKind::UnexpectedEof => damaged("it ends within its header".to_owned()),
            _ => CheckpointError::Io { path: path.clone(), source },
        };
        let mut file = File::open(&path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(read)?;
        let size = u64::from_le_bytes(size);
        let data = size.saturating_add(8);
        if size > MAX_HEADER || data > length {
            return Err(damaged(format!("its header would be {size} bytes long")));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header).map_err(read)?;
        // Deserialising checks that tensors lie one behind the other, each as long as its shape.
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged(format!("its header is not valid: {error}")))?;
        let end = data.saturating_add(header.data_len() as u64);
        if end != length {
            return Err(damaged(format!("it should be {end} bytes long and is {length}")));
        }
        Ok(Self { path, file, header, data })
    }

    fn read(&self, info: &TensorInfo) -> Result<Vec<u8>, CheckpointError> {
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end.saturating_sub(start)];
        read_exact_at(&self.file, &mut bytes, self.data.saturating_add(start as u64))
            .map_err(|source| CheckpointError::Io { path: self.path.clone(), source })?;
        Ok(bytes)
    }
}

impl TensorSource for SafetensorsFolder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<&str> {
        self.index.keys().map(String::as_str).collect()
    }

    fn describe(&self, name: &str) -> Result<(&[usize], GgmlType), CheckpointError> {
        let (shard, info) = self.find(name)?;
        let dtype = match info.dtype {
            Dtype::F32 => GgmlType::F32,
            Dtype::F16 => GgmlType::F16,
            Dtype::BF16 => GgmlType::BF16,
            other => {
                let what = format!("the tensor {name} has type {other:?}, and F32, F16 and BF16 are read");
                return Err(CheckpointError::Safetensors { path: shard.path.clone(), what });
            }
        };
        Ok((&info.shape, dtype))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let (shard, info) = self.find(name)?;
        shard.read(info)
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
