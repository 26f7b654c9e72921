//! A model's files on this machine.

use std::path::{Path, PathBuf};

use super::config::{self, Layout};
use super::safetensors::SafetensorsFolder;
use super::tensors::TensorSource;
use super::{LoadError, ModelConfig, Network, Quantize};
use crate::device::ComputeDevice;
use crate::gguf::GgufFile;

/// A model's files, opened: its settings are read and checked, its weights are not loaded yet.
#[derive(Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    layout: Layout,
    weights: Format,
}

#[derive(Debug)]
enum Format {
    Gguf(GgufFile),
    Folder(SafetensorsFolder),
}

impl Checkpoint {
    /// Opens a GGUF file, or a folder with safetensors files as on the Hugging Face hub, or one
    /// with a single GGUF file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        if !path.is_dir() {
            return Self::from_gguf(path);
        }
        if SafetensorsFolder::exists(path) {
            return Self::from_folder(path);
        }
        match gguf_files(path)?.as_slice() {
            [only] => Self::from_gguf(only),
            found => Err(LoadError::NoModel { path: path.to_owned(), gguf_files: found.len() }),
        }
    }

    fn from_gguf(path: &Path) -> Result<Self, LoadError> {
        let file = GgufFile::open(path)?;
        let (config, layout) = Layout::from_gguf(&file)?;
        Ok(Self { config, layout, weights: Format::Gguf(file) })
    }

    fn from_folder(folder: &Path) -> Result<Self, LoadError> {
        let weights = SafetensorsFolder::open(folder)?;
        let path = folder.join(config::HF_FILE);
        let text = std::fs::read(&path).map_err(|source| LoadError::Io { path: path.clone(), source })?;
        let (config, layout) = Layout::from_config(&path, &text, &weights.names())?;
        Ok(Self { config, layout, weights: Format::Folder(weights) })
    }

    /// The network's dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Serves no more than `tokens` positions, prompt and completion together. Models with other
    /// rotations for a long context do without them in a short one.
    pub fn limit_context(&mut self, tokens: usize) {
        self.config.context_length = self.config.context_length.min(tokens.max(1));
    }

    /// The GGUF file or the folder.
    pub fn path(&self) -> &Path {
        self.source().path()
    }

    /// The GGUF file, if it is one: it has tokenizer and template in its metadata. A folder has
    /// them in files of their own.
    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.weights {
            Format::Gguf(file) => Some(file),
            Format::Folder(_) => None,
        }
    }

    /// Builds the network on `target`, with the weights as they are stored or quantised.
    pub fn load(&self, target: &ComputeDevice, quantize: Option<Quantize>) -> Result<Network, LoadError> {
        Network::load(self.config.clone(), &self.layout, self.source(), target, quantize)
    }

    fn source(&self) -> &dyn TensorSource {
        match &self.weights {
            Format::Gguf(file) => file,
            Format::Folder(folder) => folder,
        }
    }
}

fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let io = |source| LoadError::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    Ok(found)
}
