//! Which network a checkpoint holds.

use super::config::{Layout, ModelConfig};
use super::{Network, NetworkError, Quantize};
use crate::checkpoint::gguf::GgufFile;
use crate::checkpoint::hf::CONFIG_FILE;
use crate::checkpoint::{Checkpoint, CheckpointError, TensorSource};
use crate::device::ComputeDevice;

/// The network that a checkpoint's settings describe, and how its tensors are stored there.
#[derive(Debug)]
pub struct Architecture {
    config: ModelConfig,
    layout: Layout,
}

impl Architecture {
    /// Reads and checks a checkpoint's settings.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, NetworkError> {
        let (config, layout) = match checkpoint {
            Checkpoint::Gguf(file) => Layout::from_gguf(file)?,
            Checkpoint::Folder(folder) => {
                let path = checkpoint.path().join(CONFIG_FILE);
                let io = |source| CheckpointError::Io { path: path.clone(), source };
                let text = std::fs::read(&path).map_err(io)?;
                Layout::from_config(&path, &text, &folder.names())?
            }
        };
        Ok(Self { config, layout })
    }

    /// The network's dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Serves no more than `tokens` positions, prompt and completion together. A model that rotates
    /// long contexts differently does not do so in a short one.
    pub fn limit_context(&mut self, tokens: usize) {
        self.config.context_length = self.config.context_length.min(tokens.max(1));
    }
}

impl Network {
    /// Builds the network of `checkpoint` on `target`, with the weights as they are stored or
    /// quantised.
    pub fn open(
        checkpoint: &Checkpoint,
        target: &ComputeDevice,
        quantize: Option<Quantize>,
    ) -> Result<Self, NetworkError> {
        Self::build(&Architecture::read(checkpoint)?, checkpoint, target, quantize, &|_| {})
    }

    /// As [`Network::open`], for an `architecture` that was read from `checkpoint` before; `report` is told the part
    /// that is loaded, from 0 to 1.
    pub fn build(
        architecture: &Architecture,
        checkpoint: &Checkpoint,
        target: &ComputeDevice,
        quantize: Option<Quantize>,
        report: &dyn Fn(f32),
    ) -> Result<Self, NetworkError> {
        let Architecture { config, layout } = architecture;
        Self::load(config.clone(), layout, checkpoint.tensors(), target, quantize, report)
    }

    /// Builds the network in a GGUF `file` on `target`.
    pub fn from_gguf(file: &GgufFile, target: &ComputeDevice) -> Result<Self, NetworkError> {
        let (config, layout) = Layout::from_gguf(file)?;
        Self::load(config, &layout, file, target, None, &|_| {})
    }
}
