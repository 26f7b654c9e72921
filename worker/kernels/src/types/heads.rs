//! How a layer's heads and its feed-forward gate are configured.

/// The gate's activation in a gated feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// How one row of queries, keys and values is laid out, and what is done to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads, which lie side by side.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Leading components of a head that are rotated, as pairs (i, i + rotary_dim / 2); 0 for none.
    pub rotary_dim: usize,
    /// RMS normalisation of each head's query and key before rotation: the epsilon.
    pub head_norm: Option<f32>,
    /// Whether a bias is added to queries, keys and values first.
    pub bias: bool,
    /// What scores are multiplied with before the softmax.
    pub scale: f32,
    /// How many positions back a token sees, itself included; `None` for all.
    pub window: Option<usize>,
}

impl HeadShape {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
