//! One transformer layer over the operations of the kernels: attention, then feed-forward.

use burn::tensor::Tensor;
use emberline_kernels::traffic::{self, Traffic};
use emberline_kernels::{
    Activation, HeadShape, KvBlocks, Matrix, Precision, StepRows, attention, linear, linear_add, norm_gated,
    norm_linear, rms_norm, rotate_and_store,
};

/// The weights of a layer, and how it uses them.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Tensor<1>,
    /// Queries, keys and values: one matrix, or several where they are stored differently.
    pub(crate) qkv: Vec<Matrix>,
    /// As wide as queries, keys and values together, if the shape has a bias.
    pub(crate) bias: Tensor<1>,
    /// `[2, head_dim]`, if the shape has norms of heads.
    pub(crate) head_norms: Tensor<2>,
    pub(crate) output: Matrix,
    pub(crate) output_bias: Option<Tensor<1>>,
    pub(crate) post_attention_norm: Option<Tensor<1>>,
    pub(crate) feed_forward: FeedForward,
    pub(crate) shape: HeadShape,
    /// Which of the network's rotary tables it reads.
    pub(crate) rotary: usize,
    pub(crate) epsilon: f32,
}

/// The second half of a layer.
#[derive(Debug)]
pub(crate) enum FeedForward {
    /// Every token takes the same weights.
    Dense(DenseFeedForward),
}

/// A gated feed-forward: `down(activation(gate(norm(x))) * up(norm(x)))`.
#[derive(Debug)]
pub(crate) struct DenseFeedForward {
    pub(crate) norm: Tensor<1>,
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
    pub(crate) post_norm: Option<Tensor<1>>,
    pub(crate) activation: Activation,
}

impl FeedForward {
    fn set_precision(&mut self, precision: Precision) {
        match self {
            Self::Dense(DenseFeedForward { gate_up, down, .. }) => {
                gate_up.set_precision(precision);
                down.set_precision(precision);
            }
        }
    }

    /// `[rows, hidden]` to `[rows, hidden]`, `x` added.
    fn forward(&self, x: Tensor<2>, epsilon: f32) -> Tensor<2> {
        match self {
            Self::Dense(dense) => {
                let gated = norm_gated(x.clone(), &dense.norm, epsilon, &dense.gate_up, dense.activation);
                project(gated, &dense.down, dense.post_norm.as_ref(), x, epsilon)
            }
        }
    }
}

impl Layer {
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.qkv.iter_mut().for_each(|matrix| matrix.set_precision(precision));
        self.output.set_precision(precision);
        self.feed_forward.set_precision(precision);
    }

    /// `[rows, hidden]` to `[rows, hidden]`; adds the rows' keys and values to the cache.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        rotary: &Tensor<3>,
        rows: &StepRows,
        cache: KvBlocks,
    ) -> (Tensor<2>, KvBlocks) {
        let qkv = self.qkv(&x);
        let (queries, cache) =
            rotate_and_store(qkv, &self.bias, &self.head_norms, rotary, rows, cache, self.shape);
        let mixed = attention(queries, &cache, rows, self.shape);
        let x = project(mixed, &self.output, self.post_attention_norm.as_ref(), x, self.epsilon);
        let x = match &self.output_bias {
            Some(bias) => {
                traffic::count(&x.device(), Traffic::LAUNCH);
                x + bias.clone().unsqueeze()
            }
            None => x,
        };
        (self.feed_forward.forward(x, self.epsilon), cache)
    }

    fn qkv(&self, x: &Tensor<2>) -> Tensor<2> {
        let part = |matrix| norm_linear(x.clone(), &self.attention_norm, self.epsilon, matrix);
        match self.qkv.as_slice() {
            [whole] => part(whole),
            parts => {
                // A copy of each part.
                parts.iter().for_each(|_| traffic::count(&x.device(), Traffic::LAUNCH));
                Tensor::cat(parts.iter().map(part).collect(), 1)
            }
        }
    }
}

/// The product of `x` and `weight`, normalised if there is a `norm`, added to the residual stream.
fn project(
    x: Tensor<2>,
    weight: &Matrix,
    norm: Option<&Tensor<1>>,
    residual: Tensor<2>,
    epsilon: f32,
) -> Tensor<2> {
    match norm {
        Some(gamma) => {
            traffic::count(&residual.device(), Traffic::LAUNCH);
            residual + rms_norm(linear(x, weight), gamma, epsilon)
        }
        None => linear_add(x, weight, residual),
    }
}
