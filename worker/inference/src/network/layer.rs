//! One transformer layer over the operations of the kernels.

use burn::tensor::Tensor;
use emberline_kernels::{
    Activation, HeadShape, KvBlocks, Matrix, StepRows, attention, linear, linear_add, norm_gated,
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
    pub(crate) mlp_norm: Tensor<1>,
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
    pub(crate) post_mlp_norm: Option<Tensor<1>>,
    pub(crate) shape: HeadShape,
    /// Which of the network's rotary tables it reads.
    pub(crate) rotary: usize,
    pub(crate) epsilon: f32,
    pub(crate) activation: Activation,
}

impl Layer {
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
        let x = self.project(mixed, &self.output, self.post_attention_norm.as_ref(), x);
        let x = match &self.output_bias {
            Some(bias) => x + bias.clone().unsqueeze(),
            None => x,
        };
        let gated = norm_gated(x.clone(), &self.mlp_norm, self.epsilon, &self.gate_up, self.activation);
        (self.project(gated, &self.down, self.post_mlp_norm.as_ref(), x), cache)
    }

    fn qkv(&self, x: &Tensor<2>) -> Tensor<2> {
        let part = |matrix| norm_linear(x.clone(), &self.attention_norm, self.epsilon, matrix);
        match self.qkv.as_slice() {
            [whole] => part(whole),
            parts => Tensor::cat(parts.iter().map(part).collect(), 1),
        }
    }

    /// Back to the residual stream.
    fn project(
        &self,
        x: Tensor<2>,
        weight: &Matrix,
        norm: Option<&Tensor<1>>,
        residual: Tensor<2>,
    ) -> Tensor<2> {
        match norm {
            Some(gamma) => residual + rms_norm(linear(x, weight), gamma, self.epsilon),
            None => linear_add(x, weight, residual),
        }
    }
}
