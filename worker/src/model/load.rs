//! From files to a network on a device.
//!
//! Every shape is checked before anything is built from it, so that a damaged file is an error
//! with the tensor's name and not a failure inside the device. One tensor at a time is in the
//! host's memory.

use std::collections::HashSet;
use std::io::IsTerminal;

use burn::tensor::{Device, Tensor, TensorData};
use emberline_kernels::Matrix;
use emberline_kernels::ggml::{all_finite, extend_f32};
use indicatif::{ProgressBar, ProgressStyle};

use super::layer::Layer;
use super::names::{self, Part};
use super::network::Weights;
use super::rows::Rows;
use super::tensors::TensorSource;
use super::{LoadError, ModelConfig, Network, Shapes};
use crate::device::ComputeDevice;
use crate::gguf::GgufFile;

const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Network {
    /// Builds the network in `file` on `target`.
    pub fn from_gguf(file: &GgufFile, target: &ComputeDevice) -> Result<Self, LoadError> {
        let mut config = ModelConfig::from_gguf(file)?;
        let mut loader = Loader::new(file, target);
        let vocabulary = loader.vocabulary()?;
        let weights = loader.network(&config, vocabulary)?;
        if loader.has(ROPE_FACTORS) {
            let factors = loader.numbers(ROPE_FACTORS, config.head_dim / 2)?;
            for rotary in &mut config.rotaries {
                rotary.slow_down(&factors);
            }
        }
        loader.finish()?;
        Ok(Self::new(config, weights, target.device.clone(), target.shapes == Shapes::Exact))
    }
}

struct Loader<'a> {
    source: &'a dyn TensorSource,
    target: &'a ComputeDevice,
    used: HashSet<String>,
    bytes: u64,
    progress: ProgressBar,
}

impl<'a> Loader<'a> {
    fn new(source: &'a dyn TensorSource, target: &'a ComputeDevice) -> Self {
        let progress = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("loading weights {bar:30} {pos}/{len} tensors");
            ProgressBar::new(source.names().len() as u64)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        } else {
            ProgressBar::hidden()
        };
        Self { source, target, used: HashSet::new(), bytes: 0, progress }
    }

    fn network(&mut self, config: &ModelConfig, vocabulary: usize) -> Result<Weights, LoadError> {
        let shape = [vocabulary, config.hidden];
        let embedding = self.rows(Part::Embedding, 0, shape)?;
        let embedding = self.matrix(Part::Embedding, 0, embedding)?;
        // Without a head of its own, the network reads its embedding backwards.
        let head = match self.has(&names::gguf(Part::Head, 0)) {
            true => {
                let head = self.rows(Part::Head, 0, shape)?;
                self.matrix(Part::Head, 0, head)?
            }
            false => embedding.clone(),
        };
        let layers = (0..config.layers.len()).map(|index| self.layer(config, index));
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = self.vector(Part::Norm, 0, config.hidden)?;
        Ok(Weights { embedding, layers, norm, head, bytes: self.bytes })
    }

    fn layer(&mut self, config: &ModelConfig, index: usize) -> Result<Layer, LoadError> {
        let layer = config.layers[index];
        let hidden = config.hidden;
        let queries = self.rows(Part::Query, index, [config.query_width(), hidden])?;
        let keys = self.rows(Part::Key, index, [config.kv_width(), hidden])?;
        let values = self.rows(Part::Value, index, [config.kv_width(), hidden])?;
        let [queries, keys] = [queries, keys].map(|rows| rows.pairs_to_halves(config.head_dim));
        let qkv = Rows::stack([queries, keys, values]).into_iter();
        let qkv = qkv.map(|rows| self.matrix(Part::Query, index, rows)).collect::<Result<_, _>>()?;
        let output = self.rows(Part::Output, index, [hidden, config.query_width()])?;
        let gate = self.rows(Part::Gate, index, [config.feed_forward, hidden])?;
        let up = self.rows(Part::Up, index, [config.feed_forward, hidden])?;
        let down = self.rows(Part::Down, index, [hidden, config.feed_forward])?;
        let device = self.device().clone();
        Ok(Layer {
            attention_norm: self.vector(Part::AttentionNorm, index, hidden)?,
            qkv,
            bias: Tensor::zeros([1], &device),
            head_norms: Tensor::zeros([1, 1], &device),
            output: self.matrix(Part::Output, index, output)?,
            post_attention_norm: None,
            mlp_norm: self.vector(Part::MlpNorm, index, hidden)?,
            gate_up: self.matrix(Part::Gate, index, Rows::join([gate, up]))?,
            down: self.matrix(Part::Down, index, down)?,
            post_mlp_norm: None,
            shape: config.head_shape(layer),
            rotary: layer.rotary.unwrap_or_default(),
            epsilon: config.norm_epsilon,
            activation: config.activation,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.source.describe(name).is_ok()
    }

    fn device(&self) -> &Device {
        &self.target.device
    }

    /// Rows of the embedding.
    fn vocabulary(&self) -> Result<usize, LoadError> {
        let (shape, _) = self.source.describe(&names::gguf(Part::Embedding, 0))?;
        Ok(shape.first().copied().unwrap_or_default())
    }

    fn vector(&mut self, part: Part, layer: usize, width: usize) -> Result<Tensor<1>, LoadError> {
        let numbers = self.numbers(&names::gguf(part, layer), width)?;
        self.bytes += size_of_val(numbers.as_slice()) as u64;
        Ok(Tensor::from_data(TensorData::new(numbers, [width]), self.device()))
    }

    fn numbers(&mut self, name: &str, width: usize) -> Result<Vec<f32>, LoadError> {
        let rows = self.read(name, &[width], width)?;
        let mut numbers = Vec::with_capacity(width);
        extend_f32(rows.dtype, &rows.data, &mut numbers);
        Ok(numbers)
    }

    fn rows(&mut self, part: Part, layer: usize, shape: [usize; 2]) -> Result<Rows, LoadError> {
        self.read(&names::gguf(part, layer), &shape, shape[1])
    }

    /// A tensor's data, after checking that it has this shape.
    fn read(&mut self, name: &str, expected: &[usize], inputs: usize) -> Result<Rows, LoadError> {
        let (found, dtype) = self.source.describe(name)?;
        if found != expected {
            return Err(LoadError::Shape {
                path: self.source.path().to_owned(),
                tensor: name.to_owned(),
                found: found.to_vec(),
                expected: expected.to_vec(),
            });
        }
        let data = self.source.read(name)?;
        if !all_finite(dtype, &data) {
            return Err(LoadError::NotFinite {
                path: self.source.path().to_owned(),
                tensor: name.to_owned(),
            });
        }
        self.used.insert(name.to_owned());
        self.progress.inc(1);
        Ok(Rows { dtype, inputs, data })
    }

    /// Puts `rows`, which begin with those of `part`, on the device.
    fn matrix(&mut self, part: Part, layer: usize, rows: Rows) -> Result<Matrix, LoadError> {
        let tensor = || names::gguf(part, layer);
        let bytes = rows.data.len() as u64;
        if let Some(limit) = self.target.max_buffer_bytes
            && bytes > limit
        {
            return Err(LoadError::TooLarge {
                path: self.source.path().to_owned(),
                tensor: tensor(),
                bytes,
                device: self.target.description.clone(),
                limit,
            });
        }
        let matrix = Matrix::new(rows.spec(), &rows.data, self.device()).map_err(|source| {
            LoadError::Matrix { path: self.source.path().to_owned(), tensor: tensor(), source }
        })?;
        self.bytes += matrix.bytes() as u64;
        Ok(matrix)
    }

    /// Refuses a file with tensors that nothing has asked for: its network does more than ours.
    fn finish(self) -> Result<(), LoadError> {
        self.progress.finish_and_clear();
        match self.source.names().into_iter().find(|name| !self.used.contains(*name)) {
            None => Ok(()),
            Some(tensor) => Err(LoadError::UnknownTensor {
                path: self.source.path().to_owned(),
                tensor: tensor.to_owned(),
            }),
        }
    }
}
