//! From a GGUF file to a network on a device.
//!
//! Every shape is checked before a tensor is built from it, so that a damaged file is an error
//! with the tensor's name and not a failure inside the device.

use std::collections::HashSet;
use std::io::IsTerminal;

use burn::module::Param;
use burn::nn::RmsNorm;
use burn::tensor::{Device, Tensor, TensorData};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::layers::{Attention, Layer, Linear, Mlp, Vocabulary};
use super::llama::{Tables, Weights, largest_block};
use super::{Llama, LlamaConfig, LoadError};
use crate::device::ComputeDevice;
use crate::gguf::GgufFile;

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";
const NORM: &str = "output_norm.weight";
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Columns are dealt out in multiples of this, so that vector units are filled.
const LANES: usize = 16;
/// With fewer weights than this for each thread, dealing out costs more than it saves.
const MIN_SHARD: usize = 1 << 17;

/// Builds the network in `file` on `target`.
pub fn load(file: &GgufFile, target: &ComputeDevice) -> Result<Llama, LoadError> {
    let config = LlamaConfig::from_gguf(file)?;
    let mut loader = Loader::new(file, target);
    let vocabulary = loader.vocabulary()?;
    let weights = loader.network(&config, vocabulary)?;
    let factors = match loader.has(ROPE_FACTORS) {
        true => Some(loader.numbers(ROPE_FACTORS, &[config.head_dim / 2])?),
        false => None,
    };
    loader.finish()?;
    let tables = Tables::new(&config, factors.as_deref(), &target.device);
    let block = largest_block(&config, target.shapes, target.max_buffer_bytes);
    let (shapes, device) = (target.shapes, target.device.clone());
    Ok(Llama { config, weights, tables, shapes, block, vocabulary, device })
}

struct Loader<'a> {
    file: &'a GgufFile,
    target: &'a ComputeDevice,
    used: HashSet<String>,
    progress: ProgressBar,
}

impl<'a> Loader<'a> {
    fn new(file: &'a GgufFile, target: &'a ComputeDevice) -> Self {
        let progress = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("loading weights {bar:30} {pos}/{len} tensors");
            ProgressBar::new(file.tensors().count() as u64)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        } else {
            ProgressBar::hidden()
        };
        Self { file, target, used: HashSet::new(), progress }
    }

    fn network(&mut self, config: &LlamaConfig, vocabulary: usize) -> Result<Weights, LoadError> {
        let embedding = self.vocabulary_matrix(EMBEDDING, vocabulary, config)?;
        // Without a head of its own, the network reads its embedding backwards.
        let head = match self.has(HEAD) {
            true => self.vocabulary_matrix(HEAD, vocabulary, config)?,
            false => embedding.clone(),
        };
        let layers = (0..config.layers).map(|index| self.layer(config, index)).collect::<Result<_, _>>()?;
        Ok(Weights { embedding, layers, norm: self.norm(NORM, config)?, head })
    }

    fn layer(&mut self, config: &LlamaConfig, index: usize) -> Result<Layer, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let qkv = self.qkv(config, &name)?;
        let output = self.matrix(&[&name("attn_output")], config.hidden, config.query_width())?;
        let gate_up = [name("ffn_gate"), name("ffn_up")];
        let gate_up = self.matrix(&[&gate_up[0], &gate_up[1]], config.feed_forward, config.hidden)?;
        let down = self.matrix(&[&name("ffn_down")], config.hidden, config.feed_forward)?;
        Ok(Layer {
            attention_norm: self.norm(&name("attn_norm"), config)?,
            attention: Attention {
                qkv,
                output,
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
            },
            mlp_norm: self.norm(&name("ffn_norm"), config)?,
            mlp: Mlp { gate_up, down, width: config.feed_forward },
        })
    }

    /// Queries, keys and values in one matrix.
    fn qkv(&mut self, config: &LlamaConfig, name: &impl Fn(&str) -> String) -> Result<Linear, LoadError> {
        let hidden = config.hidden;
        let (query_name, rows) = (name("attn_q"), config.query_width() + 2 * config.kv_width());
        let queries = self.numbers(&query_name, &[config.query_width(), hidden])?;
        let keys = self.numbers(&name("attn_k"), &[config.kv_width(), hidden])?;
        let values = self.numbers(&name("attn_v"), &[config.kv_width(), hidden])?;
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        let mut all = Vec::with_capacity(rows * hidden);
        all.extend(pairs_to_halves(&queries, config.head_dim, hidden).map(|weight| weight * scale));
        all.extend(pairs_to_halves(&keys, config.head_dim, hidden));
        all.extend(values);
        self.linear(&query_name, &all, hidden)
    }

    /// Matrices of `inputs` columns, their outputs one after the other.
    fn matrix(&mut self, names: &[&str], outputs: usize, inputs: usize) -> Result<Linear, LoadError> {
        let mut all = Vec::new();
        for name in names {
            all.extend(self.numbers(name, &[outputs, inputs])?);
        }
        self.linear(names.first().copied().unwrap_or_default(), &all, inputs)
    }

    /// An `[out, in]` matrix, turned over and cut into a shard for each thread.
    fn linear(&self, name: &str, numbers: &[f32], inputs: usize) -> Result<Linear, LoadError> {
        let outputs = numbers.len() / inputs;
        let threads = self.target.threads.min(numbers.len() / MIN_SHARD).max(1);
        let share = outputs.div_ceil(threads).next_multiple_of(LANES);
        let shard = |numbers: &[f32]| {
            let outputs = numbers.len() / inputs;
            self.upload(name, transpose(numbers, outputs, inputs), [inputs, outputs])
        };
        numbers.chunks(share * inputs).map(shard).collect::<Result<_, _>>().map(Linear::new)
    }

    fn vocabulary_matrix(
        &mut self,
        name: &str,
        vocabulary: usize,
        config: &LlamaConfig,
    ) -> Result<Vocabulary, LoadError> {
        let shape = [vocabulary, config.hidden];
        let numbers = self.numbers(name, &shape)?;
        let weight = Param::from_tensor(self.upload(name, numbers, shape)?);
        Ok(Vocabulary { weight, threads: self.target.threads })
    }

    fn norm(&mut self, name: &str, config: &LlamaConfig) -> Result<RmsNorm, LoadError> {
        let numbers = self.numbers(name, &[config.hidden])?;
        let gamma = Tensor::from_data(TensorData::new(numbers, [config.hidden]), self.device());
        Ok(RmsNorm { gamma: Param::from_tensor(gamma), epsilon: f64::from(config.norm_epsilon) })
    }

    fn has(&self, name: &str) -> bool {
        self.file.tensor_info(name).is_ok()
    }

    fn device(&self) -> &Device {
        &self.target.device
    }

    /// Rows of the embedding.
    fn vocabulary(&self) -> Result<usize, LoadError> {
        let shape = &self.file.tensor_info(EMBEDDING)?.shape;
        let rows = shape.first().copied().unwrap_or_default();
        Ok(rows)
    }

    /// A tensor's numbers, after checking that it has this shape.
    fn numbers(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>, LoadError> {
        let found = &self.file.tensor_info(name)?.shape;
        if found != expected {
            return Err(LoadError::Shape {
                path: self.file.path().to_owned(),
                tensor: name.to_owned(),
                found: found.clone(),
                expected: expected.to_vec(),
            });
        }
        let (_, numbers) = self.file.read_f32(name)?;
        if !numbers.iter().all(|number| number.is_finite()) {
            return Err(LoadError::NotFinite { path: self.file.path().to_owned(), tensor: name.to_owned() });
        }
        self.used.insert(name.to_owned());
        self.progress.inc(1);
        Ok(numbers)
    }

    fn upload(&self, name: &str, numbers: Vec<f32>, shape: [usize; 2]) -> Result<Tensor<2>, LoadError> {
        let bytes = size_of_val(numbers.as_slice()) as u64;
        if let Some(limit) = self.target.max_buffer_bytes
            && bytes > limit
        {
            return Err(LoadError::TooLarge {
                path: self.file.path().to_owned(),
                tensor: name.to_owned(),
                bytes,
                device: self.target.description.clone(),
                limit,
            });
        }
        Ok(Tensor::from_data(TensorData::new(numbers, shape), self.device()))
    }

    /// Refuses a file with tensors that nothing has asked for: its network does more than ours.
    fn finish(self) -> Result<(), LoadError> {
        self.progress.finish_and_clear();
        match self.file.tensors().find(|tensor| !self.used.contains(&tensor.name)) {
            None => Ok(()),
            Some(tensor) => Err(LoadError::UnknownTensor {
                path: self.file.path().to_owned(),
                tensor: tensor.name.clone(),
            }),
        }
    }
}

/// Reorders the rows of each head from rotated pairs side by side (0, 1), (2, 3), … to the first
/// of each pair, then the second of each.
///
/// Queries and keys are reordered alike, so that their products stay what they were.
fn pairs_to_halves(rows: &[f32], head_dim: usize, columns: usize) -> impl Iterator<Item = f32> {
    rows.chunks(head_dim * columns).flat_map(move |head| {
        let half = |offset| head.chunks(columns).skip(offset).step_by(2);
        half(0).chain(half(1)).flatten().copied()
    })
}

/// `[rows, columns]` to `[columns, rows]`, in tiles that fit into a core's first cache.
fn transpose(numbers: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut turned = vec![0.0; numbers.len()];
    turned.par_chunks_mut(TILE * rows).enumerate().for_each(|(band, out)| {
        for (tile, source) in numbers.chunks(TILE * columns).enumerate() {
            for (column, out) in out.chunks_mut(rows).enumerate() {
                let from = source.iter().skip(band * TILE + column).step_by(columns);
                out.iter_mut().skip(tile * TILE).zip(from).for_each(|(to, from)| *to = *from);
            }
        }
    });
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_pairs_become_halves_of_their_head() {
        // Two heads of four rows, two columns: the numbers are row * 10 + column.
        let rows: Vec<f32> = (0..8).flat_map(|r| [r as f32 * 10.0, r as f32 * 10.0 + 1.0]).collect();
        let halves: Vec<f32> = pairs_to_halves(&rows, 4, 2).collect();
        let first_columns: Vec<f32> = halves.iter().step_by(2).copied().collect();
        assert_eq!(first_columns, [0.0, 20.0, 10.0, 30.0, 40.0, 60.0, 50.0, 70.0]);
        assert!(halves.chunks(2).all(|pair| pair[1] == pair[0] + 1.0));
    }

    #[test]
    fn a_matrix_is_turned_over() {
        for (rows, columns) in [(1, 1), (3, 70), (70, 3), (33, 65), (64, 32)] {
            let numbers: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let turned = transpose(&numbers, rows, columns);
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(turned[column * rows + row], numbers[row * columns + column]);
                }
            }
        }
    }
}
