//! A network's dimensions and variations, read from a GGUF file's metadata or from `config.json`.

mod family;
mod gguf;
mod hf;
mod hf_rope;

use std::path::Path;

use emberline_kernels::{Activation, HeadShape};

use super::NetworkError;
use super::rotary::Rotary;
pub(crate) use family::{Family, Layout};

/// Real models are far below these limits; larger numbers mean a damaged file.
pub(crate) const MAX_LAYERS: usize = 1024;
pub(crate) const MAX_WIDTH: usize = 1 << 20;
pub(crate) const MAX_CONTEXT: usize = 1 << 24;
pub(crate) const MAX_VOCABULARY: usize = 1 << 24;

/// The dimensions and variations of a network.
///
/// All families are one stack of layers (normalisation, attention, normalisation, gated
/// feed-forward) and differ in what is said here.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding: every token id is below.
    pub vocabulary: usize,
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
    /// Number of positions, prompt and completion together.
    pub context_length: usize,
    /// Added to the mean square before the root, in norms.
    pub norm_epsilon: f32,
    /// Activation of the feed-forward's gate.
    pub activation: Activation,
    /// Factor of attention scores.
    pub score_scale: f32,
    /// Factor of embeddings.
    pub embedding_scale: f32,
    /// Whether the head is the embedding.
    pub tied_embedding: bool,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the output of attention has a bias.
    pub output_bias: bool,
    /// Whether each head's query and key are normalised.
    pub head_norm: bool,
    /// Whether the outputs of attention and feed-forward are normalised, too.
    pub post_norms: bool,
    /// The rotations that layers refer to; at least one.
    pub rotaries: Vec<Rotary>,
    /// One for each layer.
    pub layers: Vec<LayerConfig>,
}

/// What may differ between the layers of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// Index into [`ModelConfig::rotaries`]; `None` for a layer without
    /// positions.
    pub rotary: Option<usize>,
    /// Sliding window: how many positions a token attends to, itself included; `None` for all.
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

    /// The shape of `layer`'s attention.
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

    /// Refuses contradicting dimensions and numbers that are not finite and positive.
    fn checked(mut self, path: &Path) -> Result<Self, NetworkError> {
        let wrong = |key: &str, found: String, wanted: &'static str| {
            Err(NetworkError::Setting { path: path.to_owned(), key: key.to_owned(), found, wanted })
        };
        if !self.heads.is_multiple_of(self.kv_heads) {
            let found = format!("{} for {} query heads", self.kv_heads, self.heads);
            return wrong("the number of key/value heads", found, "a divisor of the number of heads");
        }
        let fits = |rotary: &Rotary| (2..=self.head_dim).contains(&rotary.dim());
        if self.head_dim > MAX_WIDTH || !self.head_dim.is_multiple_of(2) || !self.rotaries.iter().all(fits) {
            let dims: Vec<_> = self.rotaries.iter().map(Rotary::dim).collect();
            let found = format!("{dims:?} for heads of {}", self.head_dim);
            return wrong("the number of rotated components", found, "even and no more than a head is wide");
        }
        let numbers =
            self.rotaries.iter().flat_map(|rotary| rotary.frequencies.iter().chain([&rotary.magnitude]));
        if let Some(number) = numbers.into_iter().find(|number| !(number.is_finite() && **number > 0.0)) {
            return wrong("a rotary frequency", number.to_string(), "a number above 0");
        }
        for (key, number) in [
            ("the epsilon of norms", self.norm_epsilon),
            ("the scale of attention scores", self.score_scale),
            ("the scale of embeddings", self.embedding_scale),
        ] {
            if !(number.is_finite() && number > 0.0) {
                return wrong(key, number.to_string(), "a number above 0");
            }
        }
        // A window as wide as the context hides nothing.
        for layer in &mut self.layers {
            layer.window = layer.window.filter(|window| *window < self.context_length);
        }
        Ok(self)
    }
}
