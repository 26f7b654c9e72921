//! What a network looks like, whatever file says so.

mod gguf;

use emberline_kernels::{Activation, HeadShape};

use super::rotary::Rotary;

/// No real model comes near these; larger numbers mean a damaged file.
pub(crate) const MAX_LAYERS: usize = 1024;
pub(crate) const MAX_WIDTH: usize = 1 << 20;
pub(crate) const MAX_CONTEXT: usize = 1 << 24;

/// The dimensions and variations of a network.
///
/// All families are one stack of layers (normalisation, attention, normalisation, gated
/// feed-forward) and differ in what is said here.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the gated feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Most positions, prompt and completion together.
    pub context_length: usize,
    /// Added to the mean square before its root.
    pub norm_epsilon: f32,
    /// Of the gate.
    pub activation: Activation,
    /// What attention scores are multiplied with.
    pub score_scale: f32,
    /// What embeddings are multiplied with.
    pub embedding_scale: f32,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether each head's query and key are normalised.
    pub head_norm: bool,
    /// Whether the outputs of attention and feed-forward are normalised, too.
    pub post_norms: bool,
    /// The rotations that layers choose from.
    pub rotaries: Vec<Rotary>,
    /// One for each layer.
    pub layers: Vec<LayerConfig>,
}

/// What layers of one network may do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// Which of [`ModelConfig::rotaries`] turns queries and keys; `None` for a layer without
    /// positions.
    pub rotary: Option<usize>,
    /// How many positions back a token sees, itself included; `None` for all.
    pub window: Option<usize>,
}

impl ModelConfig {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// How `layer`'s attention works.
    pub(crate) fn head_shape(&self, layer: LayerConfig) -> HeadShape {
        let rotary = layer.rotary.and_then(|index| self.rotaries.get(index));
        HeadShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rotary_dim: rotary.map_or(0, Rotary::dim),
            head_norm: self.head_norm.then_some(self.norm_epsilon),
            bias: self.qkv_bias,
            scale: self.score_scale,
            window: layer.window,
        }
    }
}
