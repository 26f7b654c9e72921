//! Loads a network's weights onto a device.
//!
//! Every shape is checked before anything is built from it, so that a damaged file gives an error
//! with the tensor's name and not a failure inside the device. A layer is read on all threads while the
//! one before it goes to the device, in order and from the calling thread. So no more than two layers are
//! in the host's memory at a time.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal;

use burn::tensor::{Device, Tensor, TensorData};
use emberline_kernels::ggml::{all_finite, extend_f32};
use emberline_kernels::{Matrix, MatrixRows};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::config::Layout;
use super::forward::Weights;
use super::layer::{DenseFeedForward, FeedForward, Layer};
use super::quantize::Quantize;
use super::rows::WeightRows;
use super::tensor_names::{TensorNames, TensorRole};
use super::{ModelConfig, Network, NetworkError};
use crate::checkpoint::TensorSource;
use crate::device::{ComputeDevice, DeviceClass};

impl Network {
    /// Builds the network that `config` describes from `source` on `target`; `report` is told the part that is loaded.
    pub(crate) fn load(
        config: ModelConfig,
        layout: &Layout,
        source: &dyn TensorSource,
        target: &ComputeDevice,
        quantize: Option<Quantize>,
        report: &dyn Fn(f32),
    ) -> Result<Self, NetworkError> {
        let mut loader = Loader::new(&config, layout, source, target, quantize, report);
        let weights = loader.network()?;
        loader.finish()?;
        Ok(Self::new(config, weights, target.device.clone(), target.class == DeviceClass::Host))
    }
}

struct Loader<'a> {
    config: &'a ModelConfig,
    layout: &'a Layout,
    source: &'a dyn TensorSource,
    target: &'a ComputeDevice,
    quantize: Option<Quantize>,
    used: HashSet<String>,
    /// Tensors of the layer that is next.
    ahead: ReadAhead,
    bytes: u64,
    /// How many tensors there are.
    count: usize,
    progress: ProgressBar,
    report: &'a dyn Fn(f32),
}

/// Tensors' data that were read before they are asked for, by name.
type ReadAhead = HashMap<String, Result<Vec<u8>, NetworkError>>;

impl<'a> Loader<'a> {
    fn new(
        config: &'a ModelConfig,
        layout: &'a Layout,
        source: &'a dyn TensorSource,
        target: &'a ComputeDevice,
        quantize: Option<Quantize>,
        report: &'a dyn Fn(f32),
    ) -> Self {
        let count = source.names().len();
        let progress = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("loading weights {bar:30} {pos}/{len} tensors");
            ProgressBar::new(count as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        } else {
            ProgressBar::hidden()
        };
        let (used, ahead) = (HashSet::new(), ReadAhead::new());
        Self { config, layout, source, target, quantize, used, ahead, bytes: 0, count, progress, report }
    }

    fn network(&mut self) -> Result<Weights, NetworkError> {
        let shape = [self.config.vocabulary, self.config.hidden];
        let embedding = self.matrix(TensorRole::Embedding, 0, shape)?;
        let head = match self.config.tied_embedding {
            true => embedding.clone(),
            false => self.matrix(TensorRole::Head, 0, shape)?,
        };
        let layers = self.layers()?;
        let norm = self.norm(TensorRole::Norm, 0, self.config.hidden)?;
        Ok(Weights { embedding, layers, norm: self.vector(norm), head, bytes: self.bytes })
    }

    fn layers(&mut self) -> Result<Vec<Layer>, NetworkError> {
        let (source, names, count) = (self.source, &self.layout.names, self.config.layers.len());
        self.ahead = read_layer(source, names, 0);
        let mut layers = Vec::with_capacity(count);
        for index in 0..count {
            let mut next = ReadAhead::new();
            let layer = rayon::in_place_scope(|scope| {
                if index + 1 < count {
                    scope.spawn(|_| next = read_layer(source, names, index + 1));
                }
                self.layer(index)
            });
            layers.push(layer?);
            self.ahead = next;
        }
        Ok(layers)
    }

    fn layer(&mut self, index: usize) -> Result<Layer, NetworkError> {
        let config = self.config;
        let layer = config.layers[index];
        let (hidden, queries) = (config.hidden, config.query_width());
        let mut norm = |part| {
            let numbers = self.norm(part, index, hidden)?;
            Ok::<_, NetworkError>(self.vector(numbers))
        };
        let attention_norm = norm(TensorRole::AttentionNorm)?;
        let mlp_norm = norm(TensorRole::MlpNorm)?;
        let mut post_norm = |part| config.post_norms.then(|| norm(part)).transpose();
        let post_attention_norm = post_norm(TensorRole::PostAttentionNorm)?;
        let post_mlp_norm = post_norm(TensorRole::PostMlpNorm)?;
        let output_bias = match config.output_bias {
            true => Some(self.numbers(TensorRole::OutputBias, index, hidden)?),
            false => None,
        };
        Ok(Layer {
            attention_norm,
            qkv: self.qkv(index)?,
            bias: self.qkv_bias(index)?,
            head_norms: self.head_norms(index)?,
            output: self.matrix(TensorRole::Output, index, [hidden, queries])?,
            output_bias: output_bias.map(|bias| self.vector(bias)),
            post_attention_norm,
            feed_forward: FeedForward::Dense(DenseFeedForward {
                norm: mlp_norm,
                gate_up: self.gate_up(index)?,
                down: self.matrix(TensorRole::Down, index, [hidden, config.feed_forward])?,
                post_norm: post_mlp_norm,
                activation: config.activation,
            }),
            shape: config.head_shape(layer),
            rotary: layer.rotary.unwrap_or_default(),
            epsilon: config.norm_epsilon,
        })
    }

    /// Queries, keys and values, in as few matrices as their formats allow.
    fn qkv(&mut self, index: usize) -> Result<Vec<Matrix>, NetworkError> {
        let (hidden, queries, keys) = (self.config.hidden, self.config.query_width(), self.config.kv_width());
        if self.layout.fused {
            return Ok(vec![self.matrix(TensorRole::Qkv, index, [queries + 2 * keys, hidden])?]);
        }
        let query = self.rows(TensorRole::Query, index, [queries, hidden])?;
        let key = self.rows(TensorRole::Key, index, [keys, hidden])?;
        let value = self.rows(TensorRole::Value, index, [keys, hidden])?;
        let stacked = WeightRows::stack([self.in_halves(query), self.in_halves(key), value]);
        let upload = |rows: WeightRows| self.upload(TensorRole::Query, index, &rows, MatrixRows::Plain);
        stacked.into_iter().map(upload).collect()
    }

    /// `[query | key | value]`.
    fn qkv_bias(&mut self, index: usize) -> Result<Tensor<1>, NetworkError> {
        if !self.config.qkv_bias {
            return Ok(Tensor::zeros([1], self.device()));
        }
        let mut all = Vec::new();
        let (queries, keys) = (self.config.query_width(), self.config.kv_width());
        for (part, width) in
            [(TensorRole::QueryBias, queries), (TensorRole::KeyBias, keys), (TensorRole::ValueBias, keys)]
        {
            let rows = self.read(&self.layout.names.of(part, index), &[width], 1)?;
            let rows = if part == TensorRole::ValueBias { rows } else { self.in_halves(rows) };
            extend_f32(rows.dtype, &rows.data, &mut all);
        }
        Ok(self.vector(all))
    }

    /// `[2, head_dim]`: of queries, then of keys.
    fn head_norms(&mut self, index: usize) -> Result<Tensor<2>, NetworkError> {
        if !self.config.head_norm {
            return Ok(Tensor::zeros([1, 1], self.device()));
        }
        let width = self.config.head_dim;
        let mut both = self.norm(TensorRole::QueryNorm, index, width)?;
        both.extend(self.norm(TensorRole::KeyNorm, index, width)?);
        Ok(self.vector(both).reshape([2, width]))
    }

    fn gate_up(&mut self, index: usize) -> Result<Matrix, NetworkError> {
        let (hidden, width) = (self.config.hidden, self.config.feed_forward);
        if self.layout.fused {
            let rows = self.rows(TensorRole::GateUp, index, [2 * width, hidden])?;
            return self.upload(TensorRole::GateUp, index, &rows, MatrixRows::Gated);
        }
        let gate = self.rows(TensorRole::Gate, index, [width, hidden])?;
        let up = self.rows(TensorRole::Up, index, [width, hidden])?;
        self.upload(TensorRole::Gate, index, &WeightRows::join([gate, up]), MatrixRows::Gated)
    }

    fn matrix(&mut self, part: TensorRole, layer: usize, shape: [usize; 2]) -> Result<Matrix, NetworkError> {
        let rows = self.rows(part, layer, shape)?;
        self.upload(part, layer, &rows, MatrixRows::Plain)
    }

    /// Rows of heads, with rotated pairs rearranged into two halves if they are interleaved.
    fn in_halves(&self, rows: WeightRows) -> WeightRows {
        if self.layout.interleaved { rows.pairs_to_halves(self.config.head_dim) } else { rows }
    }

    fn device(&self) -> &Device {
        &self.target.device
    }

    fn vector(&mut self, numbers: Vec<f32>) -> Tensor<1> {
        self.bytes += size_of_val(numbers.as_slice()) as u64;
        let width = numbers.len();
        let upload = |data| Tensor::from_data(data, &self.target.device);
        self.device().memory_persistent_allocations(TensorData::new(numbers, [width]), upload)
    }

    fn norm(&mut self, part: TensorRole, layer: usize, width: usize) -> Result<Vec<f32>, NetworkError> {
        let mut numbers = self.numbers(part, layer, width)?;
        numbers.iter_mut().for_each(|number| *number += self.layout.norm_offset);
        Ok(numbers)
    }

    fn numbers(&mut self, part: TensorRole, layer: usize, width: usize) -> Result<Vec<f32>, NetworkError> {
        let rows = self.read(&self.layout.names.of(part, layer), &[width], width)?;
        let mut numbers = Vec::with_capacity(width);
        extend_f32(rows.dtype, &rows.data, &mut numbers);
        Ok(numbers)
    }

    fn rows(
        &mut self,
        part: TensorRole,
        layer: usize,
        shape: [usize; 2],
    ) -> Result<WeightRows, NetworkError> {
        let rows = self.read(&self.layout.names.of(part, layer), &shape, shape[1])?;
        Ok(match self.quantize {
            Some(quantize) => quantize.apply(part, rows),
            None => rows,
        })
    }

    /// A tensor's data, after checking its shape and that all numbers are finite.
    fn read(&mut self, name: &str, expected: &[usize], inputs: usize) -> Result<WeightRows, NetworkError> {
        let (found, dtype) = self.source.describe(name)?;
        if found != expected {
            return Err(NetworkError::Shape {
                path: self.source.path().to_owned(),
                tensor: name.to_owned(),
                found: found.to_vec(),
                expected: expected.to_vec(),
            });
        }
        let data = match self.ahead.remove(name) {
            Some(data) => data?,
            None => read_finite(self.source, name)?,
        };
        self.used.insert(name.to_owned());
        self.progress.inc(1);
        (self.report)(self.used.len() as f32 / self.count.max(1) as f32);
        Ok(WeightRows { dtype, inputs, data })
    }

    /// Uploads `rows`, which begin with those of `part`, to the device; in parts, where they are more than one of its
    /// buffers holds.
    fn upload(
        &mut self,
        part: TensorRole,
        layer: usize,
        rows: &WeightRows,
        kind: MatrixRows,
    ) -> Result<Matrix, NetworkError> {
        let largest = self.target.max_buffer_bytes.unwrap_or(u64::MAX);
        let upload =
            |rows: &WeightRows| Matrix::in_parts(rows.spec(), &rows.data, &self.target.device, kind, largest);
        let matrix = self.device().memory_persistent_allocations(rows, upload);
        let matrix = matrix.map_err(|source| NetworkError::Matrix {
            path: self.source.path().to_owned(),
            tensor: self.layout.names.of(part, layer),
            source,
        })?;
        self.bytes += matrix.bytes() as u64;
        Ok(matrix)
    }

    /// Refuses a file with unused tensors: its network has something that this one lacks.
    fn finish(self) -> Result<(), NetworkError> {
        self.progress.finish_and_clear();
        let unknown = |name: &&str| !self.used.contains(*name) && !self.layout.is_unneeded(name);
        match self.source.names().into_iter().find(unknown) {
            None => Ok(()),
            Some(tensor) => Err(NetworkError::UnknownTensor {
                path: self.source.path().to_owned(),
                tensor: tensor.to_owned(),
            }),
        }
    }
}

/// Reads all tensors of a layer, several at a time.
fn read_layer(source: &dyn TensorSource, names: &TensorNames, layer: usize) -> ReadAhead {
    let all: HashSet<String> = TensorRole::OF_LAYERS.iter().map(|part| names.of(*part, layer)).collect();
    let there = all.into_iter().filter(|name| source.describe(name).is_ok()).collect::<Vec<_>>();
    let read = |name: String| {
        let data = read_finite(source, &name);
        (name, data)
    };
    there.into_par_iter().map(read).collect()
}

/// A tensor's data, after checking that all numbers are finite.
fn read_finite(source: &dyn TensorSource, name: &str) -> Result<Vec<u8>, NetworkError> {
    let (_, dtype) = source.describe(name)?;
    let data = source.read(name)?;
    if all_finite(dtype, &data) {
        return Ok(data);
    }
    Err(NetworkError::NotFinite { path: source.path().to_owned(), tensor: name.to_owned() })
}
