//! The building blocks of a Llama network as burn modules.
//!
//! Everything here works on the rows of one sequence: `[rows, hidden]`, where a row is a position.

use burn::module::{Module, Param};
use burn::nn::RmsNorm;
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Int, Tensor};
use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};

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
    /// `[in, out]`, cut into blocks of columns that are computed at the same time. A single row
    /// is limited by how fast weights come from memory: several threads together fetch them
    /// faster, and fastest if each reads a matrix of its own.
    shards: Vec<Param<Tensor<2>>>,
}

impl Linear {
    /// `shards` are `[in, out]` matrices side by side.
    pub(crate) fn new(shards: Vec<Tensor<2>>) -> Self {
        Self { shards: shards.into_iter().map(Param::from_tensor).collect() }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self.shards.as_slice() {
            [only] => x.matmul(only.val()),
            shards => {
                let products = shards.par_iter().map(|shard| x.clone().matmul(shard.val()));
                Tensor::cat(products.collect(), 1)
            }
        }
    }
}

/// One vector for each token: embeddings, or the weights of the logits, or both at once.
#[derive(Module, Debug)]
pub(crate) struct Vocabulary {
    /// `[vocabulary, hidden]`.
    pub(crate) weight: Param<Tensor<2>>,
    /// Threads that share the product of a single row.
    pub(crate) threads: usize,
}

impl Vocabulary {
    /// `[rows]` token ids to `[rows, hidden]`.
    pub(crate) fn embed(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        self.weight.val().select(0, ids)
    }

    /// `[rows, hidden]` to `[rows, vocabulary]`.
    pub(crate) fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        let weight = self.weight.val();
        if self.threads == 1 {
            return x.matmul(weight.transpose());
        }
        let [tokens, _] = weight.dims();
        let share = tokens.div_ceil(self.threads);
        let starts: Vec<usize> = (0..tokens).step_by(share).collect();
        let product = |start: usize| {
            let rows = share.min(tokens - start);
            x.clone().matmul(weight.clone().narrow(0, start, rows).transpose())
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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// `[rows, columns]` of small different numbers.
    fn matrix(rows: usize, columns: usize) -> Tensor<2> {
        let numbers: Vec<f32> = (0..rows * columns).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        Tensor::from_data(TensorData::new(numbers, [rows, columns]), &Device::flex())
    }

    #[test]
    fn shards_make_the_product_of_the_whole() {
        let whole = matrix(6, 10);
        let shards = vec![whole.clone().narrow(1, 0, 4), whole.clone().narrow(1, 4, 6)];
        for rows in [1, 3] {
            let sharded = Linear::new(shards.clone()).forward(matrix(rows, 6));
            let product = Linear::new(vec![whole.clone()]).forward(matrix(rows, 6));
            assert_eq!(sharded.dims(), [rows, 10]);
            assert_eq!(sharded.into_data(), product.into_data());
        }
    }

    #[test]
    fn every_token_has_a_logit_however_many_threads_there_are() {
        let logits = |threads| {
            let vocabulary = Vocabulary { weight: Param::from_tensor(matrix(7, 4)), threads };
            vocabulary.logits(matrix(1, 4))
        };
        assert_eq!(logits(1).dims(), [1, 7]);
        for threads in [2, 3, 16] {
            assert_eq!(logits(threads).into_data(), logits(1).into_data());
        }
    }
}
