//! The shape of attention heads, and the activation of a gated feed-forward layer.

/// The gate's activation in a gated feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// How one row of queries, keys and values is laid out, and what is done to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadShape {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads; each serves `heads / kv_heads` adjacent query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of leading components of a head that are rotated, as pairs (i, i + rotary_dim / 2);
    /// 0 for none.
    pub rotary_dim: usize,
    /// Epsilon of the RMS norm of each head's query and key before rotation; `None` for no norm.
    pub head_norm: Option<f32>,
    /// Whether a bias is added to queries, keys and values before anything else.
    pub bias: bool,
    /// Factor of the scores before the softmax.
    pub scale: f32,
    /// Size of the sliding window: the number of positions that a token attends to, its own
    /// included. `None` for all positions.
    pub window: Option<usize>,
}

impl HeadShape {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together, which is also that of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
