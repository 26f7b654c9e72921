//! The building blocks of a Llama network as burn modules.
//!
//! Everything here works on the rows of one sequence: `[rows, hidden]`, where a row is a position.

use burn::module::{Module, Param};
use burn::nn::RmsNorm;
use burn::tensor::Tensor;
use burn::tensor::activation::{silu, softmax};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::cache::LayerCache;

/// The positions that one forward pass computes.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// Position of the first row.
    pub(crate) start: usize,
    /// Rows, padding included.
    pub(crate) rows: usize,
    /// Cache entries that attention reads.
    pub(crate) visible: usize,
    /// `[1, rows, head_dim]`: cosines, once for each half of a head.
    pub(crate) cos: Tensor<3>,
    /// `[1, rows, head_dim]`: sines, negative for the first half of a head.
    pub(crate) sin: Tensor<3>,
    /// `[1, rows, visible]`: hugely negative where a row must not look, otherwise 0. `None` if every
    /// row sees everything.
    pub(crate) mask: Option<Tensor<3>>,
}

/// A product with a weight matrix.
#[derive(Module, Debug)]
pub(crate) struct Linear {
    /// `[in, out]`: of the two layouts the one that a single row is multiplied by faster.
    weight: Param<Tensor<2>>,
    /// Threads that share the product of a single row, which burn's CPU backend leaves to one.
    threads: usize,
}

/// Columns are dealt out in multiples of this, so that vector units are filled.
const LANES: usize = 16;
/// With fewer weights than this for each thread, dealing out costs more than it saves.
const MIN_SHARE: usize = 1 << 17;

impl Linear {
    /// Wraps an `[in, out]` matrix.
    pub(crate) fn new(weight: Tensor<2>, threads: usize) -> Self {
        Self { weight: Param::from_tensor(weight), threads }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let weight = self.weight.val();
        let ([rows, width], [_, columns]) = (x.dims(), weight.dims());
        let threads = self.threads.min(width * columns / MIN_SHARE);
        if rows > 1 || threads <= 1 {
            return x.matmul(weight);
        }
        let share = columns.div_ceil(threads).next_multiple_of(LANES);
        let starts: Vec<usize> = (0..columns).step_by(share).collect();
        let product = |start: usize| {
            let columns = share.min(columns - start);
            x.clone().matmul(weight.clone().narrow(1, start, columns))
        };
        Tensor::cat(starts.into_par_iter().map(product).collect(), 1)
    }
}

/// Grouped-query attention over a key/value cache.
#[derive(Module, Debug)]
pub(crate) struct Attention {
    /// Queries (already scaled by the root of the head's width), keys and values in one product.
    pub(crate) qkv: Linear,
    pub(crate) output: Linear,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Attention {
    /// `[rows, hidden]` to `[rows, hidden]`; adds the rows' keys and values to the cache.
    fn forward(&self, x: Tensor<2>, cache: LayerCache, span: &Span) -> (Tensor<2>, LayerCache) {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        let rows = span.rows;
        let all = self.qkv.forward(x).reshape([rows, heads + 2 * kv_heads, head_dim]).swap_dims(0, 1);
        let rotated = rotate(all.clone().narrow(0, 0, heads + kv_heads), span);
        let keys = rotated.clone().narrow(0, heads, kv_heads);
        let values = all.narrow(0, heads + kv_heads, kv_heads);
        let cache = cache.append(span.start, keys, values);
        let (keys, values) = cache.visible(span.visible);

        // The queries that share a key head become rows of one product: nothing is repeated.
        let group_rows = heads / kv_heads * rows;
        let queries = rotated.narrow(0, 0, heads).reshape([kv_heads, group_rows, head_dim]);
        let scores = queries.matmul(keys.transpose()).reshape([heads, rows, span.visible]);
        let scores = match &span.mask {
            Some(mask) => scores + mask.clone(),
            None => scores,
        };
        let weights = softmax(scores, 2).reshape([kv_heads, group_rows, span.visible]);
        let mixed = weights.matmul(values).reshape([heads, rows, head_dim]).swap_dims(0, 1);
        (self.output.forward(mixed.reshape([rows, heads * head_dim])), cache)
    }
}

/// Rotates `[heads, rows, head_dim]` by position.
///
/// The file interleaves the two numbers of a rotated pair; loading moved them to the two halves
/// of a head, so that they can be taken apart as slices.
fn rotate(x: Tensor<3>, span: &Span) -> Tensor<3> {
    let [_, _, head_dim] = x.dims();
    let half = head_dim / 2;
    let swapped = Tensor::cat(vec![x.clone().narrow(2, half, half), x.clone().narrow(2, 0, half)], 2);
    x * span.cos.clone() + swapped * span.sin.clone()
}

/// The gated feed-forward layer.
#[derive(Module, Debug)]
pub(crate) struct Mlp {
    /// Gate and up projection in one product.
    pub(crate) gate_up: Linear,
    pub(crate) down: Linear,
    pub(crate) width: usize,
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let both = self.gate_up.forward(x);
        let gate = both.clone().narrow(1, 0, self.width);
        let up = both.narrow(1, self.width, self.width);
        self.down.forward(silu(gate) * up)
    }
}

/// One transformer block.
#[derive(Module, Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: RmsNorm,
    pub(crate) attention: Attention,
    pub(crate) mlp_norm: RmsNorm,
    pub(crate) mlp: Mlp,
}

impl Layer {
    /// `[rows, hidden]` to `[rows, hidden]`.
    pub(crate) fn forward(&self, x: Tensor<2>, cache: LayerCache, span: &Span) -> (Tensor<2>, LayerCache) {
        let (attended, cache) = self.attention.forward(self.attention_norm.forward(x.clone()), cache, span);
        let x = x + attended;
        let mixed = self.mlp.forward(self.mlp_norm.forward(x.clone()));
        (x + mixed, cache)
    }
}
