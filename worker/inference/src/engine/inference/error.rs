//! Why a model can't be served.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::constraint::GrammarCompilerError;
use crate::device::DeviceError;
use crate::network::{ComputeError, NetworkError};
use crate::template::TemplateError;
use crate::tokenizer::TokenizerError;

/// A model that can't be loaded; the message names the file, what is wrong in it and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The files can't be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The network can't be built.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Products that the device's kernels don't know.
    #[error(
        "{device} computes products in f32 only; leave --precision (precision) at exact, or use the cpu backend"
    )]
    Precision {
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
        source: GrammarCompilerError,
    },
    /// No device to run it on.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The engine has no thread for its events.
    #[error("can't start a thread: {0}; check the limit of processes")]
    Thread(std::io::Error),
    /// The device can't be used any more.
    #[error("the device is lost: {0}; the worker has to be started anew to use it again")]
    DeviceLost(String),
    /// The device failed at the first computation.
    #[error("the model is loaded, but the device can't run it: {0}; try the cpu backend")]
    Compute(#[from] ComputeError),
}
