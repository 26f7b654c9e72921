//! The network: from token ids to the logits of the next token.

use burn::module::Module;
use burn::nn::RmsNorm;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::cache::{CacheShape, KvCache};
use super::layers::{Layer, Span, Vocabulary};
use super::{ComputeError, LlamaConfig};

/// Row counts that a device with [`Shapes::Bucketed`] meets.
const ROW_BUCKETS: [usize; 4] = [1, 32, 128, MAX_BLOCK];
/// Most rows computed at once: bounds the memory for attention scores.
const MAX_BLOCK: usize = 512;
/// A CPU gains nothing from larger blocks, but loses by the scores that the causal mask discards.
const CPU_BLOCK: usize = 256;
/// Added to the score of a position that must not be seen.
const HIDDEN: f32 = f32::MIN / 2.0;

/// How a device wants its work shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shapes {
    /// As it comes: right for a CPU, where nothing is compiled for a shape.
    Exact,
    /// Padded to few different sizes: each new shape costs a GPU compilation and tuning.
    Bucketed,
}

/// The weights.
#[derive(Module, Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Vocabulary,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: RmsNorm,
    /// Often the embedding itself.
    pub(crate) head: Vocabulary,
}

/// Tables over all positions.
#[derive(Debug)]
pub(crate) struct Tables {
    /// `[positions, head_dim]`, see [`Span::cos`].
    cos: Tensor<2>,
    /// `[positions, head_dim]`, see [`Span::sin`].
    sin: Tensor<2>,
    /// `[positions]`: 0, 1, 2 and so on.
    index: Tensor<1, Int>,
}

impl Tables {
    /// `factors` divides the frequency of each rotated pair, where the model has such a table.
    pub(crate) fn new(config: &LlamaConfig, factors: Option<&[f32]>, device: &Device) -> Self {
        let positions = max_capacity(config);
        let half = config.head_dim / 2;
        let mut cos = Vec::with_capacity(positions * config.head_dim);
        let mut sin = Vec::with_capacity(positions * config.head_dim);
        // In double precision: the angle of a late position is a large number of turns.
        let frequency = |pair: usize| {
            let exponent = 2.0 * pair as f64 / config.head_dim as f64;
            let factor = factors.and_then(|f| f.get(pair)).map_or(1.0, |f| f64::from(*f));
            f64::from(config.rope_base).powf(-exponent) / factor
        };
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        for position in 0..positions {
            let angles = || frequencies.iter().map(|f| f * position as f64);
            cos.extend(angles().chain(angles()).map(|a| a.cos() as f32));
            sin.extend(angles().map(|a| -a.sin() as f32));
            sin.extend(angles().map(|a| a.sin() as f32));
        }
        let table = |data| Tensor::from_data(TensorData::new(data, [positions, config.head_dim]), device);
        let last = i64::try_from(positions).unwrap_or(i64::MAX);
        Self { cos: table(cos), sin: table(sin), index: Tensor::arange(0..last, device) }
    }

    fn span(&self, start: usize, rows: usize, visible: usize) -> Span {
        let index = |from: usize, count: usize| self.index.clone().narrow(0, from, count);
        // A single row at the end of exactly what is visible sees all of it.
        let mask = (rows > 1 || visible > start + 1).then(|| {
            let columns = index(0, visible).reshape([1, 1, visible]).expand([1, rows, visible]);
            let positions = index(start, rows).reshape([1, rows, 1]).expand([1, rows, visible]);
            columns.greater(positions).float().mul_scalar(HIDDEN)
        });
        Span {
            start,
            rows,
            visible,
            cos: self.cos.clone().narrow(0, start, rows).unsqueeze(),
            sin: self.sin.clone().narrow(0, start, rows).unsqueeze(),
            mask,
        }
    }
}

/// Capacity that suffices for a full context of padded blocks.
fn max_capacity(config: &LlamaConfig) -> usize {
    config.context_length.next_multiple_of(MAX_BLOCK) + MAX_BLOCK
}

/// Most rows at once whose attention scores over a full context fit into one of the device's buffers.
pub(crate) fn largest_block(config: &LlamaConfig, shapes: Shapes, max_buffer_bytes: Option<u64>) -> usize {
    if shapes == Shapes::Exact {
        return CPU_BLOCK;
    }
    let row_bytes = (config.heads * max_capacity(config) * size_of::<f32>()) as u64;
    let fits = |rows: &usize| max_buffer_bytes.is_none_or(|limit| *rows as u64 * row_bytes <= limit);
    ROW_BUCKETS.into_iter().rfind(fits).unwrap_or(1)
}

/// A network on its device.
#[derive(Debug)]
pub struct Llama {
    pub(crate) config: LlamaConfig,
    pub(crate) weights: Weights,
    pub(crate) tables: Tables,
    pub(crate) shapes: Shapes,
    /// See [`Llama::block`].
    pub(crate) block: usize,
    pub(crate) vocabulary: usize,
    pub(crate) device: Device,
}

impl Llama {
    /// The network's dimensions.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Rows of the embedding: every token id is below.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// An empty cache for a new sequence, which begins with room for `expected` positions and
    /// grows if there are more.
    pub fn new_cache(&self, expected: usize) -> KvCache {
        let shape = CacheShape {
            layers: self.config.layers,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            max_capacity: max_capacity(&self.config),
            device: self.device.clone(),
        };
        KvCache::new(shape, expected)
    }

    /// Most tokens that are computed at once; longer inputs are cut.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Computes `tokens` behind what is in `cache`; returns the logits after the last of them.
    ///
    /// The caller keeps within the context length and passes at least one token, each within the
    /// vocabulary. A call for several tokens gives the logits of as many calls for one, up to
    /// rounding.
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>, ComputeError> {
        match self.shapes {
            // On a thread of the pool that shares the work, or else each share costs a wake-up.
            Shapes::Exact => rayon::scope(|_| self.logits(tokens, cache)),
            Shapes::Bucketed => self.logits(tokens, cache),
        }
    }

    fn logits(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>, ComputeError> {
        let mut last = None;
        for block in tokens.chunks(self.block()) {
            last = Some(self.state(block, cache));
        }
        let Some(state) = last else {
            return Err(ComputeError("no tokens to compute".to_owned()));
        };
        let logits = self.weights.head.logits(self.weights.norm.forward(state));
        logits.try_into_vec_as::<f32>().map_err(|error| ComputeError(error.to_string()))
    }

    /// Computes at most a block of tokens; returns the state `[1, hidden]` of the last.
    fn state(&self, tokens: &[u32], cache: &mut KvCache) -> Tensor<2> {
        let start = cache.len();
        let rows = match self.shapes {
            Shapes::Exact => tokens.len(),
            Shapes::Bucketed => ROW_BUCKETS.into_iter().find(|b| *b >= tokens.len()).unwrap_or(self.block),
        };
        cache.reserve(start + rows);
        let visible = match self.shapes {
            Shapes::Exact => start + rows,
            Shapes::Bucketed => cache.capacity(),
        };
        let span = self.tables.span(start, rows, visible);
        // What padding computes is hidden from every real row, and overwritten when its
        // position is reached.
        let padded = tokens.iter().copied().chain(std::iter::repeat(0)).take(rows);
        let ids: Vec<i32> = padded.map(|id| i32::try_from(id).unwrap_or(0)).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [rows]), &self.device);
        let mut x = self.weights.embedding.embed(ids);
        let before = std::mem::take(&mut cache.layers);
        for (layer, layer_cache) in self.weights.layers.iter().zip(before) {
            let (next, layer_cache) = layer.forward(x, layer_cache, &span);
            x = next;
            cache.layers.push(layer_cache);
        }
        cache.advance(tokens.len());
        x.narrow(0, tokens.len() - 1, 1)
    }
}

#[cfg(test)]
#[path = "llama_tests.rs"]
mod tests;
