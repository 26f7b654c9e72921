//! How a token is sampled on the device.

/// How the token of one row of logits is sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits before the softmax. With 0 the token with the largest logit is taken
    /// (greedy decoding), the lowest id if several have it.
    pub temperature: f32,
    /// Number of most probable tokens to keep; 0 keeps all.
    pub top_k: u32,
    /// Cumulative probability that the most probable tokens must reach to be kept (nucleus
    /// sampling); 1 keeps all.
    pub top_p: f32,
    /// Tokens less probable than `min_p` times the most probable one are dropped; 0 keeps all.
    pub min_p: f32,
    /// The uniform random number in [0, 1) that the token is drawn with.
    pub random: f32,
}
