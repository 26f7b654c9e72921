//! The network: from token ids to logits, for many sequences at once.

use std::fmt;
use std::ops::Range;

use burn::tensor::{Device, Int, Tensor};
use emberline_kernels::traffic::{self, Traffic};
use emberline_kernels::{
    BLOCK_SIZE, KvBlocks, KvType, Matrix, Precision, RowSample, RowSpan, Step, StepInput, clamped,
    copy_blocks, embedding, norm_linear,
};
use emberline_protocol::bytes::Bytes;

use super::layer::Layer;
use super::logits::{Hidden, Logits, are_all, select, select_uploaded};
use super::{ComputeError, ModelConfig};

/// Upper bounds for what a process takes besides weights, cache and activations, and for each token of the
/// vocabulary: a worker with 32 slots and 49,152 tokens took 93 MiB.
const PROCESS: u64 = 96 << 20;
const PROCESS_PER_TOKEN: u64 = 1 << 10;

/// A network on its device: weights, and a pool of cache blocks that sequences share.
///
/// A row's numbers depend on its own sequence only: not on other spans of the step, nor on how a
/// sequence is cut into steps, nor on which blocks it lies in.
#[derive(Debug)]
pub struct Network {
    pub(super) config: ModelConfig,
    pub(super) weights: Weights,
    /// One for each of the configuration's rotations, for as many positions as the pool can hold.
    tables: Vec<Tensor<3>>,
    /// One for each layer.
    cache: Vec<KvBlocks>,
    /// Blocks in the pool.
    blocks: usize,
    /// The type of the pool's numbers.
    stored: KvType,
    /// Whether any keys or values were too large for that type.
    clamped: bool,
    device: Device,
    /// Whether the threads of this process compute.
    on_host: bool,
}

/// What is loaded.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor<1>,
    /// Often the embedding itself.
    pub(crate) head: Matrix,
    /// Bytes on the device.
    pub(crate) bytes: u64,
}

/// The memory that a network takes on its device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights, as they are stored there.
    pub weights: u64,
    /// Keys, values, and tables over positions.
    pub cache: u64,
    /// Intermediate results of a step, roughly.
    pub activations: u64,
    /// What the process needs besides, if it computes itself: the program, tokenizer, grammars,
    /// logits on their way to the sampler, memory that is free but not given back.
    pub process: u64,
}

impl MemoryUse {
    /// All of it.
    pub fn total(&self) -> u64 {
        [self.weights, self.cache, self.activations, self.process].into_iter().fold(0, u64::saturating_add)
    }
}

impl fmt::Display for MemoryUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, cache, activations, process } = *self;
        let [weights, cache, activations, process] = [weights, cache, activations, process].map(Bytes);
        write!(f, "weights {weights}, cache {cache}, activations {activations}, process {process}")
    }
}

/// Consecutive tokens of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct StepSpan<'a> {
    /// Token ids, at least one.
    pub tokens: &'a [u32],
    /// Position of the first token in its sequence.
    pub start: usize,
    /// The sequence's block table, at least as far as these tokens go.
    pub blocks: &'a [u32],
    /// After how many of the tokens logits are needed: after the last ones, none for 0.
    pub logit_rows: usize,
}

/// What a step computes.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetworkStep<'a> {
    /// Tokens of different sequences each; their keys and values are kept in the blocks that they name.
    pub spans: &'a [StepSpan<'a>],
    /// Rows of the step whose hidden states are kept for [`Network::logits`].
    pub kept: &'a [usize],
    /// Tokens that [`Logits::sampled`] samples, from rows of the logits that the spans want.
    pub samples: &'a [RowSample],
}

impl Network {
    pub(super) fn new(config: ModelConfig, weights: Weights, device: Device, on_host: bool) -> Self {
        Self {
            config,
            weights,
            tables: Vec::new(),
            cache: Vec::new(),
            blocks: 0,
            stored: KvType::F32,
            clamped: false,
            device,
            on_host,
        }
    }

    /// Has products with weights computed with this precision; [`Precision::Exact`] unless it is set.
    pub fn set_precision(&mut self, precision: Precision) {
        let Weights { layers, head, .. } = &mut self.weights;
        head.set_precision(precision);
        layers.iter_mut().for_each(|layer| layer.set_precision(precision));
    }

    /// The network's dimensions.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Rows of the embedding: every token id is below.
    pub fn vocabulary(&self) -> usize {
        self.weights.embedding.spec().outputs
    }

    /// Bytes of the weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes
    }

    /// Bytes of the weights that a step of one row reads: an embedding that is not also the head is
    /// hardly touched.
    pub fn step_bytes(&self) -> u64 {
        let embedding = if self.config.tied_embedding { 0 } else { self.weights.embedding.bytes() };
        self.weights.bytes - embedding as u64
    }

    /// Bytes of a cache block on the device, all layers together, with numbers of type `stored`.
    pub fn block_bytes(&self, stored: KvType) -> u64 {
        let layer = 2 * self.config.kv_width() * BLOCK_SIZE * stored.bytes();
        (self.config.layers.len() * layer) as u64
    }

    /// The memory of the network on the device, with steps of up to `rows` tokens of which `logits`
    /// want logits.
    pub fn memory(&self, rows: usize, logits: usize) -> MemoryUse {
        let ModelConfig { hidden, feed_forward, vocabulary, .. } = self.config;
        let (queries, keys) = (self.config.query_width(), self.config.kv_width());
        // At its widest, a layer has its residual beside what is projected: queries, keys and
        // values with what attention makes of them, or gate and up with their product.
        let row = 2 * hidden + (2 * queries + 2 * keys).max(3 * feed_forward);
        let tables = self.tables.iter().map(|table| table.shape().num_elements()).sum::<usize>();
        let bytes = |numbers: usize| (numbers * size_of::<f32>()) as u64;
        MemoryUse {
            weights: self.weights.bytes,
            cache: self.blocks as u64 * self.block_bytes(self.stored) + bytes(tables),
            activations: bytes(rows * row + logits * vocabulary),
            process: if self.on_host { PROCESS + PROCESS_PER_TOKEN * vocabulary as u64 } else { 0 },
        }
    }

    /// Allocates a new pool of `blocks` cache blocks; the content of the last one is lost.
    pub fn allocate_cache(&mut self, blocks: usize, stored: KvType) -> Result<(), ComputeError> {
        let context = self.config.context_length;
        let positions = context.min(blocks.saturating_mul(BLOCK_SIZE));
        // Free the old pool first, so that two pools never exist at once.
        self.cache.clear();
        let rotaries = self.config.rotaries.iter();
        self.tables = rotaries.map(|rotary| rotary.table(context, positions, &self.device)).collect();
        let ModelConfig { kv_heads, head_dim, .. } = self.config;
        let device = &self.device;
        // As large as asked for: pages for what comes and goes would be as large as the largest of these.
        let pool = |()| KvBlocks::zeros(blocks, kv_heads, head_dim, stored, device);
        let layers = self.config.layers.iter();
        self.cache = layers.map(|_| device.memory_persistent_allocations((), pool)).collect();
        (self.blocks, self.stored, self.clamped) = (blocks, stored, false);
        traffic::count(&self.device, Traffic::ROUND_TRIP);
        self.device.sync().map_err(|error| ComputeError(error.to_string()))
    }

    /// Copies whole cache blocks, each `(from, to)`.
    pub fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        if !pairs.is_empty() {
            let cache = std::mem::take(&mut self.cache);
            self.cache = cache.into_iter().map(|layer| copy_blocks(layer, pairs)).collect();
        }
    }

    /// Computes `spans`, of different sequences each, and keeps their keys and values in the
    /// blocks that they name.
    ///
    /// Returns the rows of logits that the spans want, in order; `None` if they want none.
    pub fn forward(&mut self, spans: &[StepSpan<'_>]) -> Result<Option<Logits>, ComputeError> {
        Ok(self.step(NetworkStep { spans, ..NetworkStep::default() })?.0)
    }

    /// Computes a step. All that the device has to know of it goes there in one upload.
    ///
    /// Returns the rows of logits that the spans want, in order, and the hidden states that are kept; `None` for none.
    pub fn step(&mut self, step: NetworkStep<'_>) -> Result<(Option<Logits>, Option<Hidden>), ComputeError> {
        let NetworkStep { spans, kept, samples } = step;
        self.check(spans).map_err(ComputeError)?;
        let rows: usize = spans.iter().map(|span| span.tokens.len()).sum();
        if let Some(row) = kept.iter().find(|row| **row >= rows) {
            return Err(ComputeError(format!("row {row} of {rows} is to be kept")));
        }
        let wanted: usize = spans.iter().map(|span| span.logit_rows).sum();
        if let Some(sample) = samples.iter().find(|sample| sample.row >= wanted) {
            return Err(ComputeError(format!("a token of row {} of {wanted} is to be sampled", sample.row)));
        }
        if spans.is_empty() {
            return Ok((None, None));
        }
        let before = clamped();
        let computed = self.on_pool(|network| network.compute(step));
        // The counter is global: another network that computes at the same time counts here, too.
        self.clamped |= self.stored == KvType::F16 && clamped() != before;
        Ok(computed)
    }

    /// Whether keys or values were larger than the cache's type can hold, and were stored as the
    /// largest that it can.
    pub fn has_clamped(&self) -> bool {
        self.clamped
    }

    /// The logits of each of these rows, with the same bits as those of [`Network::forward`].
    pub fn logits(&mut self, hidden: &Hidden, rows: Range<usize>) -> Result<Logits, ComputeError> {
        if rows.start >= rows.end || rows.end > hidden.rows() {
            return Err(ComputeError(format!("rows {rows:?} of {} are wanted", hidden.rows())));
        }
        let x = select(hidden.tensor.clone(), &rows.collect::<Vec<_>>());
        Ok(self.on_pool(|network| Logits::new(network.head(x))))
    }

    /// Computes on a thread of rayon's pool; from outside, each operation would have to wake it.
    fn on_pool<T: Send>(&mut self, compute: impl FnOnce(&mut Self) -> T + Send) -> T {
        if self.on_host { rayon::scope(|_| compute(self)) } else { compute(self) }
    }

    /// The final norm and the product with the head.
    fn head(&self, x: Tensor<2>) -> Tensor<2> {
        let Weights { norm, head, .. } = &self.weights;
        norm_linear(x, norm, self.config.norm_epsilon, head)
    }

    /// Refuses spans that would read or write outside the pool and the tables.
    fn check(&self, spans: &[StepSpan<'_>]) -> Result<(), String> {
        let vocabulary = self.vocabulary();
        if self.cache.len() != self.config.layers.len() {
            return Err("there is no cache".to_owned());
        }
        for (number, span) in spans.iter().enumerate() {
            let end = span.start.saturating_add(span.tokens.len());
            let blocks = end.div_ceil(BLOCK_SIZE);
            let used = span.blocks.get(..blocks).ok_or_else(|| {
                format!("span {number} ends at position {end}, behind its {} blocks", span.blocks.len())
            })?;
            if span.tokens.is_empty() {
                return Err(format!("span {number} has no tokens"));
            }
            if span.logit_rows > span.tokens.len() {
                let (wanted, tokens) = (span.logit_rows, span.tokens.len());
                return Err(format!("span {number} wants {wanted} rows of logits after {tokens} tokens"));
            }
            if end > self.config.context_length {
                let context = self.config.context_length;
                return Err(format!("span {number} ends at position {end}, behind the context of {context}"));
            }
            if let Some(block) = used.iter().find(|block| **block as usize >= self.blocks) {
                return Err(format!("span {number} uses block {block} of {}", self.blocks));
            }
            if let Some(token) = span.tokens.iter().find(|token| **token as usize >= vocabulary) {
                return Err(format!("span {number} has token {token} of {vocabulary}"));
            }
        }
        Ok(())
    }

    fn compute(&mut self, step: NetworkStep<'_>) -> (Option<Logits>, Option<Hidden>) {
        let NetworkStep { spans, kept, samples } = step;
        let rows: Vec<RowSpan<'_>> = spans
            .iter()
            .map(|span| RowSpan { start: span.start, rows: span.tokens.len(), blocks: span.blocks })
            .collect();
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let last_rows = spans.iter().scan(0, |end, span| {
            *end += span.tokens.len();
            Some(*end - span.logit_rows..*end)
        });
        let wanted: Vec<usize> = last_rows.flatten().collect();
        // Where all rows are wanted, none need be selected.
        let selected = if are_all(&wanted, tokens.len()) { &[][..] } else { &wanted };
        let input = StepInput { spans: &rows, tokens: &tokens, selected, kept, samples };
        let Step { rows, tokens, selected: selection, kept: keep, samples } =
            Step::upload(input, &self.device);
        let mut x = self.embed(tokens);
        let cache = std::mem::take(&mut self.cache);
        for (layer, blocks) in self.weights.layers.iter().zip(cache) {
            let (next, blocks) = layer.forward(x, &self.tables[layer.rotary], &rows, blocks);
            x = next;
            self.cache.push(blocks);
        }
        let hidden = (!kept.is_empty()).then(|| Hidden { tensor: select_uploaded(x.clone(), keep) });
        if wanted.is_empty() {
            return (None, hidden);
        }
        let x = if selected.is_empty() { x } else { select_uploaded(x, selection) };
        (Some(Logits::with_samples(self.head(x), samples)), hidden)
    }

    fn embed(&self, tokens: Tensor<1, Int>) -> Tensor<2> {
        let x = embedding(tokens, &self.weights.embedding);
        match self.config.embedding_scale {
            1.0 => x,
            scale => {
                traffic::count(&self.device, Traffic::LAUNCH);
                x.mul_scalar(scale)
            }
        }
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
